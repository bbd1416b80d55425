//! One suite, both backends: what callers of the bus may rely on. The Redis half runs when
//! `CARACAL_TEST_REDIS` names a server.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at once"
)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_bus::{Bus, BusError, Entry, MemoryOptions, Position, RedisOptions};
use caracal_crypto::os::SystemClock;
use caracal_model::change::Fields;
use caracal_model::{Clock, Secret};
use tokio::task::JoinSet;

const RETENTION: usize = 100;
const TOPIC: &str = "caracal.sessions.revoke";
const EVIDENCE: &str = "caracal.audit.events";
const NO_WAIT: Duration = Duration::ZERO;
const WAIT: Duration = Duration::from_secs(5);

/// A bus of its own for each test.
async fn redis() -> Option<Bus> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    #[expect(clippy::disallowed_methods, reason = "where the test server is")]
    let Ok(url) = std::env::var("CARACAL_TEST_REDIS") else {
        eprintln!("skipped on Redis: CARACAL_TEST_REDIS is not set");
        return None;
    };
    let run = SystemClock::default().now().unix_micros();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("test:{}:{run}:{number}:", std::process::id());
    let options = RedisOptions {
        prefix,
        retention: RETENTION,
        ..RedisOptions::default()
    };
    Some(Bus::redis(&Secret::new(url), options).await.unwrap())
}

fn memory() -> Bus {
    let options = MemoryOptions {
        retention: RETENTION,
        ..MemoryOptions::default()
    };
    Bus::memory_with(Arc::new(SystemClock::default()), options)
}

macro_rules! on_both {
    ($($(#[doc = $doc:literal])+ async fn $name:ident($bus:ident: Bus) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn scenario($bus: Bus) $body

            $(#[doc = $doc])+
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn memory() {
                scenario(crate::memory()).await;
            }

            $(#[doc = $doc])+
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            pub async fn redis() {
                if let Some(bus) = crate::redis().await {
                    scenario(bus).await;
                }
            }
        }
    )+};
}

mod outages;
mod state;
mod streams;

fn say(number: usize) -> Fields {
    Fields::from([("n".to_owned(), number.to_string())])
}

fn said(entries: &[Entry]) -> Vec<usize> {
    entries
        .iter()
        .map(|entry| entry.fields["n"].parse().unwrap())
        .collect()
}

async fn append(bus: &Bus, topic: &str, numbers: std::ops::Range<usize>) -> Vec<Position> {
    let entries: Vec<Fields> = numbers.map(say).collect();
    bus.append(topic, &entries).await.unwrap()
}

/// Reads on until `count` entries were seen.
async fn follow(bus: &Bus, mut from: Position, count: usize) -> Vec<usize> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let entries = bus.tail(&[(TOPIC, from)], WAIT, 7).await.unwrap();
        assert!(!entries.is_empty(), "only {seen:?} within {WAIT:?}");
        from = entries.last().unwrap().position;
        seen.extend(said(&entries));
    }
    seen
}

/// Asks again until the answer is yes.
async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let clock = SystemClock::default();
    let start = clock.ticks();
    while !ask().await {
        assert!(clock.ticks().since(start) < WAIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
