//! What ends first as the load grows.

use serde::Serialize;

use super::costs::Costs;
use super::size::{self, Fleet, Load};
use crate::observe::Service;
use crate::show;

/// How much of one thing is used.
#[derive(Clone, Debug, Serialize)]
pub struct Use {
    /// What.
    pub part: &'static str,
    /// Of what there may be; above 1 it does not fit.
    pub share: f64,
    /// What to do when it does not.
    pub lever: &'static str,
}

/// The load, so many times.
#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    /// How many times.
    pub times: f64,
    /// Governed calls a second.
    pub calls_per_second: f64,
    /// Everything that may end.
    pub uses: Vec<Use>,
    /// What ends first: the scarcest of what does not fit, or else of what grows with the load.
    pub first: Option<Use>,
    /// At how many times the load of the plan that ends.
    pub ends_at: f64,
}

impl Growth {
    /// Whether everything is enough.
    pub fn fits(&self) -> bool {
        self.uses.iter().all(|of| of.share <= 1.0)
    }

    /// In a sentence.
    pub fn told(&self) -> String {
        let load = format!(
            "x{:.0} ({} calls/s)",
            self.times,
            show::count(self.calls_per_second)
        );
        let Some(first) = &self.first else {
            return load;
        };
        let over = self.uses.iter().filter(|of| of.share > 1.0).count();
        if over == 0 {
            format!(
                "{load}: fits; first to end is {} ({} used, full at about x{:.1}): {}",
                first.part,
                show::share(first.share),
                self.ends_at,
                first.lever
            )
        } else {
            format!(
                "{load}: {} ends first, {} of what there is ({over} do not fit): {}",
                first.part,
                show::share(first.share),
                first.lever
            )
        }
    }
}

/// Everything at so many times the load.
pub(super) fn at(times: f64, load: &Load, fleet: &Fleet, costs: &Costs) -> Growth {
    let now = uses(&load.times(times), fleet, costs);
    let later = uses(&load.times(times * 10.0), fleet, costs);
    let over = now.iter().any(|of| of.share > 1.0);
    let first = now
        .iter()
        .zip(&later)
        // What grows as zones and identities do stays as scarce as it is.
        .filter(|(now, later)| over || later.share > now.share * 1.01)
        .map(|(now, _)| now)
        .max_by(|a, b| a.share.total_cmp(&b.share))
        .cloned();
    let ends_at = first
        .as_ref()
        .map_or(f64::INFINITY, |first| times / first.share);
    Growth {
        times,
        calls_per_second: load.calls_per_second * times,
        uses: now,
        first,
        ends_at,
    }
}

#[rustfmt::skip] // one line a part
fn uses(load: &Load, fleet: &Fleet, costs: &Costs) -> Vec<Use> {
    let one = |part, share: f64, lever| Use { part, share, lever };
    let replicas = |service| replicas(service, load, fleet, costs);
    let each = load.calls_per_second * 60.0 / load.identities.max(1.0);
    let per_zone = load.sessions / load.zones.max(1.0);
    let memory = (fleet.redis_memory * size::REDIS_FULL).max(1.0);
    let mut uses = vec![
        one("sts replicas", replicas(Service::Sts), "more STS replicas, or processors for each"),
        one("gateway replicas", replicas(Service::Gateway), "more Gateway replicas, or processors for each"),
        one("audit replicas", replicas(Service::Audit), "more Audit replicas; see Postgres writes first"),
        one("coordinator replicas", replicas(Service::Coordinator), "more Coordinator replicas, or longer Sessions"),
        one("redis processor", size::redis_processor(load, costs) / load.utilization, "a faster processor for Redis, or deployments of their own for groups of zones"),
        one("redis memory", size::redis_bytes(load, costs) / memory, "a larger maxmemory, or a shorter outage to survive"),
        one("postgres processors", size::postgres(load, costs) / (fleet.postgres_cores * load.utilization), "a larger Postgres, before its pools"),
        one("postgres connections", size::connections(load, fleet, costs) / fleet.max_connections.max(1.0), "a larger max_connections, before more replicas"),
        one("mint limit of an identity", each / fleet.mint_limit.max(1.0), "STS_MINT_RATE_LIMIT_PER_MIN, or more identities"),
        one("Sessions of a zone", per_zone / fleet.sessions_per_zone.max(1.0), "MAX_AGENTS_PER_ZONE, or more zones"),
    ];
    if fleet.postgres_disk > 0.0 {
        let share = size::disk(load, costs) / (fleet.postgres_disk * size::DISK_FULL);
        uses.push(one("postgres storage", share, "a larger disk, or AUDIT_RETENTION_DAYS and an export"));
    }
    uses
}

/// Of the most replicas, by need and not by whole replicas: two are there in any case.
fn replicas(service: Service, load: &Load, fleet: &Fleet, costs: &Costs) -> f64 {
    let most = fleet.most.get(&service).copied().unwrap_or(1.0).max(1.0);
    size::by_need(service, load, fleet, costs) / most
}
