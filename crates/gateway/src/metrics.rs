//! The metrics of the Gateway. Names are contracts (spec: gateway §16, operations §4).

use caracal_model::Histogram;
use caracal_net::metrics::{Counter, Gauge, Registry};
use serde_json::{Map, Value};

macro_rules! catalogue {
    (
        counters { $($counter:ident,)+ }
        gauges { $($gauge:ident,)+ }
    ) => {
        /// Everything that is counted; the catalogue says what each of them means.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            $(pub $counter: Counter,)+
            $(pub $gauge: Gauge,)+
            /// Whole requests, to the head of the response.
            pub request_seconds: Histogram,
            /// Where time goes.
            pub stages: Stages,
            /// Responses under way.
            pub active_streams: Gauge,
            /// Requests, to the last byte of the answer.
            pub requests_in_flight: Gauge,
        }

        impl Metrics {
            /// Registers everything.
            pub fn new(registry: &Registry) -> Self {
                Self {
                    $($counter: registry.counter(stringify!($counter)),)+
                    $($gauge: registry.gauge(prometheus_name(stringify!($gauge))),)+
                    request_seconds: registry.seconds("request_duration_seconds"),
                    stages: Stages::new(registry),
                    active_streams: registry.gauge("active_streams"),
                    requests_in_flight: registry.gauge("requests_in_flight"),
                }
            }

            /// `/metrics.json`: flat.
            pub fn flat(&self) -> Value {
                let mut flat = Map::new();
                $(flat.insert(json_name(stringify!($counter)), self.$counter.get().into());)+
                $(flat.insert(stringify!($gauge).to_owned(), self.$gauge.get().into());)+
                Value::Object(flat)
            }
        }
    };
}

catalogue! {
    counters {
        requests,
        requests_allowed,
        requests_denied,
        denials_missing_auth,
        denials_bad_bearer,
        denials_expiring,
        denials_bad_routing,
        denials_path_traversal,
        denials_signature,
        denials_jti_replay,
        denials_revoked,
        denials_revocation_stale,
        sts_exchange_errors,
        sts_circuit_opened,
        sts_circuit_fast_fail,
        upstream_errors,
        audit_dropped,
        audit_sink_errors,
        audit_persisted,
        audit_drained,
        revocation_messages,
        revocation_pending_replayed,
        revocation_dead_letters,
        revocation_invalid_signatures,
        revocation_reloads,
        revocation_reload_errors,
    }
    gauges {
        sts_exchange_latency_ms,
        sts_circuit_open,
        audit_replay_files,
        audit_replay_bytes,
        audit_replay_oldest_age_seconds,
        audit_queue_depth,
        audit_queue_cap,
        revocations_active,
        revocation_snapshot_age_seconds,
        revocation_snapshot_fresh,
        revocation_propagation_seconds,
    }
}

/// Where the time of a request goes.
#[derive(Clone, Debug)]
pub struct Stages {
    /// The zone of the mandate, with its keys: from memory, or read anew.
    pub keys: Histogram,
    /// The signature of the mandate.
    pub verify: Histogram,
    /// Whether it was revoked, or used before.
    pub replay: Histogram,
    /// The exchange at the STS.
    pub exchange: Histogram,
    /// The upstream, to the head of its response.
    pub upstream: Histogram,
}

impl Stages {
    fn new(registry: &Registry) -> Self {
        let names = ["keys", "verify", "replay", "exchange", "upstream_headers"];
        let [keys, verify, replay, exchange, upstream] =
            registry.stages("stage_duration_seconds", "stage", names);
        registry.histogram("sts_exchange_duration_seconds", &exchange);
        registry.histogram("upstream_duration_seconds", &upstream);
        Self {
            keys,
            verify,
            replay,
            exchange,
            upstream,
        }
    }
}

/// The one gauge that is named differently in the exposition.
fn prometheus_name(name: &'static str) -> &'static str {
    if name == "audit_queue_cap" {
        "audit_queue_capacity"
    } else {
        name
    }
}

/// The one counter that keeps its suffix in JSON.
fn json_name(name: &str) -> String {
    if name == "requests" {
        "requests_total".to_owned()
    } else {
        name.to_owned()
    }
}
