//! Metrics: a registry whose exposition is Prometheus text 0.0.4, and who may read it.
//!
//! Names are contracts (spec: operations §4). The library writes OpenMetrics, in which the family
//! of a counter is named without `_total`; the older format that scrapers of the reference expect
//! names the sample, so [`exposition`] puts the suffix back into HELP and TYPE.

mod histogram;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use caracal_model::Secret;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use prometheus_client::encoding::text;
use serde_json::{Map, Value};

pub use histogram::Histogram;
pub use prometheus_client::encoding::EncodeLabelSet;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;

/// A gauge of fractions.
pub type FloatGauge = Gauge<f64, AtomicU64>;
/// A counter of fractions, such as seconds.
pub type FloatCounter = Counter<f64, AtomicU64>;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;
type Flat = Arc<dyn Fn() -> Value + Send + Sync>;

/// The metrics of one service. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    prefix: &'static str,
    families: Mutex<prometheus_client::registry::Registry>,
    refresh: Mutex<Vec<Refresh>>,
    json: Mutex<Vec<Flat>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({})", self.0.prefix)
    }
}

impl Registry {
    /// Every name starts with `prefix` and `_`.
    pub fn new(prefix: &'static str) -> Self {
        Self(Arc::new(Inner {
            prefix,
            families: Mutex::default(),
            refresh: Mutex::default(),
            json: Mutex::default(),
        }))
    }

    /// A counter; `name` is given without `_total`, which the exposition adds.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// As [`Registry::counter`], of fractions.
    pub fn float_counter(&self, name: &str, help: &str) -> FloatCounter {
        self.register(name, help, FloatCounter::default())
    }

    /// A gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// A gauge of fractions.
    pub fn float_gauge(&self, name: &str, help: &str) -> FloatGauge {
        self.register(name, help, FloatGauge::default())
    }

    /// A histogram of seconds, from 0.25 ms to 8 s in steps of two.
    pub fn seconds(&self, name: &str, help: &str) -> Histogram {
        self.register(name, help, Histogram::default())
    }

    /// Any metric (a [`Family`] with labels, say) under the prefix.
    pub fn register<M>(&self, name: &str, help: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.register_as(&format!("{}_{name}", self.0.prefix), help, metric)
    }

    /// As [`Registry::register`], under a name that is already whole (`caracal_db_pool_…`).
    pub fn register_as<M>(&self, name: &str, help: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.0.families.lock().register(name, help, metric.clone());
        metric
    }

    /// Runs before each exposition, to set gauges that are asked for rather than counted.
    pub fn on_scrape<F, R>(&self, refresh: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.0
            .refresh
            .lock()
            .push(Arc::new(move || Box::pin(refresh())));
    }

    /// What `/metrics.json` answers; given several times, the members of all. Without it there is
    /// no such route.
    pub fn json(&self, flat: impl Fn() -> Value + Send + Sync + 'static) {
        self.0.json.lock().push(Arc::new(flat));
    }

    /// The exposition.
    pub async fn render(&self) -> String {
        self.run_refresh().await;
        let mut open = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut open, &self.0.families.lock());
        exposition(&open)
    }

    async fn run_refresh(&self) {
        let hooks = self.0.refresh.lock().clone();
        for hook in hooks {
            hook().await;
        }
    }

    /// `/metrics`, and `/metrics.json` when [`Registry::json`] was given.
    pub fn routes<S: Clone + Send + Sync + 'static>(
        &self,
        access: impl Into<Arc<Access>>,
    ) -> Router<S> {
        let scrape = (self.clone(), access.into());
        let mut router = Router::new().route("/metrics", any(metrics));
        if !self.0.json.lock().is_empty() {
            router = router.route("/metrics.json", any(metrics_json));
        }
        router.with_state(scrape)
    }
}

/// Who may read metrics (spec: operations §4).
#[derive(Debug)]
pub struct Access {
    /// `METRICS_BEARER`.
    pub bearer: Option<Secret<String>>,
    /// Whether reading without a configured bearer is allowed (dev mode).
    pub open: bool,
    /// Refuse with JSON (API, Coordinator) instead of plain text.
    pub json_refusal: bool,
}

impl Access {
    /// Whether a request with these headers may read.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        match &self.bearer {
            Some(bearer) => crate::bearer::is(headers, bearer),
            None => self.open,
        }
    }

    fn refusal(&self) -> Response {
        if self.json_refusal {
            crate::Problem::new(StatusCode::UNAUTHORIZED, "unauthorized")
                .because("send METRICS_BEARER as Authorization: Bearer")
                .into_response()
        } else {
            (StatusCode::UNAUTHORIZED, "unauthorized").into_response()
        }
    }
}

type Scrape = State<(Registry, Arc<Access>)>;

async fn metrics(State((registry, access)): Scrape, headers: HeaderMap) -> Response {
    if !access.allows(&headers) {
        return access.refusal();
    }
    ([(CONTENT_TYPE, TEXT)], registry.render().await).into_response()
}

async fn metrics_json(State((registry, access)): Scrape, headers: HeaderMap) -> Response {
    if !access.allows(&headers) {
        return access.refusal();
    }
    registry.run_refresh().await;
    let parts = registry.0.json.lock().clone();
    let mut all = Map::new();
    for part in parts {
        if let Value::Object(members) = part() {
            all.extend(members);
        }
    }
    Json(Value::Object(all)).into_response()
}

/// OpenMetrics to Prometheus text 0.0.4.
fn exposition(open: &str) -> String {
    let mut text = String::with_capacity(open.len() + open.len() / 8);
    let mut help = None;
    for line in open.lines() {
        if line == "# EOF" {
            continue;
        }
        // HELP comes first and does not know the type: it waits for its TYPE line.
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let about = help.take().map_or("", |(_, about)| about);
            text.push_str(&format!(
                "# HELP {name}{suffix} {about}\n# TYPE {name}{suffix} {kind}\n"
            ));
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exposition_is_that_of_0_0_4() {
        let registry = Registry::new("caracal_gateway");
        registry.counter("requests", "Requests").inc_by(3);
        let open = registry.gauge("sts_circuit_open", "Open?");
        registry.on_scrape(move || {
            open.set(1);
            async {}
        });
        registry
            .float_counter("opa_eval_duration_seconds", "Time")
            .inc_by(0.5);
        let ratio = FloatGauge::default();
        registry
            .register_as("caracal_db_pool_in_use_ratio", "In use", ratio)
            .set(0.25);
        insta::assert_snapshot!(registry.render().await, @r"
        # HELP caracal_gateway_requests_total Requests.
        # TYPE caracal_gateway_requests_total counter
        caracal_gateway_requests_total 3
        # HELP caracal_gateway_sts_circuit_open Open?.
        # TYPE caracal_gateway_sts_circuit_open gauge
        caracal_gateway_sts_circuit_open 1
        # HELP caracal_gateway_opa_eval_duration_seconds_total Time.
        # TYPE caracal_gateway_opa_eval_duration_seconds_total counter
        caracal_gateway_opa_eval_duration_seconds_total 0.5
        # HELP caracal_db_pool_in_use_ratio In use.
        # TYPE caracal_db_pool_in_use_ratio gauge
        caracal_db_pool_in_use_ratio 0.25
        ");
    }

    #[test]
    fn metrics_without_a_bearer_are_open_in_dev_only() {
        let with = |bearer: Option<&str>, open| Access {
            bearer: bearer.map(|text| Secret::new(text.to_owned())),
            open,
            json_refusal: false,
        };
        let mut right = HeaderMap::new();
        right.insert("authorization", "Bearer m".parse().unwrap());
        let none = HeaderMap::new();
        assert!(with(None, true).allows(&none));
        assert!(!with(None, false).allows(&right));
        assert!(with(Some("m"), false).allows(&right));
        assert!(!with(Some("m"), true).allows(&none));
    }
}
