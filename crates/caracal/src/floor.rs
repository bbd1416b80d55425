//! The boot floor: a restart must not make a used mandate usable again.
//!
//! **Forces.** Embedded, claims of single-use ids live in memory and die with the process; a mandate
//! that was used just before would be accepted just after. The clock may have been stepped back in
//! between.
//!
//! **Choice.** An id carries the time at which it was made. Every second we persist a mark that no id
//! made so far has reached; a start takes the later of mark and clock as its floor, makes ids above
//! it only, and the Gateway refuses whatever is not above it. A mandate from before a restart is
//! then refused once, which its holder answers with another mint.
//!
//! INVARIANT (boot floor): the mark never falls and stays above the latest id. Ids do not follow a
//! clock that is stepped back, so the clock alone says nothing about them.

use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Ids};
use caracal_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

const STATE: &str = "boot_floor_ms";
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// The mark runs ahead of the ids that are made until it is persisted again, and then some.
const AHEAD_MS: u64 = 2_000;

/// Keeps the mark.
pub struct Floor {
    store: Store,
    clock: Arc<dyn Clock>,
    floor_ms: u64,
    /// What the store holds.
    mark_ms: u64,
}

impl Floor {
    /// Takes the floor of this start, and persists that it did before any id is made above it.
    pub async fn take(store: Store, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let marked = store
            .service_state(STATE)
            .await?
            .and_then(|text| text.parse().ok());
        let mark_ms = marked.unwrap_or(0);
        let mut floor = Self {
            floor_ms: now_ms(clock.as_ref()).max(mark_ms),
            mark_ms,
            store,
            clock,
        };
        floor.persist(floor.floor_ms).await?;
        Ok(floor)
    }

    /// Ids at or below this (Unix milliseconds) are from before this start.
    pub const fn ms(&self) -> u64 {
        self.floor_ms
    }

    /// Persists a mark above the ids made so far, the latest of which carries `made_ms`.
    async fn persist(&mut self, made_ms: u64) -> Result<(), StoreError> {
        let mark = now_ms(self.clock.as_ref()).max(made_ms) + AHEAD_MS;
        if mark > self.mark_ms {
            self.store
                .put_service_state(STATE, &mark.to_string())
                .await?;
            self.mark_ms = mark;
        }
        Ok(())
    }

    /// Keeps the mark above what `ids` makes until told to stop.
    pub async fn keep(mut self, ids: Arc<Ids>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERSIST_EVERY) => {}
            }
            if let Err(error) = self.persist(ids.last_ms()).await {
                tracing::warn!(%error, "the boot floor was not persisted");
            }
        }
    }
}

fn now_ms(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.now().unix_millis()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use caracal_model::id::uuid7_millis;
    use caracal_model::{Ids, TestClock, TestRng};
    use caracal_store::{Durability, StoreConfig, StoreUrl};

    use super::*;

    async fn store(path: &std::path::Path, clock: &Arc<TestClock>) -> Store {
        let config = StoreConfig {
            url: StoreUrl::Lite(path.join("caracal.db")),
            durability: Durability::Process,
        };
        let ids = Arc::new(Ids::new(clock.clone(), Arc::new(TestRng::default())));
        let store = Store::open(config, clock.clone(), ids).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    #[tokio::test]
    async fn what_was_made_before_a_restart_is_below_the_floor_though_the_clock_stepped_back() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::default());
        let store = store(directory.path(), &clock).await;
        let first = Floor::take(store.clone(), clock.clone()).await.unwrap();
        let ids = Ids::above(clock.clone(), Arc::new(TestRng::default()), first.ms());
        let before = uuid7_millis(&ids.uuid()).unwrap();
        assert!(before > first.ms());

        clock.step_back(Duration::from_secs(3600));
        let second = Floor::take(store.clone(), clock.clone()).await.unwrap();
        assert!(second.ms() >= before, "{} < {before}", second.ms());
        let ids = Ids::above(clock, Arc::new(TestRng::default()), second.ms());
        assert!(uuid7_millis(&ids.uuid()).unwrap() > second.ms());
        store.shutdown().await;
    }

    #[tokio::test]
    async fn a_mark_persisted_after_the_clock_stepped_back_is_above_what_was_made_before() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::default());
        let store = store(directory.path(), &clock).await;
        let mut first = Floor::take(store.clone(), clock.clone()).await.unwrap();
        let ids = Ids::above(clock.clone(), Arc::new(TestRng::default()), first.ms());
        clock.advance(Duration::from_secs(100));
        let used = uuid7_millis(&ids.uuid()).unwrap();
        clock.step_back(Duration::from_secs(60));
        first.persist(ids.last_ms()).await.unwrap();
        let after = uuid7_millis(&ids.uuid()).unwrap();
        drop(first);

        let second = Floor::take(store.clone(), clock.clone()).await.unwrap();
        let latest = used.max(after);
        assert!(second.ms() >= latest, "{} < {latest}", second.ms());

        // A mark that is ahead of clock and ids stays.
        let mut second = second;
        let mark = second.mark_ms;
        clock.step_back(Duration::from_secs(60));
        second.persist(0).await.unwrap();
        assert_eq!(
            store.service_state(STATE).await.unwrap(),
            Some(mark.to_string())
        );
        store.shutdown().await;
    }
}
