//! Where a token exchange meets its approval (spec: sts §11.2, §11.4).

use caracal_authority::decide::{Decision, ExchangeRequest, Outcome, RequestedResource, Standing};
use caracal_model::{Mandate, RecordId, Refused, RequestId, Scopes, Timestamp};
use caracal_store::approvals::Approval;
use caracal_store::authority_records::AuthorityRecord;
use serde_json::{Map, json};

use super::{Ask, Presented, Refusing, consume, covers, evidence, gate};
use crate::Sts;
use crate::authenticate::Caller;
use crate::events;
use crate::exchange::{Early, record, record_of};

/// What is asked for. `standing` is what the request turned out to stand on; a presented approval
/// is looked at even when it stands on nothing.
pub fn ask<'a>(
    caller: &'a Caller,
    request: &ExchangeRequest<'a>,
    scopes: &'a Scopes,
    resources: &[RequestedResource<'a>],
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
        resources: resources
            .iter()
            .map(|one| one.found.map_or(one.requested, |found| &*found.identifier))
            .collect(),
        scopes: scopes.iter().collect(),
        labels: standing
            .and_then(Standing::session)
            .map_or_else(Default::default, |session| session.labels.as_slice()),
        subject_anchor: standing.and_then(|standing| standing.subject_anchor().map(str::to_owned)),
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

/// The approval that the form names, if it names one. Its refusal is on record.
pub async fn presented(
    sts: &Sts,
    caller: &Caller,
    ask: &Ask<'_>,
    id: Option<&str>,
) -> Result<Option<Presented>, Early> {
    let Some(id) = id else {
        return Ok(None);
    };
    match super::presented(sts, ask, id).await {
        Ok(presented) => Ok(Some(presented)),
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

/// What a grant costs.
pub enum Price {
    /// Nothing: no approval is needed.
    Nothing,
    /// This hold.
    Hold(Approval),
    /// Nothing any more: the hold was spent a moment ago, for this record.
    Paid(Approval, AuthorityRecord),
}

/// Passes the gate: what waits for a human is refused until one has approved, and what was approved
/// is decided again, as approved.
pub async fn settle(
    sts: &Sts,
    ask: &Ask<'_>,
    standing: &Standing<'_>,
    decision: Decision,
    presented: Option<Presented>,
) -> (Decision, Price) {
    let (decision, price) = match presented {
        Some(Presented::Approved(hold)) => (decision, Price::Hold(hold)),
        Some(Presented::Spent(hold, record)) => (decision, Price::Paid(hold, record)),
        None => match decision.outcome.clone() {
            Outcome::Hold(requirement) => match gate(sts, ask, &requirement).await {
                Ok(hold) => {
                    let decision = standing.clone().resolved().decide(&ask.zone.policy);
                    (decision, Price::Hold(hold))
                }
                Err(Refusing { status, why }) => {
                    return (decision.withheld(status, why), Price::Nothing);
                }
            },
            Outcome::Grant(_) | Outcome::Deny(_) => (decision, Price::Nothing),
        },
    };
    if let (Outcome::Grant(_), Price::Hold(hold) | Price::Paid(hold, _)) =
        (&decision.outcome, &price)
        && let Err(refusing) = covers(ask, decision.requirement.as_ref(), hold)
    {
        return (
            decision.withheld(refusing.status, refusing.why),
            Price::Nothing,
        );
    }
    (decision, price)
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

    /// Pays, with the record of the mandate. `false` when nothing was paid, so that the record is
    /// still to be kept.
    ///
    /// # Errors
    /// Why it cannot be paid.
    pub async fn pay(
        &self,
        sts: &Sts,
        ask: &Ask<'_>,
        mandate: &Mandate,
        now: Timestamp,
    ) -> Result<bool, Refusing> {
        match self {
            Self::Nothing => Ok(false),
            Self::Hold(hold) => {
                consume(sts, ask, hold, Some(&record_of(mandate, now))).await?;
                Ok(true)
            }
            Self::Paid(hold, issued) => {
                again(sts, ask, hold, &issued.id).await?;
                Ok(true)
            }
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
