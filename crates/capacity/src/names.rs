//! The metrics that are read, by name (operations specification §4 and §17.4). What a service does
//! not expose yet is simply not known: a signal without a number is told as such.

/// Store connections in use, of all.
pub const POOL_RATIO: &str = "caracal_db_pool_in_use_ratio";
/// Most store connections of a process.
pub const POOL_MAX: &str = "caracal_db_pool_max_conns";
/// How long a store connection was waited for.
pub const POOL_WAIT: &str = "caracal_db_pool_wait_seconds";
/// Commands to Redis.
pub const REDIS_SECONDS: &str = "caracal_redis_command_duration_seconds";
/// Requests of every service.
pub const HTTP_SECONDS: &str = "caracal_http_request_duration_seconds";
/// What `/ready` answered last; also nought when nobody has asked yet.
pub const READY: &str = "caracal_ready";
/// Changes of what `/ready` answers, in the last ten minutes.
pub const READY_CHANGES: &str = "caracal_ready_changes_10m";
/// When the process started, in seconds since 1970.
pub const STARTED: &str = "process_start_time_seconds";
/// Memory of the process, bytes.
pub const RESIDENT: &str = "process_resident_memory_bytes";
/// Processor time of the process.
pub const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// Exchanges, by outcome.
pub const MINTS: &str = "caracal_sts_mints_total";
/// Parts of an exchange.
pub const STS_STAGES: &str = "caracal_sts_stage_duration_seconds";
/// Time spent on questions to policy.
pub const EVAL_SECONDS: &str = "caracal_sts_opa_eval_duration_seconds_total";
/// Policy bundles that do not compile.
pub const COMPILE_ERRORS: &str = "caracal_sts_opa_compile_errors_total";
/// Since the policies in memory were last known to be current.
pub const POLICY_AGE: &str = "caracal_sts_opa_max_policy_age_seconds";
/// Age of the oldest evidence of the STS that was not delivered.
pub const STS_REPLAY_AGE: &str = "caracal_sts_audit_replay_oldest_age_seconds";
/// Evidence of the STS that could be kept nowhere.
pub const STS_DROPPED: &str = "caracal_sts_audit_dropped_total";
/// Deliveries of evidence that failed.
pub const STS_SINK_ERRORS: &str = "caracal_sts_audit_sink_errors_total";

/// Proxied requests.
pub const REQUESTS: &str = "caracal_gateway_requests_total";
/// Whole requests at the Gateway, to the head of the response.
pub const GATEWAY_SECONDS: &str = "caracal_gateway_request_duration_seconds";
/// Parts of a request at the Gateway.
pub const GATEWAY_STAGES: &str = "caracal_gateway_stage_duration_seconds";
/// Exchanges of the Gateway.
pub const EXCHANGE_SECONDS: &str = "caracal_gateway_sts_exchange_duration_seconds";
/// Upstreams, to the head of their response.
pub const UPSTREAM_SECONDS: &str = "caracal_gateway_upstream_duration_seconds";
/// Upstreams that failed or may not be reached.
pub const UPSTREAM_ERRORS: &str = "caracal_gateway_upstream_errors_total";
/// Whether the circuit to the STS is open.
pub const CIRCUIT_OPEN: &str = "caracal_gateway_sts_circuit_open";
/// Times that it opened.
pub const CIRCUIT_OPENED: &str = "caracal_gateway_sts_circuit_opened_total";
/// Exchanges that it refused.
pub const CIRCUIT_FAST_FAIL: &str = "caracal_gateway_sts_circuit_fast_fail_total";
/// How far the feed of revocations lags behind.
pub const PROPAGATION: &str = "caracal_gateway_revocation_propagation_seconds";
/// Whether the revocations in memory may answer.
pub const SNAPSHOT_FRESH: &str = "caracal_gateway_revocation_snapshot_fresh";
/// Since the revocations in memory were confirmed.
pub const SNAPSHOT_AGE: &str = "caracal_gateway_revocation_snapshot_age_seconds";
/// Age of the oldest evidence of the Gateway that was not delivered.
pub const GATEWAY_REPLAY_AGE: &str = "caracal_gateway_audit_replay_oldest_age_seconds";
/// Evidence of the Gateway that could be kept nowhere.
pub const GATEWAY_DROPPED: &str = "caracal_gateway_audit_dropped_total";
/// Deliveries of evidence that failed.
pub const GATEWAY_SINK_ERRORS: &str = "caracal_gateway_audit_sink_errors_total";

/// Evidence that is not in the ledger yet.
pub const LAG: &str = "caracal_audit_consumer_lag";
/// Age of the oldest entry that was handed out and not acknowledged.
pub const PENDING_OLDEST: &str = "caracal_audit_consumer_pel_oldest_seconds";
/// Events appended to the ledger.
pub const INSERTS: &str = "caracal_audit_inserts_total";
/// Events of one commit.
pub const BATCH: &str = "caracal_audit_ingest_batch_size";
/// Parts of what is done with a batch.
pub const AUDIT_STAGES: &str = "caracal_audit_stage_duration_seconds";
/// Dead letters.
pub const DLQ: &str = "caracal_audit_dlq_size";

/// Age of the oldest entry of the outbox.
pub const OUTBOX_AGE: &str = "caracal_api_outbox_oldest_pending_age_seconds";
/// Entries of the outbox that failed too often.
pub const OUTBOX_DEAD: &str = "caracal_api_outbox_dead_total";
/// The same, by status, at the Coordinator.
pub const OUTBOX: &str = "caracal_outbox_total";

/// Of kube-state-metrics: whether a container is ready.
pub const KUBE_READY: &str = "kube_pod_container_status_ready";
/// Of the Postgres exporter: open connections.
pub const PG_BACKENDS: &str = "pg_stat_database_numbackends";
/// Of the Postgres exporter: most connections.
pub const PG_MAX: &str = "pg_settings_max_connections";
/// Of the Redis exporter: memory in use.
pub const REDIS_USED: &str = "redis_memory_used_bytes";
/// Of the Redis exporter: most memory.
pub const REDIS_MAX: &str = "redis_memory_max_bytes";
