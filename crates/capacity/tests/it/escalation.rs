//! The table of escalation patterns: which cause is named when several signals speak.

use caracal_capacity::report::Verdict;
use caracal_capacity::{Bottleneck, Postgres};

use crate::scene::{Scene, healthy};

fn waits_for_the_disk(scene: &mut Scene) {
    scene.postgres = Some(Postgres {
        active: Some(8.0),
        waiting_io: Some(6.0),
        ..scene.postgres.unwrap_or_default()
    });
}

#[test]
fn a_full_pool_means_slow_statements_first_and_then_one_step() {
    let mut scene = healthy();
    scene.is("api", "caracal_db_pool_in_use_ratio", 1.0);
    let report = scene.names(Bottleneck::PostgresPool);
    assert!(
        report
            .first_action
            .unwrap()
            .starts_with("see slow statements first")
    );
    let verdicts = report.steps.each_ref().map(|step| step.verdict);
    // No replicas: each brings another pool. The pool, because Postgres itself is healthy.
    assert_eq!(
        verdicts,
        [
            Verdict::Now,
            Verdict::No,
            Verdict::Now,
            Verdict::Then,
            Verdict::Then
        ]
    );
    assert!(report.expected_outcome.unwrap().contains("/ready steadies"));

    waits_for_the_disk(&mut scene);
    let report = scene.names(Bottleneck::PostgresIo);
    let pool = &report.findings[1];
    assert_eq!(pool.bottleneck, Bottleneck::PostgresPool);
    assert_eq!(pool.because_of, Some(Bottleneck::PostgresIo));
    assert!(!report.storage_healthy);
}

#[test]
fn an_open_circuit_means_the_sts() {
    let mut scene = healthy();
    scene
        .is("gateway", "caracal_gateway_sts_circuit_open", 1.0)
        .silent("sts");
    let report = scene.names(Bottleneck::StsUnavailable);
    assert!(report.text().contains("no answer"), "{}", report.text());
    assert!(report.first_action.unwrap().contains("cut the fan-in"));
    assert_eq!(report.steps[1].verdict, Verdict::Now);

    // It answers, but late: what it does all the while is the cause.
    let mut scene = healthy();
    let exchange = "service=\"sts\",route=\"/oauth/2/token\",code=\"200\"";
    scene
        .is("gateway", "caracal_gateway_sts_circuit_open", 1.0)
        .takes(
            "sts",
            "caracal_http_request_duration_seconds",
            exchange,
            5.0,
        )
        .takes(
            "sts",
            "caracal_sts_stage_duration_seconds",
            "stage=\"policy\"",
            4.0,
        )
        .takes(
            "sts",
            "caracal_sts_stage_duration_seconds",
            "stage=\"sign\"",
            0.1,
        );
    let report = scene.names(Bottleneck::StsEvaluation);
    assert_eq!(
        report.findings[1].because_of,
        Some(Bottleneck::StsEvaluation)
    );
    assert!(report.text().contains("policy 98 %"), "{}", report.text());
    scene.takes(
        "sts",
        "caracal_sts_stage_duration_seconds",
        "stage=\"authenticate\"",
        9.0,
    );
    scene.names(Bottleneck::StsCrypto);

    // Replicas only while storage is healthy.
    waits_for_the_disk(&mut scene);
    let report = scene.names(Bottleneck::PostgresIo);
    assert_eq!(report.steps[1].verdict, Verdict::No);
}

#[test]
fn a_growing_lag_means_postgres_writes_before_replicas() {
    let mut scene = healthy();
    scene.goes("audit", "caracal_audit_consumer_lag", 1_500.0, 4_000.0);
    let report = scene.names(Bottleneck::AuditIngest);
    assert!(
        report.text().contains("the lag grows by 500/s"),
        "{}",
        report.text()
    );
    assert!(
        report
            .first_action
            .unwrap()
            .starts_with("see Postgres write IOPS and partitions")
    );
    assert_eq!(
        report.steps[1].verdict,
        Verdict::Now,
        "storage is healthy: a replica"
    );

    waits_for_the_disk(&mut scene);
    let report = scene.names(Bottleneck::PostgresIo);
    assert_eq!(report.steps[1].verdict, Verdict::No);
    assert_eq!(report.findings[1].because_of, Some(Bottleneck::PostgresIo));
    assert!(
        report
            .first_action
            .unwrap()
            .contains("leave pools and retention as they are")
    );
}

#[test]
fn revocation_lag_means_redis_then_consumers_then_the_snapshot() {
    let mut scene = healthy();
    scene.is(
        "gateway",
        "caracal_gateway_revocation_propagation_seconds",
        45.0,
    );
    let report = scene.names(Bottleneck::RevocationLag);
    let first = report.first_action.unwrap();
    let order = ["Redis latency", "relay", "snapshot"].map(|word| first.find(word).unwrap());
    assert!(order.is_sorted(), "{first}");

    let claim = "service=\"gateway\",command=\"claim\"";
    scene.takes(
        "gateway",
        "caracal_redis_command_duration_seconds",
        claim,
        0.3,
    );
    let report = scene.names(Bottleneck::RedisLatency);
    let lag = &report.findings[1];
    assert_eq!(lag.bottleneck, Bottleneck::RevocationLag);
    assert_eq!(lag.because_of, Some(Bottleneck::RedisLatency));
}
