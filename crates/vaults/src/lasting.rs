//! What is issued for some time, and asked for anew before it ends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use caracal_store::custody::BackendError;
use tokio::sync::Mutex;

/// How long before its end something is not used any more: it has to arrive while it is good.
pub const EARLY: Duration = Duration::from_secs(60);

/// One thing that is issued, held while it is good. Whoever comes while it is being issued waits for
/// it.
pub struct Lasting<T> {
    held: Mutex<Option<(Arc<T>, Ticks)>>,
    clock: Arc<dyn Clock>,
}

impl<T> std::fmt::Debug for Lasting<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lasting(..)")
    }
}

impl<T> Lasting<T> {
    /// Nothing yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            held: Mutex::default(),
            clock,
        }
    }

    /// What is held, or what `issue` answers with, and for how long it is good.
    ///
    /// # Errors
    /// As `issue`.
    pub async fn get(
        &self,
        issue: impl Future<Output = Result<(T, Duration), BackendError>>,
    ) -> Result<Arc<T>, BackendError> {
        let mut held = self.held.lock().await;
        let now = self.clock.ticks();
        if let Some((thing, until)) = held.as_ref()
            && *until > now
        {
            return Ok(thing.clone());
        }
        let (thing, lasts) = issue.await?;
        let thing = Arc::new(thing);
        let good = lasts.saturating_sub(EARLY).as_micros();
        let until = now
            .micros()
            .saturating_add(u64::try_from(good).unwrap_or(u64::MAX));
        *held = Some((thing.clone(), Ticks::from_micros(until)));
        Ok(thing)
    }

    /// It was refused: the next one asks anew, unless somebody has already.
    pub async fn forget(&self, refused: &Arc<T>) {
        let mut held = self.held.lock().await;
        if held
            .as_ref()
            .is_some_and(|(thing, _)| Arc::ptr_eq(thing, refused))
        {
            *held = None;
        }
    }
}
