//! Liveness and readiness (spec: operations §5, §17.5). The checks are each service's own.
//!
//! Liveness asks nothing but the process. Whoever is not ready says so with 503, and says why under
//! both names that readers know, `reason` and `error`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use caracal_model::{Clock, Ticks};
use http::{StatusCode, header};
use parking_lot::Mutex;
use prometheus_client::metrics::family::Family;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::metrics::{Counter, Gauge, Registry, show, whole};

/// How far back changes are counted for the gauge.
const LATELY: Duration = Duration::from_secs(600);
/// Changes that are remembered for it.
const REMEMBERED: usize = 64;

/// 200 without a body: STS, Gateway and Audit.
pub async fn alive() -> StatusCode {
    StatusCode::OK
}

/// 200 `{"ok":true}`: API and Coordinator.
pub async fn alive_json() -> Response {
    Json(json!({"ok": true})).into_response()
}

/// 503 `{"ok":false,"ready":false,…}`: STS, Gateway and Audit.
pub fn unready(reason: &str) -> Response {
    refused(json!({"ok": false, "ready": false, "reason": reason, "error": reason}))
}

/// 503 `{"ok":false,…}` with what it depends on: API and Coordinator.
pub fn unready_by(reason: &str, dependency: &str) -> Response {
    refused(json!({
        "ok": false, "error": reason, "reason": reason, "dependency": dependency,
    }))
}

/// 503 `{"ok":false,"draining":true,…}`: the process is about to end.
pub fn draining() -> Response {
    refused(json!({
        "ok": false, "draining": true, "error": "draining", "reason": "draining",
    }))
}

/// 503 with this body.
pub fn refused(body: Value) -> Response {
    let retry = [(header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, Json(body)).into_response()
}

/// The time that all checks of one `/ready` have together: one that runs out of it fails as itself,
/// and those after it are not tried.
pub struct Budget<'c> {
    clock: &'c dyn Clock,
    since: Ticks,
    time: Duration,
}

impl std::fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({:?})", self.time)
    }
}

impl<'c> Budget<'c> {
    /// So much from now on.
    pub fn of(time: Duration, clock: &'c dyn Clock) -> Self {
        Self {
            clock,
            since: clock.ticks(),
            time,
        }
    }

    /// What the check found.
    ///
    /// # Errors
    /// `reason`, when it failed or was too late.
    pub async fn ask<T, E, R>(
        &self,
        reason: R,
        check: impl Future<Output = Result<T, E>>,
    ) -> Result<T, R> {
        let left = self
            .time
            .saturating_sub(self.clock.ticks().since(self.since));
        match timeout(left, check).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) | Err(_) => Err(reason),
        }
    }
}

/// What `/ready` said, for metrics. Clones share it.
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    ready: Option<bool>,
    changes: u64,
    lately: VecDeque<Ticks>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.told.lock().fmt(f)
    }
}

impl Readiness {
    /// Nothing was said yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let told = Mutex::default();
        Self(Arc::new(Inner { clock, told }))
    }

    /// Notes the answer, and passes it on.
    pub fn tell(&self, answer: Response) -> Response {
        self.note(answer.status().is_success());
        answer
    }

    fn note(&self, ready: bool) {
        let now = self.0.clock.ticks();
        let mut told = self.0.told.lock();
        if told.ready.is_some_and(|before| before != ready) {
            told.changes += 1;
            told.lately.push_back(now);
            if told.lately.len() > REMEMBERED {
                told.lately.pop_front();
            }
        }
        told.ready = Some(ready);
    }

    fn changes_lately(&self) -> usize {
        let now = self.0.clock.ticks();
        let mut told = self.0.told.lock();
        while told
            .lately
            .front()
            .is_some_and(|at| now.since(*at) > LATELY)
        {
            told.lately.pop_front();
        }
        told.lately.len()
    }

    /// Puts it under its names.
    pub(crate) fn register(&self, registry: &Registry) {
        type By<M> = Family<Vec<(&'static str, &'static str)>, M>;
        let labels = vec![("service", registry.service())];
        let gauge = |name| registry.register_as(name, By::<Gauge>::default());
        let ready = gauge("caracal_ready").get_or_create_owned(&labels);
        let lately = gauge("caracal_ready_changes_10m").get_or_create_owned(&labels);
        let changes = registry.register_as("caracal_ready_changes", By::<Counter>::default());
        let changes = changes.get_or_create_owned(&labels);
        let readiness = self.clone();
        registry.on_scrape(move || {
            lately.set(whole(readiness.changes_lately()));
            let told = readiness.0.told.lock();
            ready.set((told.ready == Some(true)).into());
            show(&changes, told.changes);
            async {}
        });
    }
}

#[cfg(test)]
mod tests {
    use caracal_model::TestClock;

    use super::*;

    #[test]
    fn changes_are_counted_and_forgotten_after_a_while() {
        let clock = Arc::new(TestClock::default());
        let readiness = Readiness::new(clock.clone());
        for ready in [false, false, true, true, false, true] {
            readiness.note(ready);
        }
        assert_eq!(readiness.0.told.lock().changes, 3);
        assert_eq!(readiness.changes_lately(), 3);
        clock.advance(LATELY + Duration::from_secs(1));
        readiness.note(false);
        assert_eq!(readiness.changes_lately(), 1);
        assert_eq!(readiness.0.told.lock().changes, 4);
    }

    #[tokio::test]
    async fn a_check_that_hangs_fails_as_itself() {
        let clock = TestClock::default();
        let budget = Budget::of(Duration::from_secs(2), &clock);
        let fine = budget.ask("first", async { Ok::<_, ()>(1) }).await;
        assert_eq!(fine, Ok(1));
        clock.advance(Duration::from_secs(3));
        let hangs = std::future::pending::<Result<(), ()>>();
        assert_eq!(budget.ask("second", hangs).await, Err("second"));
    }
}
