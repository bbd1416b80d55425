//! Settings of this service (spec: coordinator §14). Those of storage, streams and the server are
//! the binary's.

use std::time::Duration;

use caracal_crypto::mac::HmacKey;
use caracal_model::Secret;
use caracal_net::settings::{Mistakes, Mode, Strings};

caracal_net::settings! {
    /// What this service can be told.
    pub struct Config {
        /// Issuer and audience of every token, verbatim.
        pub issuer: String = var("ISSUER_URL").such_as("https://sts.example"),
        /// The scope that every lifecycle token needs.
        pub scope: String = var("AGENT_COORDINATOR_SCOPE").or("agent:lifecycle"),
        /// Posture; unset is stable.
        pub mode: Option<Mode> = var("CARACAL_MODE"),
        /// The operator's token, for every zone.
        pub operator_token: Option<Secret<String>> = var("CARACAL_COORDINATOR_TOKEN").secret(),
        /// Opens `/metrics`, as the operator token does.
        pub metrics_bearer: Option<Secret<String>> = var("METRICS_BEARER").secret(),
        /// Live Sessions of one zone.
        pub max_per_zone: u32 = var("MAX_AGENTS_PER_ZONE").or("50").within("1", "1000000000"),
        /// Live Sessions of one application.
        pub max_per_application: u32 = var("MAX_AGENTS_PER_APP").or("200").within("1", "1000000000"),
        /// Lease of a service.
        pub lease: Duration = var("SERVICE_AGENT_LEASE_SECONDS").or("120").seconds().within("5", "86400"),
        /// How often tasks past their time are ended.
        pub ttl_sweep: Duration = var("TTL_SWEEP_INTERVAL_MS").or("60000").millis().within("100", "3600000"),
        /// How often services without a heartbeat are suspended.
        pub lease_sweep: Duration = var("SERVICE_LEASE_SWEEP_INTERVAL_MS").or("30000").millis().within("100", "3600000"),
        /// Rows that one sweep takes at a time.
        pub sweep_batch: u32 = var("SWEEPER_BATCH_SIZE").or("500").within("1", "10000"),
        /// How often what is old is deleted.
        pub retention_interval: Duration = var("RETENTION_CLEANUP_INTERVAL_MS").or("900000").millis().within("1000", "86400000"),
        /// Rows of a table that are deleted at a time.
        pub retention_batch: u32 = var("RETENTION_CLEANUP_BATCH_SIZE").or("500").within("1", "10000"),
        /// Days that ended Sessions are kept.
        pub session_days: u32 = var("SESSION_RETENTION_DAYS").or("90").within("1", "36500"),
        /// Days that ended Delegations are kept.
        pub delegation_days: u32 = var("DELEGATION_RETENTION_DAYS").or("90").within("1", "36500"),
        /// Days that published outbox entries are kept.
        pub outbox_days: u32 = var("OUTBOX_RETENTION_DAYS").or("7").within("1", "36500"),
        /// How long idempotency keys are remembered.
        pub receipt_retention: Duration = var("IDEMPOTENCY_RETENTION_SECONDS").or("604800").seconds().within("3600", "31536000"),
        /// The same, for keys that a client made up for one call.
        pub generated_receipt_retention: Duration = var("GENERATED_IDEMPOTENCY_RETENTION_SECONDS").or("86400").seconds().within("3600", "31536000"),
        /// Keys in force of one operation and application.
        pub max_receipts: u32 = var("IDEMPOTENCY_MAX_RECEIPTS_PER_SCOPE").or("10000").within("100", "1000000000"),
        /// Under which idempotency keys are stored; hex, at least 32 bytes.
        pub idempotency_key: Option<HmacKey> = var("IDEMPOTENCY_HMAC_KEY").secret()
            .needed("when CARACAL_MODE is rc or stable"),
        /// The key before that one, still read during a rotation.
        pub previous_idempotency_key: Option<HmacKey> = var("IDEMPOTENCY_HMAC_KEY_PREVIOUS").secret(),
        /// Requests a minute of one application, and of one address before authentication; 0 is
        /// no limit.
        pub rate: u32 = var("COORDINATOR_RATE_LIMIT_PER_MIN").or("600").within("0", "1000000000"),
        /// Requests a minute of one address to `/ready`; 0 is no limit.
        pub ready_rate: u32 = var("READY_RATE_LIMIT_PER_MIN").or("120").within("0", "1000000000"),
        /// Largest body.
        pub body_limit: usize = var("COORDINATOR_BODY_LIMIT_BYTES").or("262144").within("1024", "16777216"),
        /// Longest request.
        pub request_timeout: Duration = var("REQUEST_TIMEOUT_MS").or("30000").millis().within("100", "600000"),
        /// How long a connection may be idle between requests; longer than that of a load balancer
        /// before us.
        pub keep_alive: Duration = var("KEEP_ALIVE_TIMEOUT_MS").or("75000").millis().within("100", "86400000"),
        /// Whether `X-Forwarded-For` names the caller.
        pub trust_proxy: bool = var("TRUST_PROXY").or("false"),
        /// Whether a federated user's record needs its token at the start of a Session.
        pub require_subject_proof: bool = var("COORDINATOR_REQUIRE_SUBJECT_PROOF").or("false"),
        /// Whether the end of any Session with Delegations raises the epoch, for receivers that
        /// read that stream only.
        pub epoch_on_session_end: bool = var("DELEGATION_EPOCH_ON_SESSION_END").or("false"),
        /// Dead outbox entries beyond which `/ready` fails; unset is never.
        pub ready_outbox_dead_max: Option<u64> = var("COORDINATOR_READY_OUTBOX_DEAD_MAX").within("0", "1000000000"),
        /// Stays ready while Redis is away: what is changed then is recorded, holds for whoever reads
        /// the database meanwhile, and is announced once Redis is back. For where readiness decides
        /// who is sent requests, so that authority can still be taken away.
        pub ready_without_redis: bool = var("READY_WITHOUT_REDIS").or("false"),
    }
}

impl Config {
    /// Reads all settings and checks what spans several of them.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn read(from: &dyn Strings) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        Self::load_by(from, &mut mistakes, Self::check).ok_or(mistakes)
    }

    fn check(&self, mistakes: &mut Mistakes) {
        let explicit = matches!(self.mode, Some(Mode::Rc | Mode::Stable));
        if explicit && self.idempotency_key.is_none() {
            mistakes.add(
                "IDEMPOTENCY_HMAC_KEY",
                "is required when CARACAL_MODE is rc or stable: 64 hex digits or more",
            );
        }
        if self.previous_idempotency_key.is_some() && self.idempotency_key.is_none() {
            mistakes.add(
                "IDEMPOTENCY_HMAC_KEY_PREVIOUS",
                "has no meaning without IDEMPOTENCY_HMAC_KEY",
            );
        }
    }

    /// Whether conveniences of development are allowed.
    pub fn is_dev(&self) -> bool {
        self.mode == Some(Mode::Dev)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, Mistakes> {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Config::read(&map)
    }

    #[test]
    fn defaults_are_those_of_the_published_service() {
        let config = read(&[("ISSUER_URL", "https://sts.example")]).unwrap();
        assert_eq!((config.max_per_zone, config.max_per_application), (50, 200));
        assert_eq!(config.lease, Duration::from_secs(120));
        assert_eq!((config.rate, config.body_limit), (600, 262_144));
        assert_eq!(config.scope, "agent:lifecycle");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mistakes = read(&[
            ("IDEMPOTENCY_MAX_RECEIPTS_PER_SCOPE", "99"),
            ("GENERATED_IDEMPOTENCY_RETENTION_SECONDS", "60"),
            ("MAX_AGENTS_PER_ZONE", "many"),
        ])
        .unwrap_err();
        assert_eq!(mistakes.count(), 4, "{mistakes}");
        let explicit = [
            ("ISSUER_URL", "https://sts.example"),
            ("CARACAL_MODE", "stable"),
        ];
        let mistakes = read(&explicit).unwrap_err().to_string();
        assert!(mistakes.contains("IDEMPOTENCY_HMAC_KEY"), "{mistakes}");
    }
}
