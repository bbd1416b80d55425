use std::time::Duration;

use caracal_model::TestClock;

use super::catalogue::{counter, gauge, seconds};
use super::*;

static CATALOGUE: Catalogue = Catalogue {
    service: "gateway",
    prefix: "caracal_gateway",
    metrics: &[
        counter("caracal_gateway_requests_total", "Requests"),
        gauge("caracal_gateway_sts_circuit_open", "Open?"),
        counter("caracal_gateway_opa_eval_duration_seconds_total", "Time").of("seconds"),
        counter("caracal_gateway_mints_total", "Mints").by(&["outcome"]),
        seconds("caracal_gateway_upstream_duration_seconds", "Upstreams"),
        seconds("caracal_gateway_stage_duration_seconds", "Stages").by(&["stage"]),
    ],
    signals: &[],
};

/// Without what every service has.
fn own(exposition: &str) -> String {
    let common = |line: &&str| {
        ["caracal_log_", "caracal_http_", "caracal_ready", "process_"]
            .iter()
            .any(|prefix| line.split(' ').any(|word| word.starts_with(prefix)))
    };
    let lines: Vec<_> = exposition.lines().filter(|line| !common(line)).collect();
    lines.join("\n")
}

fn registry() -> Registry {
    let registry = Registry::new(&CATALOGUE, Arc::new(TestClock::default()));
    registry.counter("requests").inc_by(3);
    let open = registry.gauge("sts_circuit_open");
    registry.on_scrape(move || {
        open.set(1);
        async {}
    });
    registry
        .float_counter("opa_eval_duration_seconds")
        .inc_by(0.5);
    let mints = registry.register("mints", Counts::by(["outcome"]));
    mints.of(["allow"]).inc();
    registry
}

#[tokio::test]
async fn the_exposition_is_that_of_0_0_4() {
    insta::assert_snapshot!(own(&registry().render().await), @r#"
    # HELP caracal_gateway_requests_total Requests.
    # TYPE caracal_gateway_requests_total counter
    caracal_gateway_requests_total 3
    # HELP caracal_gateway_sts_circuit_open Open?.
    # TYPE caracal_gateway_sts_circuit_open gauge
    caracal_gateway_sts_circuit_open 1
    # HELP caracal_gateway_opa_eval_duration_seconds_total Time.
    # TYPE caracal_gateway_opa_eval_duration_seconds_total counter
    caracal_gateway_opa_eval_duration_seconds_total 0.5
    # HELP caracal_gateway_mints_total Mints.
    # TYPE caracal_gateway_mints_total counter
    caracal_gateway_mints_total{outcome="allow"} 1
    "#);
}

#[tokio::test]
async fn open_metrics_names_families_and_ends() {
    let text = registry().render_open().await;
    assert!(
        text.contains(
            "# TYPE caracal_gateway_requests counter\ncaracal_gateway_requests_total 3\n"
        )
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn durations_are_counted_in_their_bucket_and_all_above() {
    let registry = registry();
    let upstream = registry.seconds("upstream_duration_seconds");
    let [verify, replay] = registry.stages("stage_duration_seconds", "stage", ["verify", "replay"]);
    for micros in [20, 1_000, 1_001, 100_000_000] {
        upstream.took(Duration::from_micros(micros));
    }
    verify.took(Duration::from_micros(70));
    replay.took(Duration::from_micros(300));
    let text = registry.render().await;
    for line in [
        "# TYPE caracal_gateway_upstream_duration_seconds histogram",
        "caracal_gateway_upstream_duration_seconds_sum 100.002021",
        "caracal_gateway_upstream_duration_seconds_count 4",
        "caracal_gateway_upstream_duration_seconds_bucket{le=\"0.000025\"} 1",
        "caracal_gateway_upstream_duration_seconds_bucket{le=\"0.001\"} 2",
        "caracal_gateway_upstream_duration_seconds_bucket{le=\"0.0025\"} 3",
        "caracal_gateway_upstream_duration_seconds_bucket{le=\"30.0\"} 3",
        "caracal_gateway_upstream_duration_seconds_bucket{le=\"+Inf\"} 4",
        "caracal_gateway_stage_duration_seconds_count{stage=\"verify\"} 1",
        "caracal_gateway_stage_duration_seconds_bucket{le=\"0.00025\",stage=\"replay\"} 0",
        "caracal_gateway_stage_duration_seconds_bucket{le=\"0.0005\",stage=\"replay\"} 1",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
    }
    registry.pool(|| Pool { in_use: 1, max: 4 }, &Histogram::durations());
    registry.bus(&[("claim", Histogram::durations())]);
    assert_eq!(
        CATALOGUE.differences(&registry.render().await),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn what_is_not_described_is_told() {
    let registry = registry();
    registry.gauge("surprise");
    let told = CATALOGUE.differences(&registry.render().await);
    assert!(told.contains(&"not in the catalogue: caracal_gateway_surprise gauge".to_owned()));
    assert!(told.contains(&"not exposed: caracal_db_pool_max_conns gauge".to_owned()));
}
