//! Suspending and resuming (spec: coordinator §6.5). Suspension is an operator's brake: it stops
//! minting at once and takes nothing away for good.

use axum::extract::State;
use caracal_model::{SessionId, ZoneId};
use caracal_store::StoreError;
use serde_json::json;

use super::managed;
use crate::answer::Answer;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::service::{ATTEMPTS, Coordinator, is_busy};

/// Reason of a suspension that somebody asked for.
pub const REQUESTED: &str = "requested";
/// Reason of a suspension for want of a heartbeat.
pub const HEARTBEAT_LOST: &str = "service_heartbeat_lost";

/// `PATCH /zones/{zone}/agents/{id}/suspend`
pub async fn suspend(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let row = managed(&coordinator, &call).await?;
    let count = suspend_tree(&coordinator, &call.zone, &row.id, REQUESTED, false).await?;
    if count == 0 {
        return Err(coordinator.refuse_over(Code::SessionNotActive).await);
    }
    Ok(Answer::ok(&json!({ "suspended": count })))
}

/// `PATCH /zones/{zone}/agents/{id}/resume`
pub async fn resume(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let row = managed(&coordinator, &call).await?;
    for attempt in 0..ATTEMPTS {
        match try_resume(&coordinator, &call.zone, &row.id).await {
            Ok(0) => return Err(Code::SessionNotSuspended.into()),
            Ok(count) => {
                coordinator.announce().await;
                return Ok(Answer::ok(&json!({ "resumed": count })));
            }
            Err(error) if is_busy(&error) => coordinator.pause(attempt).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Code::Unavailable.into())
}

async fn try_resume(
    coordinator: &Coordinator,
    zone: &ZoneId,
    id: &SessionId,
) -> Result<usize, StoreError> {
    let now = coordinator.clock.now();
    let lease = now.plus(coordinator.config.lease);
    let mut tx = coordinator.store.begin("resume a session").await?;
    let count = tx.zone(zone).sessions().resume(id, now, lease).await?;
    if count > 0 {
        tx.commit().await?;
    }
    Ok(count)
}

/// Suspends a Session and its contiguous active descendants, and announces it; answers how many.
///
/// # Errors
/// The store's.
pub async fn suspend_tree(
    coordinator: &Coordinator,
    zone: &ZoneId,
    id: &SessionId,
    reason: &str,
    only_lapsed: bool,
) -> Result<usize, StoreError> {
    let mut attempt = 0;
    loop {
        match try_suspend(coordinator, zone, id, reason, only_lapsed).await {
            Err(error) if is_busy(&error) && attempt < ATTEMPTS => {
                coordinator.pause(attempt).await;
                attempt += 1;
            }
            Ok(0) => return Ok(0),
            Ok(count) => {
                coordinator.announce().await;
                return Ok(count);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn try_suspend(
    coordinator: &Coordinator,
    zone: &ZoneId,
    id: &SessionId,
    reason: &str,
    only_lapsed: bool,
) -> Result<usize, StoreError> {
    let now = coordinator.clock.now();
    let mut tx = coordinator.store.begin("suspend a session").await?;
    let count = tx
        .zone(zone)
        .sessions()
        .suspend(id, reason, only_lapsed, now)
        .await?;
    if count > 0 {
        tx.commit().await?;
    }
    Ok(count)
}
