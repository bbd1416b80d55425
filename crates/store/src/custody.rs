//! Where sealed secrets are kept: in our own database, or in a backend outside of it
//! (`CARACAL_SECRET_BACKEND`; spec: sts §13, admin-api §14).
//!
//! **Forces.** A change of a secret and a change of the rows that hang on it have to happen together
//! or not at all, but a backend takes no part in our transactions: it may be gone between the two,
//! or we may. A backend may also hold another envelope than the one that was committed, because a
//! change is under way, because it was restored, or because somebody put it there.
//!
//! **Choice.** Our database says which envelope counts, always: it holds the envelope itself, or
//! the SHA-256 of the one that the backend holds. A change commits the new envelope here, and it is
//! moved out afterwards ([`moving`]). What is read from a backend is compared with its SHA-256.
//!
//! **Rejected.** The backend first and the row next, with an undo: whoever dies in between leaves a
//! secret that no row stands for, and a reader in between sees half of a change. A name of its own
//! for each version: the references are the spec's, and other tools read under them.
//!
//! **Consequence.** A crash at any point leaves the old secret or the new one in force, never
//! neither; what is left to be moved or deleted outside is found by whoever sweeps next. An envelope
//! that is put into the backend by hand is not taken for ours, an older one of ours neither.

#[cfg(any(test, feature = "testing"))]
mod memory;
pub(crate) mod moving;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use caracal_crypto::digest::sha256_hex;
use caracal_model::ZoneId;
use tokio::sync::Notify;

#[cfg(any(test, feature = "testing"))]
pub use self::memory::MemoryBackend;
pub use self::moving::{Moved, Staged};
use crate::secrets::{Kept, Outside};
use crate::{Store, StoreError};

/// How often a read looks again when a change is in its way.
const LOOKS: usize = 3;

/// Keeps sealed envelopes by reference, outside of our database.
#[async_trait]
pub trait SecretBackend: fmt::Debug + Send + Sync {
    /// As `CARACAL_SECRET_BACKEND` names it.
    fn name(&self) -> &'static str;

    /// The envelope under this reference.
    ///
    /// # Errors
    /// When the backend gives no answer that can be used; absence is none of those.
    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError>;

    /// Puts an envelope in the place of any other.
    ///
    /// # Errors
    /// When the backend does not confirm it; it may have happened nevertheless.
    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError>;

    /// Forgets what is under this reference, if anything is.
    ///
    /// # Errors
    /// As for `put`.
    async fn delete(&self, at: &str) -> Result<(), BackendError>;
}

/// A backend did not do what it was asked. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{backend}: {why}")]
pub struct BackendError {
    /// Which, as `CARACAL_SECRET_BACKEND` names it.
    pub backend: &'static str,
    /// What it did instead.
    pub why: String,
}

/// Why a secret is not to be had, or not to be changed.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// Our own database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backend does not.
    #[error("secret backend {0}")]
    Backend(#[from] BackendError),
    /// The backend answers, and does not have what we gave it.
    #[error("secret backend {backend} holds {what} under {at}")]
    Astray {
        /// Which.
        backend: String,
        /// Under which reference.
        at: String,
        /// What it holds.
        what: &'static str,
    },
    /// The secret is in another backend than this process is set to.
    #[error("{at} is kept in {backend}, which CARACAL_SECRET_BACKEND does not name")]
    Elsewhere {
        /// Which.
        backend: String,
        /// Under which reference.
        at: String,
    },
    /// Somebody else is changing the same secret.
    #[error("{at} is being changed")]
    Busy {
        /// Under which reference.
        at: String,
    },
}

/// What was asked of a backend so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Reads, writes and deletions.
    pub operations: u64,
    /// Those that failed.
    pub errors: u64,
}

/// What became of the envelope with a certain SHA-256.
#[derive(PartialEq, Eq)]
pub enum Confirmed {
    /// It counts still, and this is it.
    Same(Vec<u8>),
    /// The secret was changed or forgotten.
    Changed,
}

impl fmt::Debug for Confirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same(_) => "Same(..)",
            Self::Changed => "Changed",
        })
    }
}

/// The secrets of all zones, wherever they are. Clones share it.
#[derive(Clone)]
pub struct Custody(Arc<Inner>);

struct Inner {
    store: Store,
    backend: Option<Arc<dyn SecretBackend>>,
    /// Whether the backend is to be left: nothing goes there, and what is there comes back.
    leaving: bool,
    operations: AtomicU64,
    errors: AtomicU64,
    /// There is something to be moved.
    wake: Notify,
}

impl fmt::Debug for Custody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custody({:?})", self.0.backend)
    }
}

impl Custody {
    /// Over this store, and this backend if secrets are kept outside of it.
    pub fn new(store: Store, backend: Option<Arc<dyn SecretBackend>>) -> Self {
        Self::with(store, backend, false)
    }

    /// As [`Custody::new`], but the backend is to be left: its secrets are read there, and come back
    /// into our own database.
    pub fn leaving(store: Store, backend: Option<Arc<dyn SecretBackend>>) -> Self {
        Self::with(store, backend, true)
    }

    fn with(store: Store, backend: Option<Arc<dyn SecretBackend>>, leaving: bool) -> Self {
        Self(Arc::new(Inner {
            store,
            backend,
            leaving,
            operations: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            wake: Notify::new(),
        }))
    }

    /// Whether secrets are kept outside of our own database.
    pub fn is_outside(&self) -> bool {
        self.0.backend.is_some()
    }

    /// Where secrets are kept, as `CARACAL_SECRET_BACKEND` names it.
    pub fn backend(&self) -> &'static str {
        let backend = self.0.backend.as_ref();
        backend.map_or("builtin", |ours| ours.name())
    }

    /// What was asked of the backend through this handle and its clones.
    pub fn stats(&self) -> BackendStats {
        BackendStats {
            operations: self.0.operations.load(Ordering::Relaxed),
            errors: self.0.errors.load(Ordering::Relaxed),
        }
    }

    /// Secrets that are in another backend than this process is set to, by backend: they cannot be
    /// read.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn elsewhere(&self) -> Result<Vec<(String, u64)>, StoreError> {
        moving::elsewhere(&self.0.store, self.backend()).await
    }

    /// The envelope behind a reference.
    ///
    /// # Errors
    /// [`CustodyError`].
    pub async fn read(&self, zone: &ZoneId, at: &str) -> Result<Option<Vec<u8>>, CustodyError> {
        for _ in 0..LOOKS {
            let outside = match self.kept(zone, at).await? {
                None => return Ok(None),
                Some(Kept::Here(envelope)) => return Ok(Some(envelope)),
                Some(Kept::Outside(outside)) => outside,
            };
            if let Confirmed::Same(envelope) = self.confirm(zone, at, &outside).await? {
                return Ok(Some(envelope));
            }
        }
        Err(CustodyError::Busy { at: at.to_owned() })
    }

    /// The envelope that was outside when somebody looked. Asks the backend first: our database is
    /// only asked when the backend does not have it.
    ///
    /// # Errors
    /// [`CustodyError`].
    pub async fn confirm(
        &self,
        zone: &ZoneId,
        at: &str,
        known: &Outside,
    ) -> Result<Confirmed, CustodyError> {
        let astray = |what| CustodyError::Astray {
            backend: known.backend.clone(),
            at: at.to_owned(),
            what,
        };
        let mut fault = astray("nothing");
        for _ in 0..LOOKS {
            fault = match self.fetch(at, &known.backend).await {
                Ok(Some(envelope)) if sha256_hex(&envelope) == known.sha256 => {
                    return Ok(Confirmed::Same(envelope));
                }
                Ok(Some(_)) => astray("another envelope than ours"),
                Ok(None) => astray("nothing"),
                Err(error) => error,
            };
            match self.kept(zone, at).await? {
                // It is on its way out or back, or held here while somebody tries to change it.
                Some(Kept::Here(envelope)) if sha256_hex(&envelope) == known.sha256 => {
                    return Ok(Confirmed::Same(envelope));
                }
                Some(Kept::Outside(outside)) if outside.sha256 == known.sha256 => {}
                _ => return Ok(Confirmed::Changed),
            }
            // It may have been moved between our two looks: look again.
            if !matches!(fault, CustodyError::Astray { .. }) {
                break;
            }
        }
        Err(fault)
    }

    async fn kept(&self, zone: &ZoneId, at: &str) -> Result<Option<Kept>, StoreError> {
        self.0.store.zone(zone).secrets().kept(at).await
    }

    async fn fetch(&self, at: &str, backend: &str) -> Result<Option<Vec<u8>>, CustodyError> {
        let ours = self.0.backend.as_ref();
        let ours = ours.filter(|ours| ours.name() == backend);
        let ours = ours.ok_or_else(|| CustodyError::Elsewhere {
            backend: backend.to_owned(),
            at: at.to_owned(),
        })?;
        self.counted(ours.get(at).await)
    }

    fn counted<T>(&self, outcome: Result<T, BackendError>) -> Result<T, CustodyError> {
        self.0.operations.fetch_add(1, Ordering::Relaxed);
        if outcome.is_err() {
            self.0.errors.fetch_add(1, Ordering::Relaxed);
        }
        Ok(outcome?)
    }
}

#[cfg(test)]
mod tests;
