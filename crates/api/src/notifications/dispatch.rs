//! From the ledger to webhooks.
//!
//! **Forces.** A webhook may be slow, down or gone; it must get every event once it is back, in
//! order, and must not hold up any other. **Choice.** Two steps. Fan-out writes one delivery for
//! each sink and event, in the transaction that moves the sink's cursor. Delivery takes what is due
//! (of a sink in order only its first), for a lease that is longer than any request. One replica
//! does both; a lease protects the moment when that changes. **Consequence.** At least once: a
//! process that dies between the answer of a webhook and its note sends again.

use std::sync::Arc;
use std::time::Duration;

use caracal_ledger::Event;
use caracal_model::{Rng, Secret, Timestamp, ZoneId};
use caracal_net::metrics::{Counter, Registry};
use caracal_store::StoreError;
use caracal_store::audit_events::AuditEvent;
use caracal_store::notifications::{Delivery, Outcome, SINK_SECRET_AAD, Sink};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::send::{Attempt, Message};
use crate::service::Api;

/// How often the ledger is looked at.
const TICK: Duration = Duration::from_secs(5);
const LEADER: &str = "caracal:notifications";
const LEAD: Duration = Duration::from_secs(30);
/// Sinks that are read at a time.
const SINKS: u32 = 200;
/// Events of a sink that are written at a time.
const EVENTS: u32 = 100;
/// How far the cursor of a sink moves at a time, so that a sink that was paused for long is no long
/// query.
const STRIDE: u64 = 50_000;
/// Deliveries that are looked for at a time.
const DUE: u32 = 25;
/// Requests at a time.
const AT_ONCE: usize = 5;
/// Rounds before the ledger is looked at again.
const ROUNDS: usize = 100;
/// Longer than any attempt takes.
const LEASE: Duration = Duration::from_secs(30);
/// Attempts before a delivery is given up.
const ATTEMPTS: u32 = 8;
/// How long settled deliveries are kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Ticks between two looks for old deliveries.
const PRUNE_EVERY: u32 = 60;

/// What the dispatcher counts.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    delivered: Counter,
    failed: Counter,
    abandoned: Counter,
}

impl Counters {
    /// Puts them under their names.
    pub fn register(&self, registry: &Registry) {
        for (name, counter) in [
            ("delivered", &self.delivered),
            ("failed", &self.failed),
            ("abandoned", &self.abandoned),
        ] {
            registry.register(&format!("notifications_{name}"), counter.clone());
        }
    }
}

/// Tells sinks until `stop`.
pub async fn run(api: Arc<Api>, stop: CancellationToken) {
    let holder = api.ids.uuid();
    let mut ticks = 0u32;
    while !stop.is_cancelled() {
        match api.bus.lead(LEADER, &holder, LEAD).await {
            Ok(true) => {
                let told = tokio::select! {
                    () = stop.cancelled() => return,
                    told = Box::pin(pass(&api)) => told,
                };
                if let Err(error) = told {
                    tracing::warn!(%error, "notifications interrupted, tried again");
                }
                if ticks.is_multiple_of(PRUNE_EVERY)
                    && let Err(error) = prune(&api).await
                {
                    tracing::warn!(%error, "old deliveries not removed");
                }
                ticks = ticks.wrapping_add(1);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "nobody can be chosen to send notifications"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Looks at the ledger once, and sends what is due.
///
/// # Errors
/// When the store does not answer.
pub async fn pass(api: &Api) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let sinks = api.store.notifications().active(&after, SINKS).await?;
        let Some(last) = sinks.last() else { break };
        after.clone_from(&last.id);
        fan_out(api, sinks).await?;
    }
    for _ in 0..ROUNDS {
        if !deliver(api).await? {
            break;
        }
    }
    Ok(())
}

/// Writes deliveries up to where the ledgers of these sinks end now.
async fn fan_out(api: &Api, sinks: Vec<Sink>) -> Result<(), StoreError> {
    // The heads first: what is committed later is found next time.
    let mut zones: Vec<&str> = sinks.iter().map(|sink| sink.zone.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    let heads = api.store.audit_heads(&zones).await?;
    for mut sink in sinks {
        let head = heads.iter().find(|head| head.zone == sink.zone);
        let head = head.map_or(0, |head| head.chain_seq);
        while sink.cursor_seq < head {
            let upto = head.min(sink.cursor_seq.saturating_add(STRIDE));
            let moved = advance(api, &mut sink, upto).await;
            if !unless_alone(moved, &sink.zone, &sink.id)? {
                break;
            }
        }
    }
    Ok(())
}

/// A sink that cannot be dealt with, because the ledger of its zone does not read or otherwise,
/// holds up no other; an outage does.
fn unless_alone(
    done: Result<bool, StoreError>,
    zone: &ZoneId,
    sink: &str,
) -> Result<bool, StoreError> {
    match done {
        Err(error) if !error.is_outage() => {
            tracing::error!(%error, %zone, sink, "a notification sink is not told");
            Ok(false)
        }
        other => other,
    }
}

/// Moves a sink's cursor; `false` when somebody else did.
async fn advance(api: &Api, sink: &mut Sink, upto: u64) -> Result<bool, StoreError> {
    let ledger = api.store.zone(&sink.zone).audit();
    let events = ledger
        .of_types(&sink.event_types, sink.cursor_seq, upto, EVENTS)
        .await?;
    let is_full = u32::try_from(events.len()).is_ok_and(|count| count >= EVENTS);
    let to = match events.last() {
        Some(last) if is_full => last.chain_seq,
        _ => upto,
    };
    let now = api.clock.now();
    let new: Vec<Delivery> = events
        .iter()
        .filter_map(|told| delivery(api, sink, told, now))
        .collect();
    let zone = sink.zone.clone();
    let mut tx = api.store.begin("writing notifications").await?;
    let moved = tx.sinks(&zone).advance(sink, to, &new).await?;
    if moved {
        tx.commit().await?;
        sink.cursor_seq = to;
    }
    Ok(moved)
}

/// The delivery of an event to a sink; none of what is no event, which the ledger does not hold.
pub fn delivery(api: &Api, sink: &Sink, told: &AuditEvent, now: Timestamp) -> Option<Delivery> {
    let event = Event::parse(&told.event).ok()?;
    let data = match event.metadata_json.to_value() {
        Value::Null => json!({}),
        other => other,
    };
    let body = body(
        &told.id,
        &event.event_type,
        sink,
        &event.decision,
        event.occurred_at,
        &data,
    );
    Some(Delivery {
        id: api.ids.uuid(),
        zone: sink.zone.clone(),
        sink_id: sink.id.clone(),
        chain_seq: told.chain_seq,
        event_id: told.id.clone(),
        event_type: event.event_type.into_owned(),
        body,
        attempts: 0,
        available_at: now,
        delivered_at: None,
        abandoned_at: None,
        response_status: None,
        last_error: None,
        created_at: now,
    })
}

/// The published body; its members stand in this order.
fn body(
    id: &str,
    event_type: &str,
    sink: &Sink,
    decision: &str,
    at: Timestamp,
    data: &Value,
) -> String {
    format!(
        r#"{{"id":{},"type":{},"zone_id":{},"decision":{},"occurred_at":{},"data":{data}}}"#,
        json!(id),
        json!(event_type),
        json!(sink.zone),
        json!(decision),
        json!(at.iso_millis()),
    )
}

/// One round; whether anything was sent.
async fn deliver(api: &Api) -> Result<bool, StoreError> {
    let due = api.store.notifications().due(api.clock.now(), DUE).await?;
    let attempts = stream::iter(due).map(|delivery| {
        Box::pin(async {
            let (zone, sink) = (delivery.zone.clone(), delivery.sink_id.clone());
            unless_alone(attempt(api, delivery).await, &zone, &sink)
        })
    });
    let mut attempts = attempts.buffer_unordered(AT_ONCE);
    let mut sent = false;
    while let Some(done) = attempts.next().await {
        sent |= done?;
    }
    Ok(sent)
}

/// Takes a delivery and tries it; `false` when somebody else has it.
async fn attempt(api: &Api, mut delivery: Delivery) -> Result<bool, StoreError> {
    let now = api.clock.now();
    let notifications = api.store.notifications();
    if !notifications.take(&delivery, now, now.plus(LEASE)).await? {
        return Ok(false);
    }
    delivery.attempts = delivery.attempts.saturating_add(1);
    let found = api
        .store
        .zone(&delivery.zone)
        .sinks()
        .get(&delivery.sink_id)
        .await?;
    let Some(sink) = found else {
        return Ok(false); // deleted meanwhile, and the delivery with it
    };
    let message = Message {
        event_type: &delivery.event_type,
        delivery: &delivery.id,
        sink: &sink.id,
        at: now,
        body: &delivery.body,
    };
    let came_of = send(api, &sink, message).await;
    let now = api.clock.now();
    let outcome = match &came_of.error {
        None => Outcome::Delivered,
        Some(_) if delivery.attempts >= ATTEMPTS => Outcome::Abandoned,
        Some(_) => Outcome::Later(now.plus(backoff(delivery.attempts, api.rng.as_ref()))),
    };
    count(api, &delivery, &outcome);
    let status = came_of.status.map(i64::from);
    let error = came_of.error.as_deref();
    notifications
        .settle(&delivery, &outcome, status, error, now)
        .await?;
    Ok(true)
}

fn count(api: &Api, delivery: &Delivery, outcome: &Outcome) {
    let counters = &api.notifications;
    if *outcome == Outcome::Delivered {
        counters.delivered.inc();
        return;
    }
    counters.failed.inc();
    if *outcome == Outcome::Abandoned {
        counters.abandoned.inc();
        let (sink, id) = (&delivery.sink_id, &delivery.id);
        tracing::warn!(zone = %delivery.zone, sink, delivery = id, "a notification was given up");
    }
}

async fn send(api: &Api, sink: &Sink, message: Message<'_>) -> Attempt {
    let secret: Secret<Vec<u8>> = match api.keyring.open(SINK_SECRET_AAD, &sink.secret) {
        Ok(secret) => secret,
        Err(error) => {
            tracing::error!(%error, sink = sink.id, "the secret of a sink does not open");
            return Attempt {
                status: None,
                error: Some("its secret does not open; rotate it".to_owned()),
            };
        }
    };
    api.hooks.send(&sink.url, &secret, message).await
}

/// Sends a signed request that stands for no event.
pub async fn test(api: &Api, sink: &Sink) -> Attempt {
    let (id, now) = (api.ids.uuid(), api.clock.now());
    let body = body(&id, "test", sink, "test", now, &json!({}));
    let message = Message {
        event_type: "test",
        delivery: &id,
        sink: &sink.id,
        at: now,
        body: &body,
    };
    send(api, sink, message).await
}

/// `min(900, 30 * 2^(n-1))` seconds and up to 30 % more.
fn backoff(attempts: u32, rng: &dyn Rng) -> Duration {
    let seconds = 30u64
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(900);
    let mut byte = [0u8; 1];
    rng.fill(&mut byte);
    let [byte] = byte;
    Duration::from_secs(seconds).mul_f64(1.0 + 0.3 * f64::from(byte) / 256.0)
}

async fn prune(api: &Api) -> Result<(), StoreError> {
    let until = api.clock.now().minus(KEPT);
    while api.store.notifications().prune(until, 500).await? == 500 {}
    Ok(())
}
