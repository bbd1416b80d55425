//! Who launches, with which secret, and which STS is asked.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use caracal_model::{Secret, id::is_id};
use url::{Host, Url};

use crate::config::Environment;
use crate::home::Home;
use crate::status::PORTS;

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    pub workload_id: Option<&'a str>,
    pub secret_file: Option<&'a Path>,
    pub sts_url: Option<&'a str>,
}

/// What it takes to launch.
#[derive(Debug)]
pub struct Launcher {
    pub workload_id: String,
    pub secret: Secret<String>,
    /// Without a slash at its end.
    pub sts_url: String,
    /// Further certificate authorities.
    pub extra_ca: Option<PathBuf>,
}

impl Launcher {
    pub fn find(settings: &Environment, home: &Home, given: Given<'_>) -> anyhow::Result<Self> {
        let id = given
            .workload_id
            .or_else(|| settings.get("CARACAL_WORKLOAD_ID"));
        let workload_id = id.context(
            "who launches? Set CARACAL_WORKLOAD_ID, or give --workload-id. A workload is made with \
             POST /v1/zones/ZONE/workloads, which answers with its id and its secret",
        )?;
        if !is_id(workload_id) {
            bail!("CARACAL_WORKLOAD_ID is no id: 1 to 128 letters, digits, `_.-:`");
        }
        Ok(Self {
            workload_id: workload_id.to_owned(),
            secret: secret(settings, workload_id, given.secret_file)?,
            sts_url: sts_url(settings, home, given.sts_url)?,
            extra_ca: settings.get("CARACAL_TLS_EXTRA_CA_FILE").map(PathBuf::from),
        })
    }
}

/// Whether conveniences of development are off.
fn is_production(settings: &Environment) -> bool {
    let named = settings
        .get("CARACAL_ENV")
        .or_else(|| settings.get("NODE_ENV"));
    named == Some("production")
}

fn secret(
    settings: &Environment,
    workload_id: &str,
    given: Option<&Path>,
) -> anyhow::Result<Secret<String>> {
    if let Some(file) = given {
        return private_file(file);
    }
    let text = settings.get("CARACAL_WORKLOAD_SECRET");
    let file = settings.get("CARACAL_WORKLOAD_SECRET_FILE");
    match (text, file) {
        (Some(_), Some(_)) => bail!(
            "CARACAL_WORKLOAD_SECRET and CARACAL_WORKLOAD_SECRET_FILE are both set: leave one out"
        ),
        (Some(text), None) => Ok(Secret::new(text.trim().to_owned())),
        (None, Some(file)) => private_file(Path::new(file)),
        (None, None) => {
            let kept = kept_secret(settings, workload_id).filter(|file| file.exists());
            let kept = kept.filter(|_| !is_production(settings)).context(
                "the workload's secret is missing: set CARACAL_WORKLOAD_SECRET_FILE (or \
                 CARACAL_WORKLOAD_SECRET), or give --workload-secret-file. A lost secret is \
                 replaced with POST /v1/zones/ZONE/workloads/ID/rotate-secret",
            )?;
            private_file(&kept)
        }
    }
}

/// Where a secret may be kept during development.
fn kept_secret(settings: &Environment, workload_id: &str) -> Option<PathBuf> {
    let set = |name| settings.get(name).map(PathBuf::from);
    let config = if let Some(config) = set("CARACAL_CONFIG_HOME") {
        config
    } else if let Some(config) = set("XDG_CONFIG_HOME") {
        config.join("caracal")
    } else {
        set("HOME")?.join(if cfg!(target_os = "macos") {
            "Library/Application Support/Caracal"
        } else {
            ".config/caracal"
        })
    };
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '_'
        }
    };
    let directory: String = workload_id.chars().map(safe).collect();
    Some(config.join("runtime").join(directory).join("secret"))
}

/// The text of a file that nobody but its owner can read.
fn private_file(path: &Path) -> anyhow::Result<Secret<String>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("{shown} cannot be read"))?;
    // Of the open file, so that it cannot be another by the time it is read.
    let mode = file
        .metadata()
        .with_context(|| format!("{shown} cannot be read"))?
        .mode();
    if mode & 0o077 != 0 {
        bail!(
            "{shown} can be read by others: `chmod 600 {shown}` (in Kubernetes, defaultMode: 0400)"
        );
    }
    let mut text = String::new();
    file.take(64 * 1024)
        .read_to_string(&mut text)
        .with_context(|| format!("{shown} cannot be read as text"))?;
    let text = Secret::new(text);
    let trimmed = text.expose().trim();
    if trimmed.is_empty() {
        bail!("{shown} is empty");
    }
    Ok(Secret::new(trimmed.to_owned()))
}

fn sts_url(settings: &Environment, home: &Home, given: Option<&str>) -> anyhow::Result<String> {
    let set = given
        .or_else(|| settings.get("CARACAL_STS_URL"))
        .map(str::to_owned);
    let running = || home.runtime().map(|runtime| runtime.urls.sts);
    let usual = || {
        let [_, sts, ..] = PORTS;
        format!("http://localhost:{sts}")
    };
    let text = match set {
        Some(set) => set,
        None if is_production(settings) => {
            bail!("which STS? Set CARACAL_STS_URL, or give --sts-url")
        }
        None => running().unwrap_or_else(usual),
    };
    let url = Url::parse(&text).ok().filter(|url| {
        let plain = url.username().is_empty() && url.password().is_none();
        plain && url.query().is_none() && url.fragment().is_none() && url.has_host()
    });
    let url = url.context("the URL of the STS must be like https://sts.example")?;
    let insecure = settings.get("CARACAL_ALLOW_INSECURE_CONFIG_URLS") == Some("true");
    match url.scheme() {
        "https" => {}
        "http" if is_local(&url) || insecure => {}
        "http" => bail!(
            "{url} is not encrypted: the workload's secret would travel in the clear. Use https, or \
             set CARACAL_ALLOW_INSECURE_CONFIG_URLS=true if the network is yours"
        ),
        _ => bail!("the URL of the STS must be https"),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        fn find(&self, pairs: &[(&str, &str)], given: Given<'_>) -> Result<Launcher, String> {
            let settings = Environment::of_pairs(pairs);
            let home = Home::find(Some(self.0.path()), &settings).unwrap();
            Launcher::find(&settings, &home, given).map_err(|error| format!("{error:#}"))
        }

        fn refused(&self, pairs: &[(&str, &str)]) -> String {
            self.find(pairs, Given::default()).unwrap_err()
        }
    }

    #[test]
    fn the_secret_comes_from_exactly_one_place() {
        let place = Place::new();
        let file = place.file("secret", " ws_file\n", 0o600);
        let file = file.to_str().unwrap();
        let config = place.0.path().to_str().unwrap();
        place.file("runtime/w_1-a/secret", "ws_kept", 0o400);
        let id = ("CARACAL_WORKLOAD_ID", "w.1-a");
        let secret = |pairs: &[(&str, &str)], given| {
            place
                .find(pairs, given)
                .map(|found| found.secret.expose().clone())
        };
        let none = Given::default();
        assert_eq!(
            secret(&[id, ("CARACAL_WORKLOAD_SECRET", "ws_env")], none).unwrap(),
            "ws_env"
        );
        assert_eq!(
            secret(&[id, ("CARACAL_WORKLOAD_SECRET_FILE", file)], none).unwrap(),
            "ws_file"
        );
        let given = Given {
            secret_file: Some(Path::new(file)),
            ..none
        };
        assert_eq!(
            secret(&[id, ("CARACAL_WORKLOAD_SECRET", "ws_env")], given).unwrap(),
            "ws_file"
        );
        let both = secret(
            &[
                id,
                ("CARACAL_WORKLOAD_SECRET", "a"),
                ("CARACAL_WORKLOAD_SECRET_FILE", file),
            ],
            none,
        );
        assert!(both.unwrap_err().contains("both set"));
        let kept = [id, ("CARACAL_CONFIG_HOME", config)];
        assert_eq!(secret(&kept, none).unwrap(), "ws_kept");
        let production = [
            kept[0],
            kept[1],
            ("CARACAL_ENV", "production"),
            ("CARACAL_STS_URL", "https://x"),
        ];
        assert!(
            secret(&production, none)
                .unwrap_err()
                .contains("secret is missing")
        );
        // CARACAL_ENV comes before NODE_ENV.
        let other = [
            kept[0],
            kept[1],
            ("CARACAL_ENV", "test"),
            ("NODE_ENV", "production"),
        ];
        assert_eq!(secret(&other, none).unwrap(), "ws_kept");
    }

    #[test]
    fn a_file_that_others_can_read_is_no_secret() {
        let place = Place::new();
        for mode in [0o640, 0o604, 0o644, 0o660] {
            let file = place.file("secret", "ws_x", mode);
            let file = file.to_str().unwrap();
            let told = place.refused(&[
                ("CARACAL_WORKLOAD_ID", "w"),
                ("CARACAL_WORKLOAD_SECRET_FILE", file),
            ]);
            assert!(
                told.contains("chmod 600") && !told.contains("ws_x"),
                "{told}"
            );
        }
        let empty = place.file("empty", "\n", 0o600);
        let told = place.refused(&[
            ("CARACAL_WORKLOAD_ID", "w"),
            ("CARACAL_WORKLOAD_SECRET_FILE", empty.to_str().unwrap()),
        ]);
        assert!(told.contains("is empty"), "{told}");
    }

    #[test]
    fn the_secret_travels_encrypted_or_not_far() {
        let place = Place::new();
        let url = |text: &str, more: &[(&str, &str)]| {
            let mut pairs = vec![
                ("CARACAL_WORKLOAD_ID", "w"),
                ("CARACAL_WORKLOAD_SECRET", "ws_x"),
                ("CARACAL_STS_URL", text),
            ];
            pairs.extend_from_slice(more);
            place
                .find(&pairs, Given::default())
                .map(|found| found.sts_url)
        };
        for good in [
            "https://sts.example",
            "http://localhost:8080",
            "http://127.0.0.2",
            "http://[::1]:1",
        ] {
            assert_eq!(url(good, &[]).unwrap(), good);
        }
        assert_eq!(
            url("https://sts.example/", &[]).unwrap(),
            "https://sts.example"
        );
        assert_eq!(url("", &[]).unwrap(), "http://localhost:8080");
        let production = [("NODE_ENV", "production")];
        assert!(
            url("", &production)
                .unwrap_err()
                .contains("CARACAL_STS_URL")
        );
        for bad in [
            "sts.example",
            "ftp://sts.example",
            "https://user:pass@sts.example",
            "https://sts.example?x=1",
            "http://sts.example",
            "http://localhost.example",
        ] {
            assert!(url(bad, &[]).is_err(), "{bad}");
        }
        let mine = [("CARACAL_ALLOW_INSECURE_CONFIG_URLS", "true")];
        assert!(url("http://sts.internal", &mine).is_ok());
    }

    #[test]
    fn an_id_is_needed() {
        let place = Place::new();
        assert!(place.refused(&[]).contains("CARACAL_WORKLOAD_ID"));
        assert!(
            place
                .refused(&[("CARACAL_WORKLOAD_ID", "a b")])
                .contains("no id")
        );
    }
}
