//! The mint rate in force: the ceiling of this process, or what an operator lowered it to (spec:
//! sts §14; admin-api §11).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use caracal_bus::BusError;
use caracal_model::{Refusal, Refused, ResourceId};
use caracal_store::platform_settings::MINT_RATE;
use caracal_view::Resource;
use tokio_util::sync::CancellationToken;

use crate::Sts;
use crate::authenticate::Caller;
use crate::leases::Leases;

/// The window of the mint rate.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// How often the operator's number is read. The specification allows thirty seconds.
const READ_EVERY: Duration = Duration::from_secs(10);

/// A number of mints a minute.
pub struct MintRate {
    ceiling: u32,
    in_force: AtomicU32,
    leases: Leases,
}

impl MintRate {
    /// The ceiling, until something lower is read.
    pub fn at_most(ceiling: u32) -> Self {
        Self {
            ceiling,
            in_force: AtomicU32::new(ceiling),
            leases: Leases::default(),
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

/// Charges one mint (spec: sts §14), in a fixed window for (zone, resource, application). When
/// that was one too many: the seconds until the window is surely over.
///
/// # Errors
/// 503 when it cannot be counted.
pub async fn over_rate(
    sts: &Sts,
    caller: &Caller,
    resource: &Resource,
) -> Result<Option<u32>, Refused> {
    let (zone, app) = (&caller.zone.id, &caller.application.id);
    let key = format!("rl:{zone}:{}:{app}", resource.facts.id);
    let limit = (key.as_str(), sts.rate.limit(), RATE_WINDOW);
    // Without news of others nothing is known of the bus either: then it is asked each time.
    let trusted = sts.views.lease_holds();
    let spending = sts
        .rate
        .leases
        .spend(&sts.bus, sts.clock.as_ref(), limit, trusted);
    let spent = spending.await.map_err(|error| uncountable(&error))?;
    Ok((!spent).then_some(60))
}

fn uncountable(error: &BusError) -> Refused {
    tracing::warn!(%error, "denied: the mint rate cannot be counted");
    Refusal::Unavailable.because("the mint rate cannot be counted, try again shortly")
}

/// Counts one by one under this key, against the same limit.
///
/// # Errors
/// 503 when it cannot be counted.
pub async fn over_rate_of(sts: &Sts, key: &str) -> Result<Option<u32>, Refused> {
    let count = sts.bus.count(key, RATE_WINDOW).await;
    let count = count.map_err(|error| uncountable(&error))?;
    let over = count > u64::from(sts.rate.limit());
    Ok(over.then_some(60))
}

/// What one exchange was charged: once for each resource, however often it is decided.
#[derive(Default)]
pub struct Charged(Vec<(ResourceId, Option<u32>)>);

impl Charged {
    /// As [`over_rate`], the first time.
    ///
    /// # Errors
    /// 503 when it cannot be counted.
    pub async fn over_rate(
        &mut self,
        sts: &Sts,
        caller: &Caller,
        resource: &Resource,
    ) -> Result<Option<u32>, Refused> {
        let id = &resource.facts.id;
        if let Some((_, said)) = self.0.iter().find(|(charged, _)| charged == id) {
            return Ok(*said);
        }
        let said = over_rate(sts, caller, resource).await?;
        self.0.push((id.clone(), said));
        Ok(said)
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
