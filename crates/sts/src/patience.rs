//! How long an exchange may take, and what of it others may have (spec: sts §1; gateway §9.3).
//!
//! **Forces.** A caller that stops waiting before it is answered learns nothing, and takes a slow
//! provider for a dead STS: a Gateway would count it, and open its circuit for every zone. What is
//! asked of others (a token endpoint, an issuer, a secret backend) may each take its own time, and
//! together longer than any caller waits.
//!
//! **Choice.** One budget for an exchange, made of what its caller waits: deadlines nest. Each wait
//! for others gets what is left of it; the last part is kept for deciding, recording and answering.
//! Work that must not be cut half way, because it spends a refresh token or because others wait for
//! it, is [carried on with](Sts::outlasting) when its caller has been answered.
//!
//! **Consequence.** A provider that is too slow for a call is that provider's failure, with its own
//! code. What it answers later serves the next call.

use std::future::Future;
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use caracal_net::trace::carried;
use http::{HeaderMap, HeaderName};
use tokio::sync::oneshot;

use crate::Sts;

/// How long the Gateway waits for the exchange, in milliseconds. Nothing rests on it: whoever makes
/// it short is refused early.
const TIMEOUT: HeaderName = HeaderName::from_static("x-caracal-gateway-timeout");
/// How long a Gateway waits that does not say (spec: gateway §15).
const UNTOLD: Duration = Duration::from_secs(5);
/// The longest that an exchange takes, whoever waits (spec: sts §1).
const LONGEST: Duration = Duration::from_secs(10);

/// The budget of one exchange.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    began: Ticks,
    whole: Duration,
}

impl Patience {
    /// Of a client, which waits longer than we take.
    pub fn of_client(clock: &dyn Clock) -> Self {
        Self {
            began: clock.ticks(),
            whole: LONGEST,
        }
    }

    /// Of a Gateway that waits so long: a tenth of it is for the way there and back.
    pub fn of_gateway(clock: &dyn Clock, waits: Duration) -> Self {
        Self {
            began: clock.ticks(),
            whole: (waits * 9 / 10).min(LONGEST),
        }
    }

    /// Of the Gateway that sent these headers.
    pub fn told(clock: &dyn Clock, headers: &HeaderMap) -> Self {
        let millis = headers
            .get(TIMEOUT)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let waits = millis.map_or(UNTOLD, Duration::from_millis);
        Self::of_gateway(clock, waits.min(2 * LONGEST))
    }

    /// All of it: when the exchange has to be answered.
    pub const fn whole(self) -> Duration {
        self.whole
    }

    /// What is left for others: an eighth of the whole is kept.
    pub fn left(self, clock: &dyn Clock) -> Duration {
        let others = self.whole * 7 / 8;
        others.saturating_sub(clock.ticks().since(self.began))
    }

    /// What comes of this, unless it takes longer than is left.
    pub async fn wait<T>(self, clock: &dyn Clock, others: impl Future<Output = T>) -> Option<T> {
        let left = self.left(clock);
        tokio::time::timeout(left, others).await.ok()
    }
}

impl Sts {
    /// What comes of this work, unless it takes longer than is left. It is not cut: it goes on when
    /// nobody waits for it any more, so it must have an end of its own.
    pub async fn outlasting<T: Send + 'static>(
        &self,
        patience: Patience,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let work = carried(async move {
            // Nobody may be listening any more.
            let _ = tell.send(work.await);
        });
        self.tasks.spawn(name, work);
        patience.wait(self.clock.as_ref(), told).await?.ok()
    }
}

#[cfg(test)]
mod tests {
    use caracal_model::TestClock;
    use http::HeaderValue;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn deadlines_nest_whatever_the_gateway_says() {
        let clock = TestClock::default();
        for (says, waits) in [
            (None, UNTOLD),
            (Some("5000"), 5 * SECOND),
            (Some("300"), Duration::from_millis(300)),
            (Some("1"), Duration::from_millis(1)),
            (Some("0"), Duration::ZERO),
            (Some("600000"), 600 * SECOND),
            (Some("18446744073709551615"), 600 * SECOND),
            (Some("soon"), UNTOLD),
            (Some("-1"), UNTOLD),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(says) = says {
                headers.insert(TIMEOUT, HeaderValue::from_static(says));
            }
            let patience = Patience::told(&clock, &headers);
            assert!(patience.whole() <= LONGEST, "{says:?}");
            assert!(patience.whole() <= waits * 9 / 10, "{says:?}");
            assert!(
                patience.left(&clock) <= patience.whole() * 7 / 8,
                "{says:?}"
            );
        }
    }

    #[tokio::test]
    async fn each_gets_what_those_before_it_left() {
        let clock = TestClock::default();
        let patience = Patience::of_client(&clock);
        assert_eq!(patience.left(&clock), Duration::from_millis(8_750));
        clock.advance(8 * SECOND);
        assert_eq!(patience.left(&clock), Duration::from_millis(750));
        clock.advance(SECOND);
        assert_eq!(patience.left(&clock), Duration::ZERO);
        let never = std::future::pending::<()>();
        assert_eq!(patience.wait(&clock, never).await, None, "nothing is left");
        assert_eq!(patience.whole(), LONGEST);
    }
}
