//! Evidence of approvals (spec: sts §17; audit-and-streams §5.2).
//!
//! An event of a hold is true when, and only when, its change was committed; yet evidence lives in
//! a log of its own. So its text is committed with the change, then recorded, then forgotten in the
//! store. What a crash leaves behind is recorded later under the same id (`listen::sweep`), which
//! Audit takes once.

use caracal_authority::Privacy;
use caracal_authority::approval::known_as;
use caracal_ledger::Event;
use caracal_model::{EventId, RecordId};
use caracal_store::approvals::{Approval, Witness};
use serde_json::{Map, Value, json};

use super::Ask;
use crate::Sts;

/// A human is asked.
pub fn issued(sts: &Sts, ask: &Ask<'_>, hold: &Approval) -> Event {
    let metadata = about(hold, ask.about.clone());
    event(
        sts,
        hold,
        "step_up_issued",
        ask.request_id.as_str(),
        "pending",
        metadata,
    )
}

/// A hold is spent, for this record.
pub fn consumed(sts: &Sts, ask: &Ask<'_>, hold: &Approval, record: Option<&RecordId>) -> Event {
    let mut metadata = about(hold, ask.about.clone());
    if let Some(record) = record {
        metadata.insert("authority_record_id".to_owned(), json!(record));
    }
    event(
        sts,
        hold,
        "step_up_consumed",
        ask.request_id.as_str(),
        "consumed",
        metadata,
    )
}

/// Another bearer is issued for the record of a hold that was spent a moment ago.
pub fn reissued(sts: &Sts, ask: &Ask<'_>, hold: &Approval, record: &RecordId) -> Event {
    let mut metadata = about(hold, ask.about.clone());
    metadata.insert("reissued".to_owned(), json!(true));
    metadata.insert("authority_record_id".to_owned(), json!(record));
    event(
        sts,
        hold,
        "step_up_consumed",
        ask.request_id.as_str(),
        "consumed",
        metadata,
    )
}

/// A user has decided.
pub fn decided(sts: &Sts, hold: &Approval, approved: bool, who: Map<String, Value>) -> Event {
    let mut metadata = about(hold, who);
    metadata.insert("approver_plane".to_owned(), json!("subject"));
    metadata.insert(
        "approver_session_id".to_owned(),
        json!(hold.approver_record_id),
    );
    if let Some(reason) = &hold.decision_reason {
        metadata.insert("reason".to_owned(), json!(reason));
    }
    let decision = if approved { "approved" } else { "rejected" };
    event(
        sts,
        hold,
        "step_up_decided",
        hold.id.as_str(),
        decision,
        metadata,
    )
}

fn event(
    sts: &Sts,
    hold: &Approval,
    what: &'static str,
    request_id: &str,
    decision: &'static str,
    metadata: Map<String, Value>,
) -> Event {
    let id = EventId::trusted(sts.ids.uuid());
    let (zone, now) = (hold.zone.clone(), sts.clock.now());
    Event::new(id, zone, what, request_id, decision, "complete", now).metadata(metadata)
}

/// What is told of a hold. A user is named no more plainly than the hold's privacy allows.
fn about(hold: &Approval, mut metadata: Map<String, Value>) -> Map<String, Value> {
    let mut put = |name: &str, value: Value| {
        metadata.insert(name.to_owned(), value);
    };
    put("challenge_id", json!(hold.id));
    put("tier", json!(hold.tier));
    put("approver_class", json!(hold.approver_class));
    put("privacy_mode", json!(hold.privacy_mode));
    put("binding", json!(hold.binding));
    put("expires_at", json!(hold.expires_at.iso_seconds()));
    let privacy = Privacy::parse(&hold.privacy_mode).unwrap_or(Privacy::Anonymous);
    let anchor = hold.subject_anchor.as_deref();
    if let Some(anchor) = anchor.and_then(|anchor| known_as(privacy, &hold.zone, anchor)) {
        put("subject_anchor", json!(anchor));
    }
    if let Some(application) = &hold.application_id {
        put("application_id", json!(application));
    }
    if let Some(record) = &hold.record_id {
        put("session_id", json!(record));
    }
    for name in ["agent_session_id", "delegation_edge_id", "agent_labels"] {
        if let Some(value) = hold.metadata.get(name) {
            put(name, value.clone());
        }
    }
    metadata
}

/// What is committed with the change.
pub fn witness<'e>(event: &'e Event, text: &'e str) -> Witness<'e> {
    Witness {
        event_id: event.id.as_str(),
        event: text,
    }
}

/// Records what was committed. It cannot fail any more: what is not recorded now is so later.
pub async fn record(sts: &Sts, event: Event) {
    let id = event.id.clone();
    if let Err(error) = sts.evidence.record(&[event]).await {
        tracing::warn!(%error, "evidence of an approval waits in the store");
        return;
    }
    if let Err(error) = sts.store.approval_evidence_recorded(&[id.as_str()]).await {
        tracing::debug!(%error, "evidence of an approval will be recorded once more");
    }
}
