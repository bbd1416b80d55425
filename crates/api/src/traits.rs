//! Traits of applications. Those in the platform's namespaces carry authority over the management
//! plane, so their grammar is closed and zone tokens may not hand them out (spec: admin-api §7.2).

use caracal_model::Timestamp;

use crate::admission::Actor;
use crate::failure::Failure;
use crate::fields::length;

const MOST: usize = 64;
const LONGEST: usize = 128;

/// The scopes of the Control catalog, `control:<command>:<verb>` (spec: admin-api §13).
#[rustfmt::skip] // a table reads best as a table
const CONTROL_COMMANDS: [(&str, &[&str]); 13] = [
    ("app",               &["read", "write", "delete"]),
    ("resource",          &["read", "write", "delete"]),
    ("identity-provider", &["read", "write", "delete"]),
    ("policy",            &["read", "write", "delete"]),
    ("policy-set",        &["read", "write", "delete"]),
    ("workload",          &["read", "write", "delete"]),
    ("authority-record",  &["read"]),
    ("approval",          &["read"]),
    ("audit",             &["read"]),
    ("explain",           &["read"]),
    ("session",           &["read", "write", "delete"]),
    ("delegation",        &["read", "delete"]),
    ("grant",             &["read", "write", "delete"]),
];

fn refused(error: &'static str, description: String) -> Failure {
    Failure::forbidden(error, description)
}

/// Whether an application with these traits is a key of the Control API.
pub fn is_control_key(traits: &[String]) -> bool {
    traits.iter().any(|name| name == "control:invoke")
}

/// Checks the traits that an actor wants to give to an application.
///
/// # Errors
/// 403 with the code of the first rule that is broken.
pub fn check(traits: &[String], actor: &Actor) -> Result<(), Failure> {
    if traits.len() > MOST {
        let why = format!("an application has at most {MOST} traits");
        return Err(refused("trait_count_exceeded", why));
    }
    for (at, name) in traits.iter().enumerate() {
        if !is_well_formed(name) {
            let why = format!(
                "trait {at} must be 1 to {LONGEST} letters, digits, `.`, `_`, `:` or `-`, a letter first"
            );
            return Err(refused("trait_invalid", why));
        }
        if traits.iter().take(at).any(|earlier| earlier == name) {
            return Err(refused(
                "trait_duplicate",
                format!("trait `{name}` is listed twice"),
            ));
        }
        if is_platform(name) && !actor.is_global() {
            let why = format!("trait `{name}` can only be given with a global token");
            return Err(refused("trait_forbidden", why));
        }
    }
    check_control(traits)
}

fn is_well_formed(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    length(name) <= LONGEST
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && name.bytes().all(legal)
}

fn is_platform(name: &str) -> bool {
    let namespace = name.split(':').next().unwrap_or_default();
    matches!(namespace, "control" | "caracal.sys")
}

fn check_control(traits: &[String]) -> Result<(), Failure> {
    let (mut ttls, mut deadlines) = (0, 0);
    for name in traits {
        let Some(rest) = name.strip_prefix("control:") else {
            continue;
        };
        let known = match rest.split_once(':') {
            None => rest == "invoke",
            Some(("scope", scope)) => is_control_scope(scope),
            Some(("max-ttl", seconds)) => {
                ttls += 1;
                is_control_ttl(seconds)
            }
            Some(("expires", at)) => {
                deadlines += 1;
                Timestamp::parse_rfc3339(at).is_ok()
            }
            Some(_) => false,
        };
        if !known || ttls > 1 || deadlines > 1 {
            let why = format!("trait `{name}` is not one that control keys have, or is repeated");
            return Err(refused("trait_invalid", why));
        }
    }
    Ok(())
}

fn is_control_scope(scope: &str) -> bool {
    let mut parts = scope.splitn(3, ':');
    let (Some("control"), Some(command), Some(verb)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    CONTROL_COMMANDS
        .iter()
        .any(|(name, verbs)| *name == command && verbs.contains(&verb))
}

fn is_control_ttl(seconds: &str) -> bool {
    seconds.bytes().all(|b| b.is_ascii_digit())
        && seconds
            .parse::<u32>()
            .is_ok_and(|seconds| (60..=900).contains(&seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Capability;

    fn code(traits: &[&str], zone: Option<&str>) -> &'static str {
        let traits: Vec<String> = traits.iter().map(ToString::to_string).collect();
        let actor = Actor::for_tests(zone, Capability::Write, "admin:t");
        check(&traits, &actor).map_or_else(|failure| failure.error, |()| "fine")
    }

    #[test]
    fn each_rule_has_its_code() {
        let many: Vec<String> = (0..65).map(|n| format!("t{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = "x".repeat(129);
        let mut table = String::new();
        for (traits, zone) in [
            (&["role:clerk"][..], Some("z1")),
            (&many, None),
            (&[""], None),
            (&["1st"], None),
            (&["a b"], None),
            (&[&long], None),
            (&["a", "a"], None),
            (&["control:invoke"], Some("z1")),
            (&["caracal.sys:x"], Some("z1")),
            (&["control:invoke"], None),
            (&["control:scope:control:app:read"], None),
            (&["control:scope:control:app:own"], None),
            (&["control:scope:control:delegation:write"], None),
            (&["control:max-ttl:60", "control:max-ttl:61"], None),
            (&["control:max-ttl:59"], None),
            (&["control:max-ttl:+60"], None),
            (&["control:expires:2027-01-01T00:00:00Z"], None),
            (&["control:expires:tomorrow"], None),
            (&["control"], None),
            (&["control:other"], None),
        ] {
            let shown = traits.first().unwrap().chars().take(40).collect::<String>();
            table.push_str(&format!(
                "{shown:<40} {:<6} {}\n",
                zone.unwrap_or("global"),
                code(traits, zone)
            ));
        }
        insta::assert_snapshot!(table, @r"
        role:clerk                               z1     fine
        t0                                       global trait_count_exceeded
                                                 global trait_invalid
        1st                                      global trait_invalid
        a b                                      global trait_invalid
        xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx global trait_invalid
        a                                        global trait_duplicate
        control:invoke                           z1     trait_forbidden
        caracal.sys:x                            z1     trait_forbidden
        control:invoke                           global fine
        control:scope:control:app:read           global fine
        control:scope:control:app:own            global trait_invalid
        control:scope:control:delegation:write   global trait_invalid
        control:max-ttl:60                       global trait_invalid
        control:max-ttl:59                       global trait_invalid
        control:max-ttl:+60                      global trait_invalid
        control:expires:2027-01-01T00:00:00Z     global fine
        control:expires:tomorrow                 global trait_invalid
        control                                  global fine
        control:other                            global trait_invalid
        ");
    }
}
