//! Each part of a deployment, for a load.

use std::collections::BTreeMap;

use serde::Serialize;

use super::costs::Costs;
use crate::observe::Service;
use crate::show;

/// What is to be carried.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// Governed calls a second: a mint and a call through the Gateway.
    pub calls_per_second: f64,
    /// Sessions that live at the same time.
    pub sessions: f64,
    /// Zones that they are spread over.
    pub zones: f64,
    /// Different (zone, resource, application): each has a mint limit of its own.
    pub identities: f64,
    /// How long a Session lives, seconds.
    pub session_seconds: f64,
    /// How long a mandate lives, seconds: for so long its use is remembered.
    pub mandate_seconds: f64,
    /// How long evidence is kept.
    pub retention_days: f64,
    /// How long Redis must hold evidence while Audit or Postgres is away, minutes.
    pub outage_minutes: f64,
    /// How much of anything may be used in the long run, a share of 1.
    pub utilization: f64,
}

impl Load {
    /// So many times as much: calls, Sessions, identities and zones alike.
    #[must_use]
    pub fn times(&self, times: f64) -> Self {
        Self {
            calls_per_second: self.calls_per_second * times,
            sessions: self.sessions * times,
            zones: self.zones * times,
            identities: self.identities * times,
            ..self.clone()
        }
    }
}

/// What there may be of everything.
#[derive(Clone, Debug, Serialize)]
pub struct Fleet {
    /// Processors of a replica.
    pub cores: f64,
    /// Fewest replicas of each service.
    pub least: f64,
    /// Most replicas of each service.
    pub most: BTreeMap<Service, f64>,
    /// Store connections of a replica.
    pub pools: BTreeMap<Service, f64>,
    /// `max_connections` of Postgres.
    pub max_connections: f64,
    /// Processors of Postgres.
    pub postgres_cores: f64,
    /// Disk of Postgres, bytes; nought when it is not said.
    pub postgres_disk: f64,
    /// `maxmemory` of Redis, bytes.
    pub redis_memory: f64,
    /// `STS_MINT_RATE_LIMIT_PER_MIN`.
    pub mint_limit: f64,
    /// `MAX_AGENTS_PER_ZONE`.
    pub sessions_per_zone: f64,
}

impl Default for Fleet {
    /// The chart's maxima, the defaults of the services (operations specification §6, §17.7), and the
    /// defaults of Postgres and of our Redis.
    fn default() -> Self {
        let most = [
            (Service::Api, 8.0),
            (Service::Sts, 8.0),
            (Service::Gateway, 16.0),
            (Service::Audit, 8.0),
            (Service::Coordinator, 8.0),
        ];
        let pools = [
            (Service::Api, 10.0),
            (Service::Sts, 8.0),
            (Service::Gateway, 2.0),
            (Service::Audit, 4.0),
            (Service::Coordinator, 10.0),
        ];
        Self {
            cores: 2.0,
            least: 2.0,
            most: most.into_iter().collect(),
            pools: pools.into_iter().collect(),
            max_connections: 100.0,
            postgres_cores: 4.0,
            postgres_disk: 0.0,
            redis_memory: 512.0 * 1024.0 * 1024.0,
            mint_limit: 1_000.0,
            sessions_per_zone: 50.0,
        }
    }
}

/// Connections that are no pool's: two of a migration, and thirteen for operators, dumps and exporters
/// (docs/operations/size.md, the chart's budget).
const BESIDE_POOLS: f64 = 15.0;
/// Share of Redis' memory that may be used; it evicts nothing, so what is over it is refused.
pub(super) const REDIS_FULL: f64 = 0.8;
/// Share of a disk that may be used.
pub(super) const DISK_FULL: f64 = 0.8;

/// One part, and how its size was reckoned.
#[derive(Clone, Debug, Serialize)]
pub struct Sized {
    /// Which.
    pub part: &'static str,
    /// The result, for people.
    pub size: String,
    /// The result: replicas, connections or bytes.
    pub value: f64,
    /// Every step of it.
    pub arithmetic: Vec<String>,
}

/// Processors that a service needs.
pub(super) fn processors(service: Service, load: &Load, costs: &Costs) -> f64 {
    with_starts(service.name(), load, costs)
}

/// Processors for calls and for starts of Sessions.
fn with_starts(process: &str, load: &Load, costs: &Costs) -> f64 {
    let calls = load.calls_per_second * costs.of(&format!("{process}_us_per_call"));
    let starts = starts(load) * costs.of(&format!("{process}_us_per_start"));
    (calls + starts) / 1e6
}

/// That, as arithmetic.
fn told_with_starts(process: &str, load: &Load, costs: &Costs) -> String {
    format!(
        "{}/s x {:.0} µs + {:.1} starts/s x {:.0} µs = {:.2} processors",
        show::count(load.calls_per_second),
        costs.of(&format!("{process}_us_per_call")),
        starts(load),
        costs.of(&format!("{process}_us_per_start")),
        with_starts(process, load, costs),
    )
}

/// Sessions that are started each second.
pub(super) fn starts(load: &Load) -> f64 {
    load.sessions / load.session_seconds.max(1.0)
}

/// Replicas that the load asks for, in parts.
pub(super) fn by_need(service: Service, load: &Load, fleet: &Fleet, costs: &Costs) -> f64 {
    let by_cpu = processors(service, load, costs) / (fleet.cores * load.utilization);
    let by_events = if service == Service::Audit {
        events(load, costs) / (costs.of("audit_events_per_second") * load.utilization)
    } else {
        0.0
    };
    by_cpu.max(by_events)
}

/// Replicas that a service needs, whether or not there may be so many.
pub(super) fn wanted(service: Service, load: &Load, fleet: &Fleet, costs: &Costs) -> f64 {
    by_need(service, load, fleet, costs).ceil().max(fleet.least)
}

/// Replicas that a service gets.
pub(super) fn replicas(service: Service, load: &Load, fleet: &Fleet, costs: &Costs) -> f64 {
    let most = fleet.most.get(&service).copied().unwrap_or(fleet.least);
    wanted(service, load, fleet, costs).min(most.max(1.0))
}

/// Events a second.
pub(super) fn events(load: &Load, costs: &Costs) -> f64 {
    load.calls_per_second * costs.of("events_per_call") + starts(load) * 2.0
}

/// Connections that all pools and what stands beside them need, while the services roll.
pub(super) fn connections(load: &Load, fleet: &Fleet, costs: &Costs) -> f64 {
    let pools = fleet.pools.iter();
    let pools = pools
        .map(|(service, pool)| (replicas(*service, load, fleet, costs) + rolling(*service)) * pool);
    pools.sum::<f64>() + BESIDE_POOLS
}

/// Replicas that there are beside the others while a service rolls: one, but not of those that keep a
/// volume.
const fn rolling(service: Service) -> f64 {
    match service {
        Service::Api | Service::Audit | Service::Coordinator => 1.0,
        Service::Sts | Service::Gateway => 0.0,
    }
}

/// Processors of Postgres that are used.
pub(super) fn postgres(load: &Load, costs: &Costs) -> f64 {
    with_starts("postgres", load, costs)
}

/// Bytes that Postgres holds at the end of retention.
pub(super) fn disk(load: &Load, costs: &Costs) -> f64 {
    let ledger = events(load, costs) * 86_400.0 * load.retention_days;
    ledger * costs.of("ledger_bytes_per_event") + ended(load) * costs.of("session_bytes")
}

/// Sessions that are kept after their end (`SESSION_RETENTION_DAYS`), and those that live.
fn ended(load: &Load) -> f64 {
    starts(load) * 86_400.0 * KEPT_DAYS + load.sessions
}

const KEPT_DAYS: f64 = 90.0;
/// How long the nonce of an exchange is remembered, seconds.
const NONCE_SECONDS: f64 = 120.0;

/// Bytes that Redis holds at worst.
pub(super) fn redis_bytes(load: &Load, costs: &Costs) -> f64 {
    claims(load) * costs.of("claim_bytes")
        + waiting(load, costs) * costs.of("stream_bytes_per_event")
}

fn claims(load: &Load) -> f64 {
    load.calls_per_second * (load.mandate_seconds + NONCE_SECONDS)
}

fn waiting(load: &Load, costs: &Costs) -> f64 {
    events(load, costs) * load.outage_minutes * 60.0
}

/// The share of Redis' one processor that is used.
pub(super) fn redis_processor(load: &Load, costs: &Costs) -> f64 {
    let by_time = with_starts("redis", load, costs);
    let commands = load.calls_per_second * costs.of("redis_commands_per_call");
    by_time.max(commands / costs.of("redis_commands_per_second").max(1.0))
}

/// All parts.
pub(super) fn parts(load: &Load, fleet: &Fleet, costs: &Costs) -> Vec<Sized> {
    let mut parts: Vec<Sized> = Service::ALL
        .into_iter()
        .map(|service| of_service(service, load, fleet, costs))
        .collect();
    parts.extend([
        of_postgres(load, fleet, costs),
        of_connections(load, fleet, costs),
        of_disk(load, fleet, costs),
        of_redis(load, fleet, costs),
        of_limits(load, fleet),
    ]);
    parts
}

fn of_service(service: Service, load: &Load, fleet: &Fleet, costs: &Costs) -> Sized {
    let (wanted, gets) = (
        wanted(service, load, fleet, costs),
        replicas(service, load, fleet, costs),
    );
    let calls = show::count(load.calls_per_second);
    let mut arithmetic = vec![told_with_starts(service.name(), load, costs)];
    if service == Service::Coordinator {
        arithmetic.push(format!(
            "starts/s: {} Sessions / {}",
            show::count(load.sessions),
            show::seconds(load.session_seconds),
        ));
    }
    if service == Service::Audit {
        arithmetic.push(format!(
            "{calls}/s x {:.0} events = {} events/s, of {} that one replica takes",
            costs.of("events_per_call"),
            show::count(events(load, costs)),
            show::count(costs.of("audit_events_per_second")),
        ));
    }
    arithmetic.push(format!(
        "/ ({:.0} processors x {}) -> {} replicas, at least {}, at most {}",
        fleet.cores,
        show::share(load.utilization),
        show::count(wanted),
        show::count(fleet.least),
        show::count(fleet.most.get(&service).copied().unwrap_or(0.0)),
    ));
    let enough = if wanted > gets {
        ", which are too few"
    } else {
        ""
    };
    let memory = show::bytes(costs.of("process_bytes"));
    Sized {
        part: service.name(),
        size: format!(
            "{} replicas{enough}, each about {memory} of memory at rest",
            show::count(gets)
        ),
        value: gets,
        arithmetic,
    }
}

fn of_postgres(load: &Load, fleet: &Fleet, costs: &Costs) -> Sized {
    let need = postgres(load, costs);
    let cores = (need / load.utilization).ceil().max(1.0);
    Sized {
        part: "postgres processors",
        size: format!(
            "{} of {}",
            show::count(cores),
            show::count(fleet.postgres_cores)
        ),
        value: cores,
        arithmetic: vec![format!(
            "{} / {}",
            told_with_starts("postgres", load, costs),
            show::share(load.utilization),
        )],
    }
}

fn of_connections(load: &Load, fleet: &Fleet, costs: &Costs) -> Sized {
    let need = connections(load, fleet, costs);
    let sum: Vec<_> = fleet
        .pools
        .iter()
        .map(|(service, pool)| {
            let replicas = replicas(*service, load, fleet, costs) + rolling(*service);
            format!("{} {replicas:.0} x {pool:.0}", service.name())
        })
        .collect();
    let at_most: f64 = fleet
        .pools
        .iter()
        .map(|(service, pool)| {
            (fleet.most.get(service).copied().unwrap_or(0.0) + rolling(*service)) * pool
        })
        .sum::<f64>()
        + BESIDE_POOLS;
    Sized {
        part: "postgres connections",
        size: format!(
            "{} of max_connections {}",
            show::count(need),
            show::count(fleet.max_connections)
        ),
        value: need,
        arithmetic: vec![
            format!(
                "while rolling: {} + {BESIDE_POOLS:.0} beside the pools = {need:.0}",
                sum.join(" + ")
            ),
            format!(
                "at the maxima of all services: {at_most:.0}; set max_connections to that, or lower the maxima"
            ),
        ],
    }
}

fn of_disk(load: &Load, fleet: &Fleet, costs: &Costs) -> Sized {
    let need = disk(load, costs);
    let day = events(load, costs) * 86_400.0 * costs.of("ledger_bytes_per_event");
    let of = if fleet.postgres_disk > 0.0 {
        format!(" of {}", show::bytes(fleet.postgres_disk))
    } else {
        String::new()
    };
    Sized {
        part: "postgres storage",
        size: format!(
            "{}{of}, and as much again free for dumps and vacuum",
            show::bytes(need)
        ),
        value: need,
        arithmetic: vec![
            format!(
                "{} events/s x {:.0} bytes x 86,400 s = {} a day, x {} days",
                show::count(events(load, costs)),
                costs.of("ledger_bytes_per_event"),
                show::bytes(day),
                show::count(load.retention_days),
            ),
            format!(
                "+ {} Sessions kept {KEPT_DAYS:.0} days x {:.0} bytes",
                show::count(ended(load)),
                costs.of("session_bytes")
            ),
        ],
    }
}

fn of_redis(load: &Load, fleet: &Fleet, costs: &Costs) -> Sized {
    let need = redis_bytes(load, costs);
    Sized {
        part: "redis",
        size: format!(
            "maxmemory {} (now {}), {} of its one processor",
            show::bytes(need / REDIS_FULL),
            show::bytes(fleet.redis_memory),
            show::share(redis_processor(load, costs)),
        ),
        value: need / REDIS_FULL,
        arithmetic: vec![
            format!(
                "claims: {}/s x ({:.0} + {NONCE_SECONDS:.0}) s x {:.0} bytes = {}",
                show::count(load.calls_per_second),
                load.mandate_seconds,
                costs.of("claim_bytes"),
                show::bytes(claims(load) * costs.of("claim_bytes")),
            ),
            format!(
                "evidence while Audit is away {:.0} min: {} events x {:.0} bytes = {}",
                load.outage_minutes,
                show::count(waiting(load, costs)),
                costs.of("stream_bytes_per_event"),
                show::bytes(waiting(load, costs) * costs.of("stream_bytes_per_event")),
            ),
            format!("together / {}", show::share(REDIS_FULL)),
        ],
    }
}

fn of_limits(load: &Load, fleet: &Fleet) -> Sized {
    let each = load.calls_per_second * 60.0 / load.identities.max(1.0);
    let per_zone = load.sessions / load.zones.max(1.0);
    let word = |need: f64, set: f64| if need > set { "RAISE" } else { "fits" };
    Sized {
        part: "settings",
        size: format!(
            "STS_MINT_RATE_LIMIT_PER_MIN {}, MAX_AGENTS_PER_ZONE {}",
            word(each, fleet.mint_limit),
            word(per_zone, fleet.sessions_per_zone)
        ),
        value: (each / fleet.mint_limit.max(1.0)).max(per_zone / fleet.sessions_per_zone.max(1.0)),
        arithmetic: vec![
            format!(
                "{}/s x 60 / {} identities = {} mints a minute for each, limit {}",
                show::count(load.calls_per_second),
                show::count(load.identities),
                show::count(each),
                show::count(fleet.mint_limit),
            ),
            format!(
                "{} Sessions / {} zones = {} in each, limit {}",
                show::count(load.sessions),
                show::count(load.zones),
                show::count(per_zone),
                show::count(fleet.sessions_per_zone),
            ),
        ],
    }
}
