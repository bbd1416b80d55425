//! `caracal capacity` as far as it needs no deployment that works; the rest is end to end.

use serde_json::Value;

use super::{caracal, said};

#[test]
fn a_deployment_is_sized_with_its_arithmetic() {
    let home = tempfile::tempdir().unwrap();
    let plan = |more: &str| {
        let load = "--rps 500 --sessions 400 --zones 10 --identities 100";
        caracal(home.path(), &format!("capacity plan {load} {more}"))
    };
    let fits = plan("--max-connections 400 --redis-memory 4096");
    assert_eq!(fits.status.code(), Some(0), "{}", said(&fits));
    let told = said(&fits);
    for part in [
        "processors /",
        "while rolling",
        "a day, x 365 days",
        "x10 (5,000 calls/s)",
        "docs/benchmarks.md",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let narrow = plan("--max-connections 50 --redis-memory 4096 --json");
    assert_eq!(narrow.status.code(), Some(1), "{}", said(&narrow));
    let narrow: Value = serde_json::from_slice(&narrow.stdout).unwrap();
    assert_eq!(narrow["growth"][0]["first"]["part"], "postgres connections");

    let costs = home.path().join("costs.json");
    std::fs::write(&costs, r#"{"costs": {"ledger_bytes_per_event": 100}}"#).unwrap();
    let own = plan(&format!(
        "--max-connections 400 --costs {}",
        costs.display()
    ));
    assert!(said(&own).contains("x 100 bytes"), "{}", said(&own));
    std::fs::write(&costs, "{}").unwrap();
    let none = plan(&format!("--costs {}", costs.display()));
    assert!(
        !none.status.success() && said(&none).contains("no figures"),
        "{}",
        said(&none)
    );
    for wrong in [
        "--rps 0",
        "--utilization 200",
        "--replicas web=1",
        "--pool sts=-1",
    ] {
        let output = caracal(
            home.path(),
            &format!("capacity plan --rps 1 --sessions 1 {wrong}"),
        );
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", said(&output));
    }
}

#[test]
fn nobody_there_is_a_verdict_and_no_error() {
    let home = tempfile::tempdir().unwrap();
    // Port 9 is discard: nobody listens there.
    let line = "capacity --over 100ms --json --target sts=http://127.0.0.1:9";
    let output = caracal(home.path(), line);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["bottleneck"], "sts_unavailable");
    let unreadable = caracal(home.path(), "capacity --baseline /nowhere/before.json");
    assert_eq!(unreadable.status.code(), Some(3), "{}", said(&unreadable));
}
