//! The metrics of the Gateway. Names are contracts (spec: gateway §16, operations §4).

use std::sync::atomic::Ordering;

use caracal_net::metrics::{Counter, FloatGauge, Gauge, Histogram, Registry};
use serde_json::{Map, Value};

macro_rules! catalogue {
    (
        counters { $($counter:ident => $counter_help:literal,)+ }
        gauges { $($gauge:ident => $gauge_help:literal,)+ }
    ) => {
        /// Everything that is counted.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            $(#[doc = $counter_help] pub $counter: Counter,)+
            $(#[doc = $gauge_help] pub $gauge: Gauge,)+
            /// Whole requests, to the head of the response.
            pub request_seconds: Histogram,
            /// Exchanges.
            pub exchange_seconds: Histogram,
            /// Upstreams, to the head of their response.
            pub upstream_seconds: Histogram,
            /// Responses under way.
            pub active_streams: Gauge,
            /// Of the store's connections.
            pub pool_in_use_ratio: FloatGauge,
            /// Of the store's connections.
            pub pool_max: Gauge,
            /// Of the store's connections.
            pub pool_in_use: Gauge,
        }

        impl Metrics {
            /// Registers everything.
            pub fn new(registry: &Registry) -> Self {
                Self {
                    $($counter: registry.counter(stringify!($counter), $counter_help),)+
                    $($gauge: registry.gauge(prometheus_name(stringify!($gauge)), $gauge_help),)+
                    request_seconds: registry.seconds(
                        "request_duration_seconds", "Requests, to the head of the response"),
                    exchange_seconds: registry.seconds(
                        "sts_exchange_duration_seconds", "Exchanges"),
                    upstream_seconds: registry.seconds(
                        "upstream_duration_seconds", "Upstreams, to the head of their response"),
                    active_streams: registry.gauge("active_streams", "Responses under way"),
                    pool_in_use_ratio: registry.register_as(
                        "caracal_db_pool_in_use_ratio", "Store connections in use, of all",
                        FloatGauge::default()),
                    pool_max: registry.register_as(
                        "caracal_db_pool_max_conns", "Most store connections", Gauge::default()),
                    pool_in_use: registry.register_as(
                        "caracal_db_pool_acquired_conns", "Store connections in use",
                        Gauge::default()),
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
        requests => "Proxied requests",
        requests_allowed => "Requests whose response was passed on",
        requests_denied => "Requests that were denied",
        denials_missing_auth => "Denials: no bearer",
        denials_bad_bearer => "Denials: unusable bearer",
        denials_expiring => "Denials: too little life left",
        denials_bad_routing => "Denials: routing headers or claims",
        denials_path_traversal => "Denials: path traversal",
        denials_signature => "Denials: signature",
        denials_jti_replay => "Denials: used mandate",
        denials_revoked => "Denials: revoked",
        denials_revocation_stale => "Denials: revocation state unavailable",
        sts_exchange_errors => "Exchanges that failed or were refused",
        sts_circuit_opened => "Times that the circuit opened",
        sts_circuit_fast_fail => "Exchanges refused by the open circuit",
        upstream_errors => "Upstreams that failed or may not be reached",
        audit_dropped => "Evidence that could be neither kept nor sent",
        audit_sink_errors => "Deliveries of evidence that were refused",
        audit_persisted => "Evidence written to the local log",
        audit_drained => "Evidence that was delivered",
        revocation_messages => "Entries of the feed that were applied",
        revocation_pending_replayed => "Always 0: the feed has no pending entries",
        revocation_dead_letters => "Always 0: the feed has no dead letters",
        revocation_invalid_signatures => "Entries of the feed with a wrong signature",
        revocation_reloads => "Snapshots of the revocations",
        revocation_reload_errors => "Forced reloads that failed",
    }
    gauges {
        sts_exchange_latency_ms => "The last exchange",
        sts_circuit_open => "Whether the circuit is open",
        audit_replay_files => "Files of undelivered evidence",
        audit_replay_bytes => "Undelivered evidence",
        audit_replay_oldest_age_seconds => "Age of the oldest undelivered evidence",
        audit_queue_depth => "Events waiting for the log",
        audit_queue_cap => "Events that may wait for the log",
        revocations_active => "Revoked anchors in memory",
        revocation_snapshot_age_seconds => "Since the feed was confirmed",
        revocation_snapshot_fresh => "Whether memory may answer",
        revocation_propagation_seconds => "How far the feed lags behind",
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

/// Makes a counter show a count that is kept elsewhere.
pub fn show(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

/// A count as a gauge.
pub fn shown(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
