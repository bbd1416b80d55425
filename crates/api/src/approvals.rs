//! Approvals, the operator's side (spec: admin-api §9). The STS issues holds and spends them; here
//! they are listed and decided.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_authority::approval::known_as;
use caracal_authority::{ApprovalState, Course, Privacy};
use caracal_ledger::Event;
use caracal_model::{ApprovalId, EventId};
use caracal_store::StoreError;
use caracal_store::approvals::{Approval, Filter, Listed, Verdict, Witness};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::page::Page;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{self, Answer, At, Caller, Input};

const REASON: Text = Text::exact(0..=500);

fn no_approval(id: &str) -> Failure {
    let why = format!("there is no approval {id} in this zone");
    Failure::absent("approval_not_found", why)
}

fn state(api: &Api, approval: &Approval) -> ApprovalState {
    let course = Course {
        expires_at: approval.expires_at,
        satisfied_at: approval.satisfied_at,
        rejected_at: approval.rejected_at,
        consumed_at: approval.consumed_at,
    };
    course.state(api.clock.now())
}

/// The user who may decide, named no more plainly than the hold's privacy allows.
fn anchor(approval: &Approval) -> Option<String> {
    let privacy = Privacy::parse(&approval.privacy_mode).unwrap_or(Privacy::Anonymous);
    let anchor = approval.subject_anchor.as_deref()?;
    known_as(privacy, &approval.zone, anchor)
}

fn render(api: &Api, listed: &Listed) -> Value {
    let approval = &listed.approval;
    let time = |at: Option<caracal_model::Timestamp>| at.map(caracal_model::Timestamp::iso_millis);
    json!({
        "id": approval.id,
        "zone_id": approval.zone,
        "session_id": approval.record_id,
        "principal_id": approval.principal_id,
        "application_id": approval.application_id,
        "approval_type": "human_approval",
        "tier": approval.tier,
        "approver_class": approval.approver_class,
        "privacy_mode": approval.privacy_mode,
        "subject_anchor": anchor(approval),
        "binding": approval.binding,
        "metadata_json": approval.metadata,
        "decision_reason": approval.decision_reason,
        "created_at": approval.created_at.iso_millis(),
        "expires_at": approval.expires_at.iso_millis(),
        "satisfied_at": time(approval.satisfied_at),
        "rejected_at": time(approval.rejected_at),
        "consumed_at": time(approval.consumed_at),
        "approver_subject_id": approval.approver,
        "principal_federated": listed.principal_federated,
        "prior_approved": listed.prior_approved,
        "prior_rejected": listed.prior_rejected,
        "state": state(api, approval).as_str(),
    })
}

/// `GET /v1/zones/{zone}/approvals`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let page = Page::of_configuration(&query)?;
    let filter = Filter {
        state: query.word("state", ApprovalState::WORDS)?,
        tier: query.text("tier", 64)?,
        principal: query.text("principal", 128)?,
        since: query.time("since")?,
        until: query.time("until")?,
    };
    let approvals = api.store.zone(&at.zone).approvals();
    let rows = approvals
        .page(wire::slice(&page), filter, api.clock.now())
        .await?;
    let place = |row: &Listed| (row.approval.created_at, row.approval.id.to_string());
    wire::ok(page.envelope(&rows, |row| render(&api, row), place))
}

/// `GET /v1/zones/{zone}/approvals/counts`
pub async fn counts(State(api): State<Arc<Api>>, at: At) -> Answer {
    let found = api
        .store
        .zone(&at.zone)
        .approvals()
        .counts(api.clock.now())
        .await?;
    let mut counts: Map<String, Value> = ApprovalState::WORDS
        .iter()
        .map(|state| ((*state).to_owned(), json!(0)))
        .collect();
    counts.extend(
        found
            .into_iter()
            .map(|(state, count)| (state, json!(count))),
    );
    wire::ok(Value::Object(counts))
}

/// `GET /v1/zones/{zone}/approvals/{id}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    let approvals = api.store.zone(&at.zone).approvals();
    let found = approvals.listed(&at.id, api.clock.now()).await?;
    wire::ok(render(&api, &found.ok_or_else(|| no_approval(&at.id))?))
}

/// `POST /v1/zones/{zone}/approvals/{id}/approve`
pub async fn approve(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    decide(&api, &caller, &at, &input, true).await
}

/// `POST /v1/zones/{zone}/approvals/{id}/reject`
pub async fn reject(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    decide(&api, &caller, &at, &input, false).await
}

async fn decide(api: &Api, caller: &Caller, at: &At, input: &Input, approved: bool) -> Answer {
    let mut fields = Fields::of(input.object("invalid_approval")?);
    let reason = fields
        .text("reason", REASON)
        .filter(|reason| !reason.is_empty());
    fields.end("invalid_approval")?;
    let approver = match caller.actor.account() {
        Some(account) => format!("console:{account}"),
        None => format!("admin:{}", caller.actor.id),
    };
    let verdict = Verdict {
        approved,
        approver: &approver,
        record: None,
        reason: reason.as_deref(),
        class: "operator",
    };
    let Some((decided, event)) = commit(api, caller, at, verdict).await? else {
        return Err(why_not(api, at).await?);
    };
    api.announce().await;
    record(api, event).await;
    wire::ok(json!({
        "id": decided.id,
        "state": if approved { "approved" } else { "rejected" },
        "satisfied_at": decided.satisfied_at.map(caracal_model::Timestamp::iso_millis),
        "rejected_at": decided.rejected_at.map(caracal_model::Timestamp::iso_millis),
        "approver_subject_id": decided.approver,
    }))
}

/// The decision and the text of its evidence, in one step; `None` when it is not for us to decide.
async fn commit(
    api: &Api,
    caller: &Caller,
    at: &At,
    verdict: Verdict<'_>,
) -> Result<Option<(Approval, Event)>, StoreError> {
    let now = api.clock.now();
    let mut tx = api.store.begin("decide an approval").await?;
    let mut approvals = tx.zone(&at.zone).approvals();
    let id = ApprovalId::trusted(at.id.as_str());
    let Some(decided) = approvals.decide(&id, verdict, now).await? else {
        tx.rollback().await;
        return Ok(None);
    };
    let event = evidence(api, caller, &decided, verdict.approved);
    let text = event.to_wire();
    let witness = Witness {
        event_id: event.id.as_str(),
        event: &text,
    };
    approvals.witness(witness, now).await?;
    tx.commit().await?;
    Ok(Some((decided, event)))
}

fn evidence(api: &Api, caller: &Caller, approval: &Approval, approved: bool) -> Event {
    let mut metadata = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            metadata.insert(name.to_owned(), value);
        }
    };
    put("challenge_id", json!(approval.id));
    put("tier", json!(approval.tier));
    put("approver_class", json!(approval.approver_class));
    put("privacy_mode", json!(approval.privacy_mode));
    put("binding", json!(approval.binding));
    put("session_id", json!(approval.record_id));
    put("approver_plane", json!("operator"));
    put("approver_subject_id", json!(approval.approver));
    put("application_id", json!(approval.application_id));
    put("subject_anchor", json!(anchor(approval)));
    put("reason", json!(approval.decision_reason));
    for name in ["agent_session_id", "agent_labels"] {
        put(
            name,
            approval.metadata.get(name).cloned().unwrap_or_default(),
        );
    }
    Event::new(
        EventId::trusted(api.ids.uuid()),
        approval.zone.clone(),
        "step_up_decided",
        caller.request_id.as_str(),
        if approved { "approved" } else { "rejected" },
        "complete",
        api.clock.now(),
    )
    .metadata(metadata)
}

/// Records what was committed. What is not recorded now, the STS records later.
async fn record(api: &Api, event: Event) {
    let id = event.id.clone();
    if let Err(error) = api.evidence.record(&[event]).await {
        tracing::warn!(%error, "evidence of an approval waits in the store");
        return;
    }
    if let Err(error) = api.store.approval_evidence_recorded(&[id.as_str()]).await {
        tracing::debug!(%error, "evidence of an approval will be recorded once more");
    }
}

async fn why_not(api: &Api, at: &At) -> Result<Failure, Failure> {
    let id = ApprovalId::trusted(at.id.as_str());
    let found = api.store.zone(&at.zone).approvals().get(&id).await?;
    let approval = found.ok_or_else(|| no_approval(&at.id))?;
    let state = state(api, &approval);
    if state == ApprovalState::Pending && approval.approver_class == "subject" {
        return Ok(Failure::forbidden(
            "subject_approval_required",
            "this approval is for the user to decide, not for an operator",
        ));
    }
    let why = "the approval was decided or is over";
    Ok(Failure::conflict("approval_not_decidable", why).with("state", json!(state.as_str())))
}
