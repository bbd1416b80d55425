//! What this process appended itself, for the tree of each zone: read back, unpacked and verified, an
//! event would cost as much again as appending it.
//!
//! INVARIANT (what is here is in the ledger): only what a transaction has committed is added, and only
//! behind the head that the transaction moved from. Whatever another process appended, or may have, is
//! a gap; behind it, the events of a zone start anew, and what is missing is read from the ledger.

use std::collections::{HashMap, VecDeque};

use caracal_ledger::Head;
use caracal_ledger::merkle::Hash;
use caracal_model::ZoneId;
use parking_lot::Mutex;

/// Events that are remembered at most, over all zones: some 80 bytes each.
const MOST: usize = 32_768;

/// An event in the two logs of its zone: the leaf of the tree, and the head of the chain behind it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub leaf: Hash,
    pub head: Head,
}

/// The latest events of zones, in the order of their chains. Cheap to lock: nothing waits inside.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    zones: HashMap<ZoneId, Run>,
    held: usize,
}

/// Events without a gap.
#[derive(Debug)]
struct Run {
    /// The head before the first of them.
    from: Head,
    steps: VecDeque<Step>,
}

impl Run {
    fn end(&self) -> &Head {
        self.steps.back().map_or(&self.from, |step| &step.head)
    }
}

impl Recent {
    /// Adds what was committed behind this head; what is too much goes, other zones first, then what
    /// is oldest.
    pub fn add(&self, zone: &ZoneId, from: &Head, steps: Vec<Step>) {
        let state = &mut *self.0.lock();
        if state.held + steps.len() > MOST {
            state.zones.retain(|held, _| held == zone);
            state.held = state.zones.values().map(|run| run.steps.len()).sum();
        }
        let run = state.zones.entry(zone.clone()).or_insert_with(|| Run {
            from: from.clone(),
            steps: VecDeque::new(),
        });
        if run.end() != from {
            state.held -= run.steps.len();
            run.from = from.clone();
            run.steps.clear();
        }
        state.held += steps.len();
        run.steps.extend(steps);
        let excess = state.held.saturating_sub(MOST);
        if let Some(last) = run.steps.drain(..excess).next_back() {
            run.from = last.head;
            state.held -= excess;
        }
    }

    /// Up to `most` events behind this head, which are known to continue it; forgets those before.
    pub fn after(&self, zone: &ZoneId, head: &Head, most: usize) -> Vec<Step> {
        let state = &mut *self.0.lock();
        let Some(run) = state.zones.get_mut(zone) else {
            return Vec::new();
        };
        while run.from.seq() < head.seq() {
            let Some(step) = run.steps.pop_front() else {
                break;
            };
            run.from = step.head;
            state.held -= 1;
        }
        if run.from == *head {
            return run.steps.iter().take(most).cloned().collect();
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> ZoneId {
        ZoneId::trusted("z1")
    }

    fn head(seq: u64) -> Head {
        Head::stored(seq, &format!("{seq:064x}")).unwrap()
    }

    fn steps(seqs: std::ops::RangeInclusive<u64>) -> Vec<Step> {
        seqs.map(|seq| Step {
            leaf: [u8::try_from(seq % 251).unwrap(); 32],
            head: head(seq),
        })
        .collect()
    }

    fn seqs(steps: &[Step]) -> Vec<u64> {
        steps.iter().map(|step| step.head.seq()).collect()
    }

    #[test]
    fn what_follows_a_head_is_given_in_order_and_as_often_as_asked() {
        let recent = Recent::default();
        recent.add(&zone(), &head(3), steps(4..=6));
        recent.add(&zone(), &head(6), steps(7..=8));
        for _ in 0..2 {
            assert_eq!(seqs(&recent.after(&zone(), &head(3), 4)), [4, 5, 6, 7]);
        }
        assert_eq!(seqs(&recent.after(&zone(), &head(7), 4)), [8]);
        assert!(recent.after(&zone(), &head(8), 4).is_empty());
        assert!(recent.after(&zone(), &head(3), 4).is_empty());
        assert_eq!(recent.0.lock().held, 0);
        recent.add(&zone(), &head(8), steps(9..=9));
        assert_eq!(seqs(&recent.after(&zone(), &head(8), 4)), [9]);
    }

    #[test]
    fn behind_a_gap_it_starts_anew() {
        let recent = Recent::default();
        recent.add(&zone(), &head(0), steps(1..=3));
        recent.add(&zone(), &head(5), steps(6..=7));
        assert!(recent.after(&zone(), &head(0), 9).is_empty());
        assert_eq!(seqs(&recent.after(&zone(), &head(5), 9)), [6, 7]);
        assert_eq!(recent.0.lock().held, 2);
    }

    #[test]
    fn another_history_of_the_same_length_is_not_continued() {
        let recent = Recent::default();
        recent.add(&zone(), &head(2), steps(3..=4));
        let other = Head::stored(2, &"f".repeat(64)).unwrap();
        assert!(recent.after(&zone(), &other, 9).is_empty());
        recent.add(&zone(), &other, steps(3..=3));
        assert_eq!(seqs(&recent.after(&zone(), &other, 9)), [3]);
    }

    #[test]
    fn no_more_than_a_bounded_number_is_held_and_the_newest_stay() {
        let recent = Recent::default();
        let most = u64::try_from(MOST).unwrap();
        recent.add(&zone(), &head(0), steps(1..=most));
        recent.add(&zone(), &head(most), steps(most + 1..=most + 2));
        assert_eq!(recent.0.lock().held, MOST);
        assert!(recent.after(&zone(), &head(1), 9).is_empty());
        assert_eq!(seqs(&recent.after(&zone(), &head(2), 2)), [3, 4]);
        recent.add(&ZoneId::trusted("z2"), &head(0), steps(1..=1));
        assert_eq!(recent.0.lock().held, 1);
        assert!(recent.after(&zone(), &head(2), 9).is_empty());
    }
}
