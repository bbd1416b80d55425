//! What a launched command sees: a short list of harmless variables, and its credentials.

use std::ffi::{OsStr, OsString};

use caracal_model::Secret;

/// A credential and the variable that holds it.
#[derive(Debug)]
pub struct Credential {
    pub env: String,
    pub value: Secret<String>,
    /// Unix seconds.
    pub expires_at: Option<i64>,
}

/// Variables of the caller that are passed on. A list of what may pass, not of what may not:
/// nobody knows all the names under which secrets lie in environments.
const PASSED: [&str; 16] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "TEMP",
    "TMP",
    "LANG",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "CI",
    "NODE_ENV",
    "CARACAL_ENV",
];
const PASSED_PREFIXES: [&str; 2] = ["LC_", "XDG_"];

/// Through these a value becomes code. The API refuses them too; whoever answers for it may not be
/// the API.
const DANGEROUS: [&str; 6] = [
    "NODE_OPTIONS",
    "BUN_OPTIONS",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "DYLD_INSERT_LIBRARIES",
    "DYLD_LIBRARY_PATH",
];

/// The environment of the command. Of two variables with one name the last wins, so a credential
/// wins over whatever the caller has.
pub fn of_the_command(
    callers: impl IntoIterator<Item = (OsString, OsString)>,
    credentials: &[Credential],
) -> Vec<(OsString, OsString)> {
    let passed = callers.into_iter().filter(|(name, _)| passes(name));
    let expiries = credentials.iter().filter_map(|credential| {
        let name = format!("{}_EXPIRES_AT", credential.env);
        Some((name.into(), credential.expires_at?.to_string().into()))
    });
    let values = credentials.iter().map(|credential| {
        (
            credential.env.clone().into(),
            credential.value.expose().into(),
        )
    });
    passed.chain(expiries).chain(values).collect()
}

fn passes(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    PASSED.contains(&name)
        || PASSED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Whether a credential may be put into a variable of this name.
///
/// # Errors
/// Why not.
pub fn check_name(env: &str) -> Result<(), String> {
    let starts = env.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !env.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(format!("`{env}` is no name of a variable"));
    }
    if DANGEROUS.iter().any(|name| env.eq_ignore_ascii_case(name)) {
        return Err(format!("`{env}` would let a credential run code"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let owned = |(name, value): &(&str, &str)| (name.into(), value.into());
        pairs.iter().map(owned).collect()
    }

    fn credential(env: &str, value: &str, expires_at: Option<i64>) -> Credential {
        Credential {
            env: env.to_owned(),
            value: Secret::new(value.to_owned()),
            expires_at,
        }
    }

    #[test]
    fn only_what_is_listed_is_passed_on() {
        let callers = pairs(&[
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("XDG_RUNTIME_DIR", "/run"),
            ("CARACAL_ENV", "production"),
            ("CARACAL_WORKLOAD_SECRET", "ws_x"),
            ("CARACAL_WORKLOAD_SECRET_FILE", "/run/secrets/w"),
            ("CARACAL_ADMIN_TOKEN", "cat_x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("LD_PRELOAD", "x.so"),
            ("path", "lower case is another name"),
        ]);
        let seen = of_the_command(callers, &[]);
        let names: Vec<_> = seen
            .iter()
            .map(|(name, _)| name.to_str().unwrap())
            .collect();
        assert_eq!(names, ["PATH", "LC_ALL", "XDG_RUNTIME_DIR", "CARACAL_ENV"]);
    }

    #[test]
    fn credentials_come_last_with_their_expiry() {
        let seen = of_the_command(
            pairs(&[("TERM", "xterm")]),
            &[
                credential("KEY", "k", Some(1_800_000_000)),
                credential("KEY_EXPIRES_AT", "mine", None),
            ],
        );
        let expected = pairs(&[
            ("TERM", "xterm"),
            ("KEY_EXPIRES_AT", "1800000000"),
            ("KEY", "k"),
            ("KEY_EXPIRES_AT", "mine"),
        ]);
        assert_eq!(seen, expected);
    }

    #[test]
    fn names_that_run_code_or_are_none_are_refused() {
        for good in ["A", "_", "a_1", "PATH_TO"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "1A",
            "A-B",
            "A=B",
            "A B",
            "Ä",
            "ld_preload",
            "NODE_OPTIONS",
            "Dyld_Library_Path",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
