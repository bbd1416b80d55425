//! The deadline of an exchange (spec: sts §1), which its [`Patience`](crate::patience) sets, and what
//! it may not cut.
//!
//! **Forces.** Evidence says "allow" before the token leaves. An exchange that is cut off between the
//! two would leave an allow on record of which nobody got anything: an auditor could not tell it
//! from a call that took place.
//!
//! **Choice.** From the moment an allow begins to be recorded the exchange is not cut: it answers
//! late, and a caller that waits gets its token. What is left is one write to the local log. If even
//! that hangs, the exchange is dropped and each allow it was recording is followed by a deny of the
//! same request, which is its final decision.
//!
//! What is committed before, an authority record or a spent approval, may be cut: nobody holds a
//! bearer for the record, and an approval that was spent lately is honoured again (spec: sts §11.4).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use caracal_ledger::Event;
use caracal_model::{EventId, Refusal, Refused, RequestId};
use parking_lot::Mutex;

use crate::Sts;

/// How long an exchange may take.
#[derive(Clone, Copy)]
struct Deadlines {
    /// All of it, whatever it waits for.
    answered: Duration,
    /// So much more, once it is being recorded.
    recorded: Duration,
}

/// How much longer an exchange may take once it is being recorded.
const RECORDED: Duration = Duration::from_secs(5);
/// How long the denials of a dropped exchange may take.
const DENIED_WITHIN: Duration = Duration::from_secs(1);

tokio::task_local! {
    static BEGUN: Arc<Begun>;
}

/// How far an exchange has come.
#[derive(Debug, Default)]
struct Begun(Mutex<Vec<Arc<[Event]>>>);

/// An exchange is about to record this. From its first allow on it is not cut; outside of an exchange
/// there is no deadline.
pub fn records(events: &Arc<[Event]>) {
    if events.iter().any(is_allow) {
        let _ = BEGUN.try_with(|begun| begun.0.lock().push(Arc::clone(events)));
    }
}

fn is_allow(event: &Event) -> bool {
    event.decision == "allow"
}

/// The exchange did not end in time; what it may have recorded as allowed, and did not release.
#[derive(Debug, PartialEq)]
struct Late(Vec<Event>);

/// Runs an exchange, which has to be answered in this time.
///
/// # Errors
/// Its own; 503 when it was dropped.
pub async fn in_time<T, E: From<Refused>>(
    sts: &Sts,
    request_id: &RequestId,
    answered: Duration,
    exchange: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let limits = Deadlines {
        answered,
        recorded: RECORDED,
    };
    match within(limits, exchange).await {
        Ok(outcome) => outcome,
        Err(late) => {
            late.tell(sts, request_id).await;
            let why = "the exchange took too long, try again shortly";
            Err(Refusal::Unavailable.because(why).into())
        }
    }
}

async fn within<T>(limits: Deadlines, exchange: impl Future<Output = T>) -> Result<T, Late> {
    let begun = Arc::new(Begun::default());
    let mut running = Box::pin(BEGUN.scope(Arc::clone(&begun), exchange));
    if let Ok(ended) = tokio::time::timeout(limits.answered, &mut running).await {
        return Ok(ended);
    }
    if begun.0.lock().is_empty() {
        return Err(Late(Vec::new()));
    }
    let ended = tokio::time::timeout(limits.recorded, &mut running).await;
    ended.map_err(|_| {
        // It may be recording at this very moment, and must not begin anything else.
        drop(running);
        let begun = begun.0.lock();
        let events = begun.iter().flat_map(|events| events.iter());
        Late(events.filter(|event| is_allow(event)).cloned().collect())
    })
}

impl Late {
    /// Says it in the log, and in evidence where an allow may be.
    async fn tell(self, sts: &Sts, request_id: &RequestId) {
        tracing::warn!(request = %request_id, "denied: the exchange did not end in time");
        if self.0.is_empty() {
            return;
        }
        let now = sts.clock.now();
        let denied: Vec<Event> = self
            .0
            .into_iter()
            .map(|event| {
                let id = EventId::trusted(sts.ids.uuid());
                Event {
                    id,
                    occurred_at: now,
                    ..denial(event)
                }
            })
            .collect();
        let recording = sts.evidence.record_after_the_fact(&denied);
        let recorded = tokio::time::timeout(DENIED_WITHIN, recording).await;
        if !matches!(recorded, Ok(Ok(()))) {
            tracing::error!(request = %request_id, "an allow may be on record of which nothing was released");
        }
    }
}

/// What takes an allow back: the same request, denied.
fn denial(event: Event) -> Event {
    let mut metadata = event.metadata_json;
    // Nobody holds what was issued.
    metadata.retain(|name| !name.starts_with("issued_"));
    let why = "the exchange did not end in time: nothing was released";
    metadata.put("reason", why);
    metadata.put("withdraws", event.id.as_str());
    Event {
        decision: "deny".into(),
        evaluation_status: "exchange_denied".into(),
        determining_policies_json: Vec::<serde_json::Value>::new().into(),
        metadata_json: metadata,
        ..event
    }
}

#[cfg(test)]
mod tests {
    use caracal_model::{Timestamp, ZoneId};
    use serde_json::{Map, json};

    use super::*;

    fn event(decision: &'static str) -> Event {
        let (id, zone) = (EventId::trusted(decision), ZoneId::trusted("z1"));
        let at = Timestamp::from_unix_seconds(1);
        let metadata: Map<_, _> = [
            ("resource".to_owned(), json!("resource://a")),
            ("issued_jti".to_owned(), json!("j1")),
        ]
        .into_iter()
        .collect();
        Event::new(id, zone, "token_exchange", "r1", decision, "complete", at)
            .determined_by(["caracal-desk-mint"])
            .metadata(metadata)
    }

    const SOON: Duration = Duration::from_millis(20);
    const LATER: Duration = Duration::from_secs(60);

    fn limits(recorded: Duration) -> Deadlines {
        Deadlines {
            answered: SOON,
            recorded,
        }
    }

    #[tokio::test]
    async fn an_exchange_is_cut_before_it_is_recorded_and_not_after() {
        let slow = std::future::pending::<()>();
        let cut = within(limits(LATER), slow).await;
        assert_eq!(cut, Err(Late(Vec::new())));

        let denied = async {
            records(&vec![event("deny")].into());
            std::future::pending::<()>().await;
        };
        let cut = within(limits(LATER), denied).await;
        assert_eq!(cut, Err(Late(Vec::new())), "a deny is no promise");

        let recorded = async {
            records(&vec![event("deny"), event("allow")].into());
            tokio::time::sleep(2 * SOON).await;
            "the token"
        };
        assert_eq!(within(limits(LATER), recorded).await, Ok("the token"));
    }

    #[tokio::test]
    async fn what_may_have_been_recorded_is_denied_when_even_that_hangs() {
        let hangs = async {
            records(&vec![event("deny"), event("allow")].into());
            std::future::pending::<()>().await;
        };
        let dropped = within(limits(SOON), hangs).await;
        assert_eq!(dropped, Err(Late(vec![event("allow")])));
        let denied = denial(event("allow"));
        assert_eq!(
            denied.metadata_json,
            json!({
                "resource": "resource://a", "withdraws": "allow",
                "reason": "the exchange did not end in time: nothing was released",
            })
        );
        assert_eq!(
            (&*denied.decision, &*denied.evaluation_status),
            ("deny", "exchange_denied")
        );
        assert_eq!(denied.determining_policies_json, json!([]));
        assert_eq!(denied.request_id, "r1");
    }

    #[tokio::test]
    async fn outside_of_an_exchange_there_is_no_deadline() {
        records(&vec![event("allow")].into());
    }
}
