//! What may be short, what to do first, and what should come of it: the page's procedure as a table
//! (operations specification §3).

use serde::Serialize;

/// What of a deployment is short. The order is that of causes: an earlier one may bring about a
/// later one, never the other way round, so the first of what was found is where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Evidence could be kept nowhere.
    EvidenceLost,
    /// Postgres does not answer the services.
    PostgresUnreachable,
    /// Redis does not answer the services.
    RedisUnreachable,
    /// Redis has no memory left.
    RedisMemory,
    /// Redis answers slowly.
    RedisLatency,
    /// Postgres has no connections left for more replicas or larger pools.
    PostgresConnections,
    /// Postgres waits for its disk.
    PostgresIo,
    /// Statements wait for each other.
    PostgresLocks,
    /// A service has no connection left in its pool.
    PostgresPool,
    /// The local log of evidence is slow.
    EvidenceDisk,
    /// Policy is what an exchange takes long for.
    StsEvaluation,
    /// Signatures and secrets are what an exchange takes long for.
    StsCrypto,
    /// The STS does not answer the Gateway, or too late.
    StsUnavailable,
    /// The Gateway reads zones, and the keys in them, all the time.
    GatewayKeySets,
    /// Upstreams cannot be reached.
    Egress,
    /// Upstreams are slow.
    Upstream,
    /// The Gateway itself is at its limit.
    GatewayProxying,
    /// Revocations arrive late.
    RevocationLag,
    /// Policy arrives late, or does not compile.
    PolicyPropagation,
    /// Evidence arrives faster than it is appended.
    AuditIngest,
    /// Evidence waits at its producers.
    ReplayBacklog,
    /// Changes are not announced.
    Outbox,
    /// Entries that cannot be appended.
    DeadLetters,
    /// A service does not answer.
    ServiceUnreachable,
    /// A service is ready, and then not, and then again.
    ReadinessFlapping,
}

/// Where it is short, which decides whether replicas help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Postgres and Redis themselves: replicas make it worse.
    Storage,
    /// What holds the services and storage together: grow storage first, then this one step.
    Pool,
    /// Services: replicas help while storage is healthy.
    Stateless,
    /// What follows behind: see to its cause.
    Queue,
    /// Outside of the deployment.
    Outside,
}

/// What is told about a bottleneck.
#[derive(Clone, Copy, Debug)]
pub struct Advice {
    /// For people.
    pub title: &'static str,
    /// Where it is.
    pub layer: Layer,
    /// What to do first.
    pub first_action: &'static str,
    /// What should come of it.
    pub expected: &'static str,
    /// What to do when nothing came of it.
    pub otherwise: &'static str,
}

impl Bottleneck {
    /// All of them, in order of causes.
    pub const ALL: [Self; 25] = [
        Self::EvidenceLost,
        Self::PostgresUnreachable,
        Self::RedisUnreachable,
        Self::RedisMemory,
        Self::RedisLatency,
        Self::PostgresConnections,
        Self::PostgresIo,
        Self::PostgresLocks,
        Self::PostgresPool,
        Self::EvidenceDisk,
        Self::StsEvaluation,
        Self::StsCrypto,
        Self::StsUnavailable,
        Self::GatewayKeySets,
        Self::Egress,
        Self::Upstream,
        Self::GatewayProxying,
        Self::RevocationLag,
        Self::PolicyPropagation,
        Self::AuditIngest,
        Self::ReplayBacklog,
        Self::Outbox,
        Self::DeadLetters,
        Self::ServiceUnreachable,
        Self::ReadinessFlapping,
    ];

    /// As in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EvidenceLost => "evidence_lost",
            Self::PostgresUnreachable => "postgres_unreachable",
            Self::RedisUnreachable => "redis_unreachable",
            Self::RedisMemory => "redis_memory",
            Self::RedisLatency => "redis_latency",
            Self::PostgresConnections => "postgres_connections",
            Self::PostgresIo => "postgres_io",
            Self::PostgresLocks => "postgres_locks",
            Self::PostgresPool => "postgres_pool",
            Self::EvidenceDisk => "evidence_disk",
            Self::StsEvaluation => "sts_evaluation",
            Self::StsCrypto => "sts_crypto",
            Self::StsUnavailable => "sts_unavailable",
            Self::GatewayKeySets => "gateway_key_sets",
            Self::Egress => "egress",
            Self::Upstream => "upstream",
            Self::GatewayProxying => "gateway_proxying",
            Self::RevocationLag => "revocation_lag",
            Self::PolicyPropagation => "policy_propagation",
            Self::AuditIngest => "audit_ingest",
            Self::ReplayBacklog => "replay_backlog",
            Self::Outbox => "outbox",
            Self::DeadLetters => "dead_letters",
            Self::ServiceUnreachable => "service_unreachable",
            Self::ReadinessFlapping => "readiness_flapping",
        }
    }

    /// What else, when it is found as well, is the reason for this.
    pub const fn causes(self) -> &'static [Self] {
        use Bottleneck as B;
        const STORES: [B; 2] = [B::PostgresUnreachable, B::RedisUnreachable];
        match self {
            Self::EvidenceLost
            | Self::PostgresUnreachable
            | Self::RedisUnreachable
            | Self::RedisMemory
            | Self::EvidenceDisk
            | Self::Egress
            | Self::Upstream
            | Self::DeadLetters => &[],
            Self::RedisLatency => &[B::RedisUnreachable, B::RedisMemory],
            Self::PostgresConnections | Self::PostgresIo | Self::PostgresLocks => {
                &[B::PostgresUnreachable]
            }
            Self::PostgresPool => &[
                B::PostgresUnreachable,
                B::PostgresConnections,
                B::PostgresIo,
                B::PostgresLocks,
                B::RedisLatency,
            ],
            Self::StsEvaluation | Self::StsCrypto => &STORES,
            Self::StsUnavailable => &[
                B::PostgresUnreachable,
                B::RedisUnreachable,
                B::RedisMemory,
                B::RedisLatency,
                B::PostgresIo,
                B::PostgresLocks,
                B::PostgresPool,
                B::EvidenceDisk,
                B::StsEvaluation,
                B::StsCrypto,
            ],
            Self::GatewayKeySets => &[
                B::PostgresUnreachable,
                B::RedisUnreachable,
                B::RedisLatency,
                B::PostgresConnections,
                B::PostgresIo,
                B::PostgresLocks,
                B::PostgresPool,
            ],
            Self::GatewayProxying => &[B::RedisUnreachable, B::RedisLatency],
            Self::RevocationLag | Self::PolicyPropagation | Self::Outbox => &[
                B::PostgresUnreachable,
                B::RedisUnreachable,
                B::RedisMemory,
                B::RedisLatency,
                B::PostgresIo,
                B::PostgresPool,
            ],
            Self::AuditIngest => &[
                B::PostgresUnreachable,
                B::RedisUnreachable,
                B::RedisLatency,
                B::PostgresConnections,
                B::PostgresIo,
                B::PostgresLocks,
                B::PostgresPool,
            ],
            Self::ReplayBacklog => &[B::RedisUnreachable, B::RedisMemory, B::RedisLatency],
            Self::ServiceUnreachable => &STORES,
            Self::ReadinessFlapping => &[
                B::PostgresUnreachable,
                B::RedisUnreachable,
                B::RedisMemory,
                B::RedisLatency,
                B::PostgresConnections,
                B::PostgresIo,
                B::PostgresLocks,
                B::PostgresPool,
                B::StsUnavailable,
                B::StsEvaluation,
                B::StsCrypto,
                B::RevocationLag,
                B::AuditIngest,
                B::DeadLetters,
                B::Outbox,
            ],
        }
    }

    /// What to tell of it.
    pub const fn advice(self) -> Advice {
        match self {
            Self::EvidenceLost => advice(
                "evidence was lost",
                Layer::Queue,
                "stop sending traffic to the replica, see the disk of AUDIT_REPLAY_DIR and Redis, then replace the replica",
                "the new replica is ready, and caracal_*_audit_dropped_total stays at 0",
                "keep the disk for examination; `caracal audit verify` says what the ledger holds",
            ),
            Self::PostgresUnreachable => advice(
                "Postgres does not answer",
                Layer::Storage,
                "bring Postgres back: is it up, is its disk full, does DATABASE_URL lead to it; start nothing else meanwhile",
                "/ready of every service turns 200 by itself within seconds, and waiting evidence drains",
                "`caracal doctor` says what the connection fails with",
            ),
            Self::RedisUnreachable => advice(
                "Redis does not answer",
                Layer::Storage,
                "bring Redis back: is it up, out of memory or saving to a full disk, does REDIS_URL lead to it",
                "/ready of every service turns 200 by itself within seconds, and waiting evidence drains",
                "`caracal doctor` says what the connection fails with",
            ),
            Self::RedisMemory => advice(
                "Redis memory",
                Layer::Storage,
                "see which stream is not being read (`redis-cli --bigkeys`; caracal_audit_stream_length), then raise maxmemory, below the limit of its container",
                "memory in use falls below 90 % and no write is refused",
                "acknowledge or remove the reader that keeps entries (group siem-export)",
            ),
            Self::RedisLatency => advice(
                "Redis latency",
                Layer::Storage,
                "see `redis-cli --latency`, SLOWLOG and its processor; move it nearer, or to a faster processor and disk; add no replicas: each adds commands",
                "the 95th percentile of a command falls below the threshold; calls, revocations and evidence follow within a minute",
                "look at the network between the services and Redis, and at appendfsync",
            ),
            Self::PostgresConnections => advice(
                "Postgres connections",
                Layer::Storage,
                "take back the replicas or pools that were added last, or raise max_connections with the memory for it; add no replicas before that",
                "connections in use fall below 90 %, and no service waits for one",
                "make DB_POOL_MAX smaller: the hot path needs few",
            ),
            Self::PostgresIo => advice(
                "Postgres writes and reads (IOPS)",
                Layer::Storage,
                "see the slowest statements (pg_stat_statements) and the disk; give the volume more IOPS or throughput; leave pools and retention as they are",
                "statements no longer wait for the disk; pools empty, and the lag of Audit falls by itself",
                "see the partitions of audit_events: is the current month there, is an export or a dump running",
            ),
            Self::PostgresLocks => advice(
                "statements that wait for each other",
                Layer::Storage,
                "find who holds the lock: SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock'; end a forgotten transaction",
                "the waiting statements go on at once, and pools empty",
                "set DB_STATEMENT_TIMEOUT_MS, so that no statement waits for ever",
            ),
            Self::PostgresPool => advice(
                "Postgres pool",
                Layer::Pool,
                "see slow statements first; if Postgres is healthy and has connections left, raise DB_POOL_MAX of this service by one step (half again)",
                "the ratio stays below 0.9 under the same load, and /ready steadies",
                "if the ratio returns to 0.9, the statements are slow: grow storage, not the pool",
            ),
            Self::EvidenceDisk => advice(
                "the disk of the local evidence log",
                Layer::Stateless,
                "put AUDIT_REPLAY_DIR on a faster volume; see whether AUDIT_DURABILITY=machine is needed",
                "the evidence stage of an exchange falls below a millisecond",
                "add replicas: each has a disk of its own",
            ),
            Self::StsEvaluation => advice(
                "STS: policy evaluation",
                Layer::Stateless,
                "add STS replicas while storage is healthy; then see which policy reads `input` (caracal_sts_opa_eval_interpreted_total): a document of data alone is some hundred times cheaper",
                "the 99th percentile of an exchange falls with each replica, and the circuit of the Gateway stays closed",
                "`caracal policy replay` tries a simpler policy against recorded requests",
            ),
            Self::StsCrypto => advice(
                "STS: signatures and secrets",
                Layer::Stateless,
                "add STS replicas while storage is healthy; imported Argon2id secrets are what costs most: rotate them to secrets of ours",
                "processors in use fall in proportion, and exchanges are answered in time",
                "give each replica more processors",
            ),
            Self::StsUnavailable => advice(
                "STS unavailable to the Gateway",
                Layer::Stateless,
                "see /ready and latency of the STS; start it, or add a replica, or cut the fan-in of calls until it answers",
                "the circuit closes with the first probe that succeeds (10 s), and caracal_gateway_sts_circuit_fast_fail_total stops growing",
                "see STS_URL, GATEWAY_STS_HMAC_KEY and the network between Gateway and STS",
            ),
            Self::GatewayKeySets => advice(
                "Gateway: key sets",
                Layer::Stateless,
                "see who changes zones all the time, and how far Postgres is from the Gateway: a zone whose keys, resources or policy change is read anew before its next call",
                "the keys stage falls below a millisecond",
                "after a start, or a rotation, this ends by itself once each zone was read",
            ),
            Self::Egress => advice(
                "upstreams that cannot be reached",
                Layer::Outside,
                "see which: `caracal audit tail --event-type gateway_resource_request`; DNS, UPSTREAM_HOST_ALLOWLIST, private addresses (CARACAL_PRIVATE_EGRESS_HOSTS), network policy",
                "caracal_gateway_upstream_errors_total stops growing",
                "try the upstream from the Gateway's own network",
            ),
            Self::Upstream => advice(
                "slow upstreams",
                Layer::Outside,
                "see the upstream itself; replicas here do not make it faster; lower UPSTREAM_TIMEOUT, so that it does not hold calls for long",
                "the upstream stage falls, and calls with it",
                "take the slow resource out of the shared Gateway",
            ),
            Self::GatewayProxying => advice(
                "Gateway: proxying",
                Layer::Stateless,
                "add Gateway replicas while storage is healthy",
                "processors in use fall in proportion, and latency returns to that of STS and upstream",
                "give each replica more processors; see the size of bodies (MAX_REQUEST_BYTES)",
            ),
            Self::RevocationLag => advice(
                "revocation propagation",
                Layer::Queue,
                "see Redis latency, whether the relay of the outbox runs (API and Coordinator), and the age of the snapshot; a stale Gateway denies, it never allows",
                "the lag returns to 0 and the snapshot is fresh within seconds",
                "`POST /internal/revocations/reload` at the Gateway reads everything again",
            ),
            Self::PolicyPropagation => advice(
                "policy propagation",
                Layer::Queue,
                "see the log of the STS: a policy that does not compile is named there; otherwise see Redis latency and the outbox",
                "policy age falls below a minute, and every replica has the same policy",
                "lower OPA_POLL_SECONDS until the cause is found",
            ),
            Self::AuditIngest => advice(
                "Audit: ingestion",
                Layer::Stateless,
                "see Postgres write IOPS and partitions; if these are healthy, start or add an Audit replica; only then think of longer retention or exports",
                "the lag falls steadily, and the oldest evidence is younger than a minute",
                "see entries that are handed out and never finished (caracal_audit_consumer_pel_oldest_seconds), and dead letters",
            ),
            Self::ReplayBacklog => advice(
                "evidence that waits at its producer",
                Layer::Queue,
                "see why it cannot be delivered: Redis, its memory, and the volume of AUDIT_REPLAY_DIR; do not delete the volume or replace the replica",
                "the age of the oldest file falls to 0 by itself: the relay never stops trying",
                "see caracal_*_audit_sink_errors_total and the log of the replica",
            ),
            Self::Outbox => advice(
                "changes that are not announced",
                Layer::Queue,
                "see which and why: GET /v1/zones/ZONE/outbox; mend the cause, then POST …/outbox/ID/requeue",
                "no dead entry is left, and the oldest pending one is younger than a second",
                "see Redis memory, and whether a replica of API or Coordinator runs",
            ),
            Self::DeadLetters => advice(
                "dead letters",
                Layer::Queue,
                "see their reasons: GET /api/audit/dlq; mend the cause, then POST /api/audit/dlq/replay; never purge what was not read",
                "the number falls to 0 and does not grow again",
                "signatures that are refused mean another AUDIT_HMAC_KEY, or somebody else who writes",
            ),
            Self::ServiceUnreachable => advice(
                "a service that does not answer",
                Layer::Stateless,
                "start it, or say where it is; see its log",
                "it answers, and /ready is 200",
                "`caracal doctor` looks at everything that it stands on",
            ),
            Self::ReadinessFlapping => advice(
                "readiness that comes and goes",
                Layer::Stateless,
                "see the reason in /ready while it fails, and its log; do not raise the probe's patience before the reason is known",
                "no change of readiness in ten minutes",
                "give the replica more processors: a probe that waits for one fails",
            ),
        }
    }
}

const fn advice(
    title: &'static str,
    layer: Layer,
    first_action: &'static str,
    expected: &'static str,
    otherwise: &'static str,
) -> Advice {
    Advice {
        title,
        layer,
        first_action,
        expected,
        otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_come_before_what_they_bring_about() {
        for pair in Bottleneck::ALL.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
        for bottleneck in Bottleneck::ALL {
            for cause in bottleneck.causes() {
                assert!(*cause < bottleneck, "{cause:?} {bottleneck:?}");
            }
        }
    }

    #[test]
    fn names_are_those_of_json_and_advice_is_whole() {
        for bottleneck in Bottleneck::ALL {
            let json = serde_json::to_value(bottleneck).unwrap();
            assert_eq!(json, bottleneck.name());
            let advice = bottleneck.advice();
            for text in [
                advice.title,
                advice.first_action,
                advice.expected,
                advice.otherwise,
            ] {
                assert!(text.len() > 8, "{bottleneck:?}: {text}");
            }
        }
    }
}
