//! What goes along with the first transaction that a request commits: the record that somebody made
//! this change (spec: audit-and-streams §12).
//!
//! **Forces.** A change must not outlive a crash that its record does not; every handler of every
//! service is concerned, and one that forgets would not be noticed. **Choice.** Whoever attends a
//! request puts a [`Rider`] around it. The first transaction that commits within takes its intents
//! along, in the same round trip. **Consequence.** A handler cannot forget, and none has to know.
//! Work that a handler hands to another task is not the request's and takes nothing along.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::admin_audit::Intent;

tokio::task_local! {
    static RIDER: Arc<Rider>;
}

/// Knows what is to go along.
pub trait Intention: Send + Sync {
    /// The records, as far as they are known when the transaction commits; none for nothing.
    fn intents(&self) -> Vec<Intent>;
}

const WAITS: u8 = 0;
const RIDES: u8 = 1;
const ARRIVED: u8 = 2;

/// Goes along with one transaction.
pub struct Rider {
    intention: Arc<dyn Intention>,
    state: AtomicU8,
}

impl std::fmt::Debug for Rider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rider(arrived: {})", self.has_arrived())
    }
}

impl Rider {
    /// A rider that waits for a transaction.
    pub fn new(intention: Arc<dyn Intention>) -> Arc<Self> {
        Arc::new(Self {
            intention,
            state: AtomicU8::new(WAITS),
        })
    }

    /// Runs `work`; its first commit takes the intents along.
    pub async fn along<F: Future>(self: &Arc<Self>, work: F) -> F::Output {
        RIDER.scope(Arc::clone(self), work).await
    }

    /// Whether a transaction has taken the intents along, and was committed.
    pub fn has_arrived(&self) -> bool {
        self.state.load(Ordering::Acquire) == ARRIVED
    }
}

/// A rider that has boarded a transaction. Dropped without [`Boarded::arrive`], it waits for the
/// next one: this one was not committed.
pub(crate) struct Boarded {
    rider: Arc<Rider>,
    pub(crate) intents: Vec<Intent>,
}

impl Boarded {
    /// The rider of this task, unless it has left.
    pub(crate) fn now() -> Option<Self> {
        let rider = RIDER.try_with(Arc::clone).ok()?;
        let order = Ordering::AcqRel;
        rider
            .state
            .compare_exchange(WAITS, RIDES, order, Ordering::Acquire)
            .ok()?;
        let intents = rider.intention.intents();
        let boarded = Self { rider, intents };
        (!boarded.intents.is_empty()).then_some(boarded)
    }

    /// The transaction is committed.
    pub(crate) fn arrive(self) {
        self.rider.state.store(ARRIVED, Ordering::Release);
    }
}

impl Drop for Boarded {
    fn drop(&mut self) {
        let order = Ordering::AcqRel;
        // Nothing to do for one that has arrived.
        let _ = self
            .rider
            .state
            .compare_exchange(RIDES, WAITS, order, Ordering::Acquire);
    }
}
