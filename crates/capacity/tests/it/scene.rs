//! A deployment whose metrics are texts: healthy as recorded, until a test changes a series.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use caracal_capacity::{
    Bottleneck, Look, Observation, Postgres, Ready, Redis, Report, Service, Summary, Target,
    Thresholds, exposition,
};

/// Looks of an observation, and the seconds between them.
const LOOKS: u32 = 6;
const APART: f64 = 1.0;

/// Each series with its value at the first and at the last look.
type Series = BTreeMap<String, (f64, f64)>;

struct Replica {
    service: Service,
    series: Series,
    ready: Vec<Ready>,
    silent: bool,
}

/// Two replicas of every service.
pub struct Scene {
    replicas: Vec<Replica>,
    /// As the database describes itself.
    pub postgres: Option<Postgres>,
    /// As Redis describes itself.
    pub redis: Option<Redis>,
    /// As the cluster counts.
    pub flaps: BTreeMap<String, f64>,
}

/// All is well, and there is some load.
pub fn healthy() -> Scene {
    let mut replicas = Vec::new();
    for service in Service::ALL {
        for _ in 0..2 {
            replicas.push(Replica {
                service,
                series: recorded(service),
                ready: vec![Ready::Yes; LOOKS as usize],
                silent: false,
            });
        }
    }
    let mut scene = Scene {
        replicas,
        postgres: Some(Postgres {
            max_connections: Some(97.0),
            connections: Some(30.0),
            active: Some(2.0),
            waiting_io: Some(0.0),
            waiting_lock: Some(0.0),
        }),
        redis: Some(Redis {
            used: Some(1e8),
            max: Some(5e8),
            round_trip: Some(0.0002),
            lag: None,
        }),
        flaps: BTreeMap::new(),
    };
    scene.grows("gateway", "caracal_gateway_requests_total", 500.0);
    scene.grows("audit", "caracal_audit_inserts_total", 1_500.0);
    scene.takes(
        "gateway",
        "caracal_gateway_request_duration_seconds",
        "",
        0.004,
    );
    scene.takes(
        "gateway",
        "caracal_gateway_sts_exchange_duration_seconds",
        "",
        0.002,
    );
    scene.takes(
        "gateway",
        "caracal_gateway_upstream_duration_seconds",
        "",
        0.001,
    );
    scene.takes(
        "sts",
        "caracal_http_request_duration_seconds",
        EXCHANGE,
        0.001,
    );
    for service in ["sts", "gateway", "audit", "api", "coordinator"] {
        let labels = format!("service=\"{service}\",command=\"claim\"");
        scene.takes(
            service,
            "caracal_redis_command_duration_seconds",
            &labels,
            0.0004,
        );
        let labels = format!("service=\"{service}\"");
        scene.takes(service, "caracal_db_pool_wait_seconds", &labels, 0.0002);
        scene.grows(service, "process_cpu_seconds_total", 0.5);
    }
    scene
}

const EXCHANGE: &str = "service=\"sts\",route=\"/oauth/2/token\",code=\"200\"";

/// What a replica at rest answered, as recorded; without histograms, of which tests bring their own.
fn recorded(service: Service) -> Series {
    let text = match service {
        Service::Api => include_str!("../recorded/api.prom"),
        Service::Sts => include_str!("../recorded/sts.prom"),
        Service::Gateway => include_str!("../recorded/gateway.prom"),
        Service::Audit => include_str!("../recorded/audit.prom"),
        Service::Coordinator => include_str!("../recorded/coordinator.prom"),
    };
    let samples = exposition::parse(text).unwrap();
    let series = samples.into_iter().map(|sample| {
        let labels = sample.labels.iter();
        let labels: Vec<_> = labels
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        let name = if labels.is_empty() {
            sample.name
        } else {
            format!("{}{{{}}}", sample.name, labels.join(","))
        };
        (name, (sample.value, sample.value))
    });
    series.collect()
}

impl Scene {
    fn of(&mut self, service: &str) -> impl Iterator<Item = &mut Replica> {
        let service = Service::named(service).unwrap();
        self.replicas
            .iter_mut()
            .filter(move |replica| replica.service == service)
    }

    /// A series has this value all the while, at the first replica. Of a recorded series with
    /// labels, the name is enough.
    pub fn is(&mut self, service: &str, series: &str, value: f64) -> &mut Self {
        self.goes(service, series, value, value)
    }

    /// A series goes from one value to another, at the first replica.
    pub fn goes(&mut self, service: &str, series: &str, from: f64, to: f64) -> &mut Self {
        let replica = self.of(service).next().unwrap();
        let known: Vec<String> = replica
            .series
            .keys()
            .filter(|key| *key == series || key.split('{').next() == Some(series))
            .cloned()
            .collect();
        let key = known.first().map_or(series, String::as_str);
        replica.series.insert(key.to_owned(), (from, to));
        self
    }

    /// A counter grows by so much, at every replica.
    pub fn grows(&mut self, service: &str, series: &str, by: f64) -> &mut Self {
        for replica in self.of(service) {
            let (from, _) = replica.series.get(series).copied().unwrap_or((0.0, 0.0));
            replica.series.insert(series.to_owned(), (from, from + by));
        }
        self
    }

    /// A thousand of these take so many seconds each, at every replica; what was there before
    /// counts no more.
    pub fn takes(
        &mut self,
        service: &str,
        histogram: &str,
        labels: &str,
        seconds: f64,
    ) -> &mut Self {
        let bounds = ["0.001", "0.01", "0.1", "1.0", "10.0", "+Inf"];
        for replica in self.of(service) {
            replica.series.retain(|key, _| {
                let of = |suffix: &str| key.starts_with(&format!("{histogram}_{suffix}"));
                let same = labels.is_empty() || key.contains(labels);
                !(same && (of("sum") || of("count") || of("bucket")))
            });
            for bound in bounds {
                let below =
                    bound.parse().is_ok_and(|bound: f64| seconds <= bound) || bound == "+Inf";
                let comma = if labels.is_empty() { "" } else { "," };
                let key = format!("{histogram}_bucket{{{labels}{comma}le=\"{bound}\"}}");
                let counted = if below { 1_000.0 } else { 0.0 };
                replica.series.insert(key, (0.0, counted));
            }
            let braced = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{labels}}}")
            };
            let whole = (0.0, seconds * 1_000.0);
            replica
                .series
                .insert(format!("{histogram}_sum{braced}"), whole);
            replica
                .series
                .insert(format!("{histogram}_count{braced}"), (0.0, 1_000.0));
        }
        self
    }

    /// The first replica is not ready, for this reason.
    pub fn not_ready(&mut self, service: &str, reason: &str) -> &mut Self {
        let replica = self.of(service).next().unwrap();
        replica.ready = vec![Ready::No(reason.to_owned()); LOOKS as usize];
        self
    }

    /// The first replica is ready at one look and not at the next.
    pub fn flaps(&mut self, service: &str) -> &mut Self {
        let replica = self.of(service).next().unwrap();
        let states = [Ready::Yes, Ready::No("redis_late".to_owned())];
        replica.ready = states
            .iter()
            .cycle()
            .take(LOOKS as usize)
            .cloned()
            .collect();
        self
    }

    /// No replica answers any more.
    pub fn silent(&mut self, service: &str) -> &mut Self {
        for replica in self.of(service) {
            replica.silent = true;
        }
        self
    }

    /// There are so many replicas of a service.
    pub fn replicas(&mut self, service: &str, count: usize) -> &mut Self {
        let like = self
            .of(service)
            .next()
            .map(|replica| replica.series.clone())
            .unwrap();
        let service = Service::named(service).unwrap();
        self.replicas.retain(|replica| replica.service != service);
        for _ in 0..count {
            self.replicas.push(Replica {
                service,
                series: like.clone(),
                ready: vec![Ready::Yes; LOOKS as usize],
                silent: false,
            });
        }
        self
    }

    fn observation(&self) -> Observation {
        let mut targets = Vec::new();
        for (n, replica) in self.replicas.iter().enumerate() {
            let looks = (0..LOOKS).map(|look| {
                let done = f64::from(look) / f64::from(LOOKS - 1);
                let samples = if replica.silent {
                    String::new()
                } else {
                    text(&replica.series, done)
                };
                Look {
                    at: f64::from(look) * APART,
                    samples: exposition::parse(&samples).unwrap(),
                    ready: if replica.silent {
                        Ready::Silent
                    } else {
                        replica.ready[look as usize].clone()
                    },
                }
            });
            targets.push(Target {
                service: replica.service,
                instance: format!("{}-{n}", replica.service.name()),
                looks: looks.collect(),
                silent: replica.silent.then(|| "no answer".to_owned()),
            });
        }
        Observation {
            targets,
            flaps: self.flaps.clone(),
            postgres: self.postgres,
            redis: self.redis,
            cores: Some(2.0),
        }
    }

    /// The verdict.
    pub fn report(&self) -> Report {
        Report::of(&self.observation(), &Thresholds::default(), None)
    }

    /// The verdict after a change, knowing what was before.
    pub fn report_after(&self, before: &Summary) -> Report {
        Report::of(&self.observation(), &Thresholds::default(), Some(before))
    }

    /// The name of the first bottleneck.
    #[track_caller]
    pub fn names(&self, expected: Bottleneck) -> Report {
        let report = self.report();
        assert_eq!(
            report.bottleneck,
            Some(expected.name()),
            "{}",
            report.text()
        );
        report
    }
}

fn text(series: &Series, done: f64) -> String {
    let mut text = String::new();
    for (name, (from, to)) in series {
        let value = if from == to {
            *from
        } else {
            from + (to - from) * done
        };
        let value = match value {
            v if v == f64::INFINITY => "+Inf".to_owned(),
            v if v.is_nan() => "NaN".to_owned(),
            v => v.to_string(),
        };
        let _ = writeln!(text, "{name} {value}");
    }
    text
}
