//! What callers of the view need to tell apart.

use caracal_bus::BusError;
use caracal_model::{Refusal, Refused};
use caracal_store::StoreError;

/// The view has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no such zone.
    #[error("no such zone")]
    UnknownZone,
    /// Memory may not be trusted and the store cannot be asked: deny.
    #[error("state unavailable: {0}")]
    Unreachable(String),
    /// What is stored cannot be used.
    #[error("stored state is not valid: {0}")]
    Corrupt(String),
}

impl From<StoreError> for ViewError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { .. } => Self::Corrupt(error.to_string()),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

impl From<BusError> for ViewError {
    fn from(error: BusError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl From<ViewError> for Refused {
    /// An outage is ours and is tried again; details stay in the log (spec README, decision 6).
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::UnknownZone => Refusal::NotFound.because("zone not found"),
            ViewError::Unreachable(_) => Refusal::Unavailable
                .because("state unavailable")
                .retry_after(1),
            ViewError::Corrupt(_) => Refusal::Internal.because("internal error"),
        }
    }
}
