//! One topic in memory: entries in order, what fell off, and its groups.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use caracal_model::Ticks;
use caracal_model::change::Fields;

use crate::{Entry, Lag, Position, STALLED_READER_HOLDS};

#[derive(Default)]
pub(super) struct Stream {
    entries: VecDeque<(Position, Fields)>,
    last: Position,
    /// The newest entry that is no longer held.
    gone: Position,
    groups: BTreeMap<String, Group>,
}

#[derive(Default)]
struct Group {
    delivered: Position,
    pending: BTreeMap<Position, Delivery>,
    has_reader: bool,
}

struct Delivery {
    #[expect(dead_code, reason = "who holds it: for a debugger")]
    consumer: String,
    at: Ticks,
}

impl Group {
    /// The oldest entry that it is not done with, or will be given next.
    fn floor(&self) -> Position {
        self.pending
            .keys()
            .next()
            .copied()
            .unwrap_or_else(|| self.delivered.next())
    }
}

impl Stream {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn last(&self) -> Position {
        self.last
    }

    /// Appends at `now`, or right after the last entry when the clock stood still or stepped back.
    pub fn append(&mut self, now: u64, fields: &Fields) -> Position {
        let fresh = Position {
            millis: now,
            seq: 0,
        };
        self.last = fresh.max(self.last.next());
        self.entries.push_back((self.last, fields.clone()));
        self.last
    }

    pub fn keep_newest(&mut self, count: usize) {
        while self.entries.len() > count {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((position, _)) = self.entries.pop_front() {
            self.gone = self.gone.max(position);
        }
    }

    /// INVARIANT (no silent gap): true when an entry after `position` is gone, or when `position`
    /// was never ours.
    pub fn has_gap_after(&self, position: Position) -> bool {
        position < self.gone || position > self.last
    }

    pub fn after(&self, topic: &Arc<str>, position: Position, limit: usize) -> Vec<Entry> {
        self.held(topic, self.index_after(position), limit)
    }

    pub fn from(&self, topic: &Arc<str>, position: Position, limit: usize) -> Vec<Entry> {
        let start = self.entries.partition_point(|(at, _)| *at < position);
        self.held(topic, start, limit)
    }

    fn held(&self, topic: &Arc<str>, start: usize, limit: usize) -> Vec<Entry> {
        self.entries
            .range(start..)
            .take(limit)
            .map(|held| entry(topic, held))
            .collect()
    }

    fn index_after(&self, position: Position) -> usize {
        self.entries.partition_point(|(at, _)| *at <= position)
    }

    fn at(&self, position: Position) -> Option<&(Position, Fields)> {
        let index = self
            .entries
            .binary_search_by_key(&position, |(at, _)| *at)
            .ok()?;
        self.entries.get(index)
    }

    pub fn remove(&mut self, positions: &[Position]) -> u64 {
        let mut removed = 0;
        for position in positions {
            if let Ok(index) = self.entries.binary_search_by_key(position, |(at, _)| *at) {
                self.entries.remove(index);
                self.gone = self.gone.max(*position);
                removed += 1;
            }
        }
        removed
    }

    pub fn ensure_group(&mut self, group: &str, from_start: bool) {
        let delivered = if from_start {
            Position::START
        } else {
            self.last
        };
        self.groups
            .entry(group.to_owned())
            .or_insert_with(|| Group {
                delivered,
                ..Group::default()
            });
    }

    pub fn deliver(
        &mut self,
        topic: &Arc<str>,
        group: &str,
        consumer: &str,
        now: Ticks,
        limit: usize,
    ) -> Option<Vec<Entry>> {
        let delivered = self.groups.get(group)?.delivered;
        let found = self.after(topic, delivered, limit);
        let group = self.groups.get_mut(group)?;
        group.has_reader = true;
        for entry in &found {
            group.delivered = entry.position;
            let delivery = Delivery {
                consumer: consumer.to_owned(),
                at: now,
            };
            group.pending.insert(entry.position, delivery);
        }
        Some(found)
    }

    pub fn redeliver(
        &mut self,
        topic: &Arc<str>,
        group: &str,
        consumer: &str,
        now: Ticks,
        idle: Duration,
        limit: usize,
    ) -> Option<Vec<Entry>> {
        let due: Vec<Position> = self
            .groups
            .get(group)?
            .pending
            .iter()
            .filter(|(_, delivery)| now.since(delivery.at) >= idle)
            .map(|(position, _)| *position)
            .take(limit)
            .collect();
        let mut found = Vec::with_capacity(due.len());
        for position in due {
            let held = self.at(position).map(|held| entry(topic, held));
            let group = self.groups.get_mut(group)?;
            group.has_reader = true;
            match held {
                Some(entry) => {
                    let delivery = Delivery {
                        consumer: consumer.to_owned(),
                        at: now,
                    };
                    group.pending.insert(position, delivery);
                    found.push(entry);
                }
                // Removed meanwhile: nothing is left to redeliver.
                None => drop(group.pending.remove(&position)),
            }
        }
        Some(found)
    }

    pub fn ack(&mut self, group: &str, positions: &[Position]) {
        if let Some(group) = self.groups.get_mut(group) {
            for position in positions {
                group.pending.remove(position);
            }
        }
    }

    pub fn trim_acknowledged(&mut self, holding: &[&str]) -> u64 {
        if holding.iter().any(|name| !self.groups.contains_key(*name)) {
            return 0;
        }
        let held = |group: &&Group| group.floor();
        let named = |name: &str| holding.contains(&name);
        let required = self
            .groups
            .iter()
            .filter(|(name, _)| named(name))
            .map(|(_, group)| group.floor())
            .min();
        let others = self
            .groups
            .iter()
            .filter(|(name, group)| !named(name) && group.has_reader)
            .map(|(_, group)| held(&group))
            .min()
            .map(|floor| floor.max(self.oldest_of_newest(STALLED_READER_HOLDS)));
        let Some(floor) = required.into_iter().chain(others).min() else {
            return 0;
        };
        let before = self.entries.len();
        while self
            .entries
            .front()
            .is_some_and(|(position, _)| *position < floor)
        {
            self.drop_oldest();
        }
        number(before - self.entries.len())
    }

    fn oldest_of_newest(&self, count: usize) -> Position {
        let index = self.entries.len().saturating_sub(count);
        self.entries
            .get(index)
            .map_or(Position::START, |(position, _)| *position)
    }

    /// The oldest entry that the group is not done with, or will be given next.
    pub fn floor(&self, group: &str) -> Option<Position> {
        self.groups.get(group).map(Group::floor)
    }

    pub fn lag(&self, group: &str) -> Option<Lag> {
        let group = self.groups.get(group)?;
        let start = self.index_after(group.delivered);
        Some(Lag {
            undelivered: number(self.entries.len() - start),
            pending: number(group.pending.len()),
            oldest_pending: group.pending.keys().next().copied(),
            oldest_undelivered: self.entries.get(start).map(|(position, _)| *position),
        })
    }
}

fn entry(topic: &Arc<str>, (position, fields): &(Position, Fields)) -> Entry {
    Entry {
        topic: topic.clone(),
        position: *position,
        fields: fields.clone(),
    }
}

pub(super) fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
