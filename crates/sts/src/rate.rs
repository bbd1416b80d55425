//! The mint rate in force: the ceiling of this process, or what an operator lowered it to (spec:
//! sts §14; admin-api §11).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use caracal_store::platform_settings::MINT_RATE;
use tokio_util::sync::CancellationToken;

use crate::Sts;

/// How often the operator's number is read. The specification allows thirty seconds.
const READ_EVERY: Duration = Duration::from_secs(10);

/// A number of mints a minute.
pub struct MintRate {
    ceiling: u32,
    in_force: AtomicU32,
}

impl MintRate {
    /// The ceiling, until something lower is read.
    pub fn at_most(ceiling: u32) -> Self {
        Self {
            ceiling,
            in_force: AtomicU32::new(ceiling),
        }
    }

    /// Mints a minute for one (zone, resource, application).
    pub fn limit(&self) -> u32 {
        self.in_force.load(Ordering::Relaxed)
    }

    /// An operator can lower the rate of this process, never raise it.
    fn set(&self, wished: Option<u32>) {
        let limit = wished.map_or(self.ceiling, |wished| wished.clamp(1, self.ceiling));
        if self.in_force.swap(limit, Ordering::Relaxed) != limit {
            tracing::info!(limit, ceiling = self.ceiling, "mint rate");
        }
    }
}

/// Reads the operator's number now and again. While it cannot be read, the last one holds.
pub async fn follow(sts: Arc<Sts>, stop: CancellationToken) {
    loop {
        let _ = stop.run_until_cancelled(read(&sts)).await;
        let pause = stop.run_until_cancelled(tokio::time::sleep(READ_EVERY));
        if pause.await.is_none() {
            return;
        }
    }
}

/// Reads it once.
pub async fn read(sts: &Sts) {
    match sts.store.platform_setting(MINT_RATE).await {
        Ok(setting) => sts.rate.set(setting.map(|setting| setting.value)),
        Err(error) => tracing::warn!(%error, "mint rate not read, the last one holds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_lowers_the_rate_and_never_raises_it() {
        let rate = MintRate::at_most(1000);
        for (wished, limit) in [
            (None, 1000),
            (Some(10), 10),
            (Some(5000), 1000),
            (Some(0), 1),
            (None, 1000),
        ] {
            rate.set(wished);
            assert_eq!(rate.limit(), limit, "{wished:?}");
        }
    }
}
