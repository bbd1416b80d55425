//! Settings of this service (spec: operations §2.4). Those of storage, streams and the server are
//! the binary's.

use std::time::Duration;

use caracal_crypto::HmacKey;
use caracal_ledger::note::is_name;
use caracal_model::Secret;
use caracal_net::settings::{Mistakes, Mode, Strings};

caracal_net::settings! {
    /// What this service can be told.
    pub struct Config {
        /// Posture; unset is stable.
        pub mode: Mode = var("CARACAL_MODE").or("stable"),
        /// Signs events and chains; hex, at least 32 bytes.
        pub key: Option<HmacKey> = var("AUDIT_HMAC_KEY").secret().needed("unless dev"),
        /// Opens `/api/audit/*`; without it those routes do not exist.
        pub admin_token: Option<Secret<String>> = var("AUDIT_ADMIN_TOKEN").secret(),
        /// Opens `/metrics`; without it they are open in dev and closed otherwise.
        pub metrics_bearer: Option<Secret<String>> = var("METRICS_BEARER").secret(),
        /// When entries that another replica did not finish are taken over.
        pub claim_idle: Duration = var("AUDIT_CLAIM_IDLE_SECS").or("30").seconds().within("1", "86400"),
        /// How often an entry may fail while others succeed before it is a dead letter.
        pub max_deliveries: u32 = var("AUDIT_MAX_DELIVERIES").or("8").within("1", "1000"),
        /// Days after which whole months of evidence are dropped; an operator can set fewer.
        pub retention_days: u32 = var("AUDIT_RETENTION_DAYS").or("365").within("1", "36500"),
        /// Longest time between an event and the checkpoint that covers it.
        pub checkpoint_every: Duration = var("AUDIT_CHECKPOINT_SECS").or("3600").seconds().within("1", "86400"),
        /// Most events of a zone that wait for a checkpoint.
        pub checkpoint_events: u64 = var("AUDIT_CHECKPOINT_EVENTS").or("10000").within("1", "10000000"),
        /// How the logs of this deployment are called in checkpoints, a URL without its scheme; kept
        /// with the first key. Unset is `caracal/` and a random number.
        pub log_name: Option<String> = var("AUDIT_LOG_NAME").such_as("audit.example/caracal"),
        /// Dead letters beyond which `/ready` fails; 0 is never.
        pub ready_dlq_max: u64 = var("AUDIT_READY_DLQ_MAX").or("0").within("0", "1000000000000"),
        /// Unfinished entries beyond which `/ready` fails; 0 is never.
        pub ready_lag_max: u64 = var("AUDIT_READY_LAG_MAX").or("0").within("0", "1000000000000"),
        /// Age of the oldest pending entry beyond which `/ready` fails; 0 is never.
        pub ready_pel_oldest_max: u64 = var("AUDIT_READY_PEL_OLDEST_SECS_MAX").or("0").within("0", "31536000"),
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
        // Of a mode that was mistyped it is not known whether it needs a key.
        if !self.is_dev() && self.key.is_none() && !mistakes.tell_of("CARACAL_MODE") {
            mistakes.add(
                "AUDIT_HMAC_KEY",
                "is required unless CARACAL_MODE is dev: 64 hex digits or more",
            );
        }
        if !self.log_name.as_deref().is_none_or(is_name) {
            mistakes.add("AUDIT_LOG_NAME", "must not hold spaces or plus signs");
        }
    }

    /// Whether conveniences of development are allowed.
    pub fn is_dev(&self) -> bool {
        self.mode == Mode::Dev
    }
}
