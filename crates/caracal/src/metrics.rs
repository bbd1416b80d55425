//! `caracal metrics`: what the five services measure, from the catalogues that their registries are
//! made of. The reference page is this command's output.

use std::collections::BTreeMap;
use std::process::ExitCode;

use caracal_net::metrics::Catalogue;
use caracal_net::metrics::catalogue::{COMMON, COMMON_SIGNALS, Metric, Signal};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::exit::Outcome;

/// What the five services measure.
#[derive(Debug, Subcommand)]
pub enum Metrics {
    /// Every metric and every capacity signal: name, type, unit, labels, meaning
    Catalogue(Show),
}

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal metrics catalogue                 one line a metric
  caracal metrics catalogue --json          for generators of dashboards and alerts
  caracal metrics catalogue --markdown      docs/reference/metrics.md")]
pub struct Show {
    /// For machines
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// As the reference page
    #[arg(long)]
    markdown: bool,
}

/// In the order of the reference page.
const SERVICES: [&Catalogue; 5] = [
    &caracal_sts::CATALOGUE,
    &caracal_gateway::CATALOGUE,
    &caracal_audit::CATALOGUE,
    &caracal_api::CATALOGUE,
    &caracal_coordinator::CATALOGUE,
];

impl Metrics {
    pub fn run(&self) -> Outcome {
        let Self::Catalogue(show) = self;
        if show.json {
            println!("{:#}", as_json());
        } else if show.markdown {
            print!("{}", as_markdown());
        } else {
            print!("{}", as_lines());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Each metric once, with the services that have it.
fn merged() -> BTreeMap<&'static str, (&'static Metric, Vec<&'static str>)> {
    let mut merged: BTreeMap<&str, (&Metric, Vec<&str>)> = BTreeMap::new();
    for catalogue in SERVICES {
        for metric in catalogue.all() {
            let (_, services) = merged.entry(metric.name).or_insert((metric, Vec::new()));
            services.push(catalogue.service);
        }
    }
    merged
}

fn as_json() -> Value {
    let metrics: Vec<Value> = merged()
        .into_values()
        .map(|(metric, services)| {
            json!({
                "name": metric.name,
                "type": metric.kind.name(),
                "unit": metric.unit,
                "labels": metric.labels,
                "help": metric.help,
                "services": services,
            })
        })
        .collect();
    let signals: Vec<Value> = SERVICES
        .iter()
        .flat_map(|catalogue| {
            let of = |signal: &'static Signal| signal.json(catalogue.service);
            catalogue.all_signals().map(of)
        })
        .collect();
    json!({ "version": 1, "metrics": metrics, "signals": signals })
}

fn as_lines() -> String {
    merged()
        .into_values()
        .map(|(metric, services)| {
            let services = match services.len() {
                5 => "all".to_owned(),
                _ => services.join(","),
            };
            let labels = match metric.labels {
                [] => String::new(),
                labels => format!("{{{}}}", labels.join(",")),
            };
            let (name, kind) = (metric.name, metric.kind.name());
            format!("{services:<12} {kind:<9} {name}{labels}: {}\n", metric.help)
        })
        .collect()
}

const PREFACE: &str = "\
# Metrics

Made by `caracal metrics catalogue --markdown` from the tables that the services register their
metrics with; a test fails when this page is out of date. `--json` gives the same to programs.

`GET /metrics` answers Prometheus text 0.0.4, or OpenMetrics 1.0 to whoever asks for
`application/openmetrics-text`. STS, Gateway and Audit have `GET /metrics.json` as well, the
Coordinator `GET /stats`. All need `Authorization: Bearer` with `METRICS_BEARER`; without that
variable they are open in `CARACAL_MODE=dev` and closed otherwise. The Coordinator also takes its own
token.

Histograms have classic buckets, from 25 µs to 30 s in steps of two to three; what an objective or a
threshold here is stated in (1, 5, 10, 50, 100 and 250 ms, 1 s) is a bound, so a share below it is exact.
There are no native buckets: Prometheus takes those as protobuf only, and the library can write that
with a feature that needs a protobuf compiler in every build, and histograms behind a lock where ours
are counted without one on the path of every call.
Labels are of small sets: routes are templates (`*` is what no route matches, at the Gateway
what is proxied), codes are statuses. What would be more than 1,024 combinations is counted as
`other`.

`GET /capacity` of each service, for the same bearer, compares the signals below with what the service
exposes at that moment: `{\"service\", \"ok\", \"signals\": [{\"signal\", \"metric\", \"value\", \"comparison\",
\"threshold\", \"for_seconds\", \"headroom\", \"over\", \"first_action\"}]}`. `headroom` is what is left until
the threshold, from 1 to 0. At the Gateway, a request with `X-Caracal-Resource` for that path is
proxied.
";

fn as_markdown() -> String {
    let mut page = PREFACE.to_owned();
    section(&mut page, "All services", COMMON.iter());
    for catalogue in SERVICES {
        section(
            &mut page,
            &capital(catalogue.service),
            catalogue.metrics.iter(),
        );
    }
    page.push_str("\n## Signals\n\nWhat a service may run out of, and what to do first.\n\n");
    page.push_str("| Service | Signal | Over when | For | First action |\n");
    page.push_str("| --- | --- | --- | --- | --- |\n");
    let rows = SERVICES
        .iter()
        .flat_map(|catalogue| catalogue.signals.iter().map(|one| (catalogue.service, one)));
    for (service, signal) in rows.chain(COMMON_SIGNALS.iter().map(|one| ("all", one))) {
        page.push_str(&format!(
            "| {service} | `{}` | `{} {} {}` | {} s | {} |\n",
            signal.name,
            signal.metric,
            signal.over.text(),
            signal.threshold,
            signal.for_seconds,
            signal.action,
        ));
    }
    page
}

fn section(page: &mut String, title: &str, metrics: impl Iterator<Item = &'static Metric>) {
    page.push_str(&format!("\n## {title}\n\n"));
    page.push_str("| Metric | Type | Labels | What it says |\n| --- | --- | --- | --- |\n");
    for metric in metrics {
        let unit = match metric.unit {
            "" => String::new(),
            unit => format!(", {unit}"),
        };
        let labels: Vec<String> = metric.labels.iter().map(|one| format!("`{one}`")).collect();
        page.push_str(&format!(
            "| `{}` | {}{unit} | {} | {} |\n",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            metric.help,
        ));
    }
}

fn capital(service: &str) -> String {
    match service {
        "sts" | "api" => service.to_uppercase(),
        _ => {
            let (first, rest) = service.split_at(1);
            format!("{}{rest}", first.to_uppercase())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// `caracal metrics catalogue --markdown > docs/reference/metrics.md` renews it.
    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/metrics.md"
        );
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == as_markdown(),
            "renew it: caracal metrics catalogue --markdown > docs/reference/metrics.md"
        );
    }

    #[test]
    fn every_name_is_described_once_and_every_signal_has_its_metric() {
        for catalogue in SERVICES {
            let names: Vec<&str> = catalogue.all().map(|metric| metric.name).collect();
            let unique: BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(names.len(), unique.len(), "{}", catalogue.service);
            for metric in catalogue.all() {
                let ends = metric.name.ends_with("_total");
                if metric.kind == caracal_net::metrics::catalogue::Kind::Counter {
                    assert!(ends, "{}", metric.name);
                }
                assert!(!metric.help.ends_with('.'), "{}", metric.name);
            }
            for signal in catalogue.all_signals() {
                let name = signal.metric.split('{').next().unwrap();
                assert!(unique.contains(name), "{name} of {}", catalogue.service);
            }
        }
    }

    /// The names of the published service (operations specification §4), for features that exist.
    #[test]
    fn no_published_name_is_missing() {
        let described = merged();
        for name in PUBLISHED {
            assert!(described.contains_key(name), "{name}");
        }
    }

    /// Without those of invocations and of the console's AI operator, which are yet to be built.
    #[rustfmt::skip]
    const PUBLISHED: &[&str] = &[
        "caracal_log_emitted_total", "caracal_log_dropped_total", "caracal_log_sampled_total",
        "caracal_api_outbox_pending_total", "caracal_api_outbox_dead_total", "caracal_api_outbox_oldest_pending_age_seconds",
        "caracal_api_outbox_oldest_dead_age_seconds", "caracal_secret_backend_operations_total", "caracal_secret_backend_errors_total",
        "caracal_sts_graph_traversals_total", "caracal_sts_graph_traversal_errors_total", "caracal_sts_audit_dropped_total",
        "caracal_sts_audit_replay_pending", "caracal_sts_audit_replay_files", "caracal_sts_audit_replay_bytes",
        "caracal_sts_audit_replay_oldest_age_seconds", "caracal_sts_audit_replay_replayed_total", "caracal_sts_audit_sink_errors_total",
        "caracal_sts_jwks_invalid_keys_total", "caracal_sts_secret_backend_reads_total", "caracal_sts_secret_backend_errors_total",
        "caracal_sts_provider_refresh_shared_total", "caracal_sts_provider_refresh_leased_total", "caracal_sts_provider_refresh_waited_total",
        "caracal_sts_provider_refresh_errors_total", "caracal_sts_provider_circuit_open_total", "caracal_sts_opa_eval_total",
        "caracal_sts_opa_eval_errors_total", "caracal_sts_opa_eval_duration_seconds_total", "caracal_sts_opa_compile_total",
        "caracal_sts_opa_compile_errors_total", "caracal_sts_opa_compile_duration_seconds_total", "caracal_sts_opa_max_policy_age_seconds",
        "caracal_sts_opa_poll_interval_seconds", "caracal_sts_mints_total",
        "caracal_gateway_requests_total", "caracal_gateway_requests_allowed_total", "caracal_gateway_requests_denied_total",
        "caracal_gateway_denials_missing_auth_total", "caracal_gateway_denials_bad_bearer_total", "caracal_gateway_denials_expiring_total",
        "caracal_gateway_denials_bad_routing_total", "caracal_gateway_denials_path_traversal_total", "caracal_gateway_denials_signature_total",
        "caracal_gateway_denials_jti_replay_total", "caracal_gateway_denials_revoked_total", "caracal_gateway_denials_revocation_stale_total",
        "caracal_gateway_sts_exchange_errors_total", "caracal_gateway_sts_exchange_latency_ms", "caracal_gateway_sts_circuit_open",
        "caracal_gateway_sts_circuit_opened_total", "caracal_gateway_sts_circuit_fast_fail_total", "caracal_gateway_upstream_errors_total",
        "caracal_gateway_audit_replay_files", "caracal_gateway_audit_replay_bytes", "caracal_gateway_audit_replay_oldest_age_seconds",
        "caracal_gateway_audit_dropped_total", "caracal_gateway_audit_sink_errors_total", "caracal_gateway_audit_queue_depth",
        "caracal_gateway_audit_queue_capacity", "caracal_gateway_audit_persisted_total", "caracal_gateway_audit_drained_total",
        "caracal_gateway_revocations_active", "caracal_gateway_revocation_snapshot_age_seconds", "caracal_gateway_revocation_snapshot_fresh",
        "caracal_gateway_revocation_messages_total", "caracal_gateway_revocation_pending_replayed_total", "caracal_gateway_revocation_dead_letters_total",
        "caracal_gateway_revocation_invalid_signatures_total", "caracal_gateway_revocation_reloads_total", "caracal_gateway_revocation_reload_errors_total",
        "caracal_gateway_revocation_propagation_seconds", "caracal_gateway_upstream_duration_seconds",
        "caracal_db_pool_in_use_ratio", "caracal_db_pool_max_conns", "caracal_db_pool_acquired_conns",
        "caracal_http_request_duration_seconds", "caracal_redis_command_duration_seconds",
        "caracal_audit_inserts_total", "caracal_audit_export_events_total", "caracal_audit_export_errors_total", "caracal_audit_export_duration_seconds",
        "caracal_audit_export_backlog_hours", "caracal_audit_consumer_lag", "caracal_audit_consumer_pel_oldest_seconds", "caracal_audit_dlq_size",
        "caracal_audit_dlq_oldest_age_seconds", "caracal_audit_parse_errors_total", "caracal_audit_dlq_total", "caracal_audit_retries_total",
        "caracal_audit_hmac_failures_total", "caracal_audit_tamper_replay_total", "caracal_audit_tamper_checked_total", "caracal_audit_tamper_mismatch_total",
        "caracal_audit_tamper_chain_breaks_total", "caracal_audit_tamper_hmac_failures_total", "caracal_audit_tamper_last_sweep_unix",
        "caracal_audit_tamper_last_full_unix", "caracal_audit_retention_created_total", "caracal_audit_retention_dropped_total",
        "caracal_audit_is_export_leader", "caracal_audit_is_retention_leader", "caracal_audit_export_lease_transitions_total",
        "caracal_audit_retention_lease_transitions_total", "caracal_audit_ingest_batch_size",
        "caracal_outbox_total", "caracal_idempotency_requests_total", "caracal_idempotency_receipts", "caracal_idempotency_oldest_seconds",
        "caracal_ttl_sweeper_runs_total", "caracal_service_lease_sweeper_runs_total", "caracal_retention_cleaner_runs_total",
        "caracal_retention_sessions_deleted_total",
    ];
}
