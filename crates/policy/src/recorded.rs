//! A question in evidence, so that it can be asked again: by `explain`, and by a replay against
//! another version.
//!
//! **Forces.** A replay is worth something only if it asks exactly what was asked. Evidence of
//! ordinary decisions never holds who the subject is, and no token.
//!
//! **Choice.** The whole question is recorded, but of the claims of a presented mandate only those
//! that say what it is good for, and of those who act everything but who they are. A candidate that
//! reads another claim cannot be replayed on such an event, and says so.

use caracal_model::policy::{
    Action, Context, EdgeInput, PolicyInput, Principal, ResourceInput, SessionInput,
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Claims that evidence keeps.
const KEPT: [&str; 12] = [
    "agent_session_id",
    "client_id",
    "delegation_edge_id",
    "delegation_path",
    "hop_count",
    "scope",
    "source_session_id",
    "sub_type",
    "target",
    "target_session_id",
    "use",
    "zone_id",
];
const CLAIMS: &str = "input.context.subject_claims";
const ACT: &str = "input.context.actor_claims.act";
/// What contains both.
const WHOLE: [&str; 2] = ["input", "input.context"];
/// Who somebody is.
const SUBJECT: &str = "sub";

/// The question as evidence keeps it.
pub fn evidence(question: &PolicyInput) -> impl Serialize + '_ {
    // Taken apart whole, so that a new part has to be decided upon here.
    let PolicyInput {
        schema_version,
        principal,
        resource,
        action,
        session,
        delegation_edge,
        context,
    } = question;
    let Context {
        actor_claims,
        subject_claims,
        // The request id, which the event has itself.
        trace_id: _,
        session_id,
        agent_session_id,
        delegation_edge_id,
        challenge_resolved,
        requested_scopes,
    } = context;
    Kept {
        schema_version,
        principal,
        resource,
        action,
        session: session.as_ref(),
        delegation_edge: delegation_edge.as_ref(),
        context: KeptContext {
            actor_claims: KeptActors(actor_claims),
            subject_claims: KeptClaims(subject_claims),
            session_id,
            agent_session_id,
            delegation_edge_id,
            challenge_resolved: *challenge_resolved,
            requested_scopes,
        },
    }
}

/// As [`PolicyInput`] is written, and borrowed.
#[derive(Serialize)]
struct Kept<'a> {
    action: &'a Action,
    context: KeptContext<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delegation_edge: Option<&'a EdgeInput>,
    principal: &'a Principal,
    resource: &'a ResourceInput,
    schema_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionInput>,
}

/// As [`Context`] is written.
#[derive(Serialize)]
struct KeptContext<'a> {
    actor_claims: KeptActors<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    agent_session_id: &'a str,
    challenge_resolved: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    delegation_edge_id: &'a str,
    requested_scopes: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    session_id: &'a str,
    #[serde(skip_serializing_if = "KeptClaims::is_null")]
    subject_claims: KeptClaims<'a>,
}

/// Those who act, however deep one stands in another; as deep as a mandate's claim may be.
struct KeptActors<'a>(&'a Value);

impl Serialize for KeptActors<'_> {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        let Value::Object(claims) = self.0 else {
            return self.0.serialize(output);
        };
        let kept = claims.iter().filter(|(name, _)| *name != SUBJECT);
        output.collect_map(kept.map(|(name, value)| (name, KeptActors(value))))
    }
}

struct KeptClaims<'a>(&'a Value);

impl KeptClaims<'_> {
    fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

impl Serialize for KeptClaims<'_> {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        let Value::Object(claims) = self.0 else {
            return self.0.serialize(output);
        };
        output.collect_map(
            claims
                .iter()
                .filter(|(name, _)| KEPT.contains(&name.as_str())),
        )
    }
}

/// The question that evidence kept, of the request with this id.
pub fn recorded(kept: &Value, request_id: &str) -> Option<PolicyInput> {
    let mut question = PolicyInput::deserialize(kept).ok()?;
    request_id.clone_into(&mut question.context.trace_id);
    Some(question)
}

/// The first of these paths whose value evidence does not keep for this question.
pub fn not_recorded<'p>(reads: &'p [String], question: &PolicyInput) -> Option<&'p str> {
    let presented = !question.context.subject_claims.is_null();
    let acted = question.context.actor_claims.get("act").is_some();
    let lost = |path: &&String| {
        let whole = WHOLE.contains(&path.as_str()) && (presented || acted);
        whole || (presented && is_lost_claim(path)) || (acted && is_lost_actor(path))
    };
    reads.iter().find(lost).map(String::as_str)
}

/// Whether this path leads to all claims of a presented mandate, or to one that is not kept.
fn is_lost_claim(path: &str) -> bool {
    let claim = path
        .strip_prefix(CLAIMS)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.split('.').next());
    path == CLAIMS || claim.is_some_and(|claim| !KEPT.contains(&claim))
}

/// Whether this path leads to who somebody is that acts, or to what contains it.
fn is_lost_actor(path: &str) -> bool {
    let contains = ACT.strip_suffix(".act").is_some_and(|all| path == all);
    let within = path.strip_prefix(ACT);
    let last = within.and_then(|_| path.rsplit('.').next());
    contains || last.is_some_and(|last| last == "act" || last == SUBJECT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn question() -> PolicyInput {
        PolicyInput::deserialize(json!({
            "schema_version": "2026-05-20",
            "principal": {"type": "Application", "id": "app-1", "labels": ["clerk"]},
            "session": {"id": "rec-1"},
            "delegation_edge": {"id": "e1", "scopes": ["r:read"], "graph_epoch": 3},
            "action": {"id": "TokenExchange", "method": "GET", "path": "/x"},
            "context": {
                "trace_id": "req-1", "requested_scopes": [],
                "subject_claims": {"sub": "user@example.com", "jti": "j", "scope": "r:read",
                    "target": ["resource://r"], "delegation_edge_id": "e1"},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_question_comes_back_as_it_was_but_for_who_the_subject_is() {
        let asked = question();
        let kept = json!(evidence(&asked));
        let text = serde_json::to_string(&evidence(&asked)).unwrap();
        assert_eq!(
            text,
            kept.to_string(),
            "members stand in the order of their names"
        );
        assert!(
            !text.contains("user@example.com") && !text.contains("jti"),
            "{text}"
        );
        let mut expected = asked;
        expected.context.subject_claims = json!({"scope": "r:read", "target": ["resource://r"],
            "delegation_edge_id": "e1"});
        assert_eq!(recorded(&kept, "req-1"), Some(expected));
        assert_eq!(recorded(&json!({"principal": 1}), "req-1"), None);
    }

    #[test]
    fn evidence_does_not_say_who_acts_and_a_candidate_that_asks_is_named() {
        let mut asked = question();
        asked.context.subject_claims = Value::Null;
        let act = |sub: Option<&str>| {
            let mut act =
                json!({"client_id": "a", "sid": "r1", "act": {"client_id": "b", "sid": "r2"}});
            if let Some(sub) = sub {
                act["sub"] = sub.into();
                act["act"]["sub"] = sub.into();
            }
            json!({"caracal_client_id": "app-1", "act": act})
        };
        asked.context.actor_claims = act(Some("user@example.com"));
        let kept = json!(evidence(&asked));
        assert!(!kept.to_string().contains("user@example.com"), "{kept}");
        let again = recorded(&kept, "req-1").unwrap();
        assert_eq!(again.context.actor_claims, act(None));
        for (path, is_lost) in [
            ("input", true),
            ("input.context", true),
            ("input.context.actor_claims", true),
            ("input.context.actor_claims.act", true),
            ("input.context.actor_claims.act.sub", true),
            ("input.context.actor_claims.act.act", true),
            ("input.context.actor_claims.act.act.sub", true),
            ("input.context.actor_claims.act.act.sid", false),
            ("input.context.actor_claims.act.client_id", false),
            ("input.context.actor_claims.caracal_client_id", false),
            ("input.context.subject_claims.sub", false),
        ] {
            let lost = not_recorded(&[path.to_owned()], &again).is_some();
            assert_eq!(lost, is_lost, "{path}");
        }
        asked.context.actor_claims = json!({"caracal_client_id": "app-1"});
        assert_eq!(not_recorded(&["input".to_owned()], &asked), None);
    }

    #[test]
    fn what_a_candidate_reads_beyond_evidence_is_named() {
        let lost = |path: &str| {
            let reads = ["input.principal.id".to_owned(), path.to_owned()];
            not_recorded(&reads, &question()).is_some()
        };
        for path in [
            "input",
            "input.context",
            CLAIMS,
            "input.context.subject_claims.sub",
        ] {
            assert!(lost(path), "{path}");
        }
        for path in [
            "input.context.subject_claims.scope",
            "input.context.trace_id",
            "input.session.id",
        ] {
            assert!(!lost(path), "{path}");
        }
        let mut plain = question();
        plain.context.subject_claims = Value::Null;
        assert_eq!(not_recorded(&["input".to_owned()], &plain), None);
    }
}
