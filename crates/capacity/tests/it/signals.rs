//! The table of signals: each driven over its threshold by itself.

use caracal_capacity::{Bottleneck, Redis};

use crate::scene::healthy;

#[test]
fn a_healthy_deployment_has_no_bottleneck() {
    let report = healthy().report();
    assert!(report.healthy, "{}", report.text());
    assert_eq!(report.bottleneck, None);
    assert!(report.text().starts_with("No bottleneck.\n"));
}

#[test]
fn postgres_pool_ratio() {
    for service in ["api", "sts", "gateway", "audit", "coordinator"] {
        let mut scene = healthy();
        scene.is(service, "caracal_db_pool_in_use_ratio", 0.95);
        let report = scene.names(Bottleneck::PostgresPool);
        assert_eq!(report.findings[0].service.unwrap().name(), service);
        assert!(
            report.findings[0].evidence[0].contains("95 %"),
            "{}",
            report.text()
        );
    }
    let mut scene = healthy();
    scene.is("sts", "caracal_db_pool_in_use_ratio", 0.9);
    assert!(scene.report().healthy, "at the threshold is not above it");
}

#[test]
fn audit_consumer_lag() {
    let mut scene = healthy();
    scene.is("audit", "caracal_audit_consumer_lag", 1_001.0);
    scene.names(Bottleneck::AuditIngest);
    // All of Audit is away: Redis itself knows what waits.
    let mut scene = healthy();
    scene.silent("audit");
    scene.redis = Some(Redis {
        lag: Some(5_000.0),
        ..Redis::default()
    });
    let report = scene.names(Bottleneck::AuditIngest);
    assert!(report.text().contains("5,000"), "{}", report.text());
}

#[test]
fn audit_replay_backlog_age() {
    for service in ["sts", "gateway"] {
        let mut scene = healthy();
        scene.is(
            service,
            &format!("caracal_{service}_audit_replay_oldest_age_seconds"),
            301.0,
        );
        scene.names(Bottleneck::ReplayBacklog);
    }
}

#[test]
fn gateway_sts_circuit_open() {
    let mut scene = healthy();
    scene.is("gateway", "caracal_gateway_sts_circuit_open", 1.0);
    scene.names(Bottleneck::StsUnavailable);
}

#[test]
fn revocation_propagation_lag() {
    let mut scene = healthy();
    scene.is(
        "gateway",
        "caracal_gateway_revocation_propagation_seconds",
        31.0,
    );
    scene.names(Bottleneck::RevocationLag);
    let mut scene = healthy();
    scene.is("gateway", "caracal_gateway_revocation_snapshot_fresh", 0.0);
    scene.names(Bottleneck::RevocationLag);
}

#[test]
fn readiness_flapping() {
    let mut scene = healthy();
    scene.flaps.insert("sts-0".to_owned(), 5.0);
    scene.names(Bottleneck::ReadinessFlapping);
    let mut scene = healthy();
    scene.is("sts", "caracal_ready_changes_10m{service=\"sts\"}", 6.0);
    scene.names(Bottleneck::ReadinessFlapping);
    let mut scene = healthy();
    scene.flaps("gateway");
    let report = scene.report();
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.bottleneck == Bottleneck::ReadinessFlapping)
    );
}

#[test]
fn policy_age() {
    let mut scene = healthy();
    scene.is("sts", "caracal_sts_opa_max_policy_age_seconds", 301.0);
    scene.names(Bottleneck::PolicyPropagation);
    let mut scene = healthy();
    scene.is(
        "sts",
        "caracal_sts_opa_max_policy_age_seconds",
        f64::INFINITY,
    );
    scene.names(Bottleneck::PolicyPropagation);
    let mut scene = healthy();
    scene.grows("sts", "caracal_sts_opa_compile_errors_total", 1.0);
    scene.names(Bottleneck::PolicyPropagation);
}

#[test]
fn outbox() {
    let mut scene = healthy();
    scene.is(
        "api",
        "caracal_api_outbox_oldest_pending_age_seconds",
        301.0,
    );
    scene.names(Bottleneck::Outbox);
    let mut scene = healthy();
    scene.is("api", "caracal_api_outbox_dead_total", 1.0);
    scene.names(Bottleneck::Outbox);
    let mut scene = healthy();
    scene.is("coordinator", "caracal_outbox_total{status=\"dead\"}", 1.0);
    scene.names(Bottleneck::Outbox);
}

#[test]
fn dead_letters() {
    let mut scene = healthy();
    scene.is("audit", "caracal_audit_dlq_size", 1.0);
    scene.names(Bottleneck::DeadLetters);
    let mut scene = healthy();
    scene.goes("audit", "caracal_audit_dlq_size", 0.0, 7.0);
    let report = scene.names(Bottleneck::DeadLetters);
    assert!(
        report
            .signals
            .iter()
            .any(|r| r.signal == "dlq_growth" && r.breached)
    );
}

#[test]
fn reasons_of_readiness_are_causes() {
    for (service, reason, expected) in [
        (
            "api",
            "postgres_unreachable",
            Bottleneck::PostgresUnreachable,
        ),
        ("gateway", "redis_unreachable", Bottleneck::RedisUnreachable),
        (
            "gateway",
            "revocation_snapshot_stale",
            Bottleneck::RevocationLag,
        ),
        ("gateway", "sts_unreachable", Bottleneck::StsUnavailable),
        ("sts", "audit_evidence_lost", Bottleneck::EvidenceLost),
        ("sts", "audit_replay_unavailable", Bottleneck::ReplayBacklog),
        ("audit", "consumer_unhealthy", Bottleneck::AuditIngest),
        ("audit", "audit_dlq_threshold", Bottleneck::DeadLetters),
        ("api", "outbox_dead_messages", Bottleneck::Outbox),
        ("coordinator", "draining", Bottleneck::ServiceUnreachable),
    ] {
        let mut scene = healthy();
        scene.not_ready(service, reason);
        let report = scene.names(expected);
        assert!(report.text().contains(reason), "{}", report.text());
    }
}

#[test]
fn evidence_that_was_lost_comes_before_everything() {
    let mut scene = healthy();
    scene
        .is("gateway", "caracal_gateway_audit_dropped_total", 1.0)
        .is("audit", "caracal_audit_consumer_lag", 5_000.0);
    scene.names(Bottleneck::EvidenceLost);
}
