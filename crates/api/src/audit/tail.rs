//! The end of the ledger, followed once for all streams of this process.
//!
//! **Forces.** A stream wants an event as soon as it is in the ledger; a poll for each of many
//! streams would load the store for nothing. **Choice.** One loop follows the zones that somebody
//! listens to, by place in their chains, and hands every event to all of them. It wakes when this
//! process appends; where another one does, it asks for the heads of all its zones in one question.
//! INVARIANT (tail): a zone's position moves, and its events are handed out, under one lock; whoever
//! joins under it gets exactly the events behind the position that it is told.
//!
//! **Consequence.** A listener that falls too far behind loses its place and reads the chain again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::ZoneId;
use caracal_net::metrics::{Counter, Gauge};
use caracal_store::audit_events::{AuditEvent, AuditHead};
use caracal_store::{Store, StoreError};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::service::Api;

/// How late an event that another process appended may be noticed.
const POLL: Duration = Duration::from_millis(500);
/// Events that are read at a time.
const PAGE: u32 = 500;
/// Events that a listener may be behind.
const BEHIND: usize = 1_024;
/// Listeners at one time, in all and to one zone.
const MOST: usize = 256;
const MOST_OF_ZONE: usize = 64;

/// The zones that are followed.
#[derive(Debug, Default)]
pub struct Tails {
    /// Streams that are open.
    pub open: Gauge,
    /// Streams that were ended because their reader was too slow.
    pub cut: Counter,
    zones: Mutex<HashMap<ZoneId, Tail>>,
    joined: Notify,
}

#[derive(Debug)]
struct Tail {
    position: u64,
    listeners: usize,
    events: broadcast::Sender<Arc<AuditEvent>>,
}

/// A place among the listeners of a zone, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    /// Everything after the position that was told when it joined.
    pub events: broadcast::Receiver<Arc<AuditEvent>>,
    tails: Arc<Tails>,
    zone: ZoneId,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut zones = self.tails.zones.lock();
        if let Some(tail) = zones.get_mut(&self.zone) {
            self.tails.open.dec();
            tail.listeners = tail.listeners.saturating_sub(1);
            if tail.listeners == 0 {
                zones.remove(&self.zone);
            }
        }
    }
}

impl Tails {
    /// Joins the listeners of a zone; answers with the place in its chain after which they listen,
    /// and where its chain ends. `None` when there are too many.
    pub async fn join(
        self: &Arc<Self>,
        store: &Store,
        zone: &ZoneId,
    ) -> Result<Option<(Listener, u64, u64)>, StoreError> {
        // Not worth a look at whether the zone is followed already: joining is rare.
        let head = store.zone(zone).audit().head().await?;
        let head = head.map_or(0, |head| head.chain_seq);
        let mut zones = self.zones.lock();
        let in_all: usize = zones.values().map(|tail| tail.listeners).sum();
        if in_all >= MOST {
            return Ok(None);
        }
        let tail = zones.entry(zone.clone()).or_insert_with(|| Tail {
            position: head,
            listeners: 0,
            events: broadcast::Sender::new(BEHIND),
        });
        if tail.listeners >= MOST_OF_ZONE {
            return Ok(None);
        }
        tail.listeners += 1;
        self.open.inc();
        let listener = Listener {
            events: tail.events.subscribe(),
            tails: Arc::clone(self),
            zone: zone.clone(),
        };
        let position = tail.position;
        drop(zones);
        self.joined.notify_one();
        Ok(Some((listener, position, head)))
    }

    fn followed(&self) -> Vec<ZoneId> {
        self.zones.lock().keys().cloned().collect()
    }

    /// Where a zone is followed to, if it still is.
    fn position(&self, zone: &ZoneId) -> Option<u64> {
        self.zones.lock().get(zone).map(|tail| tail.position)
    }

    /// Hands out what follows `behind`. Where the zone is followed to another place by now, because
    /// all had left and others came, the page is not theirs: they would miss what lies between.
    fn hand_out(&self, zone: &ZoneId, behind: u64, page: Vec<AuditEvent>) {
        let mut zones = self.zones.lock();
        let tail = zones.get_mut(zone);
        let Some(tail) = tail.filter(|tail| tail.position == behind) else {
            return;
        };
        for event in page {
            tail.position = event.chain_seq;
            // Nobody listening any more is no fault.
            let _ = tail.events.send(Arc::new(event));
        }
    }

    async fn look(&self, store: &Store, zones: &[ZoneId]) -> Result<(), StoreError> {
        let names: Vec<&str> = zones.iter().map(ZoneId::as_str).collect();
        for head in store.audit_heads(&names).await? {
            self.catch_up(store, &head).await?;
        }
        Ok(())
    }

    async fn catch_up(&self, store: &Store, head: &AuditHead) -> Result<(), StoreError> {
        while let Some(position) = self.position(&head.zone)
            && position < head.chain_seq
        {
            let page = store.zone(&head.zone).audit().chain(position, PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            self.hand_out(&head.zone, position, page);
        }
        Ok(())
    }
}

/// Follows the zones that somebody listens to, until `stop`.
pub async fn run(api: Arc<Api>, stop: CancellationToken) {
    let tails = Arc::clone(&api.tails);
    let mut appended = api.store.audit_appended();
    let mut well = true;
    loop {
        let zones = tails.followed();
        if zones.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tails.joined.notified() => continue,
            }
        }
        let looked = tails.look(&api.store, &zones).await;
        if let Err(error) = &looked
            && well
        {
            tracing::warn!(%error, "the end of the ledger cannot be followed; it is tried again");
        }
        well = looked.is_ok();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL) => {}
            () = tails.joined.notified() => {}
            // A store that fails is not asked again at once.
            Ok(()) = appended.changed(), if well => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::Timestamp;

    fn event(zone: &ZoneId, chain_seq: u64) -> AuditEvent {
        AuditEvent {
            zone: zone.clone(),
            chain_seq,
            id: format!("evt-{chain_seq}"),
            event_type: String::new(),
            request_id: String::new(),
            decision: String::new(),
            application_id: None,
            agent_session_id: None,
            authority_record_id: None,
            labels: Vec::new(),
            occurred_at: Timestamp::from_unix_seconds(0),
            ingested_at: Timestamp::from_unix_seconds(0),
            event: String::new(),
            content_sha256: String::new(),
            chain_hash: String::new(),
            chain_hmac: String::new(),
        }
    }

    #[test]
    fn who_joins_while_a_page_is_read_for_others_misses_nothing() {
        let tails = Tails::default();
        let zone = ZoneId::trusted("z");
        let events = broadcast::Sender::new(BEHIND);
        let mut joined = events.subscribe();
        let tail = Tail {
            position: 900,
            listeners: 1,
            events,
        };
        tails.zones.lock().insert(zone.clone(), tail);
        // A page that was read for listeners who have left.
        tails.hand_out(&zone, 1000, vec![event(&zone, 1001)]);
        assert_eq!(tails.position(&zone), Some(900));
        tails.hand_out(&zone, 900, (901..=903).map(|at| event(&zone, at)).collect());
        for expected in 901..=903 {
            assert_eq!(joined.try_recv().unwrap().chain_seq, expected);
        }
        assert_eq!(tails.position(&zone), Some(903));
    }
}
