//! `POST /zones/{zone}/agents` (spec: coordinator §6.1). `start` is the order; the steps follow
//! below it.
//!
//! What is in the way is found by reading, because only that says precisely what it is; whether
//! nothing is in the way is decided by claiming, because only that is true under concurrency. A
//! claim that fails rolls everything back and looks again.

use std::time::Duration;

use axum::extract::State;
use caracal_authority::{InheritError, inheritable, mirror};
use caracal_model::{
    ApplicationId, DelegationId, RecordId, SessionId, SubjectType, Timestamp, ZoneId,
};
use caracal_store::StoreError;
use caracal_store::delegations::EdgeRow;
use caracal_store::sessions::{
    Counts, Lifecycle, NewSession, Quotas, SessionRow, SessionStatus, Start,
};
use caracal_view::ZoneView;
use serde_json::{Value, json};

use super::wish::Wish;
use super::{is_result_live, summary};
use crate::answer::Answer;
use crate::auth::is_open;
use crate::call::Call;
use crate::caller::Runtime;
use crate::facts;
use crate::failure::{Code, Failure};
use crate::receipts::{self, Keyed};
use crate::room::Scope;
use crate::service::{ATTEMPTS, Coordinator, is_busy};
use crate::subject::{self, Claim};
use crate::sweep;

/// Live children of one Session.
const MAX_CHILDREN: i64 = 10;
/// Depth of a Session; a root has 0.
const MAX_DEPTH: i64 = 10;

/// Everything that was found before anything is claimed.
struct Found {
    now: Timestamp,
    quotas: Quotas,
    counts: Counts,
    subject_type: SubjectType,
    parent: Option<SessionRow>,
    /// The edge of the parent that the child mirrors.
    inherited: Option<EdgeRow>,
}

/// Who starts what, where.
struct Request<'a> {
    coordinator: &'a Coordinator,
    caller: &'a Runtime,
    application: &'a ApplicationId,
    record: &'a RecordId,
    wish: &'a Wish,
}

/// Starts a Session.
pub async fn start(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let wish = Wish::read(&call.body()?)?;
    let caller = call.runtime()?;
    let named = wish
        .subject_session
        .as_deref()
        .map(RecordId::parse)
        .transpose();
    let named = named.map_err(|_| Code::SessionNotFound)?;
    let record = named
        .or_else(|| caller.record.clone())
        .ok_or(Code::SubjectSessionIdRequired)?;
    let application = ApplicationId::parse(&wish.application)
        .ok()
        .filter(|application| call.caller.starts_for(application))
        .ok_or(Code::ApplicationOwnershipRequired)?;
    let request = Request {
        coordinator: &coordinator,
        caller,
        application: &application,
        record: &record,
        wish: &wish,
    };
    let keyed = request.keyed(&call)?;
    Box::pin(request.run(keyed.as_ref())).await
}

impl Request<'_> {
    fn zone(&self) -> &ZoneId {
        &self.caller.zone
    }

    fn keyed(&self, call: &Call) -> Result<Option<Keyed<'_>>, Failure> {
        let config = &self.coordinator.config;
        let key = receipts::key(&call.headers)
            .inspect_err(|_| self.coordinator.metrics.idempotency.invalid())?;
        let Some(key) = key else {
            return Ok(None);
        };
        let retention = if receipts::is_generated(&call.headers) {
            config.generated_receipt_retention
        } else {
            config.receipt_retention
        };
        let wish = self.wish;
        let inputs = json!({
            "client_id": self.caller.application,
            "sub": self.caller.subject,
            "application_id": self.application,
            // The record of the token changes with every exchange; the application does not.
            "subject": wish.subject_session.as_deref().unwrap_or("calling application"),
            "parent_id": wish.parent,
            "lifecycle": wish.lifecycle.as_str(),
            "labels": wish.labels,
            "ttl_seconds": wish.ttl,
            "parent_authority": if wish.inherits { "inherit" } else { "none" },
            "inherit_parent_edge_id": wish.inherit_edge,
            "metadata": wish.metadata,
        });
        let scope = receipts::scope(receipts::START, self.application);
        Ok(Some(Keyed::new(
            self.coordinator,
            self.zone(),
            scope,
            key,
            &inputs,
            retention,
        )))
    }

    async fn run(&self, keyed: Option<&Keyed<'_>>) -> Result<Answer, Failure> {
        for attempt in 0..ATTEMPTS {
            if let Some(answer) = self.replay(keyed).await? {
                return Ok(answer);
            }
            let found = self.look(attempt > 0).await?;
            match Box::pin(self.commit(&found, keyed)).await {
                Ok(Some(answer)) => {
                    self.coordinator.announce().await;
                    return Ok(answer);
                }
                // What beat us may be in the store's queue and not yet to be read.
                Ok(None) => self.coordinator.pause(attempt).await,
                Err(error) if is_busy(&error) => self.coordinator.pause(attempt).await,
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
        let id = SessionId::trusted(receipt.result_id.as_str());
        let row = self
            .coordinator
            .store
            .zone(self.zone())
            .sessions()
            .get(&id)
            .await?;
        let is_live = row.is_some_and(|row| is_result_live(&row, now));
        Keyed::replay(self.coordinator, receipt, is_live).map(Some)
    }

    /// The checks of §6.1, in their order; `again` after a claim that failed.
    async fn look(&self, again: bool) -> Result<Found, Failure> {
        let zone = self.coordinator.views.zone(self.zone()).await?;
        let now = self.coordinator.clock.now();
        let is_dynamic = self.check_application(&zone, now)?;
        let claim = Claim {
            record: self.record.clone(),
            token: self.wish.subject_token.as_deref(),
        };
        let record = subject::anchor(
            self.coordinator,
            &zone,
            self.caller,
            self.application,
            &claim,
            now,
        )
        .await?;
        let quotas = self.quotas(is_dynamic);
        let has_room = !again && self.has_room(&quotas);
        let counts = if has_room {
            Counts::SOME
        } else {
            self.check_counts(is_dynamic, &quotas, now).await?
        };
        let parent = match &self.wish.parent {
            Some(parent) => Some(self.check_parent(&zone, parent, now).await?),
            None => None,
        };
        let inherited = match &parent {
            Some(parent) if self.wish.inherits => self.inherited(&parent.id, now).await?,
            _ => None,
        };
        let subject_type = record.record_type;
        Ok(Found {
            now,
            quotas,
            counts,
            subject_type,
            parent,
            inherited,
        })
    }

    /// Whether the application is a dynamically registered one.
    fn check_application(&self, zone: &ZoneView, now: Timestamp) -> Result<bool, Failure> {
        if !is_open(zone, self.application, now) {
            return Err(Code::ApplicationNotFound.into());
        }
        let is_dynamic = is_dynamic(zone, self.application);
        if is_dynamic && self.wish.lifecycle == Lifecycle::Service {
            return Err(Code::DcrApplicationCannotHostService.into());
        }
        if is_dynamic && self.wish.parent.is_some() {
            return Err(Code::DcrApplicationCannotBeChild.into());
        }
        Ok(is_dynamic)
    }

    fn quotas(&self, is_dynamic: bool) -> Quotas {
        let config = &self.coordinator.config;
        let application = i64::from(config.max_per_application);
        Quotas {
            zone: i64::from(config.max_per_zone),
            application: if is_dynamic {
                1.min(application)
            } else {
                application
            },
            children: MAX_CHILDREN,
            depth: MAX_DEPTH,
        }
    }

    async fn check_counts(
        &self,
        is_dynamic: bool,
        quotas: &Quotas,
        now: Timestamp,
    ) -> Result<Counts, Failure> {
        let mut counts = self.counts().await?;
        let is_full = |counts: &Counts| {
            counts.zone.unwrap_or(0) >= quotas.zone
                || counts.application.unwrap_or(0) >= quotas.application
        };
        // What has run out does not count, whether the sweeper has come by or not.
        if is_full(&counts) && sweep::overdue_of(self.coordinator, self.zone(), now).await? > 0 {
            counts = self.counts().await?;
        }
        if counts.zone.unwrap_or(0) >= quotas.zone {
            return Err(Code::SessionZoneLimit.into());
        }
        match counts.application.unwrap_or(0) >= quotas.application {
            true if is_dynamic => return Err(Code::DcrApplicationAlreadyBound.into()),
            true => return Err(Code::SessionLimit.into()),
            false => {}
        }
        let ticks = self.coordinator.clock.ticks();
        let counted = [counts.zone, counts.application];
        for (scope, live) in self.rooms().into_iter().zip(counted) {
            if let Some(live) = live {
                let live = u64::try_from(live).unwrap_or(0);
                self.coordinator.room.learn(scope, live, ticks);
            }
        }
        Ok(counts)
    }

    /// Whether zone and application are far from their quotas; if not, they are counted.
    fn has_room(&self, quotas: &Quotas) -> bool {
        let ticks = self.coordinator.clock.ticks();
        let quotas = [quotas.zone, quotas.application];
        self.rooms().iter().zip(quotas).all(|(scope, quota)| {
            let quota = u64::try_from(quota).unwrap_or(0);
            self.coordinator.room.is_known(scope, quota, ticks)
        })
    }

    fn rooms(&self) -> [Scope; 2] {
        let of =
            |application: &ApplicationId, what| (self.zone().clone(), application.clone(), what);
        [
            of(&ApplicationId::trusted(""), "sessions of the zone"),
            of(self.application, "sessions"),
        ]
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.coordinator
            .store
            .zone(self.zone())
            .sessions()
            .counts(self.application)
            .await
    }

    async fn check_parent(
        &self,
        zone: &ZoneView,
        parent: &str,
        now: Timestamp,
    ) -> Result<SessionRow, Failure> {
        let id = SessionId::parse(parent).map_err(|_| Code::ParentNotFound)?;
        let parent = self.live_parent(&id, now).await?;
        if is_dynamic(zone, &parent.application_id) {
            return Err(Code::DcrApplicationCannotStartChild.into());
        }
        if parent.lifecycle == Lifecycle::Task && self.wish.lifecycle == Lifecycle::Service {
            return Err(Code::TaskSessionCannotStartService.into());
        }
        let caller = crate::caller::Caller::Runtime(self.caller.clone());
        if parent.application_id != *self.application
            && !caller.starts_under(&parent.application_id)
        {
            return Err(Code::ParentOwnershipRequired.into());
        }
        if i64::from(parent.depth) >= MAX_DEPTH && parent.live_children < MAX_CHILDREN {
            return Err(Code::SessionDepthLimit.into());
        }
        if parent.live_children < MAX_CHILDREN {
            return Ok(parent);
        }
        if sweep::overdue_of(self.coordinator, self.zone(), now).await? > 0 {
            let parent = self.live_parent(&id, now).await?;
            if parent.live_children < MAX_CHILDREN {
                return Ok(parent);
            }
        }
        Err(Code::SessionChildrenLimit.into())
    }

    async fn live_parent(&self, id: &SessionId, now: Timestamp) -> Result<SessionRow, Failure> {
        let row = self
            .coordinator
            .store
            .zone(self.zone())
            .sessions()
            .get(id)
            .await?;
        row.filter(|row| row.is_live(now))
            .ok_or_else(|| Code::ParentNotFound.into())
    }

    async fn inherited(
        &self,
        parent: &SessionId,
        now: Timestamp,
    ) -> Result<Option<EdgeRow>, Failure> {
        let store = &self.coordinator.store;
        let inbound = store
            .zone(self.zone())
            .delegations()
            .inbound(parent)
            .await?;
        Ok(self.inheritable(&inbound, parent, now)??)
    }

    /// The edge among these that the child mirrors, if there is one to mirror.
    fn inheritable(
        &self,
        inbound: &[EdgeRow],
        parent: &SessionId,
        now: Timestamp,
    ) -> Result<Result<Option<EdgeRow>, InheritError>, StoreError> {
        let facts = inbound
            .iter()
            .map(facts::edge)
            .collect::<Result<Vec<_>, _>>()?;
        let named = self.wish.inherit_edge.as_deref().map(DelegationId::trusted);
        let chosen = inheritable(&facts, parent, self.application, named.as_ref(), now);
        Ok(chosen.map(|edge| {
            let edge = edge?;
            inbound.iter().find(|row| row.id == edge.id).cloned()
        }))
    }

    /// Claims everything in one transaction; `None` when somebody was faster.
    async fn commit(
        &self,
        found: &Found,
        keyed: Option<&Keyed<'_>>,
    ) -> Result<Option<Answer>, StoreError> {
        let new = self.new_session(found);
        let edge = self.mirrored(found, &new.id)?;
        let answer = Answer::created(&self.render(&new, edge.as_ref()));
        let zone = self.zone();
        let mut tx = self.coordinator.store.begin("start a session").await?;
        if let Some(parent) = &new.parent_id {
            let mut sessions = tx.zone(zone).sessions();
            if sessions
                .admit_child(parent, &found.quotas, found.now)
                .await?
                == Start::Raced
            {
                return Ok(None);
            }
            if self.wish.inherits {
                let inbound = tx.zone(zone).delegations().hold_inbound(parent).await?;
                let again = self.inheritable(&inbound, parent, found.now)?;
                let again = again.ok().flatten().map(|edge| edge.id);
                if again != found.inherited.as_ref().map(|edge| edge.id.clone()) {
                    return Ok(None);
                }
            }
        }
        let started = tx
            .zone(zone)
            .sessions()
            .start(&new, &found.quotas, found.counts)
            .await?;
        if started == Start::Raced {
            return Ok(None);
        }
        if let Some(edge) = &edge {
            tx.zone(zone).delegations().create(edge).await?;
        }
        if let Some(keyed) = keyed
            && !keyed
                .write(&mut tx, new.id.as_str(), &answer, found.now)
                .await?
        {
            return Ok(None);
        }
        match tx.commit().await {
            Err(StoreError::Overtaken { .. }) => return Ok(None),
            committed => committed?,
        }
        if keyed.is_some() {
            self.coordinator.metrics.idempotency.created();
        }
        Ok(Some(answer))
    }

    fn new_session(&self, found: &Found) -> NewSession {
        let wish = self.wish;
        let parent_ends = found.parent.as_ref().and_then(|parent| parent.ends_at);
        let seconds = |ttl: i64| Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let own_end = wish.ttl.map(|ttl| found.now.plus(seconds(ttl)));
        NewSession {
            id: SessionId::trusted(self.coordinator.ids.uuid()),
            application_id: self.application.clone(),
            parent_id: found.parent.as_ref().map(|parent| parent.id.clone()),
            subject_record_id: self.record.clone(),
            subject_type: found.subject_type,
            lifecycle: wish.lifecycle,
            labels: wish.labels.clone(),
            metadata_json: wish.metadata.to_string(),
            depth: found.parent.as_ref().map_or(0, |parent| parent.depth + 1),
            ttl_seconds: wish.ttl,
            started_at: found.now,
            // It ends with its parent anyway; this way no mandate is minted after that moment,
            // however late the sweeper comes.
            ends_at: own_end.map(|own| parent_ends.map_or(own, |parent| parent.min(own))),
            heartbeat_deadline_at: (wish.lifecycle == Lifecycle::Service)
                .then(|| found.now.plus(self.coordinator.config.lease)),
        }
    }

    fn mirrored(&self, found: &Found, child: &SessionId) -> Result<Option<EdgeRow>, StoreError> {
        let Some(edge) = &found.inherited else {
            return Ok(None);
        };
        let id = DelegationId::trusted(self.coordinator.ids.uuid());
        let mirrored = mirror(&facts::edge(edge)?, id, child.clone());
        Ok(Some(facts::new_edge(mirrored, found.now)))
    }

    fn render(&self, new: &NewSession, edge: Option<&EdgeRow>) -> Value {
        let is_service = new.lifecycle == Lifecycle::Service;
        let row = SessionRow {
            id: new.id.clone(),
            application_id: new.application_id.clone(),
            parent_id: new.parent_id.clone(),
            subject_record_id: new.subject_record_id.clone(),
            subject_type: new.subject_type,
            lifecycle: new.lifecycle,
            labels: new.labels.clone(),
            metadata_json: String::new(),
            status: SessionStatus::Active,
            depth: new.depth,
            live_children: 0,
            ttl_seconds: new.ttl_seconds,
            started_at: new.started_at,
            ends_at: new.ends_at,
            last_active_at: new.started_at,
            last_heartbeat_at: is_service.then_some(new.started_at),
            heartbeat_deadline_at: new.heartbeat_deadline_at,
            lease_generation: i64::from(is_service),
            terminated_at: None,
            termination_reason: None,
            updated_at: new.started_at,
        };
        let mut body = summary(self.zone(), &row);
        if let Value::Object(members) = &mut body {
            members.insert(
                "delegation_edge_id".to_owned(),
                json!(edge.map(|edge| &edge.id)),
            );
        }
        body
    }
}

fn is_dynamic(zone: &ZoneView, application: &ApplicationId) -> bool {
    zone.applications
        .get(application)
        .is_some_and(|application| &*application.registration_method == "dcr")
}

impl From<InheritError> for Failure {
    fn from(error: InheritError) -> Self {
        match error {
            InheritError::NotActive => Code::InheritParentEdgeNotActive.into(),
            InheritError::Ambiguous => Code::InheritParentEdgeAmbiguous.into(),
        }
    }
}
