//! `GET /approvals/{id}` and `POST /approvals/{id}/decision` (spec: sts §11.3, §11.5).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use caracal_authority::approval::approver;
use caracal_authority::{ApproverClass, Course, Privacy};
use caracal_ledger::Event;
use caracal_model::{ApprovalId, Mandate, RecordId, Refusal, Refused, SubjectType, TokenUse};
use caracal_net::{Problem, bearer, body};
use caracal_store::StoreError;
use caracal_store::approvals::{Approval, Verdict};
use caracal_view::{ViewError, ZoneView};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, WWW_AUTHENTICATE};
use serde_json::{Map, Value, json};

use super::{course, evidence, unavailable, uuid, wait};
use crate::form::MAX_BODY;
use crate::gateway::verified;
use crate::{Sts, authenticate};

/// Longest wait.
const MOST: u64 = 25;
/// Longest reason, in bytes.
const MAX_REASON: usize = 500;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"caracal-sts\"");

/// No such hold.
pub fn unknown() -> Refused {
    Refusal::NotFound.because("approval not found")
}

/// How a hold stands; waits for a decision when asked to.
pub async fn read(
    State(sts): State<Arc<Sts>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let id = uuid(&id).ok_or_else(unknown)?;
    let seconds = seconds(query.as_deref())?;
    let course = wait::wait(&sts, &id, Duration::from_secs(seconds)).await?;
    Ok(standing(&sts, &id, &course))
}

fn seconds(query: Option<&str>) -> Result<u64, Refused> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut waits = pairs.filter(|(name, _)| name == "wait");
    let wrong = || Refusal::BadRequest.because("wait must be a whole number of seconds, sent once");
    match (waits.next(), waits.next()) {
        (None, _) => Ok(0),
        (Some((_, text)), None) if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() => {
            // More digits than a number holds ask for a long wait.
            Ok(text.parse::<u64>().unwrap_or(MOST).min(MOST))
        }
        _ => Err(wrong()),
    }
}

fn standing(sts: &Sts, id: &ApprovalId, course: &Course) -> Response {
    let body = json!({
        "id": id,
        "state": course.state(sts.clock.now()).as_str(),
        "expires_at": course.expires_at.iso_seconds(),
    });
    ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// What a user says.
struct Said {
    approved: bool,
    binding: String,
    reason: Option<String>,
}

impl Said {
    fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let wrong = |why: &'static str| Refusal::BadRequest.because(why);
        let body: Value =
            serde_json::from_slice(bytes).map_err(|_| wrong("the body must be a JSON object"))?;
        let text = |name: &str| match body.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.contains('\0') => Ok(Some(text.clone())),
            Some(_) => Err(wrong(
                "decision, binding and reason are text without U+0000",
            )),
        };
        let approved = match text("decision")?.as_deref() {
            Some("approved") => true,
            Some("rejected") => false,
            _ => return Err(wrong("decision must be approved or rejected")),
        };
        let binding = text("binding")?.filter(|binding| !binding.is_empty());
        let reason = text("reason")?.filter(|reason| !reason.is_empty());
        if reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_REASON)
        {
            return Err(wrong("reason is longer than 500 bytes"));
        }
        Ok(Self {
            approved,
            binding: binding.ok_or_else(|| wrong("binding is required: that of the hold"))?,
            reason,
        })
    }
}

/// A federated user decides. The order of the checks is that of the specification.
pub async fn decide(
    State(sts): State<Arc<Sts>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let id = uuid(&id).ok_or_else(unknown)?;
    let (parts, body) = request.into_parts();
    let token = bearer::token(&parts.headers).ok_or_else(|| {
        challenged(Refusal::TokenInvalid.because("a user's session mandate is required as bearer"))
    })?;
    let bytes = body::read(body, MAX_BODY, BODY_TIMEOUT).await?;
    let said = Said::read(&bytes)?;
    let found = sts.store.find_approval(&id).await;
    let hold = found
        .map_err(|error| unavailable(&error))?
        .ok_or_else(unknown)?;
    let zone = zone(&sts, &hold).await?;
    let mandate = verified(&sts, token, &zone, TokenUse::Session).map_err(challenged)?;
    may_decide(&sts, &hold, &mandate).await?;
    if hold.binding != said.binding {
        return Err(Refusal::ApprovalConflict
            .because("binding is not that of the hold")
            .into());
    }
    let decided = commit(&sts, &zone, &hold, &mandate, &said).await?;
    Ok(standing(&sts, &id, &course(&decided)))
}

fn challenged(refused: Refused) -> Problem {
    Problem::from(refused).header(WWW_AUTHENTICATE, CHALLENGE)
}

async fn zone(sts: &Sts, hold: &Approval) -> Result<Arc<ZoneView>, Problem> {
    sts.views
        .zone(&hold.zone)
        .await
        .map_err(|error| match error {
            ViewError::UnknownZone => unknown().into(),
            error => authenticate::unavailable(&error).into(),
        })
}

/// Who a user must be to decide this hold.
async fn may_decide(sts: &Sts, hold: &Approval, mandate: &Mandate) -> Result<(), Refused> {
    let denied = |why: &'static str| Err(Refusal::AccessDenied.because(why));
    if mandate.sub_type != SubjectType::User {
        return denied("only a federated user can decide here");
    }
    let Some(application) = &hold.application_id else {
        return denied("this approval belongs to no application: an operator decides it");
    };
    let record = sts.views.record(&hold.zone, &mandate.sid).await;
    let record = record.map_err(|error| authenticate::unavailable(&error))?;
    let live = record.is_some_and(|record| {
        record.is_live(sts.clock.now())
            && *record.subject_id == *mandate.sub
            && record.client_id == *application
    });
    if !live || mandate.client_id != *application {
        return denied("the session is not live, or is with another application");
    }
    let class = ApproverClass::parse(&hold.approver_class);
    if !class.is_some_and(ApproverClass::admits_subject) {
        return denied("this approval is for an operator to decide");
    }
    if hold
        .subject_anchor
        .as_ref()
        .is_some_and(|anchor| *anchor != mandate.sub)
    {
        return denied("this approval is for another user to decide");
    }
    if is_namesake(sts, hold, &mandate.sid).await? {
        return denied("this approval is for a user of another issuer to decide");
    }
    if is_own(sts, hold, &mandate.sid).await? {
        return denied("the agent acts with this very session: sign in anew to decide");
    }
    Ok(())
}

/// The records of the request.
fn own(hold: &Approval) -> Vec<&RecordId> {
    hold.own_records.iter().chain(&hold.record_id).collect()
}

/// Whether the approver only has the name of the user for whom the agent acts: the issuers of a zone
/// give out names by themselves, and may give one to two people.
async fn is_namesake(sts: &Sts, hold: &Approval, approver: &RecordId) -> Result<bool, Refused> {
    let Some(anchor) = &hold.subject_anchor else {
        return Ok(false);
    };
    let scope = sts.store.zone(&hold.zone);
    let issuer_of = async |id: &RecordId| {
        let record = scope.authority_record(id).await;
        let record = record.map_err(|error| unavailable(&error))?;
        let user = record.filter(|record| record.subject_id == *anchor);
        Ok::<_, Refused>(user.and_then(|user| user.issuer))
    };
    // Imported records may not say.
    let Some(vouched_by) = issuer_of(approver).await? else {
        return Ok(false);
    };
    for id in own(hold) {
        if issuer_of(id)
            .await?
            .is_some_and(|issuer| issuer != vouched_by)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the approver's record lies in one line with a record of the request: then the agent may
/// hold its token, and would approve for itself.
async fn is_own(sts: &Sts, hold: &Approval, approver: &RecordId) -> Result<bool, Refused> {
    let own = own(hold);
    if own.contains(&approver) {
        return Ok(true);
    }
    let mut all = own.clone();
    all.push(approver);
    let line = sts.store.zone(&hold.zone).approvals().ancestry(&all).await;
    let line = line.map_err(|error| unavailable(&error))?;
    Ok(line.iter().any(|(start, ancestor)| {
        let up = start == approver && own.contains(&ancestor);
        up || (ancestor == approver && own.contains(&start))
    }))
}

async fn commit(
    sts: &Sts,
    zone: &ZoneView,
    hold: &Approval,
    mandate: &Mandate,
    said: &Said,
) -> Result<Approval, Refused> {
    // An unknown mode keeps nothing.
    let privacy = Privacy::parse(&hold.privacy_mode).unwrap_or(Privacy::Anonymous);
    let known = approver(privacy, &hold.zone, &mandate.sub);
    let verdict = Verdict {
        approved: said.approved,
        approver: &known,
        record: Some(&mandate.sid),
        reason: said.reason.as_deref(),
        class: "subject",
    };
    let kept = keep(sts, zone, hold, verdict).await;
    let Some((decided, event)) = kept.map_err(|error| unavailable(&error))? else {
        return Err(Refusal::ApprovalConflict.because("approval is not pending"));
    };
    sts.announce.announce().await;
    evidence::record(sts, event).await;
    Ok(decided)
}

/// The decision and the text of its evidence, in one step; `None` when it comes too late.
async fn keep(
    sts: &Sts,
    zone: &ZoneView,
    hold: &Approval,
    verdict: Verdict<'_>,
) -> Result<Option<(Approval, Event)>, StoreError> {
    let now = sts.clock.now();
    let mut tx = sts.store.begin("deciding an approval").await?;
    let mut approvals = tx.zone(&hold.zone).approvals();
    let Some(decided) = approvals.decide(&hold.id, verdict, now).await? else {
        tx.rollback().await;
        return Ok(None);
    };
    let event = evidence::decided(sts, &decided, verdict.approved, who(zone, hold));
    let text = event.to_wire();
    approvals
        .witness(evidence::witness(&event, &text), now)
        .await?;
    tx.commit().await?;
    Ok(Some((decided, event)))
}

/// The application that asks, as evidence names it.
fn who(zone: &ZoneView, hold: &Approval) -> Map<String, Value> {
    let application = hold
        .application_id
        .as_ref()
        .and_then(|id| zone.applications.get(id));
    let Some(application) = application else {
        return Map::new();
    };
    Map::from_iter([
        ("application_name".to_owned(), json!(application.name)),
        (
            "application_registration_method".to_owned(),
            json!(application.registration_method),
        ),
    ])
}
