//! One Audit leads what must not be done by two: the export of the ledger, its age, and trying dead
//! letters again. It is killed, and another one goes on: nothing is exported, dropped or appended
//! twice, and nothing is left out. (Who verifies and signs: [`crate::drills`].)
//!
//! Clocks begin in the last hour of a month and step over its end, so that an hour is to be exported
//! and a month to be dropped. Leases run on the clock of Redis, which does not step: once their holder
//! is dead, the rest of their time is taken from them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caracal_crypto::HmacKey;
use caracal_crypto::os::SystemClock;
use caracal_ledger::Event;
use caracal_model::{Clock as _, EventId, Timestamp, ZoneId};
use serde_json::Value;
use xtest::wishes::wants_any_of;
use xtest::{CALLED, DEAD_LETTERS, Deployment, MINTED, Options, Part, Stack, World};

const PATIENCE: Duration = Duration::from_secs(180);
const HOUR: i64 = 3_600;
/// How long before the end of the month clocks begin: the hour is not over, and agents that start now
/// last beyond it.
const LEFT: i64 = 50 * 60;
/// So much later than they began, that month is more than a day old.
const NEXT_DAY: i64 = 26 * HOUR;
const LEASES: [&str; 4] = ["checkpoints", "dead-letters", "export", "retention"];

#[test]
fn distributed_leaders_of_the_ledger_are_replaced() {
    if !wants_any_of("ledger leaders") {
        return;
    }
    let exported = tempfile::tempdir().unwrap();
    let now = SystemClock::new().now();
    let begin = beginning(now);
    let ahead = begin.unix_seconds() - now.unix_seconds();
    let options = Options::default()
        .stepping_clock_from(ahead)
        .env("AUDIT_CLAIM_IDLE_SECS", "1")
        .env("AUDIT_CHECKPOINT_SECS", "1")
        .env("AUDIT_RETENTION_DAYS", "1")
        .env("AUDIT_EXPORT_FROM", &begin.iso_seconds())
        .env("AUDIT_EXPORT_DIR", &exported.path().display().to_string());
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            if !stack.has_stepping_clock() {
                xtest::visibly("skipped leaders: libfaketime is not installed");
                return;
            }
            let world = World::new(Arc::clone(&stack)).await;
            Box::pin(scenario(&world, exported.path(), ahead)).await;
        },
    );
}

/// Shortly before the end of a month, and not before now: a mandate from before Redis was started
/// counts as used.
fn beginning(now: Timestamp) -> Timestamp {
    let text = now.iso_seconds();
    let (mut year, mut month): (u32, u32) =
        (text[..4].parse().unwrap(), text[5..7].parse().unwrap());
    loop {
        (year, month) = (year + month / 12, month % 12 + 1);
        let end = Timestamp::parse_utc(&format!("{year:04}-{month:02}-01T00:00:00Z")).unwrap();
        let begin = Timestamp::from_unix_seconds(end.unix_seconds() - LEFT);
        if begin >= now {
            return begin;
        }
    }
}

async fn scenario(world: &World, exported: &Path, ahead: i64) {
    let stack = &world.stack;
    let first = stack.urls.audit.clone();
    within("the first Audit leads everything", async || {
        let held = leases(stack).await;
        held.len() == LEASES.len() && leads(stack, &first).await == [1, 1]
    })
    .await;
    let held = leases(stack).await;
    let second = stack.another(Part::Audit).await;
    happens(world).await;
    stack.step_clocks(ahead + HOUR);
    within("the first Audit exports the hour", async || {
        !manifests(exported).is_empty()
    })
    .await;
    happens(world).await;
    assert_eq!(leads(stack, &second).await, [0, 0]);
    assert_eq!(leases(stack).await, held, "nobody else leads anything");

    stack.kill9_replica(Part::Audit, 0);
    let before = manifests(exported).len();
    let letter = dead_letter(world, ahead + NEXT_DAY).await;
    happens(world).await;
    stack.step_clocks(ahead + NEXT_DAY);
    // Whoever leads before it sees that finds nothing to be dropped, and looks again hours later.
    within("the second Audit sees the next day", async || {
        let age = number(stack, &second, "dlq_oldest_age_seconds").await;
        age > (ahead + NEXT_DAY - HOUR).unsigned_abs()
    })
    .await;
    end_leases(stack).await;
    within("the second Audit exports the next hour", async || {
        manifests(exported).len() > before
    })
    .await;
    within("the second Audit takes the dead letter", async || {
        stack.redis(&format!("XLEN {DEAD_LETTERS}")).await == redis::Value::Int(0)
    })
    .await;
    within("the second Audit drops the month", async || {
        number(stack, &second, "retention_dropped_total").await > 0
    })
    .await;
    assert_eq!(number(stack, &second, "dlq_retried_total").await, 1);
    assert_eq!(leads(stack, &second).await, [1, 1]);

    // Its predecessor comes back and finds nothing left to do.
    let objects = manifests(exported).len();
    let dropped = number(stack, &second, "retention_dropped_total").await;
    stack.starts_again();
    within("the first Audit is back", async || {
        let ready = stack.http.try_get(&format!("{first}/ready")).await;
        ready.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    within("everything is exported and signed", async || {
        number(stack, &second, "export_backlog_hours").await == 0 && all_is_signed(stack).await
    })
    .await;
    assert_eq!(leads(stack, &first).await, [0, 0]);
    assert_eq!(manifests(exported).len(), objects);
    let both = [
        number(stack, &first, "retention_dropped_total").await,
        number(stack, &second, "retention_dropped_total").await,
    ];
    assert_eq!(both, [0, dropped]);

    is_exported_once(world, exported);
    let found = world.evidence(&letter).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let verified = stack.caracal("audit verify").await;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(
        verified.status.success() && said.contains("no longer kept"),
        "{verified:?}"
    );
}

/// Evidence of a mint and a call.
async fn happens(world: &World) {
    let agent = world.agent().await;
    let minted = world.mint(&agent).await.unwrap().expect(200);
    let called = world
        .call(&minted.text("access_token"))
        .await
        .unwrap()
        .expect(200);
    world.is_recorded(&minted.request_id(), MINTED).await;
    world.is_recorded(&called.request_id(), CALLED).await;
}

/// An event that an Audit gave up while the store was at fault; the id of its request.
async fn dead_letter(world: &World, ahead: i64) -> String {
    let stack = &world.stack;
    let request = stack.unique("request");
    let now = SystemClock::new().now().unix_seconds();
    let event = Event::new(
        EventId::trusted(stack.unique("event")),
        ZoneId::trusted(world.zone.as_str()),
        "token_exchange",
        request.clone(),
        "allow",
        "complete",
        Timestamp::from_unix_seconds(now + ahead),
    )
    .to_wire();
    let key = HmacKey::from_hex(stack.setting("AUDIT_HMAC_KEY")).unwrap();
    assert!(!event.contains(' '), "one word for the command");
    let line = format!(
        "XADD {DEAD_LETTERS} * reason pg_permanent_error:no src_id 1-1 received_at 1 src_data {event} \
         src_sig {}",
        key.sign_hex(event.as_bytes())
    );
    stack.redis(&line).await;
    request
}

/// What is in the objects follows on each other, from the first event of the zone on.
fn is_exported_once(world: &World, exported: &Path) {
    let mut stretches = Vec::new();
    let mut objects = 0;
    for manifest in manifests(exported) {
        objects += 1;
        for zone in manifest["zones"].as_array().unwrap() {
            let seq = |name: &str| zone[name].as_u64().unwrap();
            let (from, to) = (seq("first_seq"), seq("last_seq"));
            assert_eq!(zone["chain"]["state"], "holds", "{manifest}");
            assert_eq!(seq("events"), to - from + 1, "{manifest}");
            if zone["zone_id"] == *world.zone {
                stretches.push((from, to));
            }
        }
    }
    stretches.sort_unstable();
    assert!(stretches.len() > 1, "{stretches:?}");
    let mut next = 1;
    for (from, to) in &stretches {
        assert_eq!(*from, next, "{stretches:?}");
        next = to + 1;
    }
    let files = files(exported).into_iter();
    let tables = files.filter(|name| name.ends_with(".parquet"));
    assert_eq!(tables.count(), objects);
}

fn manifests(exported: &Path) -> Vec<Value> {
    let files = files(exported).into_iter();
    let named = files.filter(|name| name.ends_with(".manifest.json"));
    named
        .filter_map(|name| serde_json::from_slice(&std::fs::read(name).ok()?).ok())
        .collect()
}

fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path.display().to_string()),
        }
    }
    found
}

/// Who holds each lease that somebody holds.
async fn leases(stack: &Stack) -> Vec<(&'static str, String)> {
    let mut held = Vec::new();
    for of in LEASES {
        if let redis::Value::BulkString(holder) =
            stack.redis(&format!("GET caracal:audit:{of}")).await
        {
            held.push((of, String::from_utf8_lossy(&holder).into_owned()));
        }
    }
    held
}

/// The time of every lease is over.
async fn end_leases(stack: &Stack) {
    for of in LEASES {
        drop(stack.redis(&format!("PEXPIRE caracal:audit:{of} 1")).await);
    }
}

/// Whether an Audit leads the export and the age of the ledger.
async fn leads(stack: &Stack, audit: &str) -> [u64; 2] {
    [
        number(stack, audit, "is_export_leader").await,
        number(stack, audit, "is_retention_leader").await,
    ]
}

async fn all_is_signed(stack: &Stack) -> bool {
    let verified = stack.caracal("audit verify").await;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    let mut logs = said.lines().filter(|line| !line.contains(" records"));
    verified.status.success() && logs.all(|line| line.contains("all of them signed"))
}

/// A number of an Audit; none when it does not answer.
async fn number(stack: &Stack, audit: &str, name: &str) -> u64 {
    let bearer = Some(stack.setting("METRICS_BEARER"));
    let metrics = stack.http.get(format!("{audit}/metrics"), bearer).await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = format!("caracal_audit_{name} ");
    let found = metrics
        .lines()
        .find_map(|text| text.strip_prefix(&line)?.parse().ok());
    found.unwrap_or(0)
}

async fn within(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    xtest::visibly(&format!("{what}: after {:?}", began.elapsed()));
}
