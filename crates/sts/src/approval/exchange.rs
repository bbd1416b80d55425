//! Where a token exchange meets its approval (spec: sts §11.2, §11.4).

use std::sync::Arc;

use caracal_authority::decide::{Decision, ExchangeRequest, Outcome, Standing};
use caracal_model::{Mandate, RecordId, Refused, RequestId, Timestamp};
use caracal_store::approvals::Approval;
use caracal_store::authority_records::AuthorityRecord;
use caracal_view::Resource;
use serde_json::{Map, json};

use super::{Ask, Presented, Refusing, consume, covers, evidence, gate};
use crate::Sts;
use crate::authenticate::Caller;
use crate::events;
use crate::exchange::{Early, record, record_of};
use crate::form::TokenRequest;

/// What is asked for. `standing` is what the request turned out to stand on; a presented approval
/// is looked at even when it stands on nothing.
pub fn ask<'a>(
    caller: &'a Caller,
    request: &ExchangeRequest<'a>,
    form: &'a TokenRequest,
    found: &'a [Option<Arc<Resource>>],
    standing: Option<&Standing<'a>>,
) -> Ask<'a> {
    let presented = request.class.presented();
    let application = &caller.application;
    let request = standing.map_or(*request, |standing| *standing.request());
    Ask {
        zone: &caller.zone,
        request_id: request.request_id,
        principal: presented.map_or(application.id.as_str(), |mandate| mandate.sub.as_str()),
        application: Some(&application.id),
        record: request.session_id.or(presented.map(|mandate| &mandate.sid)),
        session: request.agent_session_id,
        delegation: request.delegation_edge_id,
        resources: form
            .resources
            .iter()
            .zip(found)
            .map(|(name, found)| match found {
                Some(found) => &*found.facts.identifier,
                None => name.as_str(),
            })
            .collect(),
        scopes: form.scopes.iter().collect(),
        labels: standing
            .and_then(Standing::session)
            .map_or_else(Default::default, |session| session.labels.as_slice()),
        subject_anchor: standing.and_then(|standing| standing.subject_anchor().map(str::to_owned)),
        actors: request.actor_records().collect(),
        own_records: standing.map(Standing::own_records).unwrap_or_default(),
        about: Map::from_iter([
            ("application_name".to_owned(), json!(application.name)),
            (
                "application_registration_method".to_owned(),
                json!(application.registration_method),
            ),
        ]),
    }
}

/// The approval that the caller presents. Its refusal is on record.
pub async fn presented(
    sts: &Sts,
    caller: &Caller,
    ask: &Ask<'_>,
    id: &str,
) -> Result<Presented, Early> {
    match super::presented(sts, ask, id).await {
        Ok(presented) => Ok(presented),
        Err(refusing) => Err(on_record(sts, caller, ask.request_id, refusing).await),
    }
}

async fn on_record(
    sts: &Sts,
    caller: &Caller,
    request_id: &RequestId,
    refusing: Refusing,
) -> Early {
    let Refusing { status, why } = refusing;
    // Nothing was decided: "complete" would say that policy was asked.
    let status = if status == super::WAITING {
        "exchange_denied"
    } else {
        status
    };
    let (zone, id) = (caller.zone.id.clone(), &caller.application.id);
    let event = events::refused_early(sts, zone, id, request_id, &why, status);
    Early::Recorded(match record(sts, vec![event]).await {
        Ok(()) => why,
        Err(unavailable) => unavailable,
    })
}

/// What a grant costs, if it costs anything.
pub enum Price {
    /// This hold.
    Hold(Approval),
    /// Nothing any more: the hold was spent a moment ago, for this record.
    Paid(Approval, Box<AuthorityRecord>),
}

/// Passes the gate: what waits for a human is refused until one has approved, and what was approved
/// is decided again, as approved.
pub async fn settle(
    sts: &Sts,
    ask: &Ask<'_>,
    standing: &Standing<'_>,
    decision: Decision,
    presented: Option<Presented>,
) -> (Decision, Option<Price>) {
    let (decision, price) = match presented {
        Some(Presented::Approved(hold)) => (decision, Price::Hold(hold)),
        Some(Presented::Spent(hold, record)) => (decision, Price::Paid(hold, record)),
        None => {
            let Outcome::Hold(requirement) = decision.outcome.clone() else {
                return (decision, None);
            };
            match gate(sts, ask, &requirement).await {
                Ok(hold) => {
                    let decision = standing.clone().resolved().decide(&ask.zone.policy);
                    (decision, Price::Hold(hold))
                }
                Err(Refusing { status, why }) => return (decision.withheld(status, why), None),
            }
        }
    };
    if let (Outcome::Grant(_), Price::Hold(hold) | Price::Paid(hold, _)) =
        (&decision.outcome, &price)
        && let Err(Refusing { status, why }) = covers(ask, decision.requirement.as_ref(), hold)
    {
        return (decision.withheld(status, why), None);
    }
    (decision, Some(price))
}

impl Price {
    /// What a mandate becomes for it: that of a record which exists already carries it on.
    ///
    /// # Errors
    /// 409 when the record has no life left.
    pub fn shape(&self, mandate: &mut Mandate) -> Result<(), Refused> {
        let Self::Paid(_, issued) = self else {
            return Ok(());
        };
        mandate.sid = issued.id.clone();
        mandate.root_sid = issued.id.clone();
        mandate.exp = mandate.exp.min(issued.expires_at.unix_seconds());
        if mandate.exp <= mandate.iat {
            return Err(Refusing::consumed().why);
        }
        Ok(())
    }

    /// Pays, and keeps the record of the mandate with it.
    ///
    /// # Errors
    /// Why it cannot be paid.
    pub async fn pay(
        &self,
        sts: &Sts,
        ask: &Ask<'_>,
        mandate: &Mandate,
        now: Timestamp,
    ) -> Result<(), Refusing> {
        match self {
            Self::Hold(hold) => consume(sts, ask, hold, Some(&record_of(mandate, None, now))).await,
            Self::Paid(hold, issued) => again(sts, ask, hold, &issued.id).await,
        }
    }
}

async fn again(
    sts: &Sts,
    ask: &Ask<'_>,
    hold: &Approval,
    issued: &RecordId,
) -> Result<(), Refusing> {
    let event = evidence::reissued(sts, ask, hold, issued);
    let recorded = record(sts, vec![event]).await;
    recorded.map_err(|why| Refusing::new("exchange_denied", why))
}
