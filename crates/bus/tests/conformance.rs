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
                scenario(super::memory()).await;
            }

            $(#[doc = $doc])+
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis() {
                if let Some(bus) = super::redis().await {
                    scenario(bus).await;
                }
            }
        }
    )+};
}

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

on_both! {
    /// An operator is told what answers; memory is no server.
    async fn the_server_describes_itself(bus: Bus) {
        if let Some(server) = bus.server().await.unwrap() {
            assert!(server.major() >= 6, "{server:?}");
            assert!(!server.maxmemory_policy.is_empty() && server.used_memory > 0, "{server:?}");
            assert!(server.now.unix_micros() > 1_600_000_000_000_000, "{server:?}");
        }
    }
}

on_both! {
    /// Positions rise, in the order of the batch, and `last` is the newest of them.
    async fn entries_keep_their_order(bus: Bus) {
        assert_eq!(bus.last(TOPIC).await.unwrap(), Position::START);
        let mut positions = append(&bus, TOPIC, 0..20).await;
        positions.extend(append(&bus, TOPIC, 20..40).await);
        assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
        assert_eq!(bus.last(TOPIC).await.unwrap(), positions[39]);
        assert_eq!(follow(&bus, Position::START, 40).await, (0..40).collect::<Vec<_>>());
        let refused = bus.append(TOPIC, &[Fields::new()]).await;
        assert!(matches!(refused, Err(BusError::Refused { .. })), "{refused:?}");
    }

    /// From a position in the middle, everything after it comes once, and the rest not at all.
    async fn a_tail_sees_what_comes_after_its_position_exactly_once(bus: Bus) {
        let positions = append(&bus, TOPIC, 0..10).await;
        let mut following = JoinSet::new();
        let (tail, from) = (bus.clone(), positions[4]);
        following.spawn(async move { follow(&tail, from, 25).await });
        for start in (10..30).step_by(5) {
            append(&bus, TOPIC, start..start + 5).await;
        }
        assert_eq!(following.join_next().await.unwrap().unwrap(), (5..30).collect::<Vec<_>>());
        let rest = bus.tail(&[(TOPIC, bus.last(TOPIC).await.unwrap())], NO_WAIT, 10).await;
        assert_eq!(rest.unwrap(), []);
    }

    /// Broadcast: nobody takes an entry away from anyone else.
    async fn two_tails_both_see_everything(bus: Bus) {
        append(&bus, TOPIC, 0..30).await;
        let start = Position::START;
        let (one, two) = tokio::join!(follow(&bus, start, 30), follow(&bus, start, 30));
        assert_eq!(one, two);
    }

    /// One call follows several topics, each from its own position, with the names of the wire.
    async fn a_tail_follows_several_topics(bus: Bus) {
        let first = append(&bus, TOPIC, 0..3).await;
        append(&bus, "caracal.keys.invalidate", 10..12).await;
        let from = [
            (TOPIC, first[1]),
            ("caracal.keys.invalidate", Position::START),
            ("caracal.policy.invalidate", Position::START),
        ];
        let found = bus.tail(&from, NO_WAIT, 10).await.unwrap();
        assert_eq!(said(&found), [2, 10, 11]);
        assert_eq!(&*found[0].topic, TOPIC);
        assert_eq!(&*found[1].topic, "caracal.keys.invalidate");
    }

    /// The empty answer is what confirms a feed, so it must come, and it must come in time.
    async fn a_quiet_tail_answers_with_nothing_after_its_wait(bus: Bus) {
        let clock = SystemClock::default();
        let asked = clock.ticks();
        let wait = Duration::from_millis(60);
        assert_eq!(bus.tail(&[(TOPIC, Position::START)], wait, 10).await.unwrap(), []);
        let took = clock.ticks().since(asked);
        assert!(took >= wait && took < WAIT, "{took:?}");
    }

    /// An append wakes a tail that waits, long before its wait is over.
    async fn an_append_wakes_a_waiting_tail(bus: Bus) {
        let clock = SystemClock::default();
        let asked = clock.ticks();
        let from = [(TOPIC, Position::START)];
        let waiting = bus.tail(&from, Duration::from_secs(30), 10);
        let appending = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            append(&bus, TOPIC, 0..1).await;
        };
        let (found, ()) = tokio::join!(waiting, appending);
        assert_eq!(said(&found.unwrap()), [0]);
        assert!(clock.ticks().since(asked) < WAIT);
    }

    /// Whoever fell behind what is kept is told, on every topic that it follows.
    async fn a_position_that_fell_off_is_a_gap(bus: Bus) {
        let first = append(&bus, TOPIC, 0..1).await[0];
        append(&bus, TOPIC, 1..RETENTION * 5).await;
        for fallen in [Position::START, first] {
            let from = [("caracal.keys.invalidate", Position::START), (TOPIC, fallen)];
            let gap = bus.tail(&from, NO_WAIT, 10).await;
            assert!(matches!(&gap, Err(BusError::Gap { topic }) if topic == TOPIC), "{gap:?}");
        }
        let last = bus.last(TOPIC).await.unwrap();
        assert_eq!(bus.tail(&[(TOPIC, last)], NO_WAIT, 10).await.unwrap(), []);
    }

    /// A history that does not reach up to the position is another history.
    async fn a_position_from_another_history_is_a_gap(bus: Bus) {
        let mut foreign = append(&bus, TOPIC, 0..1).await[0];
        foreign.millis += 60_000;
        for topic in [TOPIC, "caracal.keys.invalidate"] {
            let gap = bus.tail(&[(topic, foreign)], NO_WAIT, 10).await;
            assert!(matches!(gap, Err(BusError::Gap { .. })), "{gap:?}");
        }
        let incarnation = bus.incarnation().await.unwrap();
        append(&bus, TOPIC, 1..2).await;
        let from = [(TOPIC, bus.last(TOPIC).await.unwrap())];
        assert_eq!(bus.tail_within(&incarnation, &from, NO_WAIT, 10).await.unwrap(), []);
    }

    /// Evidence is never trimmed by length.
    async fn evidence_is_kept_whatever_its_length(bus: Bus) {
        append(&bus, EVIDENCE, 0..RETENTION * 5).await;
        assert_eq!(bus.len(EVIDENCE).await.unwrap(), 500);
        let found = bus.tail(&[(EVIDENCE, Position::START)], NO_WAIT, 1_000).await.unwrap();
        assert_eq!(said(&found), (0..500).collect::<Vec<_>>());
    }

    /// Members of a group share the entries out; another group gets them all again.
    async fn a_group_splits_and_another_group_does_not_take_part(bus: Bus) {
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        append(&bus, EVIDENCE, 0..10).await;
        bus.ensure_group(EVIDENCE, "late", false).await.unwrap();
        let one = bus.read_group(EVIDENCE, "ingest", "one", 4, NO_WAIT).await.unwrap();
        let two = bus.read_group(EVIDENCE, "ingest", "two", 100, NO_WAIT).await.unwrap();
        assert_eq!(said(&one), [0, 1, 2, 3]);
        assert_eq!(said(&two), [4, 5, 6, 7, 8, 9]);
        assert_eq!(bus.read_group(EVIDENCE, "late", "one", 9, NO_WAIT).await.unwrap(), []);
        append(&bus, EVIDENCE, 10..11).await;
        let late = bus.read_group(EVIDENCE, "late", "one", 9, WAIT).await.unwrap();
        assert_eq!(said(&late), [10]);
        let missing = bus.read_group(EVIDENCE, "nobody", "one", 9, NO_WAIT).await;
        assert!(matches!(missing, Err(BusError::NoGroup { .. })), "{missing:?}");
        let missing = bus.group_lag("caracal.audit.nothing", "nobody").await;
        assert!(matches!(missing, Err(BusError::NoGroup { .. })), "{missing:?}");
    }

    /// What a dead member held comes again, once acknowledged it does not.
    async fn idle_entries_are_delivered_again_until_acknowledged(bus: Bus) {
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        append(&bus, EVIDENCE, 0..6).await;
        let held = bus.read_group(EVIDENCE, "ingest", "dead", 6, NO_WAIT).await.unwrap();
        let done: Vec<Position> = held.iter().take(2).map(|entry| entry.position).collect();
        bus.ack(EVIDENCE, "ingest", &done).await.unwrap();
        let hour = Duration::from_secs(3600);
        let none = bus.claim_idle(EVIDENCE, "ingest", "heir", hour, 10).await.unwrap();
        assert_eq!(none, []);
        let some = bus.claim_idle(EVIDENCE, "ingest", "heir", NO_WAIT, 3).await.unwrap();
        assert_eq!(said(&some), [2, 3, 4]);
        let all = bus.claim_idle(EVIDENCE, "ingest", "heir", NO_WAIT, 10).await.unwrap();
        assert_eq!(said(&all), [2, 3, 4, 5]);
        let done: Vec<Position> = all.iter().map(|entry| entry.position).collect();
        bus.ack(EVIDENCE, "ingest", &done).await.unwrap();
        let none = bus.claim_idle(EVIDENCE, "ingest", "heir", NO_WAIT, 10).await.unwrap();
        assert_eq!(none, []);
    }

    /// Lag counts what was not given out as well as what was not acknowledged.
    async fn lag_is_what_is_unfinished(bus: Bus) {
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        let positions = append(&bus, EVIDENCE, 0..10).await;
        bus.read_group(EVIDENCE, "ingest", "one", 4, NO_WAIT).await.unwrap();
        bus.ack(EVIDENCE, "ingest", &positions[..1]).await.unwrap();
        let lag = bus.group_lag(EVIDENCE, "ingest").await.unwrap();
        assert_eq!((lag.undelivered, lag.pending, lag.total()), (6, 3, 9));
        assert_eq!(lag.oldest_pending, Some(positions[1]));
        assert_eq!(lag.oldest_undelivered, Some(positions[4]));
        assert_eq!(lag.oldest(), Some(positions[1]));
    }

    /// A group is done with what it has acknowledged up to the first entry that it has not.
    async fn progress_ends_at_the_first_entry_that_is_not_acknowledged(bus: Bus) {
        let progress = async || bus.progress(EVIDENCE, "ingest").await.unwrap();
        let positions = append(&bus, EVIDENCE, 0..4).await;
        let history = progress().await.history;
        assert_eq!(progress().await.before, None, "there is no such group");
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        assert!(progress().await.before.unwrap() <= positions[0]);
        bus.read_group(EVIDENCE, "ingest", "one", 3, NO_WAIT).await.unwrap();
        assert_eq!(progress().await.before, Some(positions[0]));
        bus.ack(EVIDENCE, "ingest", &[positions[0], positions[2]]).await.unwrap();
        assert_eq!(progress().await.before, Some(positions[1]));
        bus.ack(EVIDENCE, "ingest", &positions[1..2]).await.unwrap();
        let before = progress().await.before.unwrap();
        assert!(positions[2] < before && before <= positions[3]);
        bus.trim_acknowledged(EVIDENCE, &["ingest"]).await.unwrap();
        assert_eq!(progress().await.before, Some(before));
        assert_eq!(progress().await.history, history);
    }

    /// Trimming stops at the first entry that somebody still needs.
    async fn trimming_never_removes_what_is_not_acknowledged(bus: Bus) {
        let trim = async || bus.trim_acknowledged(EVIDENCE, &["ingest"]).await.unwrap();
        let positions = append(&bus, EVIDENCE, 0..10).await;
        assert_eq!(trim().await, 0, "the group does not exist");
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        bus.ensure_group(EVIDENCE, "provisioned", true).await.unwrap();
        assert_eq!(trim().await, 0, "nothing was read");
        bus.read_group(EVIDENCE, "ingest", "one", 8, NO_WAIT).await.unwrap();
        assert_eq!(trim().await, 0, "nothing was acknowledged");
        bus.ack(EVIDENCE, "ingest", &positions[1..8]).await.unwrap();
        assert_eq!(trim().await, 0, "the first is pending");
        bus.ack(EVIDENCE, "ingest", &positions[..1]).await.unwrap();
        bus.ensure_group(EVIDENCE, "siem", true).await.unwrap();
        bus.read_group(EVIDENCE, "siem", "one", 3, NO_WAIT).await.unwrap();
        bus.ack(EVIDENCE, "siem", &positions[..3]).await.unwrap();
        assert_eq!(trim().await, 3, "another group reads");
        bus.read_group(EVIDENCE, "siem", "one", 100, NO_WAIT).await.unwrap();
        bus.ack(EVIDENCE, "siem", &positions).await.unwrap();
        assert_eq!(trim().await, 5);
        let rest = bus.read_group(EVIDENCE, "ingest", "one", 100, NO_WAIT).await.unwrap();
        assert_eq!(said(&rest), [8, 9]);
    }

    /// Single entries can be taken out, and are not delivered again.
    async fn removed_entries_are_gone(bus: Bus) {
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        let positions = append(&bus, EVIDENCE, 0..4).await;
        bus.read_group(EVIDENCE, "ingest", "one", 4, NO_WAIT).await.unwrap();
        assert_eq!(bus.remove(EVIDENCE, &positions[1..3]).await.unwrap(), 2);
        assert_eq!(bus.len(EVIDENCE).await.unwrap(), 2);
        let again = bus.claim_idle(EVIDENCE, "ingest", "two", NO_WAIT, 10).await.unwrap();
        assert_eq!(said(&again), [0, 3]);
    }

    /// A range is what is there, from a position on, whether or not it was read or acknowledged.
    async fn a_range_shows_what_is_there(bus: Bus) {
        assert!(bus.range(EVIDENCE, Position::START, 10).await.unwrap().is_empty());
        bus.ensure_group(EVIDENCE, "ingest", true).await.unwrap();
        let positions = append(&bus, EVIDENCE, 0..5).await;
        bus.read_group(EVIDENCE, "ingest", "one", 2, NO_WAIT).await.unwrap();
        bus.remove(EVIDENCE, &positions[1..2]).await.unwrap();
        let range = async |from, limit| bus.range(EVIDENCE, from, limit).await.unwrap();
        assert_eq!(said(&range(Position::START, 10).await), [0, 2, 3, 4]);
        assert_eq!(said(&range(positions[1], 10).await), [2, 3, 4]);
        assert_eq!(said(&range(positions[2], 2).await), [2, 3]);
        assert!(range(positions[4].next(), 10).await.is_empty());
    }

    /// However many ask at once, one wins, until the claim has expired.
    async fn a_claim_has_exactly_one_winner(bus: Bus) {
        let mut claims = JoinSet::new();
        for _ in 0..64 {
            let bus = bus.clone();
            claims.spawn(async move { bus.claim("seen:jti:1", WAIT).await.unwrap() });
        }
        let won = claims.join_all().await;
        assert_eq!(won.into_iter().filter(|won| *won).count(), 1);
        let short = Duration::from_millis(30);
        assert!(bus.claim("seen:jti:2", short).await.unwrap());
        assert!(!bus.claim("seen:jti:2", short).await.unwrap());
        eventually("the claim expires", || async {
            bus.claim("seen:jti:2", WAIT).await.unwrap()
        })
        .await;
    }

    /// A window ends a fixed time after its first count.
    async fn counts_start_again_when_their_window_has_passed(bus: Bus) {
        let window = Duration::from_millis(200);
        for expected in 1..=5 {
            assert_eq!(bus.count("mint:app", window).await.unwrap(), expected);
        }
        assert_eq!(bus.count("mint:other", window).await.unwrap(), 1);
        eventually("the window passes", || async {
            bus.count("mint:app", window).await.unwrap() == 1
        })
        .await;
    }

    /// Whoever leads stays the leader while it renews; another takes over only after silence.
    async fn leadership_is_kept_by_renewing_and_lost_by_silence(bus: Bus) {
        let short = Duration::from_millis(60);
        assert!(bus.lead("sweeper", "one", WAIT).await.unwrap());
        assert!(!bus.lead("sweeper", "two", WAIT).await.unwrap());
        assert!(bus.lead("sweeper", "one", short).await.unwrap());
        eventually("the other takes over", || async {
            bus.lead("sweeper", "two", WAIT).await.unwrap()
        })
        .await;
        assert!(!bus.lead("sweeper", "one", WAIT).await.unwrap());
    }

    /// A member is heard until its word expires.
    async fn a_board_shows_what_living_members_said(bus: Bus) {
        bus.post("caracal:view:applied", "a", "1-0", WAIT).await.unwrap();
        bus.post("caracal:view:applied", "a", "2-0", WAIT).await.unwrap();
        let short = Duration::from_millis(30);
        bus.post("caracal:view:applied", "b", "1-0", short).await.unwrap();
        eventually("the silent one is gone", || async {
            let posts = bus.posts("caracal:view:applied").await.unwrap();
            posts == [("a".to_owned(), "2-0".to_owned())]
        })
        .await;
        assert_eq!(bus.posts("nobody").await.unwrap(), []);
        bus.ping().await.unwrap();
    }
}

#[tokio::test]
async fn an_unreachable_redis_is_an_error_in_time_and_names_no_password() {
    let url = Secret::new("redis://:hunter2@127.0.0.1:1/".to_owned());
    let options = RedisOptions {
        timeout: Duration::from_millis(300),
        ..RedisOptions::default()
    };
    let bus = Bus::redis(&url, options).await.unwrap();
    let clock = SystemClock::default();
    let asked = clock.ticks();
    for error in [
        bus.ping().await.unwrap_err(),
        bus.claim("seen:jti:1", WAIT).await.unwrap_err(),
        bus.tail(&[(TOPIC, Position::START)], NO_WAIT, 1)
            .await
            .unwrap_err(),
    ] {
        assert!(error.is_outage(), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
    assert!(clock.ticks().since(asked) < WAIT);
    let not_a_url = Secret::new("hunter2".to_owned());
    let error = Bus::redis(&not_a_url, RedisOptions::default())
        .await
        .unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

/// The newest entries that a server acknowledged may be gone after a restart, and what came since
/// may have higher ids: positions cannot show that, the server's run id does.
#[tokio::test]
async fn positions_of_a_server_that_was_started_again_are_a_gap() {
    let Some(bus) = redis().await else { return };
    append(&bus, TOPIC, 0..1).await;
    let from = [(TOPIC, bus.last(TOPIC).await.unwrap())];
    let before = "0".repeat(40);
    let gap = bus.tail_within(&before, &from, NO_WAIT, 10).await;
    assert!(matches!(gap, Err(BusError::Gap { .. })), "{gap:?}");
}

/// A server of one test, in a directory of its own.
struct Server {
    port: u16,
    directory: std::path::PathBuf,
    process: std::process::Child,
}

impl Server {
    /// `None` when tests are not to use Redis, or there is no server program.
    fn start() -> Option<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "whether there is Redis to test with"
        )]
        std::env::var("CARACAL_TEST_REDIS").ok()?;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let name = format!("caracal-bus-{}-{port}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let process = Self::run(port, &directory)?;
        Some(Self {
            port,
            directory,
            process,
        })
    }

    fn run(port: u16, directory: &std::path::Path) -> Option<std::process::Child> {
        std::process::Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--dir"])
            .arg(directory)
            .stdout(std::process::Stdio::null())
            .spawn()
            .ok()
    }

    async fn bus(&self) -> Bus {
        let url = Secret::new(format!("redis://127.0.0.1:{}/", self.port));
        let bus = Bus::redis(&url, RedisOptions::default()).await.unwrap();
        eventually("the server answers", || async { bus.ping().await.is_ok() }).await;
        bus
    }

    /// What only an operator does.
    async fn command(&self, name: &str) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let done: String = redis::cmd(name).query_async(&mut connection).await.unwrap();
        assert_eq!(done, "OK");
    }

    /// Kills it; the next one knows what the last `SAVE` wrote.
    async fn crash(&mut self, bus: &Bus) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::run(self.port, &self.directory).unwrap();
        eventually("the next one answers", || async {
            bus.ping().await.is_ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whatever way a server loses claims, nothing that may have been claimed is claimed again.
#[tokio::test]
async fn claims_that_a_server_lost_are_not_won_again() {
    let Some(mut server) = Server::start() else {
        eprintln!("skipped: no Redis of its own");
        return;
    };
    let (bus, clock) = (server.bus().await, SystemClock::default());
    assert!(
        !bus.claim_made("seen:jti:0", clock.now(), WAIT)
            .await
            .unwrap(),
        "nothing is known of before the first contact"
    );
    let claimed = async |key: &str, made| bus.claim_made(key, made, WAIT * 12).await.unwrap();
    for loss in ["emptied", "crashed", "behind"] {
        let soon = bus.open_claims().await.unwrap();
        assert!(soon <= Duration::from_millis(1_001), "{soon:?}");
        tokio::time::sleep(soon).await;
        assert_eq!(bus.open_claims().await.unwrap(), NO_WAIT);
        let (key, made) = (format!("seen:jti:{loss}"), clock.now());
        if loss == "behind" {
            // The note is saved, the claim is not.
            server.command("SAVE").await;
        }
        assert!(claimed(&key, made).await, "{loss}");
        assert!(!claimed(&key, made).await, "{loss}");
        match loss {
            "emptied" => server.command("FLUSHALL").await,
            _ => server.crash(&bus).await,
        }
        assert!(!claimed(&key, made).await, "{loss}: used before the loss");
        let later = clock.now().plus(Duration::from_secs(5));
        let next = format!("seen:jti:after-{loss}");
        assert!(claimed(&next, later).await, "{loss}: made after the loss");
        assert!(!claimed(&next, later).await, "{loss}");
    }
}

/// Whatever way a server loses entries, whoever appended them can tell.
#[tokio::test]
async fn a_server_that_may_have_lost_entries_has_another_history() {
    let Some(mut server) = Server::start() else {
        eprintln!("skipped: no Redis of its own");
        return;
    };
    let bus = server.bus().await;
    let history = async || {
        let history = bus.progress(EVIDENCE, "ingest").await.unwrap().history;
        assert_eq!(bus.history().await.unwrap(), Some(history.clone()));
        history
    };
    let mut seen = vec![history().await];
    for loss in ["emptied", "crashed", "behind"] {
        append(&bus, EVIDENCE, 0..1).await;
        assert_eq!(history().await, seen[seen.len() - 1], "{loss}");
        match loss {
            "emptied" => server.command("FLUSHALL").await,
            "behind" => {
                server.command("SAVE").await;
                server.crash(&bus).await;
            }
            _ => server.crash(&bus).await,
        }
        let now = history().await;
        assert!(!seen.contains(&now), "{loss}");
        seen.push(now);
    }
}

/// Answers commands on the first connection with bytes that are no answer, later ones as it should.
async fn a_server_that_lies_at_first() -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        let mut lies = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = if lies { "\x10x" } else { "+PONG\r\n" };
            lies = false;
            tokio::spawn(async move {
                let mut chunk = [0u8; 4096];
                while let Ok(length @ 1..) = stream.read(&mut chunk).await {
                    let lines = chunk[..length].split(|byte| *byte == b'\n');
                    let commands = lines.filter(|line| line.starts_with(b"*")).count();
                    stream
                        .write_all(answer.repeat(commands).as_bytes())
                        .await
                        .unwrap();
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_connection_that_carried_nonsense_is_not_asked_again() {
    let port = a_server_that_lies_at_first().await;
    let url = Secret::new(format!("redis://127.0.0.1:{port}/"));
    let bus = Bus::redis(&url, RedisOptions::default()).await.unwrap();
    eventually("it answers on a new connection", || async {
        bus.ping().await.is_ok()
    })
    .await;
}
