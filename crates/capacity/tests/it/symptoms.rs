//! The table of troubleshooting symptoms.

use caracal_capacity::{Bottleneck, Postgres};

use crate::scene::healthy;

#[test]
fn more_replicas_make_it_worse() {
    let claim = "service=\"sts\",command=\"claim\"";
    let before = healthy().report().summary;
    // Connection pressure: calls take longer, and connections are waited for.
    let mut scene = healthy();
    scene
        .takes(
            "gateway",
            "caracal_gateway_request_duration_seconds",
            "",
            0.4,
        )
        .takes(
            "sts",
            "caracal_db_pool_wait_seconds",
            "service=\"sts\"",
            0.09,
        )
        .replicas("sts", 4);
    let report = scene.report_after(&before);
    assert_eq!(
        report.bottleneck,
        Some("postgres_connections"),
        "{}",
        report.text()
    );
    assert!(
        report.text().contains("sts went from 2 to 4 replicas"),
        "{}",
        report.text()
    );
    assert!(
        !report.storage_healthy,
        "replicas are the last thing to add"
    );
    // Redis latency: still below its own threshold, but it is what got worse.
    let mut scene = healthy();
    scene
        .takes(
            "gateway",
            "caracal_gateway_request_duration_seconds",
            "",
            0.4,
        )
        .takes("sts", "caracal_redis_command_duration_seconds", claim, 0.02)
        .replicas("sts", 4);
    let report = scene.report_after(&before);
    assert_eq!(
        report.bottleneck,
        Some("redis_latency"),
        "{}",
        report.text()
    );
    // It got better: nothing to say.
    let mut scene = healthy();
    scene.replicas("sts", 3);
    let report = scene.report_after(&before);
    assert!(report.healthy, "{}", report.text());
    // Without an earlier look: more pools than there are connections.
    let mut scene = healthy();
    scene
        .is("sts", "caracal_db_pool_max_conns", 20.0)
        .replicas("sts", 8);
    let report = scene.names(Bottleneck::PostgresConnections);
    assert!(
        report
            .signals
            .iter()
            .any(|r| r.signal == "postgres_budget" && r.breached)
    );
}

#[test]
fn gateway_latency_spikes() {
    let whole = "caracal_gateway_request_duration_seconds";
    let stage = "caracal_gateway_stage_duration_seconds";
    let exchange = "service=\"sts\",route=\"/oauth/2/token\",code=\"200\"";
    // STS latency, and what of it.
    let mut scene = healthy();
    scene
        .takes("gateway", whole, "", 3.0)
        .takes(
            "gateway",
            "caracal_gateway_sts_exchange_duration_seconds",
            "",
            2.8,
        )
        .takes(
            "sts",
            "caracal_http_request_duration_seconds",
            exchange,
            2.7,
        )
        .takes(
            "sts",
            "caracal_sts_stage_duration_seconds",
            "stage=\"policy\"",
            2.5,
        );
    let report = scene.names(Bottleneck::StsEvaluation);
    assert!(
        report.text().contains("exchange 100 %") || report.text().contains("exchange 9"),
        "{}",
        report.text()
    );
    // The STS is quick, and yet the exchange is not.
    let mut scene = healthy();
    scene.takes("gateway", whole, "", 3.0).takes(
        "gateway",
        "caracal_gateway_sts_exchange_duration_seconds",
        "",
        2.8,
    );
    scene.names(Bottleneck::StsUnavailable);
    // The upstream, up to its timeout.
    let mut scene = healthy();
    scene.takes("gateway", whole, "", 9.0).takes(
        "gateway",
        "caracal_gateway_upstream_duration_seconds",
        "",
        8.9,
    );
    let report = scene.names(Bottleneck::Upstream);
    assert!(report.first_action.unwrap().contains("UPSTREAM_TIMEOUT"));
    // The cache of key sets.
    let mut scene = healthy();
    scene
        .takes("gateway", whole, "", 3.0)
        .takes("gateway", stage, "stage=\"verify\"", 2.9);
    scene.names(Bottleneck::GatewayKeySets);
    // Private egress.
    let mut scene = healthy();
    scene.grows("gateway", "caracal_gateway_upstream_errors_total", 100.0);
    let report = scene.names(Bottleneck::Egress);
    assert!(
        report
            .first_action
            .unwrap()
            .contains("CARACAL_PRIVATE_EGRESS_HOSTS")
    );
    // The Gateway itself.
    let mut scene = healthy();
    scene.takes("gateway", whole, "", 3.0);
    scene.names(Bottleneck::GatewayProxying);
    let mut scene = healthy();
    scene.grows("gateway", "process_cpu_seconds_total", 9.5);
    scene.names(Bottleneck::GatewayProxying);
}

#[test]
fn audit_cannot_catch_up() {
    // IOPS.
    let mut scene = healthy();
    scene.goes("audit", "caracal_audit_consumer_lag", 5_000.0, 9_000.0);
    scene.postgres = Some(Postgres {
        active: Some(5.0),
        waiting_io: Some(4.0),
        ..Postgres::default()
    });
    scene.names(Bottleneck::PostgresIo);
    // The same, where nobody can ask Postgres: full batches, and a processor that is idle.
    let mut scene = healthy();
    scene.postgres = None;
    scene
        .goes("audit", "caracal_audit_consumer_lag", 5_000.0, 9_000.0)
        .takes("audit", "caracal_audit_ingest_batch_size", "", 1_000.0);
    let report = scene.names(Bottleneck::PostgresIo);
    assert!(
        report.text().contains("it waits for Postgres"),
        "{}",
        report.text()
    );
    // Or commits that take all of the time.
    let mut scene = healthy();
    scene.postgres = None;
    scene
        .goes("audit", "caracal_audit_consumer_lag", 5_000.0, 9_000.0)
        .takes(
            "audit",
            "caracal_audit_stage_duration_seconds",
            "stage=\"commit\"",
            0.0045,
        );
    scene.names(Bottleneck::PostgresIo);
    // Too few replicas: the processor is what is used up.
    let mut scene = healthy();
    scene
        .goes("audit", "caracal_audit_consumer_lag", 5_000.0, 9_000.0)
        .grows("audit", "process_cpu_seconds_total", 9.5);
    let report = scene.names(Bottleneck::AuditIngest);
    assert!(
        report.text().contains("Processors in use"),
        "{}",
        report.text()
    );
    // Entries that were handed out and never finished.
    let mut scene = healthy();
    scene.is("audit", "caracal_audit_consumer_pel_oldest_seconds", 900.0);
    let report = scene.names(Bottleneck::AuditIngest);
    assert!(
        report
            .otherwise
            .unwrap()
            .contains("caracal_audit_consumer_pel_oldest_seconds")
    );
    // It does catch up: how long it takes is told.
    let mut scene = healthy();
    scene.goes("audit", "caracal_audit_consumer_lag", 6_000.0, 5_000.0);
    let report = scene.names(Bottleneck::AuditIngest);
    assert!(
        report.text().contains("the lag falls by 200/s"),
        "{}",
        report.text()
    );
}
