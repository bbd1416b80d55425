//! Metrics: a registry of what its catalogue describes, its exposition, and who may read it.
//!
//! Names are contracts (spec: operations §4). Scrapers get Prometheus text 0.0.4, or OpenMetrics 1.0
//! when they ask for it. The library writes OpenMetrics, in which the family of a counter is named
//! without `_total`; the older format names the sample, so [`exposition`] puts the suffix back into
//! HELP and TYPE.

mod capacity;
pub mod catalogue;
mod family;
mod http;
mod process;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use caracal_model::{Clock, Histogram};
use parking_lot::Mutex;
use prometheus_client::encoding::text;
use serde_json::{Map, Value};

pub use self::catalogue::Catalogue;
pub use self::family::{Counts, Histograms};
pub use self::http::Access;
use crate::health::Readiness;
pub use prometheus_client::encoding::EncodeLabelSet;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;

/// A gauge of fractions.
pub type FloatGauge = Gauge<f64, AtomicU64>;
/// A counter of fractions, such as seconds.
pub type FloatCounter = Counter<f64, AtomicU64>;

type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;
type Flat = Arc<dyn Fn() -> Value + Send + Sync>;

/// The metrics of one service. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    catalogue: &'static Catalogue,
    clock: Arc<dyn Clock>,
    families: Mutex<prometheus_client::registry::Registry>,
    refresh: Mutex<Vec<Refresh>>,
    json: Mutex<Vec<Flat>>,
    requests: Histograms<3>,
    readiness: Readiness,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({})", self.0.catalogue.service)
    }
}

/// How busy the connections to a database are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Connections in use.
    pub in_use: usize,
    /// Most that there can be.
    pub max: usize,
}

impl Registry {
    /// What this catalogue describes; what every service has is registered at once.
    pub fn new(catalogue: &'static Catalogue, clock: Arc<dyn Clock>) -> Self {
        let registry = Self(Arc::new(Inner {
            catalogue,
            readiness: Readiness::new(clock.clone()),
            clock,
            families: Mutex::default(),
            refresh: Mutex::default(),
            json: Mutex::default(),
            requests: Histograms::by(["service", "route", "code"]),
        }));
        let requests = registry.0.requests.clone();
        registry.register_as("caracal_http_request_duration_seconds", requests);
        process::register(&registry);
        registry.0.readiness.register(&registry);
        registry
    }

    /// The service whose metrics these are.
    pub fn service(&self) -> &'static str {
        self.0.catalogue.service
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// What `/ready` says, and how often it changed its mind.
    pub fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// Requests by service, route template and status.
    pub(crate) fn requests(&self) -> &Histograms<3> {
        &self.0.requests
    }

    /// A counter; `name` is given without the prefix, and without `_total`, which the exposition adds.
    pub fn counter(&self, name: &str) -> Counter {
        self.register(name, Counter::default())
    }

    /// As [`Registry::counter`], of fractions.
    pub fn float_counter(&self, name: &str) -> FloatCounter {
        self.register(name, FloatCounter::default())
    }

    /// A gauge of whole numbers.
    pub fn gauge(&self, name: &str) -> Gauge {
        self.register(name, Gauge::default())
    }

    /// A gauge of fractions.
    pub fn float_gauge(&self, name: &str) -> FloatGauge {
        self.register(name, FloatGauge::default())
    }

    /// A histogram of durations.
    pub fn seconds(&self, name: &str) -> Histogram {
        let histogram = Histogram::durations();
        self.histogram(name, &histogram);
        histogram
    }

    /// A histogram that is kept elsewhere.
    pub fn histogram(&self, name: &str, histogram: &Histogram) {
        self.register(name, family::Shown(vec![([], histogram.clone())]));
    }

    /// Histograms of durations, one for each value of this label: they cost what a plain one does.
    pub fn stages<const N: usize>(
        &self,
        name: &str,
        label: &'static str,
        values: [&'static str; N],
    ) -> [Histogram; N] {
        let stages = [(); N].map(|()| Histogram::durations());
        let kept = values.into_iter().zip(&stages);
        self.histograms(name, label, kept);
        stages
    }

    /// Histograms that are kept elsewhere, one for each value of this label.
    pub fn histograms<'h>(
        &self,
        name: &str,
        label: &'static str,
        kept: impl IntoIterator<Item = (&'static str, &'h Histogram)>,
    ) {
        let shown = kept
            .into_iter()
            .map(|(value, histogram)| ([(label, value)], histogram.clone()));
        self.register(name, family::Shown(shown.collect()));
    }

    /// How busy the store is: its connections, and how long one is waited for.
    pub fn pool(&self, stats: impl Fn() -> Pool + Send + Sync + 'static, waits: &Histogram) {
        let labels = vec![("service", self.service())];
        let gauge = |name: &str| {
            let family: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
            self.register_as(name, family).get_or_create_owned(&labels)
        };
        let max = gauge("caracal_db_pool_max_conns");
        let in_use = gauge("caracal_db_pool_acquired_conns");
        let ratio: Family<Vec<(&'static str, &'static str)>, FloatGauge> = Family::default();
        let ratio = self.register_as("caracal_db_pool_in_use_ratio", ratio);
        let ratio = ratio.get_or_create_owned(&labels);
        let shown = vec![([("service", self.service())], waits.clone())];
        self.register_as("caracal_db_pool_wait_seconds", family::Shown(shown));
        self.on_scrape(move || {
            let pool = stats();
            max.set(whole(pool.max));
            in_use.set(whole(pool.in_use));
            #[expect(clippy::cast_precision_loss, reason = "pools are small")]
            ratio.set(pool.in_use as f64 / pool.max.max(1) as f64);
            async {}
        });
    }

    /// How long the bus takes, by what it is asked to do.
    pub fn bus(&self, commands: &[(&'static str, Histogram)]) {
        let of = |(command, histogram): &(&'static str, Histogram)| {
            let labels = [("service", self.service()), ("command", *command)];
            (labels, histogram.clone())
        };
        let shown = family::Shown(commands.iter().map(of).collect());
        self.register_as("caracal_redis_command_duration_seconds", shown);
    }

    /// Any metric (a [`Family`] with labels, say) under the prefix.
    pub fn register<M>(&self, name: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.register_as(&format!("{}_{name}", self.0.catalogue.prefix), metric)
    }

    /// As [`Registry::register`], under a name that is already whole (`caracal_db_pool_…`).
    pub fn register_as<M>(&self, name: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        let described = self.0.catalogue.find(name);
        let help = described.map_or("not in the catalogue", |metric| metric.help);
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

    /// The exposition, in Prometheus text 0.0.4.
    pub async fn render(&self) -> String {
        exposition(&self.render_open().await)
    }

    /// The exposition, in OpenMetrics 1.0.
    pub async fn render_open(&self) -> String {
        self.run_refresh().await;
        let mut open = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut open, &self.0.families.lock());
        open
    }

    /// What `/metrics.json` answers.
    async fn flat(&self) -> Value {
        self.run_refresh().await;
        let parts = self.0.json.lock().clone();
        let mut all = Map::new();
        for part in parts {
            if let Value::Object(members) = part() {
                all.extend(members);
            }
        }
        Value::Object(all)
    }

    /// What `/capacity` answers (spec: operations §17.12).
    pub async fn capacity(&self) -> Value {
        capacity::report(self.0.catalogue, &self.render().await)
    }

    async fn run_refresh(&self) {
        let hooks = self.0.refresh.lock().clone();
        for hook in hooks {
            hook().await;
        }
    }

    /// `/metrics`, and `/metrics.json` when [`Registry::json`] was given, below a prefix: empty, or
    /// a path without a slash at its end.
    pub fn metrics_routes<S: Clone + Send + Sync + 'static>(
        &self,
        access: impl Into<Arc<Access>>,
        prefix: &str,
    ) -> Router<S> {
        let flat = !self.0.json.lock().is_empty();
        http::routes(self, access.into(), flat, prefix)
    }

    /// `/metrics`, `/capacity`, and `/metrics.json` when [`Registry::json`] was given.
    pub fn routes<S: Clone + Send + Sync + 'static>(
        &self,
        access: impl Into<Arc<Access>>,
    ) -> Router<S> {
        let access = access.into();
        let capacity = http::capacity_route(self, access.clone());
        self.metrics_routes(access, "").merge(capacity)
    }
}

/// A count as a gauge.
pub fn whole(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Makes a counter show a count that is kept elsewhere.
pub fn show(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

/// As [`show`], of seconds.
pub fn show_seconds(counter: &FloatCounter, time: std::time::Duration) {
    let bits = time.as_secs_f64().to_bits();
    counter.inner().store(bits, Ordering::Relaxed);
}

/// One more in flight, for as long as this is held.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl InFlight {
    /// Counted in this gauge.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
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
mod tests;
