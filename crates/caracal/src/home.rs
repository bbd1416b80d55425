//! The data directory: where it is, the secrets in it, and the lock that makes one process its
//! owner.
//!
//! **Choice.** Ownership is a lock of the operating system on `.lock`, which also holds the pid: it
//! ends with the process, however that ends, so nothing is ever stale.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use caracal_crypto::digest::hex_encode;
use caracal_model::{Rng, Secret};
use serde::{Deserialize, Serialize};

use crate::config::Environment;

/// A setting that holds a secret, and the file that keeps it.
#[derive(Clone, Copy, Debug)]
pub struct SecretFile {
    /// The setting's name.
    pub setting: &'static str,
    /// The file below `secrets/`; the same key as in the chart (operations specification §11).
    pub file: &'static str,
}

/// What an embedded deployment makes for itself: 32 random bytes each, in hex.
pub const SECRETS: [SecretFile; 9] = [
    SecretFile {
        setting: "CARACAL_ADMIN_TOKEN",
        file: "caracalAdminToken",
    },
    SecretFile {
        setting: "CARACAL_COORDINATOR_TOKEN",
        file: "caracalCoordinatorToken",
    },
    SecretFile {
        setting: "SECRET_STORE_KEK",
        file: "secretStoreKek",
    },
    SecretFile {
        setting: "AUDIT_HMAC_KEY",
        file: "auditHmacKey",
    },
    SecretFile {
        setting: "STREAMS_HMAC_KEY",
        file: "streamsHmacKey",
    },
    SecretFile {
        setting: "IDEMPOTENCY_HMAC_KEY",
        file: "idempotencyHmacKey",
    },
    SecretFile {
        setting: "GATEWAY_STS_HMAC_KEY",
        file: "gatewayStsHmacKey",
    },
    SecretFile {
        setting: "STS_ADMIN_TOKEN",
        file: "stsAdminToken",
    },
    SecretFile {
        setting: "METRICS_BEARER",
        file: "metricsBearer",
    },
];

/// A data directory.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// The running process's hold on a data directory.
#[derive(Debug)]
pub struct Owned {
    /// Unlocked when it is closed.
    _lock: File,
}

/// What a running `up` says about itself (`runtime.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Of the binary.
    pub version: String,
    /// When it became ready.
    pub updated_at: String,
    pub pid: u32,
    pub urls: Urls,
}

/// Where the services listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urls {
    pub api: String,
    pub sts: String,
    pub gateway: String,
    pub coordinator: String,
    pub audit: String,
}

impl Urls {
    /// The services at `host`, on these ports: api, sts, gateway, coordinator, audit.
    pub fn at(host: &str, ports: [u16; 5]) -> Self {
        let [api, sts, gateway, coordinator, audit] =
            ports.map(|port| format!("http://{host}:{port}"));
        Self {
            api,
            sts,
            gateway,
            coordinator,
            audit,
        }
    }

    /// Names and URLs in the order in which `status` lists them.
    pub fn named(&self) -> [(&'static str, &str); 5] {
        [
            ("api", &self.api),
            ("sts", &self.sts),
            ("gateway", &self.gateway),
            ("audit", &self.audit),
            ("coordinator", &self.coordinator),
        ]
    }
}

impl Home {
    /// The directory given, or `CARACAL_HOME`, or the platform's place for application data
    /// (operations specification §12).
    pub fn find(given: Option<&Path>, environment: &Environment) -> anyhow::Result<Self> {
        let set = |name| environment.get(name).map(PathBuf::from);
        let path = if let Some(given) = given {
            given.to_path_buf()
        } else if let Some(home) = set("CARACAL_HOME") {
            home
        } else if let Some(data) = set("XDG_DATA_HOME") {
            data.join("caracal")
        } else {
            let home = set("HOME").context(
                "no place for data: neither CARACAL_HOME nor HOME is set. Give --data-dir",
            )?;
            home.join(if cfg!(target_os = "macos") {
                "Library/Application Support/caracal"
            } else {
                ".local/share/caracal"
            })
        };
        Ok(Self(std::path::absolute(path)?))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn database(&self) -> PathBuf {
        self.0.join("caracal.db")
    }

    pub fn evidence(&self) -> PathBuf {
        self.0.join("audit-replay")
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("caracal.log")
    }

    pub fn secret(&self, file: &str) -> PathBuf {
        self.0.join("secrets").join(file)
    }

    pub fn admin_token_file(&self) -> PathBuf {
        self.secret("caracalAdminToken")
    }

    /// Makes the directory, and every secret that is not there yet.
    pub fn prepare(&self, rng: &dyn Rng) -> anyhow::Result<()> {
        for directory in [self.0.clone(), self.0.join("secrets"), self.evidence()] {
            std::fs::create_dir_all(&directory)
                .and_then(|()| std::fs::set_permissions(&directory, Permissions::from_mode(0o700)))
                .with_context(|| {
                    format!(
                        "{} cannot be made; choose another --data-dir",
                        directory.display()
                    )
                })?;
        }
        for secret in SECRETS {
            create_secret(&self.secret(secret.file), rng)?;
        }
        Ok(())
    }

    /// Becomes the owner of the directory.
    ///
    /// # Errors
    /// Another process owns it.
    pub fn own(&self) -> anyhow::Result<Owned> {
        let path = self.0.join(".lock");
        let mut file =
            open_lock(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
        if !lock_patiently(&file) {
            return Err(self.already_running());
        }
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(Owned { _lock: file })
    }

    /// What to say to a second `up`.
    pub fn already_running(&self) -> anyhow::Error {
        anyhow::anyhow!(
            "Caracal is already running on {}. See it with `caracal status`, stop it with \
             `caracal down`, or give this one a --data-dir of its own",
            self.0.display()
        )
    }

    /// The process that owns the directory, if one does.
    pub fn owner(&self) -> anyhow::Result<Option<u32>> {
        let Ok(mut file) = File::open(self.0.join(".lock")) else {
            return Ok(None);
        };
        if file.try_lock_shared().is_ok() {
            return Ok(None);
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // Locked but not written yet: it is just starting.
        Ok(Some(text.trim().parse().unwrap_or(0)))
    }

    /// What the running `up` said about itself.
    pub fn runtime(&self) -> Option<Runtime> {
        serde_json::from_str(&std::fs::read_to_string(self.0.join("runtime.json")).ok()?).ok()
    }

    pub fn write_runtime(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let path = self.0.join("runtime.json");
        let text = serde_json::to_string_pretty(runtime)?;
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    }

    pub fn forget_runtime(&self) {
        // Left behind, it would only make `status` ask ports where nobody listens.
        drop(std::fs::remove_file(self.0.join("runtime.json")));
    }

    /// The admin token of this deployment.
    pub fn admin_token(&self) -> anyhow::Result<Secret<String>> {
        read_secret(&self.admin_token_file())
    }
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// `status` holds the lock for an instant when it asks who owns it: that is no owner.
fn lock_patiently(file: &File) -> bool {
    (0..5).any(|_| {
        let locked = file.try_lock().is_ok();
        if !locked {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        locked
    })
}

/// Never overwrites: a secret that is lost loses what it protects.
fn create_secret(path: &Path, rng: &dyn Rng) -> anyhow::Result<()> {
    if std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    let mut bytes = [0u8; 32];
    rng.fill(&mut bytes);
    let text = Secret::new(hex_encode(&bytes));
    let write = || {
        // Renamed into place, so that a crash leaves either no secret or a whole one.
        let partial = path.with_extension("partial");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(text.expose().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// The text of a secret file, without trailing white space.
pub fn read_secret(path: &Path) -> anyhow::Result<Secret<String>> {
    let text = Secret::new(
        std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?,
    );
    let trimmed = text.expose().trim_end();
    if trimmed.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(Secret::new(trimmed.to_owned()))
}

#[cfg(test)]
mod tests {
    use caracal_model::TestRng;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home(directory.path().join("data"));
        home.prepare(&TestRng::default()).unwrap();
        (directory, home)
    }

    #[test]
    fn secrets_are_made_once_and_are_for_the_owner_alone() {
        let (_directory, home) = home();
        let first = home.admin_token().unwrap();
        home.prepare(&caracal_crypto::os::OsRng).unwrap();
        assert!(
            home.admin_token().unwrap() == first,
            "a second start keeps the token"
        );
        for secret in SECRETS {
            let file = std::fs::metadata(home.secret(secret.file)).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, 0o600, "{}", secret.file);
            assert_eq!(file.len(), 64, "{}", secret.file);
        }
        assert_eq!(
            std::fs::metadata(home.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let (_directory, home) = home();
        assert_eq!(home.owner().unwrap(), None);
        let owned = home.own().unwrap();
        assert_eq!(home.owner().unwrap(), Some(std::process::id()));
        let refused = home.own().unwrap_err().to_string();
        assert!(refused.contains("already running"), "{refused}");
        drop(owned);
        assert_eq!(
            home.owner().unwrap(),
            None,
            "ownership ends with its holder"
        );
        assert!(home.own().is_ok());
    }

    #[test]
    fn the_place_of_data_is_given_or_set_or_the_users() {
        let environment = |pairs: &[(&str, &str)]| Environment::of_pairs(pairs);
        let all = [
            ("CARACAL_HOME", "/a"),
            ("XDG_DATA_HOME", "/b"),
            ("HOME", "/c"),
        ];
        let find = |given: Option<&str>, skip: usize| {
            let environment = environment(all.get(skip..).unwrap());
            Home::find(given.map(Path::new), &environment).map(|home| home.path().to_path_buf())
        };
        assert_eq!(find(Some("/given"), 0).unwrap(), Path::new("/given"));
        assert_eq!(find(None, 0).unwrap(), Path::new("/a"));
        assert_eq!(find(None, 1).unwrap(), Path::new("/b/caracal"));
        assert!(find(None, 2).unwrap().starts_with("/c"));
        assert!(find(None, 3).is_err());
    }
}
