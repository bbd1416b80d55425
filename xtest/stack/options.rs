//! How a deployment is set, and what each of its processes is told.

use crate::Urls;
use crate::stack::random_hex;

/// What a test must not be limited by. A test of a limit sets it back.
const LIMITS: &[(&str, &str)] = &[
    ("STS_MINT_RATE_LIMIT_PER_MIN", "1000000"),
    ("MAX_AGENTS_PER_ZONE", "1000"),
    ("MAX_AGENTS_PER_APP", "1000"),
    ("COORDINATOR_RATE_LIMIT_PER_MIN", "0"),
    ("API_V1_RATE_LIMIT_PER_MIN", "0"),
    ("API_RATE_LIMIT_PER_MIN", "0"),
    ("READY_RATE_LIMIT_PER_MIN", "0"),
    ("ADMIN_AUTH_FAIL_LIMIT_PER_MIN", "0"),
];

/// Secrets of a deployment: 32 random bytes each, in hex.
const SECRETS: &[&str] = &[
    "CARACAL_ADMIN_TOKEN",
    "CARACAL_COORDINATOR_TOKEN",
    "SECRET_STORE_KEK",
    "AUDIT_HMAC_KEY",
    "STREAMS_HMAC_KEY",
    "IDEMPOTENCY_HMAC_KEY",
    "GATEWAY_STS_HMAC_KEY",
    "METRICS_BEARER",
    "AUDIT_ADMIN_TOKEN",
];

/// How a deployment is set.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mirrored: bool,
    pub(crate) durable_redis: bool,
    pub(crate) faulty: bool,
    pub(crate) own_postgres: bool,
    pub(crate) limited_disks: bool,
    pub(crate) stepping_clock: Option<i64>,
    pub(crate) more_replicas: usize,
}

impl Options {
    /// With a setting of the services.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a Redis to which an embedded deployment mirrors the published streams.
    #[must_use]
    pub fn mirrored(mut self) -> Self {
        self.mirrored = true;
        self
    }

    /// With a Redis that keeps what it was told when it is killed.
    #[must_use]
    pub fn durable_redis(mut self) -> Self {
        self.durable_redis = true;
        self
    }

    /// With a proxy before Postgres and one before Redis that can be told to misbehave.
    #[must_use]
    pub fn faulty(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// With a Postgres server that nobody else uses, and that may therefore crash.
    #[must_use]
    pub fn own_postgres(mut self) -> Self {
        self.own_postgres = true;
        self
    }

    /// With processes whose disks can be told to be full.
    #[must_use]
    pub fn limited_disks(mut self) -> Self {
        self.limited_disks = true;
        self
    }

    /// With processes whose clocks can be told to step. Where there is no library for that, they
    /// cannot ([`crate::Stack::has_stepping_clock`]).
    #[must_use]
    pub fn stepping_clock(self) -> Self {
        self.stepping_clock_from(0)
    }

    /// The same, and they are off by so many seconds when the processes start.
    #[must_use]
    pub fn stepping_clock_from(mut self, seconds: i64) -> Self {
        self.stepping_clock = Some(seconds);
        self
    }

    /// With this many replicas of each service, and what spreads connections over them.
    ///
    /// # Panics
    /// When that is none.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        self.more_replicas = count.checked_sub(1).expect("a replica");
        self
    }
}

/// What every process is told. Later ones win, so that options may change any.
pub(crate) fn settings(urls: &Urls, options: &Options) -> Vec<(String, String)> {
    let secrets = SECRETS
        .iter()
        .map(|name| ((*name).to_owned(), random_hex(32)));
    let limits = LIMITS
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let addresses = [
        ("HOST", "127.0.0.1"),
        ("ISSUER_URL", &urls.sts),
        ("STS_URL", &urls.sts),
        ("CARACAL_STS_URL", &urls.sts),
        ("CARACAL_API_URL", &urls.api),
        ("CARACAL_GATEWAY_URL", &urls.gateway),
        ("CARACAL_COORDINATOR_URL", &urls.coordinator),
        ("CARACAL_AUDIT_URL", &urls.audit),
        ("AGENT_COORDINATOR_SCOPE", "agent:lifecycle"),
    ];
    let addresses = addresses.map(|(name, value)| (name.to_owned(), value.to_owned()));
    secrets
        .chain(limits)
        .chain(addresses)
        .chain(options.env.iter().cloned())
        .collect()
}
