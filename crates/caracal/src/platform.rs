//! Settings that belong to the process and not to one service: keys, streams, evidence, shutdown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::mac::HmacKey;
use caracal_evidence::Durability;
use caracal_model::Secret;
use caracal_net::settings::{Mistakes, Mode, Strings};
use caracal_vaults::Chosen;
use url::Url;

use crate::database::DatabaseConfig;
use crate::roles::Role;
use crate::streams::StreamSettings;
use crate::telemetry::{self, LogSettings};

caracal_net::settings! {
    /// What a process is set to, whatever its roles.
    pub struct Settings {
        /// Posture: `dev`, `rc` or `stable`; unset is `stable`.
        pub mode: Mode = var("CARACAL_MODE").or("stable"),
        /// Streams, claims and counters; embedded, where the published streams are mirrored to.
        pub redis_url: Option<Secret<String>> = var("REDIS_URL").secret()
            .needed("for `caracal serve`").such_as("redis://redis:6379"),
        /// Signs evidence and its chain; hex, at least 32 bytes.
        pub audit_key: Option<HmacKey> = var("AUDIT_HMAC_KEY").secret()
            .needed("unless dev; by STS, Gateway and Audit"),
        /// Signs the streams; hex, at least 32 bytes.
        pub streams_key: Option<HmacKey> = var("STREAMS_HMAC_KEY").secret()
            .needed("unless dev; by all but Audit"),
        /// Authenticates the exchanges of the Gateway; hex, at least 32 bytes.
        pub exchange_key: Option<HmacKey> = var("GATEWAY_STS_HMAC_KEY").secret()
            .needed("unless dev").only_for(&["sts", "gateway"]),
        /// Seals stored credentials and signing keys; exactly 32 bytes in hex.
        pub kek: Option<Secret<String>> = var("SECRET_STORE_KEK").secret()
            .needed("by API and STS; Audit signs checkpoints with it")
            .only_for(&["api", "sts", "audit"]).such_as("64 hex digits"),
        /// The one before, while secrets are sealed again.
        pub kek_previous: Option<Secret<String>> = var("SECRET_STORE_KEK_PREVIOUS").secret()
            .only_for(&["api", "sts", "audit"]).such_as("64 hex digits"),
        /// How long a replica answers from memory after the feed was last confirmed.
        pub feed_max_lag: Duration = var("FEED_MAX_LAG").or("1s").within("100ms", "10s"),
        /// Where evidence waits until the ledger has it.
        pub replay_dir: PathBuf = var("AUDIT_REPLAY_DIR").or("/var/lib/caracal/audit-replay"),
        /// When evidence counts as recorded: `process` (survives any kill) or `machine` (a power cut).
        pub audit_durability: String = var("AUDIT_DURABILITY").or("process")
            .one_of(&["process", "machine"]),
        /// How long requests in flight may take once the process stops. Unset is 15 s for API and
        /// Coordinator, 14 s for the Gateway, 10 s for STS and Audit.
        pub shutdown_grace: Option<Duration> = var("SHUTDOWN_GRACE_MS").millis()
            .within("1", "600000").such_as("15000"),
        /// Names this process among its replicas; unset is host name and process id.
        pub worker: Option<String> = var("WORKER_ID").such_as("sts-0"),
        /// Hosts of token endpoints, issuers and webhooks whose addresses may be private.
        pub private_hosts: Vec<String> = var("CARACAL_PRIVATE_EGRESS_HOSTS").or(" ")
            .only_for(&["api", "sts"]).such_as("idp.internal,crm.internal"),
        /// More roots to trust, PEM; for Postgres, Redis and everything that is asked over TLS.
        pub extra_ca: Option<PathBuf> = var("CARACAL_TLS_EXTRA_CA_FILE")
            .such_as("/etc/caracal/ca.pem"),
        /// The collector of traces, OTLP over HTTP; unset is off. `/v1/traces` is appended.
        pub otlp_endpoint: Option<Url> = var("OTEL_EXPORTER_OTLP_ENDPOINT")
            .such_as("http://collector:4318"),
        /// How the collector is spoken to.
        pub otlp_protocol: String = var("OTEL_EXPORTER_OTLP_PROTOCOL").or("http/protobuf")
            .one_of(&["http/protobuf"]),
        /// What traces say of this process besides: `name=value,name=value`, percent-encoded.
        pub resource_attributes: Option<String> = var("OTEL_RESOURCE_ATTRIBUTES")
            .such_as("team=desk,region=eu"),
        /// Refused outside of `dev`.
        pub insecure_sts: bool = var("INSECURE_STS").or("false"),
        /// Refused outside of `dev`.
        pub insecure_http: bool = var("INSECURE_HTTP").or("false"),
    }
}

const KEK: &str = "SECRET_STORE_KEK";
const KEK_PREVIOUS: &str = "SECRET_STORE_KEK_PREVIOUS";

/// Whether any of these roles opens sealed secrets.
pub fn holds_secrets(roles: &[Role]) -> bool {
    roles
        .iter()
        .any(|role| matches!(role, Role::Api | Role::Sts))
}

impl Settings {
    /// Reads the settings, and checks what these roles require of them.
    pub fn read(from: &dyn Strings, roles: &[Role], mistakes: &mut Mistakes) -> Option<Self> {
        let settings = Self::load_by(from, mistakes, |settings, mistakes| {
            settings.check(roles, mistakes);
        });
        // Used later: here it is only told what is wrong with them.
        DatabaseConfig::read(from, mistakes);
        StreamSettings::load(from, mistakes);
        LogSettings::read(from, mistakes);
        if holds_secrets(roles) {
            Chosen::load(from, mistakes);
        }
        settings
    }

    fn check(&self, roles: &[Role], mistakes: &mut Mistakes) {
        let any = |of: &[Role]| roles.iter().any(|role| of.contains(role));
        let key = "is required: 64 hex digits or more, the same in every process";
        if holds_secrets(roles) && self.kek.is_none() {
            mistakes.add(KEK, "is required: exactly 64 hex digits, kept safe");
        }
        for (name, text) in [KEK, KEK_PREVIOUS].into_iter().zip(self.keks()) {
            if let Some(text) = text
                && let Err(error) = Kek::from_hex(text.expose())
            {
                mistakes.add(name, error.to_string());
            }
        }
        // What holds for a mode that was mistyped is not known.
        if self.mode == Mode::Dev || mistakes.tell_of("CARACAL_MODE") {
            return;
        }
        for (name, set) in [
            ("INSECURE_STS", self.insecure_sts),
            ("INSECURE_HTTP", self.insecure_http),
        ] {
            if set {
                mistakes.add(name, "is allowed only with CARACAL_MODE=dev");
            }
        }
        if any(&[Role::Sts, Role::Gateway, Role::Audit]) && self.audit_key.is_none() {
            mistakes.add("AUDIT_HMAC_KEY", key);
        }
        if any(&[Role::Api, Role::Sts, Role::Gateway, Role::Coordinator])
            && self.streams_key.is_none()
        {
            mistakes.add("STREAMS_HMAC_KEY", key);
        }
        if any(&[Role::Sts, Role::Gateway]) && self.exchange_key.is_none() {
            mistakes.add("GATEWAY_STS_HMAC_KEY", key);
        }
    }

    /// `AUDIT_DURABILITY`.
    pub fn durability(&self) -> Durability {
        match self.audit_durability.as_str() {
            "machine" => Durability::Machine,
            _ => Durability::Process,
        }
    }

    /// The keys that seal, for processes that hold secrets.
    pub fn keyring(&self) -> anyhow::Result<Option<Arc<Keyring>>> {
        let [current, previous] = self.keks();
        let Some(current) = current else {
            return Ok(None);
        };
        let current = Kek::from_hex(current.expose()).context(KEK)?;
        let previous = previous.map(|text| Kek::from_hex(text.expose()));
        let previous = previous.transpose().context(KEK_PREVIOUS)?;
        Ok(Some(Arc::new(Keyring::new(current, previous))))
    }

    /// The text of the current key and of the one before.
    fn keks(&self) -> [Option<&Secret<String>>; 2] {
        [self.kek.as_ref(), self.kek_previous.as_ref()]
    }

    /// Of this process alone.
    pub fn replica(&self) -> String {
        let own = || format!("{}:{}", telemetry::hostname(), std::process::id());
        self.worker.clone().unwrap_or_else(own)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn mistakes(roles: &[Role], pairs: &[(&str, &str)]) -> Vec<String> {
        let from: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let mut mistakes = Mistakes::default();
        Settings::read(&from, roles, &mut mistakes);
        mistakes
            .iter()
            .map(|mistake| mistake.name.clone())
            .collect()
    }

    #[test]
    fn each_role_requires_its_own_keys() {
        assert_eq!(mistakes(&[Role::Audit], &[]), ["AUDIT_HMAC_KEY"]);
        assert_eq!(mistakes(&[Role::Coordinator], &[]), ["STREAMS_HMAC_KEY"]);
        assert_eq!(
            mistakes(&[Role::Gateway], &[]),
            ["AUDIT_HMAC_KEY", "STREAMS_HMAC_KEY", "GATEWAY_STS_HMAC_KEY"]
        );
        assert_eq!(
            mistakes(&[Role::Api], &[]),
            ["SECRET_STORE_KEK", "STREAMS_HMAC_KEY"]
        );
        assert_eq!(
            mistakes(&[Role::Gateway], &[("CARACAL_MODE", "dev")]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn who_opens_secrets_needs_their_backend_whole() {
        let kek = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";
        let backend = [
            ("CARACAL_SECRET_BACKEND", "vault"),
            ("CARACAL_MODE", "dev"),
            ("SECRET_STORE_KEK", kek),
        ];
        let missing = ["CARACAL_VAULT_ADDR", "CARACAL_VAULT_TOKEN"];
        assert_eq!(mistakes(&[Role::Sts], &backend), missing);
        assert_eq!(mistakes(&[Role::Api], &backend), missing);
        assert_eq!(mistakes(&[Role::Gateway], &backend), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_told_beside_what_is_wrong() {
        let wrong = [
            ("FEED_MAX_LAG", "1h"),
            ("INSECURE_HTTP", "1"),
            ("SECRET_STORE_KEK", "short"),
            ("SECRET_STORE_KEK_PREVIOUS", "short"),
            ("DATABASE_URL", "postgres://pg/caracal?sslmode=perhaps"),
            ("DB_MIN_CONNS", "some"),
            ("LOG_LEVEL", "loud"),
            ("CARACAL_LOG_QUEUE_SIZE", "0"),
            ("CARACAL_SECRET_BACKEND", "vault"),
            ("CARACAL_SECRET_BACKEND_LEAVE", "perhaps"),
            ("CARACAL_VAULT_ADDR", "http://vault.example"),
        ];
        let mut told = mistakes(&[Role::Sts], &wrong);
        told.sort();
        let expected = [
            "AUDIT_HMAC_KEY",
            "CARACAL_LOG_QUEUE_SIZE",
            "CARACAL_SECRET_BACKEND_LEAVE",
            "CARACAL_VAULT_ADDR",
            "CARACAL_VAULT_TOKEN",
            "DATABASE_URL",
            "DB_MIN_CONNS",
            "FEED_MAX_LAG",
            "GATEWAY_STS_HMAC_KEY",
            "INSECURE_HTTP",
            "LOG_LEVEL",
            "SECRET_STORE_KEK",
            "SECRET_STORE_KEK_PREVIOUS",
            "STREAMS_HMAC_KEY",
        ];
        assert_eq!(told, expected);
        // A mistyped `dev` is not told that it needs what a deployment needs.
        let mode = mistakes(&[Role::Gateway], &[("CARACAL_MODE", "devel")]);
        assert_eq!(mode, ["CARACAL_MODE"]);
    }

    #[test]
    fn insecurity_is_for_development() {
        let insecure = [("INSECURE_HTTP", "1"), ("AUDIT_HMAC_KEY", &"ab".repeat(32))];
        assert_eq!(mistakes(&[Role::Audit], &insecure), ["INSECURE_HTTP"]);
        let durability = [("AUDIT_DURABILITY", "perhaps"), ("CARACAL_MODE", "dev")];
        assert_eq!(mistakes(&[Role::Audit], &durability), ["AUDIT_DURABILITY"]);
        let grpc = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("CARACAL_MODE", "dev"),
        ];
        assert_eq!(
            mistakes(&[Role::Audit], &grpc),
            ["OTEL_EXPORTER_OTLP_PROTOCOL"]
        );
    }
}
