//! Looks through a Prometheus server: the same samples, as it kept them over the last minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_capacity::exposition::Sample;
use caracal_capacity::{
    Look, Observation, Postgres, Ready, Redis, Service, Target, names, prometheus,
};
use caracal_model::Secret;
use http::StatusCode;

use super::Eye;
use super::services::LOOKS;
use crate::web::{Call, NoAnswer};

/// How long one query may take.
const WITHIN: Duration = Duration::from_secs(20);
/// Labels by which the server tells scraped processes apart. `service` is one of ours too; where the
/// server has one of its own, ours is `exported_service`.
const OF_THE_SERVER: [&str; 8] = [
    "instance",
    "job",
    "pod",
    "namespace",
    "container",
    "endpoint",
    "node",
    "prometheus",
];

/// A Prometheus server.
pub struct Server {
    pub url: String,
    token: Option<Secret<String>>,
    /// Matchers of this deployment, each behind a comma; empty for all.
    select: String,
}

impl Server {
    pub fn new(
        url: &str,
        token: Option<Secret<String>>,
        select: Option<&str>,
    ) -> anyhow::Result<Self> {
        let parsed = url::Url::parse(url).context("--prometheus is not a URL")?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.username().is_empty() {
            bail!("--prometheus is an http or https URL without credentials");
        }
        let select = select
            .unwrap_or_default()
            .trim()
            .trim_matches(['{', '}', ',']);
        let select = if select.is_empty() {
            String::new()
        } else {
            format!(",{select}")
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            token,
            select,
        })
    }

    async fn query(&self, eye: &Eye, query: &str, at: f64) -> anyhow::Result<Vec<Sample>> {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("query", query)
            .append_pair("time", &format!("{at:.3}"));
        let mut call = Call::get(format!("{}/api/v1/query?{}", self.url, form.finish()));
        if let Some(token) = &self.token {
            call = call.bearer(token.expose())?;
        }
        let answer = match eye.web.send(call, WITHIN).await {
            Ok(answer) => answer,
            Err(NoAnswer::Timeout) => bail!("{} does not answer in time", self.url),
            Err(NoAnswer::Unreachable) => bail!("{} is unreachable", self.url),
        };
        if answer.status == StatusCode::UNAUTHORIZED {
            bail!("{} wants a token: give --prometheus-token-file", self.url);
        }
        prometheus::vector(&answer.body)
            .with_context(|| format!("{} answered {}", self.url, answer.status.as_u16()))
    }
}

/// The last minutes, as the server saw them.
pub async fn look(eye: &Eye, server: &Server) -> anyhow::Result<Observation> {
    let now = eye.clock.now().unix_micros() as f64 / 1e6;
    let series = format!(
        "{{__name__=~\"caracal_.+|{}|{}|{}\"{}}}",
        names::CPU_SECONDS,
        names::STARTED,
        names::RESIDENT,
        server.select
    );
    let mut moments = Vec::new();
    for n in (0..LOOKS).rev() {
        let at = now - eye.over.as_secs_f64() * f64::from(n) / f64::from(LOOKS - 1);
        moments.push((at, server.query(eye, &series, at).await?));
    }
    let up = format!("up{{job!=\"\"{}}} == 0", server.select);
    let down = server.query(eye, &up, now).await?;
    let mut observation = Observation {
        targets: replicas(&moments, &down),
        ..Observation::default()
    };
    let spaces: BTreeSet<&str> = moments
        .iter()
        .flat_map(|(_, samples)| samples)
        .filter_map(|sample| sample.labels.get("namespace"))
        .map(String::as_str)
        .collect();
    observation.flaps = flaps(eye, server, &spaces, now).await?;
    let one = async |query: String| {
        let answer = server.query(eye, &query, now).await?;
        anyhow::Ok(answer.first().map(|sample| sample.value))
    };
    let exported = |name: &str| format!("{{__name__=\"{name}\"{}}}", server.select);
    observation.postgres = Some(Postgres {
        max_connections: one(format!("min({})", exported(names::PG_MAX))).await?,
        connections: one(format!("sum({})", exported(names::PG_BACKENDS))).await?,
        ..Postgres::default()
    });
    observation.redis = Some(Redis {
        used: one(format!("max({})", exported(names::REDIS_USED))).await?,
        max: one(format!("min({} > 0)", exported(names::REDIS_MAX))).await?,
        ..Redis::default()
    });
    Ok(observation)
}

/// Containers of ours whose readiness changes, as kube-state-metrics counts it.
async fn flaps(
    eye: &Eye,
    server: &Server,
    spaces: &BTreeSet<&str>,
    now: f64,
) -> anyhow::Result<BTreeMap<String, f64>> {
    if spaces.is_empty() {
        return Ok(BTreeMap::new());
    }
    let spaces: Vec<_> = spaces.iter().copied().collect();
    let query = format!(
        "changes({}{{container=~\"(caracal-)?(api|sts|gateway|audit|coordinator)\",namespace=~\"{}\"}}[10m])",
        names::KUBE_READY,
        spaces.join("|")
    );
    let samples = server.query(eye, &query, now).await?;
    let named = samples.into_iter().filter_map(|sample| {
        let pod = sample.labels.get("pod")?.clone();
        Some((pod, sample.value))
    });
    Ok(named.collect())
}

/// Which process a sample is of.
fn instance(sample: &Sample) -> Option<String> {
    let label = |name: &str| sample.labels.get(name).map(String::as_str);
    let instance = label("instance")?;
    Some(match label("pod") {
        Some(pod) => format!("{pod} ({instance})"),
        None => instance.to_owned(),
    })
}

/// The sample as the process exposed it.
fn exposed(sample: &Sample) -> Sample {
    let mut labels = sample.labels.clone();
    if let Some(own) = labels.remove("exported_service") {
        labels.insert("service".to_owned(), own);
    }
    labels.retain(|name, _| !OF_THE_SERVER.contains(&name.as_str()));
    Sample {
        labels,
        ..sample.clone()
    }
}

/// What `/ready` said, if anybody asks it: nought may also mean that nobody did.
fn ask_readiness(looks: &mut [Look]) {
    let said = |look: &Look, name: &str| look.value(name, &[]).unwrap_or(0.0);
    let is_asked = looks
        .iter()
        .any(|look| said(look, names::READY) > 0.0 || said(look, names::READY_CHANGES) > 0.0);
    for look in looks
        .iter_mut()
        .filter(|look| is_asked && !look.samples.is_empty())
    {
        look.ready = if said(look, names::READY) > 0.0 {
            Ready::Yes
        } else {
            Ready::No(format!("{} is 0; its /ready says why", names::READY))
        };
    }
}

fn by_instance(samples: &[Sample]) -> BTreeMap<String, Vec<Sample>> {
    let mut all: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for sample in samples {
        if let Some(at) = instance(sample) {
            all.entry(at).or_default().push(exposed(sample));
        }
    }
    all
}

/// Replicas by instance: those that expose metrics of a service, and those of their jobs that the
/// server cannot scrape.
fn replicas(moments: &[(f64, Vec<Sample>)], down: &[Sample]) -> Vec<Target> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let mut jobs: BTreeMap<String, BTreeSet<Service>> = BTreeMap::new();
    for sample in moments.iter().flat_map(|(_, samples)| samples) {
        if let (Some(at), Some(service)) = (instance(sample), Service::of_metric(&sample.name)) {
            services.insert(at, service);
            if let Some(job) = sample.labels.get("job") {
                jobs.entry(job.clone()).or_default().insert(service);
            }
        }
    }
    for sample in down {
        let known = sample.labels.get("job").and_then(|job| jobs.get(job));
        if let (Some(at), Some(services_of_job)) = (instance(sample), known) {
            // A job of several services: the name of the process must say which.
            let mut of_job = services_of_job.iter();
            let service = match (of_job.next(), of_job.next()) {
                (Some(only), None) => Some(*only),
                _ => Service::ALL.into_iter().find(|service| {
                    let name = service.name();
                    sample.labels.values().any(|value| value.contains(name))
                }),
            };
            if let Some(service) = service {
                services.entry(at).or_insert(service);
            }
        }
    }
    let dead: BTreeSet<String> = down.iter().filter_map(instance).collect();
    let mut moments: Vec<_> = moments
        .iter()
        .map(|(time, samples)| (*time, by_instance(samples)))
        .collect();
    let each = services.into_iter().map(|(at, service)| {
        let looks = moments.iter_mut().map(|(time, samples)| Look {
            at: *time,
            samples: samples.remove(&at).unwrap_or_default(),
            ready: Ready::Unknown,
        });
        let mut looks: Vec<Look> = looks.collect();
        ask_readiness(&mut looks);
        let gone = looks.last().is_some_and(|look| look.samples.is_empty());
        let silent = if dead.contains(&at) {
            Some("Prometheus cannot scrape it".to_owned())
        } else {
            gone.then(|| "it has no metrics any more".to_owned())
        };
        Target {
            service,
            instance: at,
            looks,
            silent,
        }
    });
    each.filter(|target| {
        // A replica that a rollout has replaced is neither there nor missing.
        target.silent.is_none() || dead.contains(&target.instance)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, labels: &[(&str, &str)], value: f64) -> Sample {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Sample {
            name: name.to_owned(),
            labels: labels.collect(),
            value,
        }
    }

    #[test]
    fn replicas_are_told_apart_and_those_that_are_down_are_known() {
        let of = |at: &str, value| {
            let labels = [
                ("instance", at),
                ("job", "caracal-sts"),
                ("service", "rel-caracal-sts"),
                ("exported_service", "sts"),
            ];
            vec![
                sample("caracal_sts_opa_max_policy_age_seconds", &labels, 0.1),
                sample("caracal_db_pool_in_use_ratio", &labels, value),
            ]
        };
        let first = [of("a:8080", 0.2), of("b:8080", 0.3), of("old:8080", 0.1)].concat();
        let last = of("a:8080", 0.5);
        let down = [
            sample("up", &[("instance", "b:8080"), ("job", "caracal-sts")], 0.0),
            sample("up", &[("instance", "x:1"), ("job", "another")], 0.0),
        ];
        let targets = replicas(&[(0.0, first), (60.0, last)], &down);
        let told: Vec<_> = targets
            .iter()
            .map(|target| {
                (
                    target.instance.as_str(),
                    target.service,
                    target.silent.is_some(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("a:8080", Service::Sts, false),
                ("b:8080", Service::Sts, true)
            ]
        );
        let own = [("service", "sts")];
        assert_eq!(targets[0].last(names::POOL_RATIO, &own), Some(0.5));
    }

    #[test]
    fn who_is_never_asked_is_not_unready() {
        let of = |ready: f64| Look {
            at: 0.0,
            samples: vec![sample("caracal_ready", &[("service", "sts")], ready)],
            ready: Ready::Unknown,
        };
        let mut looks = [of(0.0), of(0.0)];
        ask_readiness(&mut looks);
        assert!(looks.iter().all(|look| look.ready == Ready::Unknown));
        let mut looks = [of(1.0), of(0.0)];
        ask_readiness(&mut looks);
        assert_eq!(looks[0].ready, Ready::Yes);
        assert!(matches!(looks[1].ready, Ready::No(_)));
    }

    #[test]
    fn a_selection_is_one_of_matchers() {
        let server = Server::new("http://p:9090/", None, Some("{namespace=\"a\"}")).unwrap();
        assert_eq!(
            (server.url.as_str(), server.select.as_str()),
            ("http://p:9090", ",namespace=\"a\"")
        );
        assert!(Server::new("p:9090", None, None).is_err());
        assert!(Server::new("http://user:secret@p", None, None).is_err());
    }
}
