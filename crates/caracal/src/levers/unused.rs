//! Published names that are no levers here, and why. Setting one is no mistake, but is told.

/// A name that moves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unused {
    /// The name in the environment.
    pub name: &'static str,
    /// The services that elsewhere read it.
    pub services: &'static str,
    /// Why it moves nothing, and what does instead.
    pub why: &'static str,
}

const CONTROL: &str = "the Control endpoint is not there yet";
const OPERATOR: &str = "the console's AI operator is not there yet";
const INVOCATIONS: &str = "there are no invocations yet";
const RELAY: &str = "lifecycle news is read from the streams by every replica; nothing relays it. See OUTBOX_POLL_MS";
const SERVER: &str = "is a setting of the Postgres server, not of a service that uses it";

#[rustfmt::skip] // one line a name
pub const UNUSED: &[Unused] = &[
    unused("API_ENABLE_DOCS", "api", "there is no OpenAPI document yet"),
    unused("CARACAL_CONTROL_ENABLED", "api", CONTROL),
    unused("CONTROL_API_TOKEN", "api", CONTROL),
    unused("CONTROL_GATE_FILE", "api", CONTROL),
    unused("CONTROL_INVOKE_IP_RATE_LIMIT_PER_MIN", "api", CONTROL),
    unused("CONTROL_RATE_CAPACITY", "api", CONTROL),
    unused("CONTROL_RATE_WINDOW_SEC", "api", CONTROL),
    unused("CONTROL_REPLAY_TTL_SEC", "api", CONTROL),
    unused("STS_ISSUER_URL", "api", CONTROL),
    unused("STS_JWKS_URL", "api", CONTROL),
    unused("API_OPERATOR_AI_MAX_CALLS_PER_TURN", "api", OPERATOR),
    unused("API_OPERATOR_AI_MAX_OUTPUT_TOKENS", "api", OPERATOR),
    unused("API_OPERATOR_ALLOWED_CAPABILITIES", "api", OPERATOR),
    unused("API_OPERATOR_AUTOPILOT_ENABLED", "api", OPERATOR),
    unused("API_OPERATOR_AUTOPILOT_WRITE_BUDGET", "api", OPERATOR),
    unused("API_OPERATOR_ENABLED", "api", OPERATOR),
    unused("API_OPERATOR_MAX_CONCURRENT_RUNS_PER_USER", "api", OPERATOR),
    unused("API_OPERATOR_SYSTEM_ZONES", "api", OPERATOR),
    unused("REDIS_MIN_IDLE_CONNS", "gateway", "connections to Redis are made once and stay open; see REDIS_POOL_SIZE"),
    unused("REDIS_POOL_TIMEOUT", "gateway", "calls share connections to Redis, so none waits for one; see REDIS_READ_TIMEOUT"),
    unused("REDIS_WRITE_TIMEOUT", "gateway", "a call to Redis has one limit, sending included: REDIS_READ_TIMEOUT"),
    unused("AUDIT_TAMPER_ROLLING_HOURS", "audit", "no window of hours is looked at: every event is verified when it comes, and all of them again within a day"),
    unused("DEADLINE_SWEEP_INTERVAL_MS", "coordinator", INVOCATIONS),
    unused("INVOCATION_RATE_LIMIT_PER_MIN", "coordinator", INVOCATIONS),
    unused("JWKS_CACHE_MAX", "coordinator", "keys of zones are read from memory that the feed keeps current; nothing is fetched or cached apart"),
    unused("RELAY_CLAIM_IDLE_SEC", "coordinator", RELAY),
    unused("RELAY_CONSUMER_NAME", "coordinator", RELAY),
    unused("RELAY_DEDUPE_WINDOW_SEC", "coordinator", RELAY),
    unused("RELAY_INTERVAL_MS", "coordinator", RELAY),
    unused("VERIFY_RATE_LIMIT_PER_MIN", "coordinator", "the verification endpoint is not there yet"),
    unused("POSTGRES_EFFECTIVE_CACHE_SIZE", "all", SERVER),
    unused("POSTGRES_LOG_MIN_DURATION_MS", "all", SERVER),
    unused("POSTGRES_MAINTENANCE_WORK_MEM", "all", SERVER),
    unused("POSTGRES_MAX_CONNECTIONS", "all", SERVER),
    unused("POSTGRES_SHARED_BUFFERS", "all", SERVER),
    unused("POSTGRES_WORK_MEM", "all", SERVER),
    unused("REDIS_MAXMEMORY", "all", "is a setting of the Redis server, not of a service that uses it"),
];

const fn unused(name: &'static str, services: &'static str, why: &'static str) -> Unused {
    Unused {
        name,
        services,
        why,
    }
}
