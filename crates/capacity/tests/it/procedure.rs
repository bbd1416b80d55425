//! The five steps, what is recorded, and when a deployment has settled.

use caracal_capacity::Thresholds;
use caracal_capacity::{record, signal};

use crate::scene::healthy;

#[test]
fn the_answer_reads_in_the_order_of_the_page() {
    let mut scene = healthy();
    scene.grows("sts", "process_cpu_seconds_total", 9.0);
    insta::assert_snapshot!(scene.report().text());
}

#[test]
fn what_is_recorded_has_a_date_a_limit_and_a_threshold() {
    let mut scene = healthy();
    scene.grows("sts", "process_cpu_seconds_total", 4.0);
    let section = record::section(
        &scene.report(),
        "2026-11-28T00:00:00Z",
        "http://prometheus:9090",
        None,
    );
    let head: Vec<&str> = section.lines().take(12).collect();
    insta::assert_snapshot!(head.join("\n"));
}

#[test]
fn every_signal_is_known_of_a_whole_deployment() {
    let report = healthy().report();
    assert_eq!(report.unknown, Vec::<&str>::new());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["healthy"], true);
    assert_eq!(json["steps"].as_array().unwrap().len(), 5);
    assert!(json["signals"].as_array().unwrap().len() >= signal::SIGNALS.len());
}

#[test]
fn thresholds_can_be_set_by_name() {
    let mut thresholds = Thresholds::default();
    thresholds.set("audit_lag", 5.0).unwrap();
    assert!(thresholds.set("audit_lag", f64::NAN).is_err());
    let error = thresholds.set("lag", 5.0).unwrap_err();
    assert!(error.contains("audit_lag"), "{error}");
}
