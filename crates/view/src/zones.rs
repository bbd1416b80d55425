//! The zones in memory: loaded on first use, by one loader at a time, and never served once a
//! change of theirs has been applied.
//!
//! **Forces.** A zone takes milliseconds to load (secrets, keys, policy), and a change makes every
//! request want it anew. What was loaded before a change must not be used after it, also when the
//! loader was under way while the change came.
//!
//! **Choice.** Each zone has a generation that a change raises. A load remembers the generation
//! that it began at; a view is valid while that is the current one. Whoever finds none valid waits
//! for the one loader, and a failure answers everybody who was waiting for it.
//!
//! INVARIANT (load): a view whose load began before a change carries an older generation, so no
//! reader takes it after the change was applied.
//!
//! **Rejected.** Serving the old view until the new one is ready: that is the stale allow.
//!
//! **Names that are made up.** A slot is made before the store is asked, so that those who want one
//! zone meet in it. One in which nothing was loaded goes when its last visitor does, however that
//! visit ends: whoever names zones that do not exist, and hangs up, leaves nothing behind.
//!
//! INVARIANT (slot): a slot is taken out only under its `loading`, and only while it is empty; whoever
//! gets `loading` of one that was taken out starts over. So what is loaded is where changes find it.
//!
//! While the lease does not hold, a view is used for as long as memory may be old after it was
//! read (`FEED_MAX_LAG`): the same bound, at the price of one load per zone in that time instead of
//! one per request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use caracal_crypto::Keyring;
use caracal_model::{Clock, Ticks, ZoneId};
use caracal_store::Store;
use caracal_store::secrets::Kept;
use tokio::sync::Mutex;

use crate::absent::Absent;
use crate::lease::Lease;
use crate::secrets::{Cells, ProviderSecret};
use crate::{ViewError, ZoneView};

pub(crate) struct Zones {
    store: Store,
    clock: Arc<dyn Clock>,
    keyring: Option<Arc<Keyring>>,
    /// Of a process that keeps secrets outside.
    cells: Option<Arc<Cells>>,
    slots: papaya::HashMap<ZoneId, Arc<Slot>>,
    absent: Absent<ZoneId>,
}

#[derive(Default)]
struct Slot {
    generation: AtomicU64,
    loaded: ArcSwapOption<Loaded>,
    /// Held by the one who loads; remembers the last failure for those who waited meanwhile.
    loading: Mutex<Option<(Ticks, ViewError)>>,
}

struct Loaded {
    view: Arc<ZoneView>,
    generation: u64,
    /// Before the store was read.
    asked_at: Ticks,
}

impl Zones {
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        keyring: Option<Arc<Keyring>>,
        cells: Option<Arc<Cells>>,
    ) -> Self {
        Self {
            store,
            clock,
            keyring,
            cells,
            slots: papaya::HashMap::new(),
            absent: Absent::new(),
        }
    }

    pub async fn get(&self, zone: &ZoneId, lease: &Lease) -> Result<Arc<ZoneView>, ViewError> {
        if lease.holds() && self.absent.holds(zone) {
            return Err(ViewError::UnknownZone);
        }
        let held = self.slots.pin().get(zone).map(Arc::clone);
        if let Some(view) = held.and_then(|slot| self.valid(&slot, lease)) {
            return Ok(view);
        }
        let arrived = self.clock.ticks();
        loop {
            let visit = self.visit(zone);
            if let Some(outcome) = visit.view(lease, arrived).await {
                return outcome;
            }
        }
    }

    /// The view of the slot, if it may be used now.
    fn valid(&self, slot: &Slot, lease: &Lease) -> Option<Arc<ZoneView>> {
        // The lease is asked before the generation is read: what the feed brings in between is
        // seen, what it brings later is within the bound.
        let trusted = lease.holds();
        let loaded = slot.loaded.load();
        let loaded = loaded.as_ref()?;
        let current = loaded.generation == slot.generation.load(Ordering::SeqCst);
        let fresh = trusted || lease.covers(loaded.asked_at);
        let unchanged = loaded
            .view
            .keys
            .next_change
            .is_none_or(|at| at > self.clock.now());
        (current && fresh && unchanged).then(|| loaded.view.clone())
    }

    async fn load(
        &self,
        zone: &ZoneId,
        slot: &Slot,
        asked_at: Ticks,
    ) -> Result<Arc<ZoneView>, ViewError> {
        // INVARIANT (load): read before the store is.
        let generation = slot.generation.load(Ordering::SeqCst);
        let asked = self.absent.begin();
        let Some(snapshot) = self.store.zone(zone).snapshot().await? else {
            self.absent.remember(zone.clone(), asked);
            slot.loaded.store(None);
            return Err(ViewError::UnknownZone);
        };
        let previous = slot.loaded.load_full();
        let (keyring, cells) = (self.keyring.clone(), self.cells.clone());
        let now = self.clock.now();
        let building = tokio::task::spawn_blocking(move || {
            let previous = previous.as_ref().map(|loaded| loaded.view.as_ref());
            let keyring = keyring.as_deref();
            let secret = |zone: &ZoneId, place: &str, kept: &Kept| match &cells {
                Some(cells) => cells.secret(zone, place, kept, asked_at),
                None => opened(zone, place, kept, keyring),
            };
            ZoneView::build(snapshot, keyring, &secret, previous, now)
        });
        let view = building
            .await
            .map_err(|error| ViewError::Corrupt(error.to_string()))?;
        let view = Arc::new(view);
        slot.loaded.store(Some(Arc::new(Loaded {
            view: view.clone(),
            generation,
            asked_at,
        })));
        Ok(view)
    }

    /// Applies a change of this zone. Answers whether anybody has used the zone here.
    pub fn invalidate(&self, zone: &ZoneId) -> bool {
        self.absent.forget();
        let slots = self.slots.pin();
        let Some(slot) = slots.get(zone) else {
            return false;
        };
        slot.generation.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Applies a change that may be of any zone.
    pub fn invalidate_all(&self) {
        self.absent.forget();
        for slot in self.slots.pin().values() {
            slot.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Applies the changes of policy that these say were missed: a zone whose policy in memory is
    /// another than the one in force is loaded again by whoever asks next. Answers which.
    pub fn invalidate_policies(&self, in_force: &HashMap<ZoneId, String>) -> Vec<ZoneId> {
        let mut missed = Vec::new();
        for (zone, slot) in &self.slots.pin() {
            let loaded = slot.loaded.load();
            let Some(loaded) = loaded.as_ref() else {
                continue;
            };
            let held = loaded.view.policy.version_id.as_deref();
            let current = loaded.generation == slot.generation.load(Ordering::SeqCst);
            if current && held != in_force.get(zone).map(String::as_str) {
                slot.generation.fetch_add(1, Ordering::SeqCst);
                missed.push(zone.clone());
            }
        }
        missed
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    fn visit<'z>(&'z self, zone: &'z ZoneId) -> Visit<'z> {
        let slots = self.slots.pin();
        let slot = slots.get_or_insert_with(zone.clone(), Arc::default).clone();
        Visit {
            zones: self,
            zone,
            slot,
        }
    }
}

/// Somebody is here for a zone that is not at hand.
struct Visit<'z> {
    zones: &'z Zones,
    zone: &'z ZoneId,
    slot: Arc<Slot>,
}

impl Visit<'_> {
    /// The zone for one who came at this time, once it is loaded; `None` when the slot was taken out
    /// meanwhile.
    async fn view(
        &self,
        lease: &Lease,
        arrived: Ticks,
    ) -> Option<Result<Arc<ZoneView>, ViewError>> {
        let Self { zones, zone, slot } = self;
        let mut failure = slot.loading.lock().await;
        if let Some(view) = zones.valid(slot, lease) {
            return Some(Ok(view));
        }
        // A load that began after we came has failed for us too.
        if let Some((_, error)) = failure.as_ref().filter(|(began, _)| *began > arrived) {
            return Some(Err(error.clone()));
        }
        if !self.is_in_place() {
            return None;
        }
        let asked_at = zones.clock.ticks();
        let loaded = zones.load(zone, slot, asked_at).await;
        *failure = loaded.as_ref().err().map(|error| (asked_at, error.clone()));
        Some(loaded)
    }

    fn is_in_place(&self) -> bool {
        let slots = self.zones.slots.pin();
        let found = slots.get(self.zone);
        found.is_some_and(|slot| Arc::ptr_eq(slot, &self.slot))
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // Whoever holds it now has a visit of its own, and looks when that ends.
        let Ok(_alone) = self.slot.loading.try_lock() else {
            return;
        };
        // INVARIANT (slot).
        if self.slot.loaded.load().is_none() {
            let slots = self.zones.slots.pin();
            let _ = slots.remove_if(self.zone, |_, slot| Arc::ptr_eq(slot, &self.slot));
        }
    }
}

/// A secret that our own database keeps.
fn opened(zone: &ZoneId, place: &str, kept: &Kept, keyring: Option<&Keyring>) -> ProviderSecret {
    let Some(keyring) = keyring else {
        return ProviderSecret::None;
    };
    match kept {
        Kept::Outside(outside) => {
            let backend = &outside.backend;
            tracing::error!(%zone, place, backend, "a provider's secret is kept elsewhere");
            ProviderSecret::None
        }
        Kept::Here(envelope) => match keyring.open(place, envelope) {
            Ok(document) => ProviderSecret::Here(Arc::new(document)),
            Err(error) => {
                tracing::error!(%zone, place, %error, "provider secret does not open");
                ProviderSecret::None
            }
        },
    }
}
