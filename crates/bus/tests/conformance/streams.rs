//! Streams: tails, groups, trimming, ranges.

use super::*;

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
}
