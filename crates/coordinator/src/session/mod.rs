//! Sessions (spec: coordinator §6).

pub mod end;
pub mod lease;
pub mod read;
pub mod standing;
pub mod start;
mod wish;

use caracal_model::{SessionId, Timestamp, ZoneId};
use caracal_store::sessions::{Lifecycle, SessionRow};
use serde_json::{Value, json};

use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::service::Coordinator;

/// A Session of this zone that the caller may manage.
///
/// # Errors
/// `session_not_found`, `application_ownership_required`.
pub async fn managed(coordinator: &Coordinator, call: &Call) -> Result<SessionRow, Failure> {
    let row = get(coordinator, &call.zone, &call.session()).await?;
    if call.caller.manages(&row.application_id) {
        Ok(row)
    } else {
        Err(Code::ApplicationOwnershipRequired.into())
    }
}

/// A Session of this zone.
///
/// # Errors
/// `session_not_found`.
pub async fn get(
    coordinator: &Coordinator,
    zone: &ZoneId,
    id: &SessionId,
) -> Result<SessionRow, Failure> {
    let row = coordinator.store.zone(zone).sessions().get(id).await?;
    row.ok_or_else(|| Code::SessionNotFound.into())
}

/// A time on the wire, null when there is none.
pub fn time(at: Option<Timestamp>) -> Value {
    at.map(Timestamp::iso_millis).into()
}

/// What a start answers, without the Delegation; also the first part of a list item.
pub fn summary(zone: &ZoneId, row: &SessionRow) -> Value {
    json!({
        "agent_session_id": row.id,
        "zone_id": zone,
        "application_id": row.application_id,
        "parent_id": row.parent_id,
        "subject_authority_record_id": row.subject_record_id,
        "lifecycle": row.lifecycle.as_str(),
        "labels": row.labels,
        "status": row.status.as_str(),
        "depth": row.depth,
        "ttl_seconds": row.ttl_seconds,
        "started_at": row.started_at.iso_millis(),
        "last_heartbeat_at": time(row.last_heartbeat_at),
        "heartbeat_deadline_at": time(row.heartbeat_deadline_at),
        "lease_generation": row.lease_generation,
    })
}

/// Whether a Session still counts as the result of the request that started it (§10): suspension
/// is reversible, so it does.
pub fn is_result_live(row: &SessionRow, now: Timestamp) -> bool {
    let ran_out = match row.lifecycle {
        Lifecycle::Task => row.ends_at.is_some_and(|ends| ends <= now),
        Lifecycle::Service => {
            row.status == caracal_store::sessions::SessionStatus::Active && !row.is_live(now)
        }
    };
    !row.is_over() && !ran_out
}
