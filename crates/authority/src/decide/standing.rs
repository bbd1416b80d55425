//! Who is asking, on whose authority: everything that holds for the request as a whole, before any
//! resource is looked at (spec: sts §2.5 steps 4 to 7, §2.7, §9).

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_model::{RecordId, Refusal, Refused, Scopes, SubjectType, Timestamp, TokenUse};

use super::actor;
use super::outcome::LineageClaims;
use super::request::{Class, ExchangeRequest, Facts};
use crate::control::ControlKey;
use crate::facts::SessionFacts;
use crate::lineage::Lineage;
use crate::ttl::{self, Bounds};

/// A request whose Session, Delegation, subject token and lifetime hold.
#[derive(Clone, Debug)]
pub struct Standing<'a> {
    pub(super) request: ExchangeRequest<'a>,
    pub(super) facts: Facts<'a>,
    /// The scopes that are asked for.
    pub(super) requested: Scopes,
    /// The scopes that the new mandate carries: those asked for, or those of the presented one.
    pub(super) carried: Scopes,
    /// The authority record that was presented.
    pub(super) record: Option<&'a RecordId>,
    pub(super) session: Option<&'a SessionFacts>,
    pub(super) lineage: Option<Lineage<'a>>,
    pub(super) claims: Option<Arc<LineageClaims>>,
    /// `iat` and `exp`.
    pub(super) lifetime: (i64, i64),
    /// Whether a human has approved this very request.
    pub(super) resolved: bool,
    pub(super) now: Timestamp,
}

impl<'a> Standing<'a> {
    /// Checks the request as a whole.
    ///
    /// # Errors
    /// The refusal of the first check that fails.
    pub fn establish(
        request: &ExchangeRequest<'a>,
        facts: &Facts<'a>,
        now: Timestamp,
    ) -> Result<Self, Refused> {
        let presented = request.class.presented();
        let asked = ttl::requested(request.ttl_seconds, presented.is_some())?;
        let request = bind(*request)?;
        actor::check(&request, facts, now)?;
        let record = check_record(&request, facts, now)?;
        let session = check_session(&request, facts, now)?;
        let lineage = check_delegation(&request, facts, now)?;
        let requested = Scopes::parse(request.scope);
        let carried = match request.class {
            Class::Gateway { presented, .. } => Scopes::parse(&presented.scope),
            _ => requested.clone(),
        };
        if let Some(lineage) = &lineage {
            within(lineage, &carried, request.ttl_seconds)?;
        }
        let claims = lineage
            .as_ref()
            .map(|lineage| claims(&request, lineage, facts.epoch));
        Ok(Self {
            lifetime: lifetime(asked, &request, lineage.as_ref(), facts, now)?,
            now,
            request,
            facts: *facts,
            requested,
            carried,
            record,
            session,
            claims: claims.transpose()?.map(Arc::new),
            lineage,
            resolved: false,
        })
    }

    /// The scopes that the new mandate would carry.
    pub fn scopes(&self) -> &Scopes {
        &self.carried
    }

    /// The same request, approved by a human.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        self.resolved = true;
        self
    }

    /// The user on whose behalf the request is made, if there is one (spec: sts §11.1, subject
    /// anchor): that of the subject token, else the one that the Session hangs on.
    pub fn subject_anchor(&self) -> Option<&str> {
        let presented = self.request.class.presented();
        if let Some(user) = presented.filter(|p| p.sub_type == SubjectType::User) {
            return Some(&user.sub);
        }
        let session = self
            .session
            .filter(|s| s.subject_type == SubjectType::User)?;
        let mut records = self.facts.known.records.iter();
        let record = records.find(|record| record.id == session.subject_record_id)?;
        (record.record_type == SubjectType::User).then_some(&*record.subject_id)
    }

    /// The authority records that nobody may approve with, because the agent may hold their
    /// tokens: the presented one, those of the actors, and those that the Sessions of the lineage hang on. An SDK sends
    /// no record with a mint, so the Sessions are what counts.
    pub fn own_records(&self) -> BTreeSet<&'a RecordId> {
        let sessions = self.facts.known.sessions.iter();
        let anchors = sessions.map(|session| &session.subject_record_id);
        let actors = self.request.actor_records();
        self.record
            .into_iter()
            .chain(anchors)
            .chain(actors)
            .collect()
    }

    /// The authority record that was presented.
    pub fn record(&self) -> Option<&'a RecordId> {
        self.record
    }

    /// The request, with what its subject token says of Session and Delegation.
    pub fn request(&self) -> &ExchangeRequest<'a> {
        &self.request
    }

    /// The presenting Session.
    pub fn session(&self) -> Option<&'a SessionFacts> {
        self.session
    }
}

fn denied(why: &'static str) -> Refused {
    Refusal::AccessDenied.because(why)
}

/// Takes over what the subject token says about Session and Delegation; a form that says otherwise
/// is refused (sts §2.5, step 4).
fn bind(request: ExchangeRequest<'_>) -> Result<ExchangeRequest<'_>, Refused> {
    let Some(presented) = request.class.presented() else {
        return Ok(request);
    };
    let (token_use, wrong_use) = match request.class {
        Class::Gateway { .. } => (TokenUse::Gateway, "subject_token is not a gateway mandate"),
        _ => (TokenUse::Session, "subject_token is not a session mandate"),
    };
    if presented.token_use != token_use {
        return Err(Refusal::TokenInvalid.because(wrong_use));
    }
    if presented.zone_id != *request.zone {
        return Err(Refusal::TokenInvalid.because("subject_token is of another zone"));
    }
    if presented.client_id != *request.application {
        return Err(denied("subject_token belongs to another application"));
    }
    if request.session_id.is_some_and(|id| *id != presented.sid) {
        return Err(denied("session_id does not match subject_token"));
    }
    Ok(ExchangeRequest {
        session_id: Some(&presented.sid),
        agent_session_id: same(
            request.agent_session_id,
            presented.agent_session_id.as_ref(),
            "agent_session_id does not match subject_token",
        )?,
        delegation_edge_id: same(
            request.delegation_edge_id,
            presented.delegation_edge_id.as_ref(),
            "delegation_edge_id does not match subject_token",
        )?,
        ..request
    })
}

fn same<'a, T: PartialEq>(
    form: Option<&'a T>,
    claim: Option<&'a T>,
    otherwise: &'static str,
) -> Result<Option<&'a T>, Refused> {
    match (form, claim) {
        (Some(form), Some(claim)) if form != claim => Err(denied(otherwise)),
        _ => Ok(claim.or(form)),
    }
}

/// Authority record (sts §2.5 step 4 and §9 step 1). That of a Gateway mandate is evidence, not a
/// row: it stands on its signature and on the revocation table, which the caller has asked.
fn check_record<'a>(
    request: &ExchangeRequest<'a>,
    facts: &Facts<'a>,
    now: Timestamp,
) -> Result<Option<&'a RecordId>, Refused> {
    let Some(id) = request.session_id else {
        return Ok(None);
    };
    let live = || {
        let found = facts.known.live_record(id, now);
        found.ok_or(denied("authority record is not active"))
    };
    let belongs = match request.class {
        Class::Gateway { .. } => true,
        Class::SubjectToken { presented } => {
            let record = live()?;
            *record.subject_id == *presented.sub && record.client_id == *request.application
        }
        Class::Control { .. } => return Err(denied("a control key takes no authority record")),
        Class::Bootstrap | Class::Delegated => {
            let record = live()?;
            record.record_type == SubjectType::Application
                && *record.subject_id == *request.application.as_str()
        }
    };
    if belongs {
        Ok(Some(id))
    } else {
        Err(denied("authority record belongs to another subject"))
    }
}

/// Session (sts §9, step 2).
fn check_session<'a>(
    request: &ExchangeRequest<'a>,
    facts: &Facts<'a>,
    now: Timestamp,
) -> Result<Option<&'a SessionFacts>, Refused> {
    let Some(id) = request.agent_session_id else {
        return Ok(None);
    };
    if let Class::Control { .. } = request.class {
        return Err(denied("a control key takes no agent session"));
    }
    let session = facts
        .known
        .live_session(id, now)
        .ok_or(denied("agent session is not live"))?;
    if session.application_id != *request.application {
        return Err(denied("agent session belongs to another application"));
    }
    if let Class::SubjectToken { presented } = request.class
        && session.subject_record_id != presented.sid
    {
        return Err(denied("agent session hangs on another authority record"));
    }
    Ok(Some(session))
}

/// Delegation (sts §9, steps 3 to 9): each class has the one that it needs, and no other.
fn check_delegation<'a>(
    request: &ExchangeRequest<'a>,
    facts: &Facts<'a>,
    now: Timestamp,
) -> Result<Option<Lineage<'a>>, Refused> {
    let needed = match request.class {
        Class::Delegated | Class::Gateway { .. } => true,
        Class::Bootstrap | Class::Control { .. } => false,
        Class::SubjectToken { .. } => request.delegation_edge_id.is_some(),
    };
    match (request.delegation_edge_id, request.agent_session_id) {
        (Some(edge), Some(session)) if needed => {
            if facts.lineage.last().is_none_or(|leaf| leaf.id != *edge) {
                return Err(denied("delegation not found"));
            }
            let caller = request.application;
            Ok(Some(Lineage::check(
                facts.lineage,
                facts.known,
                caller,
                session,
                now,
            )?))
        }
        (Some(_), None) => Err(denied("a delegation needs its agent session")),
        (None, _) if !needed => Ok(None),
        _ => Err(denied("agent session and delegation belong together")),
    }
}

/// Step 6, for what the mandate will carry: what was asked for, or what the presented one has.
fn within(lineage: &Lineage<'_>, carried: &Scopes, ttl_seconds: i64) -> Result<(), Refused> {
    if !carried.is_within(lineage.scopes()) {
        return Err(denied("requested scopes exceed the delegation"));
    }
    if lineage
        .ttl_seconds()
        .is_some_and(|most| ttl_seconds > i64::from(most))
    {
        return Err(denied("ttl_seconds exceeds the delegation"));
    }
    Ok(())
}

fn lifetime(
    asked: i64,
    request: &ExchangeRequest<'_>,
    lineage: Option<&Lineage<'_>>,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Result<(i64, i64), Refused> {
    let (presented, actor) = (request.class.presented(), request.actor);
    // A key that is over opens nothing, which is said where the resource is judged.
    let key = match request.class {
        Class::Control { key } => Some(key).filter(|key| key.is_live(now)),
        _ => None,
    };
    let bounds = Bounds {
        deployment_seconds: facts.max_grant_ttl_seconds,
        lineage_seconds: lineage
            .and_then(Lineage::ttl_seconds)
            .or(key.and_then(ControlKey::max_ttl_seconds)),
        lineage_expires_at: lineage
            .map(Lineage::expires_at)
            .or(key.and_then(ControlKey::expires_at)),
        presented_exp: presented.or(actor).map(|mandate| mandate.exp),
    };
    let spent = presented.is_some_and(|mandate| mandate.exp <= now.unix_seconds());
    ttl::bounded(asked, bounds, now).ok_or_else(|| {
        if spent {
            Refusal::MandateExpiring.because("subject_token has no life left")
        } else if key.is_some() {
            denied("control key has no life left")
        } else if lineage.is_none() && actor.is_some() {
            denied("actor_token has no life left")
        } else {
            denied("delegation has no life left")
        }
    })
}

/// A mandate for a resource repeats the lineage of the presented one, which must be the lineage
/// that was checked: else it would vouch for a path that nobody looked at.
fn claims(
    request: &ExchangeRequest<'_>,
    lineage: &Lineage<'_>,
    epoch: u64,
) -> Result<LineageClaims, Refused> {
    let leaf = lineage.leaf();
    let checked = LineageClaims {
        agent_session_id: leaf.target_session_id.clone(),
        delegation_edge_id: leaf.id.clone(),
        source_session_id: Some(leaf.source_session_id.clone()),
        target_session_id: Some(leaf.target_session_id.clone()),
        path: lineage.path().cloned().collect(),
        chain: lineage.chain(),
        hop_count: u32::try_from(lineage.path().len()).ok(),
        epoch: (epoch > 0).then_some(epoch),
    };
    let Class::Gateway { presented, .. } = request.class else {
        return Ok(checked);
    };
    let same = presented.delegation_path == checked.path
        && presented.delegation_chain == checked.chain
        && presented.source_session_id == checked.source_session_id
        && presented.target_session_id == checked.target_session_id;
    if !same {
        return Err(denied("subject_token names another delegation path"));
    }
    Ok(LineageClaims {
        hop_count: presented.hop_count,
        epoch: presented.delegation_graph_epoch,
        ..checked
    })
}
