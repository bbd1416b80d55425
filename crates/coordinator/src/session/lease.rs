//! Leases and heartbeats of services (spec: coordinator §6.3, §6.4). Each is one conditional
//! update; the row is read before to say precisely what is in the way, and again when the update
//! found that something has changed meanwhile.

use axum::extract::State;
use caracal_model::{SubjectType, Timestamp};
use caracal_store::StoreError;
use caracal_store::sessions::end::{Cut, Root};
use caracal_store::sessions::{Lifecycle, SessionRow, SessionStatus};
use caracal_view::Anchors;
use serde_json::{Value, json};

use super::end::{SUBJECT_INACTIVE, end};
use super::managed;
use super::standing::{HEARTBEAT_LOST, suspend_tree};
use crate::answer::Answer;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::service::{ATTEMPTS, Coordinator, is_busy};

/// `POST /zones/{zone}/agents/{id}/lease`
pub async fn acquire(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    for attempt in 0..ATTEMPTS {
        let now = coordinator.clock.now();
        let row = managed(&coordinator, &call).await?;
        check_lease(&row)?;
        check_subject(&coordinator, &call, &row, now).await?;
        check_lapse(&coordinator, &call, &row, now).await?;
        check_bearer(&coordinator, &call, &row, now).await?;
        match try_acquire(&coordinator, &call, &row, now).await {
            Ok(Some((generation, until))) => {
                coordinator.announce().await;
                return Ok(Answer::ok(&json!({
                    "status": SessionStatus::Active.as_str(),
                    "heartbeat_deadline_at": until.iso_millis(),
                    "lease_generation": generation,
                })));
            }
            // What beat us may be in the store's queue and not yet to be read.
            Ok(None) => coordinator.pause(attempt).await,
            Err(error) if is_busy(&error) => coordinator.pause(attempt).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Code::Unavailable.into())
}

fn check_lease(row: &SessionRow) -> Result<(), Failure> {
    if row.lifecycle != Lifecycle::Service {
        return Err(Code::SessionNotService.into());
    }
    match row.status {
        SessionStatus::Active => Ok(()),
        SessionStatus::Suspended => Err(Code::SessionSuspended.into()),
        SessionStatus::Terminated | SessionStatus::Expired => Err(Code::SessionNotLive.into()),
    }
}

async fn try_acquire(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
    now: Timestamp,
) -> Result<Option<(i64, Timestamp)>, StoreError> {
    let until = now.plus(coordinator.config.lease);
    let mut tx = coordinator.store.begin("acquire a lease").await?;
    let generation = tx
        .zone(&call.zone)
        .sessions()
        .take_lease(&row.id, now, until)
        .await?;
    if generation.is_some() {
        tx.commit().await?;
    }
    Ok(generation.map(|generation| (generation, until)))
}

/// What a heartbeat says.
struct Beat {
    generation: i64,
    active_invocations: i64,
    names_service: bool,
}

impl Beat {
    fn read(call: &Call) -> Result<Self, Failure> {
        let body = call.body()?;
        let mut fields = Fields::of(&body);
        if fields.get("lease_generation").is_none() {
            fields.wrong("lease_generation", "is required");
        }
        let generation = fields
            .int("lease_generation", 1..=i64::MAX)
            .unwrap_or_default();
        let states = [
            ("starting", ()),
            ("healthy", ()),
            ("degraded", ()),
            ("unhealthy", ()),
        ];
        fields.word("status", &states);
        fields.object("metadata");
        let active_invocations = fields
            .int("active_invocations", 0..=i64::MAX)
            .unwrap_or_default();
        let names_service = fields.text("service_id").is_some();
        fields.end()?;
        Ok(Self {
            generation,
            active_invocations,
            names_service,
        })
    }
}

/// `POST /zones/{zone}/agents/{id}/heartbeat`
pub async fn heartbeat(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let beat = Beat::read(&call)?;
    for attempt in 0..ATTEMPTS {
        let now = coordinator.clock.now();
        let row = managed(&coordinator, &call).await?;
        check_beat(&coordinator, &call, &row, &beat, now).await?;
        match try_renew(&coordinator, &call, &row, &beat, now).await {
            Ok(Some((status, until))) => {
                coordinator.announce().await;
                return Ok(Answer::ok(&render(&call, &row, &beat, status, now, until)));
            }
            // What beat us may be in the store's queue and not yet to be read.
            Ok(None) => coordinator.pause(attempt).await,
            Err(error) if is_busy(&error) => coordinator.pause(attempt).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Code::Unavailable.into())
}

async fn check_beat(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
    beat: &Beat,
    now: Timestamp,
) -> Result<(), Failure> {
    if row.is_over() {
        return Err(Code::SessionNotLive.into());
    }
    if row.lifecycle != Lifecycle::Service {
        return Err(Code::SessionNotService.into());
    }
    check_subject(coordinator, call, row, now).await?;
    if row.lease_generation != beat.generation {
        return Err(Code::SessionLeaseFenced.into());
    }
    check_lapse(coordinator, call, row, now).await?;
    check_bearer(coordinator, call, row, now).await?;
    // Registered services are not part of this service yet, so none of them is known.
    if beat.names_service {
        Err(Code::AgentServiceNotFound.into())
    } else {
        Ok(())
    }
}

async fn try_renew(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
    beat: &Beat,
    now: Timestamp,
) -> Result<Option<(SessionStatus, Timestamp)>, StoreError> {
    let until = now.plus(coordinator.config.lease);
    let mut tx = coordinator.store.begin("renew a lease").await?;
    let mut sessions = tx.zone(&call.zone).sessions();
    let status = sessions.renew(&row.id, beat.generation, now, until).await?;
    if status.is_some() {
        tx.commit().await?;
    }
    Ok(status.map(|status| (status, until)))
}

fn render(
    call: &Call,
    row: &SessionRow,
    beat: &Beat,
    status: SessionStatus,
    now: Timestamp,
    until: Timestamp,
) -> Value {
    json!({
        "agent": {
            "id": row.id,
            "zone_id": call.zone,
            "application_id": row.application_id,
            "status": status.as_str(),
            "last_active_at": now.iso_millis(),
            "last_heartbeat_at": now.iso_millis(),
            "heartbeat_deadline_at": until.iso_millis(),
            "lease_generation": beat.generation,
        },
        "service": null,
        "active_invocations": beat.active_invocations,
    })
}

/// A Session whose user is gone ends, whoever asks.
async fn check_subject(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
    now: Timestamp,
) -> Result<(), Failure> {
    if row.subject_type != SubjectType::User {
        return Ok(());
    }
    let anchors = Anchors {
        records: &[&row.subject_record_id],
        ..Anchors::default()
    };
    let revoked = coordinator.views.revoked(&anchors).await?.is_some();
    let record = coordinator
        .views
        .record(&call.zone, &row.subject_record_id)
        .await?;
    if !revoked && record.is_some_and(|record| record.is_live(now)) {
        return Ok(());
    }
    let roots = [Root {
        id: row.id.clone(),
        parent: row.parent_id.clone(),
    }];
    let mut cut = Cut::of(&roots, SUBJECT_INACTIVE, now);
    cut.cut_off = true;
    end(coordinator, &call.zone, &cut).await?;
    Err(Code::SessionSubjectInactive.into())
}

/// A lease that has lapsed is not renewed: the Session is suspended, as the sweeper would.
async fn check_lapse(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
    now: Timestamp,
) -> Result<(), Failure> {
    if row.status != SessionStatus::Active || row.is_live(now) {
        return Ok(());
    }
    suspend_tree(coordinator, &call.zone, &row.id, HEARTBEAT_LOST, true).await?;
    Err(Code::SessionLeaseExpired.into())
}

/// Only the application itself, with a record of its own, holds a lease.
async fn check_bearer(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
    now: Timestamp,
) -> Result<(), Failure> {
    let Some(record) = call.caller.record() else {
        return Err(Code::AuthorityRecordRequired.into());
    };
    let record = coordinator.views.record(&call.zone, record).await?;
    let is_own = record.is_some_and(|record| {
        record.is_live(now)
            && record.record_type == SubjectType::Application
            && *record.subject_id == *row.application_id.as_str()
    });
    if is_own {
        Ok(())
    } else {
        Err(Code::IdentityRevoked.into())
    }
}
