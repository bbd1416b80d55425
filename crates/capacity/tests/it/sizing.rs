//! `plan`: the arithmetic, and what ends first.

use caracal_capacity::plan::{Costs, Fleet, Load, Plan};

fn load(calls: f64) -> Load {
    Load {
        calls_per_second: calls,
        sessions: 400.0,
        zones: 10.0,
        identities: 100.0,
        session_seconds: 1_020.0,
        mandate_seconds: 900.0,
        retention_days: 365.0,
        outage_minutes: 10.0,
        utilization: 0.6,
    }
}

#[test]
fn every_line_of_a_plan_can_be_repeated_on_paper() {
    let plan = Plan::of(load(500.0), Fleet::default(), Costs::default());
    insta::assert_snapshot!(plan.text());
}

#[test]
fn what_ends_first_changes_as_the_load_grows() {
    let fleet = Fleet {
        redis_memory: 1e12,
        max_connections: 1e6,
        ..Fleet::default()
    };
    let plan = Plan::of(load(500.0), fleet.clone(), Costs::default());
    assert!(plan.fits, "{}", plan.text());
    assert!(!plan.growth[2].fits());
    // What ends first at a hundred times the load, and then without what ended.
    for (cheap, ends) in [
        (serde_json::json!({}), "redis processor"),
        (
            serde_json::json!({
                "postgres_us_per_call": 100, "redis_us_per_call": 1, "redis_commands_per_call": 0.1,
            }),
            "postgres processors",
        ),
        (
            serde_json::json!({
                "postgres_us_per_call": 1, "redis_us_per_call": 1, "redis_commands_per_call": 0.1,
            }),
            "audit replicas",
        ),
    ] {
        let mut costs = Costs::default();
        if cheap != serde_json::json!({}) {
            let told = serde_json::json!({ "costs": cheap });
            costs.learn(&told, "a guess").unwrap();
        }
        let plan = Plan::of(load(500.0), fleet.clone(), costs);
        let first = plan.growth[2].first.as_ref().unwrap().part;
        assert_eq!(first, ends, "{}", plan.text());
    }
}

#[test]
fn a_connection_budget_that_does_not_fit_is_told_with_its_sum() {
    let fleet = Fleet {
        max_connections: 100.0,
        ..Fleet::default()
    };
    let plan = Plan::of(load(50.0), fleet, Costs::default());
    assert!(!plan.fits);
    let text = plan.text();
    assert!(text.contains("api 3 x 10 + sts 2 x 8 + gateway 2 x 2 + audit 3 x 4 + coordinator 3 x 10 + 15 beside the pools = 107"), "{text}");
    assert!(text.contains("postgres connections ends first"), "{text}");
}
