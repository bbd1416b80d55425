//! Asks Postgres and Redis themselves, where this machine knows them: what they wait for is seen
//! nowhere else.

use std::path::PathBuf;
use std::time::Duration;

use caracal_audit::GROUP;
use caracal_bus::{Bus, RedisOptions};
use caracal_capacity::{Postgres, Redis};
use caracal_model::{Secret, Topic};
use caracal_net::egress::trusted_pem;
use caracal_store::checkup::Pressure;
use futures_util::future::join;

use super::Eye;
use super::services::LOOKS;
use crate::home::read_secret;
use crate::{database, term};

/// How long one question to Redis may take.
const WITHIN: Duration = Duration::from_secs(5);

/// What they say; none for what is not set, is not asked for, or does not answer.
pub async fn look(eye: &Eye) -> (Option<Postgres>, Option<Redis>) {
    if !eye.backends {
        return (None, None);
    }
    join(postgres(eye), redis(eye)).await
}

fn is_set(eye: &Eye, name: &str) -> bool {
    eye.environment.get(name).is_some() || eye.environment.get(&format!("{name}_FILE")).is_some()
}

async fn postgres(eye: &Eye) -> Option<Postgres> {
    if !is_set(eye, "DATABASE_URL") {
        return None;
    }
    let store = match database::open_existing(&eye.environment, &eye.home).await {
        Ok(store) => store,
        Err(error) => {
            term::progress(&format!("Postgres is not asked: {error:#}"));
            return None;
        }
    };
    let mut seen = Vec::new();
    for n in 0..LOOKS {
        if n > 0 {
            tokio::time::sleep(eye.over / (LOOKS - 1)).await;
        }
        match store.pressure().await {
            Ok(pressure) => seen.extend(pressure),
            Err(error) => term::progress(&format!("Postgres is not asked: {error}")),
        }
    }
    store.shutdown().await;
    mean(&seen)
}

/// The means of several moments.
fn mean(seen: &[Pressure]) -> Option<Postgres> {
    let last = seen.last()?;
    let of = |count: fn(&Pressure) -> u64| {
        let sum: u64 = seen.iter().map(count).sum();
        Some(sum as f64 / seen.len() as f64)
    };
    Some(Postgres {
        max_connections: Some(last.max_connections as f64),
        connections: of(|pressure| pressure.connections),
        active: of(|pressure| pressure.active),
        waiting_io: of(|pressure| pressure.waiting_io),
        waiting_lock: of(|pressure| pressure.waiting_lock),
    })
}

async fn redis(eye: &Eye) -> Option<Redis> {
    let url = match (
        eye.environment.get("REDIS_URL"),
        eye.environment.get("REDIS_URL_FILE"),
    ) {
        (Some(url), _) => Secret::new(url.to_owned()),
        (None, Some(file)) => read_secret(file.as_ref()).ok()?,
        (None, None) => return None,
    };
    match ask(eye, &url).await {
        Ok(redis) => Some(redis),
        Err(error) => {
            term::progress(&format!("Redis is not asked: {error:#}"));
            None
        }
    }
}

async fn ask(eye: &Eye, url: &Secret<String>) -> anyhow::Result<Redis> {
    let extra_ca = eye
        .environment
        .get("CARACAL_TLS_EXTRA_CA_FILE")
        .map(PathBuf::from);
    let roots = trusted_pem(extra_ca.as_deref())?;
    let options = RedisOptions {
        roots: Some(roots),
        ..RedisOptions::default()
    };
    let bus = Bus::redis(url, options).await?;
    // The first one connects.
    tokio::time::timeout(WITHIN, bus.ping()).await??;
    let mut trips = Vec::new();
    for n in 0..LOOKS {
        if n > 0 {
            tokio::time::sleep(eye.over / (LOOKS - 1)).await;
        }
        let asked = eye.clock.ticks();
        tokio::time::timeout(WITHIN, bus.ping()).await??;
        trips.push(eye.clock.ticks().since(asked));
    }
    trips.sort();
    let server = tokio::time::timeout(WITHIN, bus.server()).await??;
    // A group that nobody has made yet is not behind.
    let lag = tokio::time::timeout(WITHIN, bus.group_lag(Topic::AuditEvents.name(), GROUP)).await?;
    let server = server.as_ref();
    Ok(Redis {
        used: server.map(|server| server.used_memory as f64),
        max: server
            .map(|server| server.maxmemory)
            .filter(|max| *max > 0)
            .map(|max| max as f64),
        round_trip: trips.get(trips.len() / 2).map(Duration::as_secs_f64),
        lag: lag.ok().map(|lag| lag.total() as f64),
    })
}
