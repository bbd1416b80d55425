//! What every handler is given.

use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_crypto::mac::HmacKey;
use caracal_model::{Clock, Ids, Rng, Secret, ZoneId};
use caracal_store::{Store, StoreError};
use caracal_trail::Trail;
use caracal_view::{Announce, ReplicaStatus, Views};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::Proven;
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::limit::Limit;
use crate::metrics::Metrics;
use crate::receipts::KeyHashing;
use crate::room::Room;

/// What this service needs from outside.
#[derive(Clone)]
pub struct Deps {
    /// The system of record.
    pub store: Store,
    /// The bus; only pinged, for readiness.
    pub bus: Bus,
    /// Zones, Sessions, records and revocations, from memory.
    pub views: Views,
    /// Sends the news of a commit on its way.
    pub announce: Arc<dyn Announce>,
    /// Where changes are recorded.
    pub trail: Trail,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for jitter only.
    pub rng: Arc<dyn Rng>,
    /// Ids.
    pub ids: Arc<Ids>,
    /// Cancelled when the process starts to drain.
    pub draining: CancellationToken,
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator(Arc<Inner>);

/// What [`Coordinator`] shares.
pub struct Inner {
    /// The system of record.
    pub store: Store,
    /// The bus.
    pub bus: Bus,
    /// Zones, Sessions, records and revocations, from memory.
    pub views: Views,
    announce: Arc<dyn Announce>,
    /// Where changes are recorded.
    pub trail: Trail,
    /// Time.
    pub clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    /// Ids.
    pub ids: Arc<Ids>,
    /// Settings.
    pub config: Config,
    /// How idempotency keys are stored.
    pub key_hashing: KeyHashing,
    /// How many receipts and live Sessions there are, roughly.
    pub room: Room,
    /// By application, and by address before authentication.
    pub rate: Limit,
    /// By address, for `/ready`.
    pub ready_rate: Limit,
    /// Tokens whose signature was verified before.
    pub proven: Proven,
    /// What is counted.
    pub metrics: Metrics,
    /// Cancelled when the process starts to drain.
    pub draining: CancellationToken,
}

impl std::ops::Deref for Coordinator {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coordinator(..)")
    }
}

/// How often a transaction is tried again when somebody was in the way.
pub const ATTEMPTS: u32 = 12;

impl Coordinator {
    /// The service with these settings.
    pub fn new(mut config: Config, deps: Deps) -> Self {
        let key_hashing = KeyHashing {
            current: config.idempotency_key.take().unwrap_or_else(unkeyed),
            previous: config.previous_idempotency_key.take(),
        };
        let per_minute = |requests| Limit::per_minute(deps.clock.clone(), requests);
        Self(Arc::new(Inner {
            key_hashing,
            room: Room::default(),
            rate: per_minute(config.rate),
            ready_rate: per_minute(config.ready_rate),
            proven: Proven::default(),
            metrics: Metrics::new(&deps.store, &deps.bus, &deps.clock),
            store: deps.store,
            bus: deps.bus,
            views: deps.views,
            announce: deps.announce,
            trail: deps.trail,
            clock: deps.clock,
            rng: deps.rng,
            ids: deps.ids,
            draining: deps.draining,
            config,
        }))
    }

    /// Sends the news of a commit on its way, before the answer: whoever was told that something
    /// has ended will find that it has.
    pub async fn announce(&self) {
        self.announce.announce().await;
    }

    /// Refuses what is over already. Clients take that for success, so what ended it is announced
    /// first: whoever committed it may still be about to, or may have hung up.
    pub async fn refuse_over(&self, code: Code) -> Failure {
        self.announce().await;
        code.into()
    }

    /// Waits until every replica has applied what was committed in this zone, and says which have
    /// (architecture §4, barrier revocation).
    pub async fn prove(&self, zone: &ZoneId, wait: Duration) -> Value {
        let replicas = self.announce.prove(zone, wait).await;
        let replica =
            |one: &ReplicaStatus| json!({ "replica": one.replica, "applied": one.applied });
        Value::Array(replicas.iter().map(replica).collect())
    }

    /// Waits a moment before a transaction is tried again, longer each time and never as long as
    /// the others that were refused with it.
    pub async fn pause(&self, attempt: u32) {
        let most = Duration::from_micros(2_000 << attempt.min(6));
        tokio::time::sleep(most.mul_f64(0.25 + 0.75 * self.fraction())).await;
    }

    /// A random number from 0 to just below 1.
    pub fn fraction(&self) -> f64 {
        let mut byte = [0u8; 1];
        self.rng.fill(&mut byte);
        f64::from(byte[0]) / 256.0
    }
}

/// Whether the same transaction may succeed when it is tried again.
pub const fn is_busy(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Busy { .. } | StoreError::Abandoned { .. }
    )
}

/// Where no key is configured (development, or unset mode), idempotency keys are stored under one
/// that is not secret.
fn unkeyed() -> HmacKey {
    HmacKey::from_bytes(Secret::new(
        b"caracal:coordinator:idempotency:unkeyed".to_vec(),
    ))
}
