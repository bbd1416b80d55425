//! Evidence of exchanges (spec: sts §17; README decision 17): one event a requested resource,
//! written after the outcome is known and before it is told. No token and no subject identifier
//! ever goes into one.

use caracal_authority::SessionFacts;
use caracal_authority::decide::{
    Asked, Class, Decision, ExchangeRequest, LineageClaims, Outcome, ResourceVerdict,
};
use caracal_ledger::{Event, Metadata};
use caracal_model::policy::ActivePolicy;
use caracal_model::{
    Actor, ApplicationId, EventId, Mandate, Refused, RequestId, SubjectType, Timestamp, ZoneId,
};
use caracal_view::Application;
use serde_json::{Value, json};

use crate::Sts;

/// The type of every event of an exchange.
pub const EXCHANGE: &str = "token_exchange";

/// What the events of one exchange share.
pub struct Trail<'a> {
    /// What was asked.
    pub request: ExchangeRequest<'a>,
    /// Who asked.
    pub application: &'a Application,
    /// The Session that was presented.
    pub session: Option<&'a SessionFacts>,
    /// The policy that was asked.
    pub policy: &'a ActivePolicy,
    /// When.
    pub now: Timestamp,
}

impl Trail<'_> {
    /// One event a verdict, and one more when nothing was granted.
    pub fn events(&self, sts: &Sts, decision: &Decision, issued: Option<&Mandate>) -> Vec<Event> {
        let shared = self.metadata(decision.lineage.as_deref());
        let mut events: Vec<Event> = decision
            .verdicts
            .iter()
            .map(|verdict| self.event(sts, verdict, shared.clone(), issued))
            .collect();
        if let Outcome::Deny(refused) = &decision.outcome {
            events.push(self.nothing(sts, refused, decision, shared));
        }
        events
    }

    fn event(
        &self,
        sts: &Sts,
        verdict: &ResourceVerdict,
        mut metadata: Metadata,
        issued: Option<&Mandate>,
    ) -> Event {
        metadata.put("resource", &*verdict.resource);
        if let Some(reason) = &verdict.reason {
            metadata.put("reason", reason);
        }
        if let Some(asked) = &verdict.asked {
            put_asked(&mut metadata, asked);
        }
        // Records of gateway and resource mandates are not rows: this is where they are found.
        if let (true, Some(issued)) = (verdict.allowed, issued) {
            metadata.put("issued_record_id", issued.sid.as_str());
            metadata.put("issued_jti", issued.jti.as_str());
            metadata.put("issued_use", &issued.token_use);
        }
        let event = self.start(sts, verdict.decision(), verdict.evaluation_status);
        let event = if verdict.policy_ran {
            let manifest = Some(self.policy.manifest_sha256.clone());
            event.policy(self.policy.version_id.clone(), manifest)
        } else {
            event
        };
        event
            .determined_by(&verdict.determining)
            .diagnostics(verdict.diagnostics.clone())
            .metadata(metadata)
    }

    fn nothing(
        &self,
        sts: &Sts,
        refused: &Refused,
        decision: &Decision,
        mut metadata: Metadata,
    ) -> Event {
        let requested = decision.verdicts.iter().map(|verdict| &*verdict.resource);
        metadata.put("requested", &requested.collect::<Vec<&str>>());
        metadata.put("reason", &*refused.description);
        self.start(sts, "deny", "exchange_denied")
            .metadata(metadata)
    }

    fn start(&self, sts: &Sts, decision: &'static str, status: &'static str) -> Event {
        let id = EventId::trusted(sts.ids.uuid());
        let (zone, request) = (self.request.zone.clone(), self.request.request_id.as_str());
        Event::new(id, zone, EXCHANGE, request, decision, status, self.now)
    }

    fn metadata(&self, lineage: Option<&LineageClaims>) -> Metadata {
        let mut metadata = Metadata::new();
        let mut text = |name: &'static str, value: &str| metadata.put(name, value);
        let (request, application) = (&self.request, self.application);
        text("application_id", application.id.as_str());
        text("application_name", &application.name);
        text(
            "application_registration_method",
            &application.registration_method,
        );
        let presented = request.class.presented();
        let record = request.session_id.or(presented.map(|mandate| &mandate.sid));
        text("session_id", record.map_or("", AsRef::as_ref));
        let session = presented.and_then(|mandate| mandate.agent_session_id.as_ref());
        let session = request.agent_session_id.or(session);
        text("agent_session_id", session.map_or("", AsRef::as_ref));
        let edge = presented.and_then(|mandate| mandate.delegation_edge_id.as_ref());
        let edge = request.delegation_edge_id.or(edge);
        text("delegation_edge_id", edge.map_or("", AsRef::as_ref));
        text("subject_kind", self.subject_kind());
        metadata.put("requested_scopes", &self.scopes());
        if let Some(act) = request.act() {
            metadata.put("actor_chain", &actors(&act));
        }
        if let Class::Gateway { method, path, .. } = request.class {
            metadata.put("method", &method.to_ascii_uppercase());
            metadata.put("path", path);
        }
        if let Some(session) = self.session {
            metadata.put("agent_lifecycle", session.lifecycle.as_str());
            let labels: Vec<&str> = session.labels.iter().map(|label| &**label).collect();
            metadata.put("agent_labels", &labels);
            metadata.put("agent_depth", &session.depth);
            if let Some(parent) = &session.parent_id {
                metadata.put("agent_parent_id", parent.as_str());
            }
        }
        if let Some(lineage) = lineage {
            metadata.put("delegation_chain", &lineage.chain);
            metadata.put("delegation_hop_count", &lineage.hop_count);
            metadata.put("delegation_graph_epoch", &lineage.epoch);
        }
        metadata
    }

    fn scopes(&self) -> Vec<&str> {
        let presented = self.request.class.presented();
        let scope = presented.map_or(self.request.scope, |mandate| &mandate.scope);
        scope.split_ascii_whitespace().collect()
    }

    fn subject_kind(&self) -> &'static str {
        match self.request.class.presented() {
            Some(mandate) if mandate.sub_type == SubjectType::User => "user",
            _ => "application",
        }
    }
}

/// What a replay or an explanation asks again; what the request came to may be less.
pub fn put_asked(metadata: &mut Metadata, asked: &Asked) {
    metadata.put("policy_decision", asked.answer);
    let question = caracal_policy::evidence(&asked.question);
    metadata.put("policy_input", &question);
}

/// Who acts, by application and record: no subject goes into evidence.
fn actors(act: &Actor) -> Value {
    let one = |actor: &Actor| json!({"application_id": actor.client_id, "authority_record_id": actor.sid});
    act.chain().map(one).collect()
}

/// A request of a known application that was refused before any resource was decided.
pub fn refused_early(
    sts: &Sts,
    zone: ZoneId,
    application: &ApplicationId,
    request_id: &RequestId,
    refused: &Refused,
    status: &'static str,
) -> Event {
    let mut metadata = Metadata::new();
    metadata.put("application_id", application.as_str());
    metadata.put("reason", &*refused.description);
    let id = EventId::trusted(sts.ids.uuid());
    Event::new(
        id,
        zone,
        EXCHANGE,
        request_id.as_str(),
        "deny",
        status,
        sts.clock.now(),
    )
    .metadata(metadata)
}
