//! Ending Sessions (spec: coordinator §6.5, §6.6).

use axum::extract::State;
use caracal_model::ZoneId;
use caracal_store::StoreError;
use caracal_store::sessions::end::{Cut, Ended, Root};
use caracal_store::sessions::{Lifecycle, SessionRow};
use serde_json::json;

use super::managed;
use crate::answer::Answer;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::service::{ATTEMPTS, Coordinator, is_busy};

/// Reason when the user behind a Session is gone.
pub const SUBJECT_INACTIVE: &str = "subject_authority_inactive";
/// Reason when its time is up.
pub const TTL: &str = "ttl";

/// `DELETE /zones/{zone}/agents/{id}`
pub async fn terminate(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let reason = call.query.text("reason", 256)?.unwrap_or("requested");
    let wait = call.query.wait()?;
    let generation = generation(&call)?;
    for attempt in 0..ATTEMPTS {
        let row = managed(&coordinator, &call).await?;
        if row.is_over() {
            return Err(coordinator.refuse_over(Code::SessionNotFound).await);
        }
        let generation = fence(&call, &row, generation)?;
        let roots = [Root {
            id: row.id,
            parent: row.parent_id,
        }];
        let mut cut = Cut::of(&roots, reason, coordinator.clock.now());
        cut.generation = generation;
        cut.cut_off = call.caller.is_operator();
        if !end(&coordinator, &call.zone, &cut)
            .await?
            .sessions
            .is_empty()
        {
            return Ok(match wait {
                None => Answer::empty(),
                // Published clients take any 2xx; the proof needs a body.
                Some(wait) => {
                    let replicas = coordinator.prove(&call.zone, wait).await;
                    Answer::ok(&json!({ "replicas": replicas }))
                }
            });
        }
        // It ended, or its lease moved, between the look and the cut: look again.
        coordinator.pause(attempt).await;
    }
    Err(Code::Unavailable.into())
}

fn generation(call: &Call) -> Result<Option<i64>, Failure> {
    let body = call.body()?;
    let mut fields = Fields::of(&body);
    let generation = fields.int("lease_generation", 1..=i64::MAX);
    fields.end()?;
    Ok(generation)
}

/// The generation that the lease must still have: whoever lost it must not end what another holds.
fn fence(call: &Call, row: &SessionRow, sent: Option<i64>) -> Result<Option<i64>, Failure> {
    if row.lifecycle == Lifecycle::Task || call.caller.is_admin() {
        return Ok(None);
    }
    match sent {
        None => Err(Code::LeaseGenerationRequired.into()),
        Some(sent) if sent != row.lease_generation => Err(Code::SessionLeaseFenced.into()),
        sent => Ok(sent),
    }
}

/// Ends what the cut says in one transaction, tried again when somebody is in the way, and
/// announces it.
///
/// # Errors
/// The store's.
pub async fn end(
    coordinator: &Coordinator,
    zone: &ZoneId,
    cut: &Cut<'_>,
) -> Result<Ended, StoreError> {
    let mut attempt = 0;
    loop {
        match Box::pin(try_end(coordinator, zone, cut)).await {
            Err(error) if is_busy(&error) && attempt < ATTEMPTS => {
                coordinator.pause(attempt).await;
                attempt += 1;
            }
            Ok(ended) => {
                if !ended.sessions.is_empty() || !ended.edges.is_empty() {
                    coordinator.announce().await;
                }
                return Ok(ended);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn try_end(
    coordinator: &Coordinator,
    zone: &ZoneId,
    cut: &Cut<'_>,
) -> Result<Ended, StoreError> {
    let mut cut = cut.clone();
    cut.cut_off |= coordinator.config.epoch_on_session_end;
    let mut tx = coordinator.store.begin("end sessions").await?;
    let ended = tx.zone(zone).sessions().end(&cut).await?;
    // A Delegation that somebody else has revoked meanwhile: nothing of this is ours to keep.
    let missed = cut
        .along
        .is_some_and(|edge| !ended.edges.iter().any(|one| one.id == *edge));
    if missed {
        tx.rollback().await;
        return Ok(Ended::default());
    }
    if ended.sessions.is_empty() && ended.edges.is_empty() {
        tx.rollback().await;
    } else {
        tx.commit().await?;
    }
    Ok(ended)
}
