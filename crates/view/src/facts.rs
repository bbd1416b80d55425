//! From stored rows to the facts of the kernel. The store and the kernel do not know each other;
//! this is where they meet.

use caracal_authority::{
    Constraints, EdgeFacts, EdgeStatus, Lifecycle, RecordFacts, RecordStatus, SessionFacts,
    SessionStatus, subject_type_from,
};
use caracal_model::ApplicationId;
use caracal_store::authority_records::AuthorityRecord;
use caracal_store::delegations::EdgeRow;
use caracal_store::sessions::SessionRow;

use crate::ViewError;

fn unknown(what: &str, word: &str) -> ViewError {
    ViewError::Corrupt(format!("{what} {word}"))
}

pub(crate) fn session(row: SessionRow) -> Result<SessionFacts, ViewError> {
    let (lifecycle, status) = (row.lifecycle.as_str(), row.status.as_str());
    Ok(SessionFacts {
        lifecycle: Lifecycle::parse(lifecycle).ok_or_else(|| unknown("lifecycle", lifecycle))?,
        status: SessionStatus::parse(status).ok_or_else(|| unknown("status", status))?,
        id: row.id,
        application_id: row.application_id,
        parent_id: row.parent_id,
        subject_record_id: row.subject_record_id,
        subject_type: row.subject_type,
        labels: row.labels.into_iter().map(Into::into).collect(),
        depth: row.depth,
        started_at: row.started_at,
        ends_at: row.ends_at,
        heartbeat_deadline_at: row.heartbeat_deadline_at,
    })
}

pub(crate) fn edge(row: EdgeRow) -> Result<EdgeFacts, ViewError> {
    let status = row.status.as_str();
    let constraints = Constraints::parse(&row.constraints_json)
        .map_err(|error| unknown("constraints:", &error.to_string()))?;
    Ok(EdgeFacts {
        status: EdgeStatus::parse(status).ok_or_else(|| unknown("status", status))?,
        constraints,
        id: row.id,
        source_session_id: row.source_session_id,
        target_session_id: row.target_session_id,
        issuer_application_id: row.issuer_application_id,
        receiver_application_id: row.receiver_application_id,
        parent_edge_id: row.parent_edge_id,
        mirrored: row.mirrored,
        resource_id: row.resource_id,
        scopes: row.scopes,
        constraints_json: row.constraints_json,
        expires_at: row.expires_at,
    })
}

pub(crate) fn record(row: AuthorityRecord) -> Result<RecordFacts, ViewError> {
    let kind = subject_type_from(&row.record_type);
    Ok(RecordFacts {
        record_type: kind.ok_or_else(|| unknown("record type", &row.record_type))?,
        status: RecordStatus::parse(&row.status).ok_or_else(|| unknown("status", &row.status))?,
        id: row.id,
        subject_id: row.subject_id.into(),
        client_id: ApplicationId::trusted(row.client_id),
        expires_at: row.expires_at,
    })
}
