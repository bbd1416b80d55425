//! The settings of this service (spec: admin-api §15).

use std::time::Duration;

use caracal_model::Secret;

caracal_net::settings! {
    /// What the management service is set to.
    pub struct Config {
        /// The token that the deployment starts with: the console's tokens derive from it.
        pub admin_token: Option<Secret<String>> = var("CARACAL_ADMIN_TOKEN").secret(),
        /// Longest body of a request, in bytes.
        pub body_limit: usize = var("API_BODY_LIMIT_BYTES").or("1048576").within("1024", "67108864"),
        /// Longest request; then the answer is 503 request_timeout.
        pub request_timeout: Duration =
            var("REQUEST_TIMEOUT_MS").or("30000").millis().within("100", "600000"),
        /// How long a connection may be idle between requests; longer than that of a load balancer
        /// before us.
        pub keep_alive: Duration =
            var("KEEP_ALIVE_TIMEOUT_MS").or("75000").millis().within("100", "86400000"),
        /// Requests a minute from one address, and from one token; 0 is no limit.
        pub v1_rate_limit: u32 = var("API_V1_RATE_LIMIT_PER_MIN").or("600").within("0", "1000000000"),
        /// Failed authentications a minute from one address; 0 is no limit.
        pub auth_failure_limit: u32 = var("ADMIN_AUTH_FAIL_LIMIT_PER_MIN").or("60").within("0", "1000000000"),
        /// Readiness probes a minute from one address; 0 is no limit.
        pub ready_rate_limit: u32 = var("READY_RATE_LIMIT_PER_MIN").or("120").within("0", "1000000000"),
        /// Dead outbox entries past which this replica is not ready.
        pub ready_outbox_dead_max: u64 = var("API_READY_OUTBOX_DEAD_MAX").or("0").within("0", "1000000000"),
        /// Stays ready while Redis is away: what is changed then is recorded, holds for whoever reads
        /// the database meanwhile, and is announced once Redis is back. For where readiness decides
        /// who is sent requests, so that authority can still be taken away.
        pub ready_without_redis: bool = var("READY_WITHOUT_REDIS").or("false"),
        /// How often the last use of a token is noted.
        pub last_used_debounce: Duration =
            var("ADMIN_TOKEN_LAST_USED_DEBOUNCE_SEC").or("60").seconds().within("0", "86400"),
        /// Resources that a zone may have; 0 is no limit.
        pub max_resources_per_zone: u64 = var("API_MAX_RESOURCES_PER_ZONE").or("100000").within("0", "1000000000"),
        /// What `PUT /v1/mint-rate-limit` may not exceed; set it as on the STS.
        pub mint_rate: u32 =
            var("STS_MINT_RATE_LIMIT_PER_MIN").or("1000").within("1", "1000000000"),
        /// What `PUT /v1/audit-retention` may not exceed; set it as on Audit.
        pub retention_days: u32 = var("AUDIT_RETENTION_DAYS").or("365").within("1", "36500"),
        /// Whether a proxy that we trust stands before us and names the caller's address.
        pub trust_proxy: bool = var("TRUST_PROXY").or("false"),
        /// Identifier of the control resource.
        pub control_audience: String = var("CONTROL_AUDIENCE").or("caracal-control"),
        /// Whether the console's read token may be shown secrets for a signed-in account.
        pub console_may_reveal: bool = var("API_CONSOLE_READ_MAY_REVEAL").or("false"),
        /// Authenticates those who read metrics.
        pub metrics_bearer: Option<Secret<String>> = var("METRICS_BEARER").secret(),
    }
}
