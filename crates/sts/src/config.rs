//! What an operator may set (spec: sts §18; operations §2.2).

use caracal_model::Secret;

caracal_net::settings! {
    /// The settings of the STS.
    pub struct Config {
        /// The `iss` of every mandate, verbatim; absolute http or https. Immutable in practice.
        pub issuer: String = var("ISSUER_URL").such_as("https://sts.example"),
        /// Mints a minute for one (zone, resource, application); PUT /v1/mint-rate-limit lowers it
        /// while running. Set it as on the API.
        pub mint_rate: u32 = var("STS_MINT_RATE_LIMIT_PER_MIN").or("1000").within("1", "1000000000"),
        /// Charges the Gateway's exchange of a call as well as its mint, to compare with products
        /// that do.
        pub charge_exchanges: bool = var("STS_MINT_RATE_CHARGE_EXCHANGES").or("false"),
        /// Longest lifetime of any mandate, and of what a provider issues.
        pub max_grant_ttl: i64 = var("MAX_GRANT_TTL_SECONDS").or("3600").within("1", "86400"),
        /// Argon2id verifications at a time; each takes 64 MiB.
        pub secret_verify_concurrency: usize =
            var("STS_SECRET_VERIFY_CONCURRENCY").or("2").within("1", "64"),
        /// Seconds between two looks at which policies are in force, beside the change feed.
        pub policy_poll_seconds: u64 = var("OPA_POLL_SECONDS").or("60").within("1", "300"),
        /// Enables key rotation at `/internal/zones/{zone}/signing-key/rotate`; unset answers 404.
        pub admin_token: Option<Secret<String>> = var("STS_ADMIN_TOKEN").secret(),
        /// What `/metrics` must be asked with.
        pub metrics_bearer: Option<Secret<String>> = var("METRICS_BEARER").secret(),
        /// The audience of the Control API; its resource takes no ordinary exchange.
        pub control_audience: String = var("CONTROL_AUDIENCE").or("caracal-control"),
    }
}
