//! Plumbing of the tests: a zone with three applications, three resources, and chains of
//! Delegations as the Coordinator would make them.

use std::sync::Arc;
use std::time::Duration;

use crate::decide::{
    Class, Decision, ExchangeRequest, Facts, Outcome, RequestedResource, ResourceVerdict,
};
use crate::{
    Constraints, EdgeFacts, EdgeStatus, Enforcement, Known, Lifecycle, Operation, RecordFacts,
    RecordStatus, ResourceFacts, SessionFacts, SessionStatus, decide,
};
use caracal_model::policy::{ActivePolicy, Contract, PolicyFault, PolicyInput, PolicyResult};
use caracal_model::{
    ApplicationId, DelegationId, Mandate, ProviderId, RecordId, RequestId, ResourceId, Scopes,
    SessionId, SubjectType, Timestamp, ZoneId,
};
use proptest::prelude::ProptestConfig;

pub const NOW: Timestamp = Timestamp::from_unix_seconds(1_790_000_000);

/// As many cases as `PROPTEST_CASES` says; what fails is in the output, not in a file.
pub fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub fn after(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

pub fn app(at: usize) -> ApplicationId {
    ApplicationId::trusted(format!("app-{at}"))
}

pub fn session_id(at: usize) -> SessionId {
    SessionId::trusted(format!("s{at}"))
}

pub fn edge_id(at: usize) -> DelegationId {
    DelegationId::trusted(format!("e{at}"))
}

pub fn session(at: usize, application: usize) -> SessionFacts {
    SessionFacts {
        id: session_id(at),
        application_id: app(application),
        parent_id: None,
        subject_record_id: RecordId::trusted("r-app"),
        subject_type: SubjectType::Application,
        lifecycle: Lifecycle::Task,
        labels: vec![format!("label-of-s{at}").into()],
        status: SessionStatus::Active,
        depth: 0,
        started_at: NOW,
        ends_at: Some(after(3600)),
        heartbeat_deadline_at: None,
    }
}

pub fn resource(at: usize, scopes: &str) -> ResourceFacts {
    ResourceFacts {
        id: ResourceId::trusted(format!("res-{at}")),
        identifier: format!("resource://r{at}").into(),
        scopes: Scopes::parse(scopes),
        upstream_url: Some("https://upstream.example".into()),
        operations: vec![Operation {
            method: "GET".into(),
            path: "/tickets".into(),
            scope: "desk:read".into(),
        }],
        enforcement: Enforcement::Enforced,
        provider: ProviderId::trusted("p1"),
    }
}

/// The edge from Session `at` to Session `at + 1`, narrowing the one before it.
pub fn edge(at: usize, issuer: usize, receiver: usize, max_hops: u32) -> EdgeFacts {
    let constraints = Constraints {
        max_hops: Some(max_hops),
        ..Constraints::default()
    };
    EdgeFacts {
        id: edge_id(at),
        source_session_id: session_id(at),
        target_session_id: session_id(at + 1),
        issuer_application_id: app(issuer),
        receiver_application_id: app(receiver),
        parent_edge_id: at.checked_sub(1).map(edge_id),
        mirrored: false,
        resource_id: None,
        scopes: Scopes::parse("desk:read desk:write"),
        constraints_json: constraints.to_json(),
        constraints,
        status: EdgeStatus::Active,
        expires_at: after(600),
    }
}

pub fn record(id: &str, record_type: SubjectType, subject: &str) -> RecordFacts {
    RecordFacts {
        id: RecordId::trusted(id),
        record_type,
        subject_id: subject.into(),
        client_id: app(0),
        status: RecordStatus::Active,
        expires_at: after(3600),
    }
}

type Answer = dyn Fn(&PolicyInput) -> Result<PolicyResult, PolicyFault> + Send + Sync;

/// Answers every question in the same way, and remembers the questions.
pub struct Says {
    pub answer: Box<Answer>,
    pub asked: std::sync::Mutex<Vec<PolicyInput>>,
}

impl Says {
    pub fn allow() -> Arc<Self> {
        Self::answers(|_| Ok(allowed(&[])))
    }

    pub fn answers(
        answer: impl Fn(&PolicyInput) -> Result<PolicyResult, PolicyFault> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            answer: Box::new(answer),
            asked: std::sync::Mutex::default(),
        })
    }

    pub fn questions(&self) -> Vec<PolicyInput> {
        self.asked.lock().unwrap().clone()
    }
}

impl Contract for Says {
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        self.asked.lock().unwrap().push(input.clone());
        (self.answer)(input)
    }
}

pub fn allowed(diagnostics: &[serde_json::Value]) -> PolicyResult {
    PolicyResult {
        allow: true,
        determining: vec!["caracal-test".to_owned()],
        diagnostics: diagnostics.to_vec(),
    }
}

pub fn denied(reason: &str) -> PolicyResult {
    PolicyResult {
        allow: false,
        determining: Vec::new(),
        diagnostics: vec![serde_json::json!({"reason": reason})],
    }
}

pub fn policy(contract: Arc<dyn Contract>) -> ActivePolicy {
    ActivePolicy {
        contract,
        version_id: Some("psv-1".into()),
        manifest_sha256: "m-1".into(),
    }
}

/// A zone and a request in it; tests change what they are about.
pub struct World {
    pub zone: ZoneId,
    pub request_id: RequestId,
    pub caller: ApplicationId,
    pub sessions: Vec<Arc<SessionFacts>>,
    pub records: Vec<Arc<RecordFacts>>,
    pub lineage: Vec<Arc<EdgeFacts>>,
    pub actor: Option<Mandate>,
    pub resources: Vec<ResourceFacts>,
    pub requested: Vec<String>,
    pub rate_limited: Option<u32>,
    pub scope: String,
    pub ttl_seconds: i64,
    pub now: Timestamp,
}

impl World {
    /// One Delegation from a Session of application 0 to another of it, on two resources.
    pub fn new() -> Self {
        Self::chain(&[0, 0], &[(1, false)])
    }

    /// Sessions of these applications, and between each and the next an edge with these hops,
    /// mirrored or not.
    pub fn chain(applications: &[usize], edges: &[(u32, bool)]) -> Self {
        let sessions = applications
            .iter()
            .enumerate()
            .map(|(at, of)| Arc::new(session(at, *of)));
        let links = edges
            .iter()
            .zip(applications.iter().zip(applications.iter().skip(1)));
        let lineage = links
            .enumerate()
            .map(|(at, ((max_hops, mirrored), (from, to)))| {
                Arc::new(EdgeFacts {
                    mirrored: *mirrored,
                    ..edge(at, *from, *to, *max_hops)
                })
            });
        Self {
            zone: ZoneId::trusted("zone-1"),
            request_id: RequestId::trusted("req-1"),
            caller: app(*applications.last().unwrap()),
            sessions: sessions.collect(),
            records: Vec::new(),
            lineage: lineage.collect(),
            actor: None,
            resources: vec![
                resource(0, "desk:read desk:write"),
                resource(1, "desk:read mail:send"),
            ],
            requested: vec!["resource://r0".to_owned()],
            rate_limited: None,
            scope: "desk:read".to_owned(),
            ttl_seconds: 0,
            now: NOW,
        }
    }

    pub fn edge(&mut self, at: usize) -> &mut EdgeFacts {
        Arc::make_mut(&mut self.lineage[at])
    }

    pub fn session(&mut self, at: usize) -> &mut SessionFacts {
        Arc::make_mut(&mut self.sessions[at])
    }

    pub fn requested(&self) -> Vec<RequestedResource<'_>> {
        let named = |name: &str| {
            self.resources
                .iter()
                .find(|r| *r.identifier == *name || r.id.as_str() == name)
        };
        self.requested
            .iter()
            .map(|requested| RequestedResource {
                requested,
                found: named(requested),
                rate_limited: self.rate_limited,
                credential_fault: None,
            })
            .collect()
    }

    /// The request in this class, as `decide` takes it.
    pub fn ask<T>(
        &self,
        class: Class<'_>,
        resources: &[RequestedResource<'_>],
        then: impl FnOnce(&ExchangeRequest<'_>, &Facts<'_>) -> T,
    ) -> T {
        let leaf = self.lineage.last();
        let delegated = matches!(class, Class::Delegated);
        let request = ExchangeRequest {
            class,
            zone: &self.zone,
            request_id: &self.request_id,
            application: &self.caller,
            registration_method: "managed",
            scope: if class.presented().is_some() {
                ""
            } else {
                &self.scope
            },
            ttl_seconds: self.ttl_seconds,
            session_id: None,
            agent_session_id: leaf
                .filter(|_| delegated)
                .map(|leaf| &leaf.target_session_id),
            delegation_edge_id: leaf.filter(|_| delegated).map(|leaf| &leaf.id),
            actor: self.actor.as_ref().filter(|_| class.presented().is_none()),
        };
        let facts = Facts {
            resources,
            known: Known {
                sessions: &self.sessions,
                records: &self.records,
            },
            lineage: &self.lineage,
            epoch: 7,
            control_audience: "caracal-control",
            max_grant_ttl_seconds: 3600,
        };
        then(&request, &facts)
    }

    pub fn decide(&self, class: Class<'_>, contract: Arc<dyn Contract>) -> Decision {
        self.ask(class, &self.requested(), |request, facts| {
            decide(request, facts, &policy(contract), self.now)
        })
    }

    /// The Gateway mandate of this chain, minted now.
    pub fn mandate(&self) -> Mandate {
        granted(&self.decide(Class::Delegated, Says::allow()))
    }
}

/// The mandate of a decision that must be a grant.
pub fn granted(decision: &Decision) -> Mandate {
    match &decision.outcome {
        Outcome::Grant(grant) => grant.mandate(
            "https://sts.example",
            caracal_model::Jti::trusted("jti-1"),
            RecordId::trusted("sid-new"),
        ),
        other => panic!("not granted: {other:?}"),
    }
}

/// Status and description of a decision that must be a refusal.
pub fn refused(decision: &Decision) -> (u16, &'static str, String) {
    match &decision.outcome {
        Outcome::Deny(why) => {
            let row = why.refusal.row();
            (row.status, row.error, why.description.clone().into_owned())
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Evidence in short: `allow complete`, `deny scope_mismatch`, …
pub fn evidence(decision: &Decision) -> Vec<String> {
    let short = |v: &ResourceVerdict| format!("{} {}", v.decision(), v.evaluation_status);
    decision.verdicts.iter().map(short).collect()
}

pub fn gateway<'a>(presented: &'a Mandate, method: &'a str, path: &'a str) -> Class<'a> {
    Class::Gateway {
        presented,
        method,
        path,
    }
}
