//! Refusals that are counted instead of recorded one by one: those of strangers, who must not be
//! able to write into a chain as often as they like, and those for having asked too often.

use std::collections::HashMap;

use caracal_ledger::AdminRecord;
use caracal_model::Timestamp;
use parking_lot::Mutex;
use serde_json::json;

/// Different refusals that are kept apart; further ones count as those of strangers.
const MOST: usize = 1_024;
/// Methods that are told by name.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Refused {
    actor: Option<String>,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    count: u64,
    first: Timestamp,
    last: Timestamp,
}

/// Counts of the current minute.
#[derive(Debug, Default)]
pub struct Tallies(Mutex<HashMap<Refused, Times>>);

impl Tallies {
    /// One more refusal; `actor` is none for a stranger.
    pub fn count(&self, actor: Option<&str>, method: &str, status: u16, now: Timestamp) {
        let known = METHODS.iter().find(|known| **known == method);
        let mut key = Refused {
            actor: actor.map(str::to_owned),
            method: known.copied().unwrap_or("other"),
            status,
        };
        let mut counts = self.0.lock();
        if counts.len() >= MOST && !counts.contains_key(&key) {
            key.actor = None;
        }
        let times = counts.entry(key).or_insert(Times {
            count: 0,
            first: now,
            last: now,
        });
        times.count += 1;
        times.last = times.last.max(now);
    }

    /// One record for each sort of refusal, of the chain of the deployment.
    pub fn take(&self, prefix: &str, mut id: impl FnMut() -> String) -> Vec<AdminRecord> {
        let counts = std::mem::take(&mut *self.0.lock());
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|(a, _), (b, _)| a.cmp(b));
        let record = |(refused, times): (Refused, Times)| AdminRecord {
            id: id(),
            request_id: String::new(),
            action: match &refused.actor {
                Some(_) => format!("Refused for rate, {}", times.count),
                None => format!("Refused without authentication, {}", times.count),
            },
            actor_id: refused.actor,
            actor_name: None,
            actor_scope: None,
            method: refused.method.to_owned(),
            path: prefix.to_owned(),
            zone_id: None,
            entity_type: None,
            entity_id: None,
            status_code: refused.status,
            payload: Some(
                json!({
                    "count": times.count,
                    "first": times.first.iso_millis(),
                    "last": times.last.iso_millis(),
                })
                .to_string(),
            ),
            occurred_at: Timestamp::from_unix_micros(times.last.unix_millis() * 1_000),
        };
        counts.into_iter().map(record).collect()
    }
}
