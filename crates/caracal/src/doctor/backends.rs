//! What the services stand on: the store with its schema and clock, and Redis.

use std::time::Duration;

use caracal_bus::{Bus, ServerFacts};
use caracal_model::Timestamp;
use caracal_net::egress::trusted_pem;
use caracal_store::Store;
use caracal_store::checkup::EngineFacts;

use crate::config;
use crate::database::{self, DatabaseConfig};
use crate::platform::Settings;
use crate::streams::StreamSettings;

use super::report::{Checks, Section};
use super::{Patient, secrets};

const AT: Section = Section::Preflight;
/// Clocks that are further apart than this need a look, and then make mandates fail (operations
/// specification §12).
pub const SKEWED: Duration = Duration::from_secs(2);
pub const FAR_SKEWED: Duration = Duration::from_secs(30);
/// The first release of Redis whose streams tell what a group has not read.
const REDIS_MAJOR: u32 = 7;

pub async fn examine(patient: &Patient, settings: Option<&Settings>, checks: &mut Checks) {
    if let Some(store) = open(patient, checks).await {
        examine_store(patient, &store, checks).await;
        if let Some(settings) = settings {
            secrets::examine(patient, settings, &store, checks).await;
        }
        store.shutdown().await;
    }
    if let Some(settings) = settings {
        redis(patient, settings, checks).await;
    }
}

/// The store, when there is one that answers.
async fn open(patient: &Patient, checks: &mut Checks) -> Option<Store> {
    if !patient.is_shared() && !patient.home.database().exists() {
        return None;
    }
    let opened = async {
        let config = config::load(&patient.environment, DatabaseConfig::read)?;
        database::open(config, &patient.home, &[], Duration::ZERO).await
    };
    match opened.await {
        Ok(store) => Some(store),
        Err(error) => {
            checks
                .fail(AT, "store", format!("{error:#}"))
                .advise("nothing is allowed without it; see DATABASE_URL, or the data directory");
            None
        }
    }
}

async fn examine_store(patient: &Patient, store: &Store, checks: &mut Checks) {
    let before = patient.clock.now();
    match store.engine_facts().await {
        Ok(facts) => {
            checks.ok(AT, "store", format!("{} {}", facts.name, facts.version));
            let after = patient.clock.now();
            if patient.is_shared() {
                skew("clock of the store", facts.now, before, after, checks);
                row_security(&facts, checks);
            }
        }
        Err(error) => {
            checks
                .fail(AT, "store", error.to_string())
                .advise("see whether the database takes this user's statements");
        }
    }
    schema(store, checks).await;
}

fn row_security(facts: &EngineFacts, checks: &mut Checks) {
    if facts.is_row_security_bound {
        checks.ok(AT, "row security", "binds the user of DATABASE_URL");
        return;
    }
    checks
        .warn(
            AT,
            "row security",
            "the user of DATABASE_URL is a superuser, or bypasses it",
        )
        .advise(
            "log in as a role of its own: then Postgres keeps zones apart even from our mistakes",
        );
}

async fn schema(store: &Store, checks: &mut Checks) {
    let name = "schema";
    match store.schema().await {
        Err(error) => checks
            .fail(AT, name, error.to_string())
            .advise("run `caracal migrate`"),
        Ok(schema) if !schema.changed.is_empty() => checks
            .fail(
                AT,
                name,
                format!("migrations {:?} are others than ours", schema.changed),
            )
            .advise("this database was made by another build; restore it, or run that build"),
        Ok(schema) if !schema.missing.is_empty() => checks
            .fail(
                AT,
                name,
                format!("migrations {:?} are missing", schema.missing),
            )
            .advise("run `caracal migrate`, then start the services"),
        Ok(schema) if !schema.unknown.is_empty() => checks
            .warn(
                AT,
                name,
                format!("migrations {:?} are of a newer version", schema.unknown),
            )
            .advise("fine during an upgrade; then upgrade this binary as well"),
        Ok(schema) => checks.ok(AT, name, format!("up to date ({:04})", schema.version)),
    }
}

/// A clock that is not ours, read between two looks at ours.
pub fn skew(
    name: &str,
    theirs: Timestamp,
    before: Timestamp,
    after: Timestamp,
    checks: &mut Checks,
) {
    let apart = if theirs < before {
        before.since(theirs)
    } else {
        theirs.since(after.max(before))
    };
    let detail = format!("{} ms apart from ours", apart.as_millis());
    let advice = "let NTP set the clocks of all machines: mandates carry times, and are refused by \
                  whoever sees another one";
    match apart {
        apart if apart > FAR_SKEWED => checks.fail(AT, name, detail).advise(advice),
        apart if apart > SKEWED => checks.warn(AT, name, detail).advise(advice),
        _ => checks.ok(AT, name, detail),
    }
}

async fn redis(patient: &Patient, settings: &Settings, checks: &mut Checks) {
    let name = "Redis";
    let Some(url) = &settings.redis_url else {
        if patient.is_shared() {
            checks
                .fail(AT, name, "REDIS_URL is not set")
                .advise("replicas share claims, streams and counters there: redis://host:6379");
        }
        return;
    };
    let asked = async {
        let roots = trusted_pem(settings.extra_ca.as_deref())?;
        let streams = config::load(&patient.environment, StreamSettings::load)?;
        let bus = Bus::redis(url, streams.redis(roots)).await?;
        let before = patient.clock.now();
        let server = bus.server().await?;
        anyhow::Ok((before, server, patient.clock.now()))
    };
    match asked.await {
        Err(error) => checks
            .fail(AT, name, error.to_string())
            .advise("is it running, and is REDIS_URL right? Nothing is single-use without it"),
        Ok((_, None, _)) => {}
        Ok((before, Some(server), after)) => {
            describe(&server, checks);
            skew("clock of Redis", server.now, before, after, checks);
        }
    }
}

/// What a Redis must be: new enough, keeping everything, and writing it down.
fn describe(server: &ServerFacts, checks: &mut Checks) {
    if server.major() < REDIS_MAJOR {
        checks
            .fail(AT, "Redis", format!("version {}", server.version))
            .advise("version 7 or later is needed");
    } else {
        checks.ok(AT, "Redis", format!("version {}", server.version));
    }
    if server.maxmemory_policy == "noeviction" {
        checks.ok(AT, "Redis eviction", "noeviction");
    } else {
        checks
            .fail(
                AT,
                "Redis eviction",
                format!("maxmemory-policy is {}", server.maxmemory_policy),
            )
            .advise(
                "set noeviction: an evicted claim lets a mandate be used twice, an evicted \
                     stream loses evidence",
            );
    }
    if !server.persists {
        checks
            .fail(AT, "Redis persistence", "its last write to disk failed")
            .advise("see its log, and its disk");
    } else if server.appends_to_file {
        checks.ok(AT, "Redis persistence", "AOF");
    } else {
        checks
            .warn(
                AT,
                "Redis persistence",
                "AOF is off: what came since its last snapshot dies with it",
            )
            .advise("set appendonly yes");
    }
    let (used, most) = (server.used_memory, server.maxmemory);
    if most > 0 && used > most / 10 * 9 {
        checks
            .warn(
                AT,
                "Redis memory",
                format!("{} of {} MiB in use", used >> 20, most >> 20),
            )
            .advise("raise maxmemory, or see which stream is not being read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Status;

    #[test]
    fn clocks_may_be_two_seconds_apart_and_not_thirty() {
        let at = Timestamp::from_unix_seconds;
        let status = |theirs: i64| {
            let mut checks = Checks::default();
            skew("clock", at(theirs), at(100), at(101), &mut checks);
            let [(_, status)] = checks.outcomes()[..] else {
                panic!("one check");
            };
            status
        };
        for theirs in [98, 100, 101, 103] {
            assert_eq!(status(theirs), Status::Ok, "{theirs}");
        }
        for theirs in [97, 104, 131] {
            assert_eq!(status(theirs), Status::Warn, "{theirs}");
        }
        for theirs in [69, 132] {
            assert_eq!(status(theirs), Status::Fail, "{theirs}");
        }
    }

    #[test]
    fn a_redis_that_forgets_is_told() {
        let good = ServerFacts {
            version: "7.2.4".to_owned(),
            maxmemory_policy: "noeviction".to_owned(),
            appends_to_file: true,
            persists: true,
            ..ServerFacts::default()
        };
        let status = |server: &ServerFacts, name: &str| {
            let mut checks = Checks::default();
            describe(server, &mut checks);
            let found = checks.outcomes();
            found.iter().find(|(check, _)| *check == name).unwrap().1
        };
        assert_eq!(status(&good, "Redis"), Status::Ok);
        assert_eq!(status(&good, "Redis eviction"), Status::Ok);
        assert_eq!(status(&good, "Redis persistence"), Status::Ok);
        let old = ServerFacts {
            version: "6.2.1".to_owned(),
            ..good.clone()
        };
        assert_eq!(status(&old, "Redis"), Status::Fail);
        let evicts = ServerFacts {
            maxmemory_policy: "allkeys-lru".to_owned(),
            ..good.clone()
        };
        assert_eq!(status(&evicts, "Redis eviction"), Status::Fail);
        let forgets = ServerFacts {
            appends_to_file: false,
            ..good.clone()
        };
        assert_eq!(status(&forgets, "Redis persistence"), Status::Warn);
        let full = ServerFacts {
            maxmemory: 100,
            used_memory: 95,
            ..good.clone()
        };
        assert_eq!(status(&full, "Redis memory"), Status::Warn);
        let broken = ServerFacts {
            persists: false,
            ..good
        };
        assert_eq!(status(&broken, "Redis persistence"), Status::Fail);
    }
}
