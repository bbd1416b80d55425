//! The exchange of a client credential for a mandate (spec: sts §2.3 to §2.8): a lifecycle token,
//! or a gateway mandate under a Delegation.
//!
//! [`client_exchange`] is the order. Evidence of every outcome that concerns a known application
//! is durable before the outcome leaves.

use std::net::IpAddr;
use std::sync::Arc;

use caracal_authority::decide::{
    Class, Decision, ExchangeRequest, Facts, Outcome, RequestedResource, Standing,
};
use caracal_authority::subject_type_text;
use caracal_ledger::Event;
use caracal_model::{
    ApplicationId, DelegationId, Mandate, RecordId, Refusal, Refused, RequestId, ResourceId,
    Secret, SessionId, Timestamp, TokenUse, ZoneId,
};
use caracal_store::authority_records::AuthorityRecord;
use caracal_view::{Resource, Seen, ZoneView};

use crate::anew::{self, Basis};
use crate::approval::exchange::{self as approval, Price};
use crate::approval::{Ask, Refusing};
use crate::authenticate::{Caller, authenticate, in_zone, invalid, unavailable};
use crate::events::{self, Trail};
use crate::form::{SubjectTokenType, TokenRequest};
use crate::gateway::verified;
use crate::known::{Gathered, Presented};
use crate::patience::Patience;
use crate::rate::Charged;
use crate::{Sts, actor, control, federation, guesses, late, registry, sign};

/// What the caller gets.
pub struct Issued {
    /// The token.
    pub token: Secret<String>,
    /// Its claims.
    pub mandate: Mandate,
}

/// A refusal, and whether its evidence was written already.
pub enum Early {
    /// It was.
    Recorded(Refused),
    /// It was not.
    Unrecorded(Refused),
}

impl From<Refused> for Early {
    fn from(refused: Refused) -> Self {
        Self::Unrecorded(refused)
    }
}

impl Early {
    /// The refusal, once its evidence is written.
    ///
    /// # Errors
    /// 503 when the evidence cannot be written.
    pub async fn settle(
        self,
        sts: &Sts,
        caller: &Caller,
        request_id: &RequestId,
    ) -> Result<Refused, Refused> {
        match self {
            Self::Recorded(refused) => Ok(refused),
            Self::Unrecorded(refused) => {
                let (zone, id) = (caller.zone.id.clone(), &caller.application.id);
                let status = "exchange_denied";
                let event = events::refused_early(sts, zone, id, request_id, &refused, status);
                record(sts, vec![event]).await?;
                Ok(refused)
            }
        }
    }
}

/// Exchanges the credential of an application.
///
/// # Errors
/// What the caller is told; its evidence is written.
pub async fn client_exchange(
    sts: &Sts,
    request: &TokenRequest,
    source: IpAddr,
    request_id: &RequestId,
    patience: Patience,
) -> Result<Issued, Refused> {
    actor::admitted(sts, request).await?;
    let since = sts.clock.ticks();
    let authenticated = authenticate(sts, request, source).await;
    let took = sts.clock.ticks().since(since);
    sts.metrics.stages.authenticate.took(took);
    let caller = match authenticated {
        Ok(caller) => caller,
        Err(failure) => {
            let refused = failure.refused;
            if let Some(tried) = failure.tried {
                guesses::on_record(sts, tried, request_id, &refused).await?;
            }
            return Err(refused);
        }
    };
    if let Some(token) = id_token(request) {
        let seen = sts.views.seen(&caller.zone.id);
        let caller = still(sts, &caller.zone.id, &caller.application.id, request_id).await?;
        return federation::federate(sts, request, token, &caller, seen, request_id, patience)
            .await;
    }
    let mut charged = Charged::default();
    for _ in 0..anew::TRIES {
        let seen = sts.views.seen(&caller.zone.id);
        let caller = still(sts, &caller.zone.id, &caller.application.id, request_id).await?;
        match decided(sts, request, &caller, request_id, seen, &mut charged).await {
            Ok(Some(issued)) => return Ok(issued),
            Ok(None) => {}
            Err(early) => return Err(early.settle(sts, &caller, request_id).await?),
        }
    }
    let early = Early::from(anew::unsettled());
    Err(early.settle(sts, &caller, request_id).await?)
}

/// The zone and the application that were authenticated, as they are now.
///
/// # Errors
/// 401 when the application is gone, which is on record; 503 when state cannot be read.
pub async fn still(
    sts: &Sts,
    zone: &ZoneId,
    application: &ApplicationId,
    request_id: &RequestId,
) -> Result<Caller, Refused> {
    if let Some(caller) = in_zone(sts, zone, application).await? {
        return Ok(caller);
    }
    let refused = invalid();
    let status = CAME_TO_NOTHING;
    let event = events::refused_early(sts, zone.clone(), application, request_id, &refused, status);
    record(sts, vec![event]).await?;
    Err(refused)
}

fn id_token(form: &TokenRequest) -> Option<&str> {
    let subject = form.subject.as_ref()?;
    (subject.kind == SubjectTokenType::IdToken).then(|| subject.token.expose().as_str())
}

/// Ids from the form. Text that is no id names nothing that exists.
struct Named {
    record: Option<RecordId>,
    session: Option<SessionId>,
    delegation: Option<DelegationId>,
}

impl Named {
    fn read(request: &TokenRequest) -> Result<Self, Refused> {
        let unknown = |name| Refusal::AccessDenied.because(format!("{name} does not exist"));
        let record = request
            .session_id
            .as_deref()
            .map(RecordId::parse)
            .transpose();
        let session = request
            .agent_session_id
            .as_deref()
            .map(SessionId::parse)
            .transpose();
        let edge = request
            .delegation_edge_id
            .as_deref()
            .map(DelegationId::parse)
            .transpose();
        Ok(Self {
            record: record.map_err(|_| unknown("session_id"))?,
            session: session.map_err(|_| unknown("agent_session_id"))?,
            delegation: edge.map_err(|_| unknown("delegation_edge_id"))?,
        })
    }

    fn class(&self) -> Class<'static> {
        if self.session.is_some() && self.delegation.is_some() {
            Class::Delegated
        } else {
            Class::Bootstrap
        }
    }
}

/// `None` when what it was decided on changed before it could be issued.
async fn decided(
    sts: &Sts,
    form: &TokenRequest,
    caller: &Caller,
    request_id: &RequestId,
    seen: Seen,
    charged: &mut Charged,
) -> Result<Option<Issued>, Early> {
    let named = Named::read(form)?;
    let zone = &caller.zone;
    let subject = subject_mandate(sts, form, zone).await?;
    let acting = actor::verified(sts, form, zone).await?;
    let control = control::key(sts, form, caller);
    let presented = Presented {
        actor: acting.as_ref().map(|mandate| &mandate.sid),
        record: subject
            .as_ref()
            .map(|mandate| &mandate.sid)
            .or(named.record.as_ref()),
        session: named.session.as_ref(),
        delegation: named.delegation.as_ref(),
    };
    let gathered = Gathered::gather(sts, &zone.id, presented).await?;
    let basis = Basis {
        seen,
        zone,
        presented,
        gathered: &gathered,
        mandates: [subject.as_ref(), acting.as_ref()],
    };
    let request = ExchangeRequest {
        class: match (&subject, &control) {
            (Some(presented), _) => Class::SubjectToken { presented },
            (None, Some(key)) => Class::Control { key },
            (None, None) => named.class(),
        },
        zone: &zone.id,
        request_id,
        application: &caller.application.id,
        registration_method: &caller.application.registration_method,
        scope: &form.scope,
        ttl_seconds: form.ttl_seconds.unwrap_or(0),
        session_id: named.record.as_ref(),
        agent_session_id: named.session.as_ref(),
        delegation_edge_id: named.delegation.as_ref(),
        actor: acting.as_ref(),
    };
    let found: Vec<_> = form.resources.iter().map(|name| find(zone, name)).collect();
    let mut resources: Vec<_> = form
        .resources
        .iter()
        .zip(&found)
        .map(|(name, found)| wish(name, found))
        .collect();
    let now = sts.clock.now();
    let trail = Trail {
        request,
        application: &caller.application,
        session: gathered.session(named.session.as_ref()),
        policy: &zone.policy,
        now,
    };
    let facts = facts(sts, &gathered, &[]);
    let standing = Standing::establish(&request, &facts, now);
    let presented = match &form.approval_id {
        None => None,
        Some(id) => {
            let ask = approval::ask(caller, &request, form, &found, standing.as_ref().ok());
            Some(approval::presented(sts, caller, &ask, id).await?)
        }
    };
    let mut standing = standing?;
    if presented.is_some() {
        standing = standing.resolved();
    }
    for (resource, found) in resources.iter_mut().zip(&found) {
        if let (true, Some(found)) = (standing.is_chargeable(resource), found) {
            resource.rate_limited = charged.over_rate(sts, caller, found).await?;
        }
    }
    let standing = standing.with_resources(&resources);
    let since = sts.clock.ticks();
    let decision = standing.decide(&zone.policy);
    let took = sts.clock.ticks().since(since);
    sts.metrics.stages.policy.took(took);
    // Most exchanges need no approval, and pay nothing for the question.
    if presented.is_none() && !matches!(decision.outcome, Outcome::Hold(_)) {
        return issue(sts, &basis, &trail, decision, None).await;
    }
    let ask = approval::ask(caller, &request, form, &found, Some(&standing));
    let (decision, price) = approval::settle(sts, &ask, &standing, decision, presented).await;
    let price = price.as_ref().map(|price| (&ask, price));
    issue(sts, &basis, &trail, decision, price).await
}

/// `evaluation_status` of what was allowed, and then could not be given.
pub const CAME_TO_NOTHING: &str = "exchange_denied";

/// What is known, as the kernel takes it.
pub fn facts<'a>(
    sts: &'a Sts,
    gathered: &'a Gathered,
    resources: &'a [RequestedResource<'a>],
) -> Facts<'a> {
    Facts {
        resources,
        known: gathered.known(),
        lineage: &gathered.lineage,
        epoch: gathered.epoch,
        control_audience: &sts.config.control_audience,
        max_grant_ttl_seconds: sts.config.max_grant_ttl,
    }
}

/// Signs what was granted, spends its approval, sees that it stands, writes the evidence, and only
/// then lets go of it. `None` when it does not stand: nothing was spent and nothing is on record.
async fn issue(
    sts: &Sts,
    basis: &Basis<'_>,
    trail: &Trail<'_>,
    decision: Decision,
    price: Option<(&Ask<'_>, &Price)>,
) -> Result<Option<Issued>, Early> {
    let grant = match &decision.outcome {
        Outcome::Grant(grant) => grant,
        Outcome::Hold(_) => {
            let why = Refusal::AccessDenied.because("human approval required");
            return Err(denied(sts, trail, &decision.withheld("complete", why)).await);
        }
        Outcome::Deny(_) => return Err(denied(sts, trail, &decision).await),
    };
    let mut mandate = sign::mandate(sts, grant);
    if let Some((_, price)) = price {
        price.shape(&mut mandate)?;
    }
    let token = match sign::sign(sts, basis.zone, &mandate) {
        Ok(token) => token,
        Err(why) => {
            return Err(denied(sts, trail, &decision.withheld(CAME_TO_NOTHING, why)).await);
        }
    };
    if let Some((ask, price)) = price {
        // Before it is paid: what is spent cannot be given back.
        if !basis.stands(sts, Some(&mandate)).await? {
            return Ok(None);
        }
        let paid = price.pay(sts, ask, &mandate, trail.now).await;
        if let Err(Refusing { status, why }) = paid {
            return Err(denied(sts, trail, &decision.withheld(status, why)).await);
        }
    } else {
        if keeps_record(&trail.request.class, &mandate) {
            let request_id = trail.request.request_id;
            keep_record(sts, request_id, &mandate, None, trail.now).await?;
        }
        if !basis.stands(sts, Some(&mandate)).await? {
            return Ok(None);
        }
    }
    let events = trail.events(sts, &decision, Some(&mandate));
    record(sts, events).await.map_err(Early::Recorded)?;
    Ok(Some(Issued { token, mandate }))
}

/// The refusal of a decision, on record.
pub async fn denied(sts: &Sts, trail: &Trail<'_>, decision: &Decision) -> Early {
    if let Err(unavailable) = record(sts, trail.events(sts, decision, None)).await {
        return Early::Recorded(unavailable);
    }
    Early::Recorded(match &decision.outcome {
        Outcome::Deny(refused) => refused.clone(),
        _ => Refusal::Internal.because("nothing was decided"),
    })
}

/// Writes evidence; when that is not possible nothing may be answered but 503.
///
/// # Errors
/// 503 `sts_unavailable`.
pub async fn record(sts: &Sts, events: Vec<Event>) -> Result<(), Refused> {
    let events = Arc::from(events);
    late::records(&events);
    let since = sts.clock.ticks();
    let recorded = sts.evidence.record(&events).await;
    let took = sts.clock.ticks().since(since);
    sts.metrics.stages.evidence.took(took);
    recorded.map_err(|error| {
        tracing::error!(%error, "denied: evidence cannot be written");
        error.into()
    })
}

/// The session mandate that is presented as subject token. The kernel lets policy see it and grants
/// nothing for it: such calls belong to the Gateway.
async fn subject_mandate(
    sts: &Sts,
    form: &TokenRequest,
    zone: &ZoneView,
) -> Result<Option<Mandate>, Refused> {
    let Some(subject) = &form.subject else {
        return Ok(None);
    };
    let mandate = verified(sts, subject.token.expose(), zone, TokenUse::Session)?;
    let revoked = sts.views.mandate_revoked(&mandate).await;
    match revoked.map_err(|error| unavailable(&error))? {
        None => Ok(Some(mandate)),
        Some(_) => Err(Refusal::AccessDenied.because("authority record is not active")),
    }
}

/// A resource by its identifier, or by its row id.
pub fn find(zone: &ZoneView, name: &str) -> Option<Arc<Resource>> {
    let by_id = || zone.resources.by_id(&ResourceId::parse(name).ok()?);
    zone.resources
        .by_identifier(name)
        .or_else(by_id)
        .map(Arc::clone)
}

/// A mint injects nothing, so it does not ask for a credential; the exchange of the call will.
fn wish<'a>(name: &'a str, found: &'a Option<Arc<Resource>>) -> RequestedResource<'a> {
    RequestedResource {
        requested: name,
        found: found.as_deref().map(|resource| &resource.facts),
        rate_limited: None,
        credential_fault: None,
    }
}

/// Whether a mandate has a row of its own: session and Control mandates do.
fn keeps_record(class: &Class<'_>, mandate: &Mandate) -> bool {
    mandate.token_use == TokenUse::Session || matches!(class, Class::Control { .. })
}

/// The row of a mandate that has one. `issuer` vouches for a user.
pub fn record_of(mandate: &Mandate, issuer: Option<&str>, now: Timestamp) -> AuthorityRecord {
    AuthorityRecord {
        id: mandate.sid.clone(),
        record_type: subject_type_text(mandate.sub_type).to_owned(),
        subject_id: mandate.sub.clone(),
        client_id: mandate.client_id.to_string(),
        parent_id: None,
        status: "active".to_owned(),
        expires_at: Timestamp::from_unix_seconds(mandate.exp),
        created_at: now,
        revoked_at: None,
        revoked_reason: None,
        issuer: issuer.map(str::to_owned),
    }
}

/// Session and Control mandates have a row: they can be listed, and revoked one by one.
///
/// # Errors
/// 500 when their id was issued before; 503 when they cannot be registered and stored.
pub async fn keep_record(
    sts: &Sts,
    request_id: &RequestId,
    mandate: &Mandate,
    issuer: Option<&str>,
    now: Timestamp,
) -> Result<(), Refused> {
    registry::register(sts, request_id, mandate).await?;
    let row = record_of(mandate, issuer, now);
    let keep = async {
        let mut tx = sts.store.begin("keeping an authority record").await?;
        tx.zone(&mandate.zone_id)
            .add_authority_records(&[row])
            .await?;
        tx.commit().await
    };
    keep.await.map_err(|error| {
        tracing::warn!(%error, "denied: the authority record cannot be stored");
        Refusal::Unavailable.because("the authority record cannot be stored, try again shortly")
    })
}
