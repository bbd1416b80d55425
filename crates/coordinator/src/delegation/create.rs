//! `POST /zones/{zone}/delegations` (spec: coordinator §7.1). `create` is the order; the rules are
//! the kernel's. Everything that can change is read inside the transaction, with the two Sessions
//! and the parent edge held, so that a revocation comes either before or after, never between.

use axum::extract::State;
use caracal_authority::{
    Constraints, EdgeFacts, NamedResource, NarrowError, Narrowed, narrow, narrow::expiry,
    select_parent,
};
use caracal_model::{ApplicationId, DelegationId, ResourceId, Scopes, SessionId, Timestamp};
use caracal_store::delegations::{EdgeRow, EdgeStatus};
use caracal_store::{StoreError, Tx};
use caracal_view::ZoneView;
use serde_json::{Value, json};

use super::render;
use crate::answer::Answer;
use crate::call::Call;
use crate::facts;
use crate::failure::{Code, Failure};
use crate::fields::{Body, Fields};
use crate::receipts::{self, Keyed};
use crate::service::{ATTEMPTS, Coordinator, is_busy};

const MAX_TTL: i64 = 86_400;

/// What is asked for.
struct Wish {
    source: String,
    target: String,
    issuer: String,
    receiver: String,
    parent: Option<String>,
    resource: Option<String>,
    scopes: Scopes,
    constraints: Constraints,
    expires_at: Option<Timestamp>,
}

struct Request<'a> {
    coordinator: &'a Coordinator,
    call: &'a Call,
    issuer: &'a ApplicationId,
    wish: &'a Wish,
}

/// What came of the checks: a refusal is not an error of the store.
type Outcome<T> = Result<Result<T, Failure>, StoreError>;

/// Creates a Delegation.
pub async fn create(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let wish = Wish::read(&call.body()?)?;
    expiry(wish.expires_at, &wish.constraints, coordinator.clock.now())?;
    let issuer = ApplicationId::parse(&wish.issuer)
        .ok()
        .filter(|issuer| call.caller.delegates_from(issuer))
        .ok_or(Code::IssuerOwnershipRequired)?;
    if wish.source == wish.target {
        return Err(Code::SelfDelegationDenied.into());
    }
    let is_broad = wish.resource.is_none() && wish.constraints.resources.is_none();
    if is_broad && !call.caller.delegates_broadly(&issuer) {
        return Err(Code::BroadDelegationPermissionRequired.into());
    }
    let request = Request {
        coordinator: &coordinator,
        call: &call,
        issuer: &issuer,
        wish: &wish,
    };
    let keyed = request.keyed()?;
    Box::pin(request.run(keyed.as_ref())).await
}

impl Wish {
    fn read(body: &Body) -> Result<Self, Failure> {
        let mut fields = Fields::of(body);
        let ttl = fields
            .int("ttl_seconds", 1..=MAX_TTL)
            .and_then(|ttl| u32::try_from(ttl).ok());
        let scopes = fields.texts("scopes", usize::MAX, |scope| {
            if scope.is_empty() || scope.contains('\0') {
                Err("must not be empty or hold U+0000")
            } else {
                Ok(scope.to_owned())
            }
        });
        let expires_at = fields.text("expires_at").map(Timestamp::parse_utc);
        if matches!(expires_at, Some(Err(_))) {
            fields.wrong(
                "expires_at",
                "must be a UTC time such as 2026-01-01T00:00:00Z",
            );
        }
        let text = |text: Option<&str>| text.map(str::to_owned);
        let mut wish = Self {
            source: fields.required_text("source_session_id").to_owned(),
            target: fields.required_text("target_session_id").to_owned(),
            issuer: fields.required_text("issuer_application_id").to_owned(),
            receiver: fields.required_text("receiver_application_id").to_owned(),
            parent: text(fields.nullable_text("parent_edge_id")),
            resource: text(fields.nullable_text("resource_id")),
            scopes: scopes.unwrap_or_default().iter().collect(),
            constraints: Constraints::default(),
            expires_at: expires_at.and_then(Result::ok),
        };
        fields.end()?;
        let (old, new) = (body.get("constraints_json"), body.get("constraints"));
        wish.constraints = Constraints::from_request(old, new, ttl)
            .map_err(|error| Failure::constraint(error.code.to_owned()))?;
        Ok(wish)
    }

    /// The resources that are named, found in the zone.
    fn resolve(&self, zone: &ZoneView) -> Result<caracal_authority::Wish, Failure> {
        let find = |name: &str| {
            let id = ResourceId::parse(name).ok();
            let found = zone
                .resources
                .by_identifier(name)
                .or_else(|| id.and_then(|id| zone.resources.by_id(&id)))
                .ok_or(Code::ResourceNotFound)?;
            Ok::<_, Failure>(NamedResource {
                id: found.facts.id.clone(),
                identifier: found.facts.identifier.clone(),
                scopes: found.facts.scopes.clone(),
            })
        };
        let constrained = self.constraints.resources.iter().flatten();
        Ok(caracal_authority::Wish {
            resource: self.resource.as_deref().map(find).transpose()?,
            constrained: constrained
                .map(|name| find(name))
                .collect::<Result<_, _>>()?,
            scopes: self.scopes.clone(),
            constraints: self.constraints.clone(),
            expires_at: self.expires_at,
        })
    }
}

impl Request<'_> {
    fn keyed(&self) -> Result<Option<Keyed<'_>>, Failure> {
        let coordinator = self.coordinator;
        let key = receipts::key(&self.call.headers)
            .inspect_err(|_| coordinator.metrics.idempotency.invalid())?;
        let Some(key) = key else {
            return Ok(None);
        };
        let (wish, caller) = (self.wish, self.call.runtime()?);
        let inputs = json!({
            "client_id": caller.application,
            "sub": caller.subject,
            "source_session_id": wish.source,
            "target_session_id": wish.target,
            "issuer_application_id": wish.issuer,
            "receiver_application_id": wish.receiver,
            "parent_edge_id": wish.parent,
            "resource_id": wish.resource,
            "scopes": wish.scopes,
            "constraints": wish.constraints.to_json(),
            "expires_at": wish.expires_at.map(Timestamp::iso_micros),
        });
        let scope = receipts::scope(receipts::DELEGATE, self.issuer);
        let retention = coordinator.config.receipt_retention;
        Ok(Some(Keyed::new(
            coordinator,
            &self.call.zone,
            scope,
            key,
            &inputs,
            retention,
        )))
    }

    async fn run(&self, keyed: Option<&Keyed<'_>>) -> Result<Answer, Failure> {
        let coordinator = self.coordinator;
        for attempt in 0..ATTEMPTS {
            if let Some(answer) = self.replay(keyed).await? {
                return Ok(answer);
            }
            let zone = coordinator.views.zone(&self.call.zone).await?;
            match Box::pin(self.attempt(&zone, keyed)).await {
                Ok(Ok(Some(answer))) => {
                    coordinator.announce().await;
                    return Ok(answer);
                }
                // What beat us may be in the store's queue and not yet to be read.
                Ok(Ok(None)) => coordinator.pause(attempt).await,
                Ok(Err(refused)) => return Err(refused),
                Err(error) if is_busy(&error) => coordinator.pause(attempt).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Code::Unavailable
            .refuse()
            .because("too much contention; try again"))
    }

    async fn replay(&self, keyed: Option<&Keyed<'_>>) -> Result<Option<Answer>, Failure> {
        let now = self.coordinator.clock.now();
        let Some(keyed) = keyed else {
            return Ok(None);
        };
        let Some(receipt) = keyed.find(self.coordinator, now).await? else {
            return Ok(None);
        };
        let id = DelegationId::trusted(receipt.result_id.as_str());
        let edge = self
            .coordinator
            .store
            .zone(&self.call.zone)
            .delegations()
            .get(&id)
            .await?;
        let is_live = edge.is_some_and(|edge| edge.is_live(now));
        Keyed::replay(self.coordinator, receipt, is_live).map(Some)
    }

    /// One transaction; `None` when somebody used the key meanwhile.
    async fn attempt(&self, zone: &ZoneView, keyed: Option<&Keyed<'_>>) -> Outcome<Option<Answer>> {
        let now = self.coordinator.clock.now();
        let mut tx = self.coordinator.store.begin("create a delegation").await?;
        let (edge, answer) = match self.checked(&mut tx, zone, now).await? {
            Ok(checked) => checked,
            Err(refused) => return Ok(Err(refused)),
        };
        tx.zone(&self.call.zone).delegations().create(&edge).await?;
        if let Some(keyed) = keyed
            && !keyed.write(&mut tx, edge.id.as_str(), &answer, now).await?
        {
            return Ok(Ok(None));
        }
        tx.commit().await?;
        if keyed.is_some() {
            self.coordinator.metrics.idempotency.created();
        }
        Ok(Ok(Some(answer)))
    }

    /// Checks 7 to 14, in their order.
    async fn checked(
        &self,
        tx: &mut Tx,
        zone: &ZoneView,
        now: Timestamp,
    ) -> Outcome<(EdgeRow, Answer)> {
        let none = || Ok(Err(Code::DelegationEndpointNotFound.into()));
        let (Ok(source), Ok(target)) = (
            SessionId::parse(&self.wish.source),
            SessionId::parse(&self.wish.target),
        ) else {
            return none();
        };
        let ends = tx
            .zone(&zone.id)
            .delegations()
            .hold_endpoints(&source, &target)
            .await?;
        let (Some(source), Some(target)) = (ends.source, ends.target) else {
            return none();
        };
        if !source.is_live(now) || !target.is_live(now) {
            return none();
        }
        if source.application_id != *self.issuer
            || target.application_id.as_str() != self.wish.receiver
        {
            return Ok(Err(Code::DelegationApplicationMismatch.into()));
        }
        let wish = match self.resolved(zone, now) {
            Ok(wish) => wish,
            Err(refused) => return Ok(Err(refused)),
        };
        let inbound = tx
            .zone(&zone.id)
            .delegations()
            .hold_inbound(&source.id)
            .await?;
        let inbound = inbound
            .iter()
            .map(facts::edge)
            .collect::<Result<Vec<_>, _>>()?;
        let named = self.wish.parent.as_deref().map(DelegationId::trusted);
        let parent = match select_parent(&facts::session(&source)?, &inbound, named.as_ref(), now) {
            Ok(parent) => parent,
            Err(error) => return Ok(Err(error.into())),
        };
        let narrowed = narrow(parent, &wish, now);
        // A circle is told before an expiry in the past.
        if matches!(narrowed, Ok(_) | Err(NarrowError::Expired)) {
            let mut edges = tx.zone(&zone.id).delegations();
            if edges.leads_to(&target.id, &source.id, now).await? {
                return Ok(Err(Code::DelegationCycleDenied.into()));
            }
        }
        let narrowed = match narrowed {
            Ok(narrowed) => narrowed,
            Err(error) => return Ok(Err(error.into())),
        };
        let live = inbound
            .iter()
            .filter(|edge| edge.is_live(now))
            .map(|edge| &edge.id)
            .collect();
        let edge = self.edge(narrowed.clone(), source.id, target.id, now);
        let answer = Answer::created(&explained(zone, &edge, &narrowed, &wish, parent, live));
        Ok(Ok((edge, answer)))
    }

    /// Checks 9 and 10.
    fn resolved(
        &self,
        zone: &ZoneView,
        now: Timestamp,
    ) -> Result<caracal_authority::Wish, Failure> {
        let wish = self.wish.resolve(zone)?;
        match narrow(None, &wish, now) {
            Err(
                error @ (NarrowError::ResourceScopeMismatch | NarrowError::ScopesExceedResource),
            ) => Err(error.into()),
            _ => Ok(wish),
        }
    }

    fn edge(
        &self,
        narrowed: Narrowed,
        source: SessionId,
        target: SessionId,
        now: Timestamp,
    ) -> EdgeRow {
        EdgeRow {
            id: DelegationId::trusted(self.coordinator.ids.uuid()),
            source_session_id: source,
            target_session_id: target,
            issuer_application_id: self.issuer.clone(),
            receiver_application_id: ApplicationId::trusted(self.wish.receiver.as_str()),
            parent_edge_id: narrowed.parent_edge_id,
            mirrored: false,
            resource_id: narrowed.resource_id,
            scopes: narrowed.scopes,
            constraints_json: narrowed.constraints.to_json(),
            status: EdgeStatus::Active,
            edge_version: 0,
            expires_at: narrowed.expires_at,
            created_at: now,
            revoked_at: None,
        }
    }
}

/// The answer: the edge, and why it was allowed.
fn explained(
    zone: &ZoneView,
    edge: &EdgeRow,
    narrowed: &Narrowed,
    wish: &caracal_authority::Wish,
    parent: Option<&EdgeFacts>,
    considered: Vec<&DelegationId>,
) -> Value {
    let mut body = render(&zone.id, edge);
    let resources: std::collections::BTreeSet<_> = wish
        .resource
        .iter()
        .chain(&wish.constrained)
        .map(|one| &one.identifier)
        .collect();
    let warnings: &[&str] = if narrowed.broad {
        &["resource_null_delegation_broadens_resource_matching"]
    } else {
        &[]
    };
    let more = json!({
        "warnings": warnings,
        "allow_reason": [
            "same_zone_endpoints_active",
            if narrowed.broad { "broad_delegation_elevated" } else { "resource_scope_checked" },
            if parent.is_some() { "parent_authority_narrowed" } else { "source_authority_root" },
            "typed_constraints_validated",
        ],
        "effective_authority": {
            "source_session_id": edge.source_session_id,
            "target_session_id": edge.target_session_id,
            "parent_edge_id": edge.parent_edge_id,
            "resource_id": edge.resource_id,
            "resources": resources,
            "scopes": edge.scopes,
            "expires_at": edge.expires_at.iso_millis(),
            "max_hops": narrowed.constraints.max_hops.unwrap_or(1),
            "ttl_seconds": narrowed.constraints.ttl_seconds,
            "broad": narrowed.broad,
            "parent_edges_considered": considered,
        },
    });
    if let (Value::Object(members), Value::Object(more)) = (&mut body, more) {
        members.remove("id");
        members.insert("delegation_edge_id".to_owned(), json!(edge.id));
        members.extend(more);
    }
    body
}

impl From<NarrowError> for Failure {
    fn from(error: NarrowError) -> Self {
        match error {
            NarrowError::ExpiryRequired => Code::DelegationExpiryRequired,
            NarrowError::ResourceScopeMismatch => Code::DelegationResourceScopeMismatch,
            NarrowError::ScopesExceedResource => Code::DelegationScopesExceedResource,
            NarrowError::ParentNotActive => Code::ParentDelegationNotActive,
            NarrowError::ParentAmbiguous => Code::ParentDelegationAmbiguous,
            NarrowError::ExceedsParent => Code::DelegationExceedsParentAuthority,
            NarrowError::Expired => Code::DelegationExpired,
        }
        .into()
    }
}
