//! Evidence of exchanges (spec: sts §17; README decision 17): one event a requested resource,
//! written after the outcome is known and before it is told. No token and no subject identifier
//! ever goes into one.

use caracal_authority::SessionFacts;
use caracal_authority::decide::{
    Asked, Class, Decision, ExchangeRequest, LineageClaims, Outcome, ResourceVerdict,
};
use caracal_ledger::Event;
use caracal_model::policy::ActivePolicy;
use caracal_model::{
    Actor, ApplicationId, EventId, Mandate, Refused, RequestId, SubjectType, Timestamp, ZoneId,
};
use caracal_view::Application;
use serde_json::{Map, Value, json};

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
        mut metadata: Map<String, Value>,
        issued: Option<&Mandate>,
    ) -> Event {
        metadata.insert("resource".to_owned(), (*verdict.resource).into());
        if let Some(reason) = &verdict.reason {
            metadata.insert("reason".to_owned(), reason.as_str().into());
        }
        if let Some(asked) = &verdict.asked {
            put_asked(&mut metadata, asked);
        }
        // Records of gateway and resource mandates are not rows: this is where they are found.
        if let (true, Some(issued)) = (verdict.allowed, issued) {
            metadata.insert("issued_record_id".to_owned(), issued.sid.as_str().into());
            metadata.insert("issued_jti".to_owned(), issued.jti.as_str().into());
            metadata.insert("issued_use".to_owned(), json!(issued.token_use));
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
        mut metadata: Map<String, Value>,
    ) -> Event {
        let requested = decision
            .verdicts
            .iter()
            .map(|verdict| Value::from(&*verdict.resource));
        metadata.insert("requested".to_owned(), requested.collect());
        metadata.insert("reason".to_owned(), refused.description.to_string().into());
        self.start(sts, "deny", "exchange_denied")
            .metadata(metadata)
    }

    fn start(&self, sts: &Sts, decision: &'static str, status: &'static str) -> Event {
        let id = EventId::trusted(sts.ids.uuid());
        let (zone, request) = (self.request.zone.clone(), self.request.request_id.as_str());
        Event::new(id, zone, EXCHANGE, request, decision, status, self.now)
    }

    fn metadata(&self, lineage: Option<&LineageClaims>) -> Map<String, Value> {
        let mut metadata = Map::new();
        let mut put = |name: &str, value: Value| {
            metadata.insert(name.to_owned(), value);
        };
        let request = &self.request;
        put("application_id", self.application.id.as_str().into());
        put("application_name", (*self.application.name).into());
        put(
            "application_registration_method",
            (*self.application.registration_method).into(),
        );
        put("requested_scopes", self.scopes());
        let text = |id: Option<&str>| Value::from(id.unwrap_or_default());
        let presented = request.class.presented();
        let record = request.session_id.or(presented.map(|mandate| &mandate.sid));
        put("session_id", text(record.map(AsRef::as_ref)));
        let session = presented.and_then(|mandate| mandate.agent_session_id.as_ref());
        put(
            "agent_session_id",
            text(request.agent_session_id.or(session).map(AsRef::as_ref)),
        );
        let edge = presented.and_then(|mandate| mandate.delegation_edge_id.as_ref());
        put(
            "delegation_edge_id",
            text(request.delegation_edge_id.or(edge).map(AsRef::as_ref)),
        );
        put("subject_kind", self.subject_kind().into());
        if let Some(act) = request.act() {
            put("actor_chain", actors(&act));
        }
        if let Class::Gateway { method, path, .. } = request.class {
            put("method", method.to_ascii_uppercase().into());
            put("path", path.into());
        }
        if let Some(session) = self.session {
            put("agent_lifecycle", session.lifecycle.as_str().into());
            put(
                "agent_labels",
                session
                    .labels
                    .iter()
                    .map(|label| Value::from(&**label))
                    .collect(),
            );
            put("agent_depth", session.depth.into());
            if let Some(parent) = &session.parent_id {
                put("agent_parent_id", parent.as_str().into());
            }
        }
        if let Some(lineage) = lineage {
            put("delegation_chain", json!(lineage.chain));
            put("delegation_hop_count", lineage.hop_count.into());
            put("delegation_graph_epoch", lineage.epoch.into());
        }
        metadata
    }

    fn scopes(&self) -> Value {
        let presented = self.request.class.presented();
        let scope = presented.map_or(self.request.scope, |mandate| &mandate.scope);
        scope.split_ascii_whitespace().map(Value::from).collect()
    }

    fn subject_kind(&self) -> &'static str {
        match self.request.class.presented() {
            Some(mandate) if mandate.sub_type == SubjectType::User => "user",
            _ => "application",
        }
    }
}

/// What a replay or an explanation asks again; what the request came to may be less.
pub fn put_asked(metadata: &mut Map<String, Value>, asked: &Asked) {
    metadata.insert("policy_decision".to_owned(), asked.answer.into());
    let question = caracal_policy::evidence(&asked.question);
    metadata.insert("policy_input".to_owned(), question);
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
    let mut metadata = Map::new();
    metadata.insert("application_id".to_owned(), application.as_str().into());
    metadata.insert("reason".to_owned(), refused.description.to_string().into());
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
