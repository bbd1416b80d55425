//! Settings of the export (spec: audit-and-streams §15, operations §2.4). Credentials are those of
//! AWS's own names: keys, a web identity, a container's or the machine's.

use std::path::PathBuf;

use caracal_model::{Secret, Timestamp};
use caracal_net::settings::{Mistakes, Strings};

caracal_net::settings! {
    /// What the export can be told. Without a bucket and a directory there is none.
    pub struct Config {
        /// Bucket that takes the hourly Parquet objects; unset exports to none.
        pub bucket: Option<String> = var("AUDIT_EXPORT_S3_BUCKET").such_as("caracal-audit"),
        /// URL of an S3-compatible server; the bucket is then part of the path.
        pub endpoint: Option<String> = var("AUDIT_EXPORT_S3_ENDPOINT").such_as("https://minio.example:9000"),
        /// Region of the bucket.
        pub region: String = var("AUDIT_EXPORT_S3_REGION").or("us-east-1"),
        /// Directory that takes the objects instead of a bucket.
        pub dir: Option<PathBuf> = var("AUDIT_EXPORT_DIR"),
        /// Scratch space for one object; unset is the system's.
        pub tmp_dir: Option<PathBuf> = var("AUDIT_EXPORT_TMP_DIR"),
        /// First hour to export when nothing was exported yet; unset is the last complete one.
        pub from: Option<String> = var("AUDIT_EXPORT_FROM").such_as("2026-01-01T00:00:00Z"),
        /// Locks each object in the bucket: GOVERNANCE or COMPLIANCE; unset leaves it to the bucket.
        pub lock_mode: Option<String> = var("AUDIT_EXPORT_OBJECT_LOCK_MODE")
            .one_of(&["GOVERNANCE", "COMPLIANCE"]),
        /// Days that each object is locked for.
        pub lock_days: u32 = var("AUDIT_EXPORT_OBJECT_LOCK_DAYS").or("365").within("1", "36500"),
        /// Id of an access key; without one, the identity of the container or machine is used.
        pub access_key_id: Option<Secret<String>> = var("AWS_ACCESS_KEY_ID").secret(),
        /// The access key.
        pub secret_access_key: Option<Secret<String>> = var("AWS_SECRET_ACCESS_KEY").secret(),
        /// The session of a temporary access key.
        pub session_token: Option<Secret<String>> = var("AWS_SESSION_TOKEN").secret(),
        /// Role that a web identity takes on.
        pub role_arn: Option<String> = var("AWS_ROLE_ARN"),
        /// Names that session.
        pub role_session_name: Option<String> = var("AWS_ROLE_SESSION_NAME"),
        /// File with the web identity.
        pub web_identity_token_file: Option<String> = var("AWS_WEB_IDENTITY_TOKEN_FILE"),
        /// Where a container asks for credentials, as a path.
        pub container_relative_uri: Option<String> = var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        /// Where a container asks for credentials, as a URL.
        pub container_full_uri: Option<String> = var("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        /// File with the token for that.
        pub container_token_file: Option<String> = var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    }
}

/// How an object is kept from being changed or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Until it ends, except by who has a permission of its own.
    Governance,
    /// Until it ends, by nobody.
    Compliance,
}

impl LockMode {
    /// As S3 names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

impl Config {
    /// Reads all settings and checks what spans several of them; adds every mistake.
    pub fn read(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        Self::load_by(from, mistakes, Self::check)
    }

    fn check(&self, mistakes: &mut Mistakes) {
        if self.bucket.is_some() && self.dir.is_some() {
            mistakes.add(
                "AUDIT_EXPORT_DIR",
                "is set beside AUDIT_EXPORT_S3_BUCKET; choose one of them",
            );
        }
        if self.lock_mode.is_some() && self.bucket.is_none() {
            mistakes.add(
                "AUDIT_EXPORT_OBJECT_LOCK_MODE",
                "is for buckets; set AUDIT_EXPORT_S3_BUCKET",
            );
        }
        if self.from.is_some() && self.first().is_none() {
            mistakes.add(
                "AUDIT_EXPORT_FROM",
                "is a UTC time such as 2026-01-01T00:00:00Z",
            );
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            mistakes.add(
                "AWS_SECRET_ACCESS_KEY",
                "goes with AWS_ACCESS_KEY_ID; set both or neither",
            );
        }
        let plain = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if !self.endpoint.iter().all(plain) {
            mistakes.add(
                "AUDIT_EXPORT_S3_ENDPOINT",
                "is a URL such as https://minio.example:9000",
            );
        }
    }

    /// Whether anything is exported.
    pub fn is_on(&self) -> bool {
        self.bucket.is_some() || self.dir.is_some()
    }

    /// The first time to export from, when nothing was exported yet.
    pub fn first(&self) -> Option<Timestamp> {
        Timestamp::parse_utc(self.from.as_deref()?).ok()
    }

    /// How objects are locked.
    pub fn lock(&self) -> Option<LockMode> {
        match self.lock_mode.as_deref()? {
            "GOVERNANCE" => Some(LockMode::Governance),
            "COMPLIANCE" => Some(LockMode::Compliance),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn mistakes(pairs: &[(&str, &str)]) -> Vec<String> {
        let from: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let mut mistakes = Mistakes::default();
        Config::read(&from, &mut mistakes);
        mistakes.iter().map(|one| one.name.clone()).collect()
    }

    #[test]
    fn what_contradicts_itself_is_told() {
        let none: [&str; 0] = [];
        assert_eq!(mistakes(&[]), none);
        assert_eq!(mistakes(&[("AUDIT_EXPORT_DIR", "/a")]), none);
        for (pairs, name) in [
            (
                &[("AUDIT_EXPORT_DIR", "/a"), ("AUDIT_EXPORT_S3_BUCKET", "b")][..],
                "AUDIT_EXPORT_DIR",
            ),
            (&[("AUDIT_EXPORT_FROM", "yesterday")], "AUDIT_EXPORT_FROM"),
            (&[("AWS_ACCESS_KEY_ID", "a")], "AWS_SECRET_ACCESS_KEY"),
            (
                &[("AUDIT_EXPORT_S3_ENDPOINT", "minio:9000")],
                "AUDIT_EXPORT_S3_ENDPOINT",
            ),
            (
                &[
                    ("AUDIT_EXPORT_S3_BUCKET", "b"),
                    ("AUDIT_EXPORT_OBJECT_LOCK_MODE", "FOREVER"),
                ],
                "AUDIT_EXPORT_OBJECT_LOCK_MODE",
            ),
        ] {
            assert_eq!(mistakes(pairs), [name], "{pairs:?}");
        }
    }
}
