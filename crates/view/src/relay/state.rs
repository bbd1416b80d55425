//! What a relay has in hand: claimed and not sent, sent and not recorded.

use std::collections::{BTreeMap, HashMap, HashSet};

use caracal_store::outbox::Entry;

/// Unrecorded entries that make recording due at once.
const RECORD_AT: usize = 200;

#[derive(Default)]
pub(super) struct Sending {
    /// Claimed and not sent, in the order in which they go out: urgent first, then by id.
    unsent: BTreeMap<(bool, String), Entry>,
    /// Sent and not recorded: a claim may bring them again. The entry is kept where it has to be
    /// witnessed first.
    unrecorded: HashMap<String, Option<Entry>>,
    /// Drains up to this number are done.
    pub served: u64,
}

impl Sending {
    pub fn take(&mut self, claimed: Vec<Entry>) {
        for entry in claimed {
            if !self.unrecorded.contains_key(&entry.id) {
                self.unsent.insert((!entry.urgent, entry.id.clone()), entry);
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.unsent.is_empty()
    }

    pub fn in_order(&self) -> impl Iterator<Item = &Entry> {
        self.unsent.values()
    }

    pub fn sent(&mut self, id: &str, is_witnessed: impl Fn(&Entry) -> bool) {
        let entry = self.remove(id).filter(is_witnessed);
        self.unrecorded.insert(id.to_owned(), entry);
    }

    /// Drops an entry that was refused; answers how often it has failed before.
    pub fn give_up(&mut self, id: &str) -> u32 {
        let entry = self.remove(id);
        entry.map_or(0, |entry| u32::try_from(entry.attempts).unwrap_or(u32::MAX))
    }

    fn remove(&mut self, id: &str) -> Option<Entry> {
        let id = id.to_owned();
        self.unsent
            .remove(&(false, id.clone()))
            .or_else(|| self.unsent.remove(&(true, id)))
    }

    pub fn unrecorded_count(&self) -> u32 {
        u32::try_from(self.unrecorded.len()).unwrap_or(u32::MAX)
    }

    pub fn is_due_for_recording(&self) -> bool {
        self.unrecorded.len() >= RECORD_AT
    }

    /// What may be recorded: everything that was sent, except what still `waits`.
    pub fn unrecorded(&self, waits: &HashSet<String>) -> Vec<String> {
        let sent = self.unrecorded.keys();
        sent.filter(|id| !waits.contains(*id)).cloned().collect()
    }

    /// Those of them that have to be witnessed before they are recorded.
    pub fn unwitnessed(&self, ids: &[String]) -> Vec<Entry> {
        ids.iter()
            .filter_map(|id| self.unrecorded.get(id)?.clone())
            .collect()
    }

    /// Whatever was sent may be lost: it is not recorded, so that a claim brings it again.
    pub fn forget_sent(&mut self) {
        self.unrecorded.clear();
    }

    pub fn recorded(&mut self, ids: &[String]) {
        for id in ids {
            self.unrecorded.remove(id);
        }
    }
}
