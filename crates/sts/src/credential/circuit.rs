//! The circuit of a provider, one for all replicas (spec: sts §6.2): 5 failures in 5 minutes open
//! it for 30 seconds, a success clears it.
//!
//! Failures are counted in an era. A success begins a new one, which is what clears: counters of
//! the bus only rise. An open circuit lets everyone through when its time is over; within the same
//! era the next failure opens it again.

use std::time::Duration;

use caracal_bus::BusError;
use caracal_model::ProviderId;

use crate::Sts;

const FAILURES: u64 = 5;
const WINDOW: Duration = Duration::from_secs(300);
const OPEN: Duration = Duration::from_secs(30);

const IS_OPEN: &str = "open";
const ERA: &str = "era";

/// The circuit of one provider, as it was when it was looked at.
pub struct Circuit {
    board: String,
    era: Option<String>,
    open: bool,
}

impl Circuit {
    /// Looks at the circuit.
    ///
    /// # Errors
    /// [`BusError`]: whether it is open is then unknown.
    pub async fn of(sts: &Sts, provider: &ProviderId) -> Result<Self, BusError> {
        let board = format!("provider-refresh-circuit:{provider}");
        let posts = sts.bus.posts(&board).await?;
        let note = |member: &str| posts.iter().find(|(who, _)| who == member);
        let era = note(ERA).map(|(_, era)| era.clone());
        let open = note(IS_OPEN).map(|(_, of)| of) == Some(era.as_ref().unwrap_or(&String::new()));
        Ok(Self { board, era, open })
    }

    /// Whether nobody may ask the provider now.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// A request failed.
    pub async fn failed(&self, sts: &Sts) {
        let era = self.era.clone().unwrap_or_default();
        let key = format!("provider-refresh-failures:{}:{era}", self.board);
        let counted = async {
            if sts.bus.count(&key, WINDOW).await? < FAILURES {
                return Ok(false);
            }
            sts.bus.post(&self.board, IS_OPEN, &era, OPEN).await?;
            Ok::<_, BusError>(true)
        };
        match counted.await {
            Ok(true) => {
                sts.metrics.provider.opened.inc();
                tracing::warn!(circuit = %self.board, "open: the provider has failed too often");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a failure of a provider cannot be counted"),
        }
    }

    /// A request succeeded.
    pub async fn succeeded(&self, sts: &Sts) {
        let era = sts.ids.uuid();
        if let Err(error) = sts.bus.post(&self.board, ERA, &era, WINDOW).await {
            tracing::warn!(%error, "a circuit cannot be cleared");
        }
    }
}
