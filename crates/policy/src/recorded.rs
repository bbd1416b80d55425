//! A question in evidence, so that it can be asked again: by `explain`, and by a replay against
//! another version.
//!
//! **Forces.** A replay is worth something only if it asks exactly what was asked. Evidence of
//! ordinary decisions never holds who the subject is, and no token.
//!
//! **Choice.** The whole question is recorded, but of the claims of a presented mandate only those
//! that say what it is good for. A candidate that reads another claim cannot be replayed on such an
//! event, and says so.

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
            actor_claims,
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
    actor_claims: &'a Value,
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
    if question.context.subject_claims.is_null() {
        return None;
    }
    let lost = |path: &&String| {
        let whole = ["input", "input.context", CLAIMS].contains(&path.as_str());
        let claim = path
            .strip_prefix(CLAIMS)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.split('.').next());
        whole || claim.is_some_and(|claim| !KEPT.contains(&claim))
    };
    reads.iter().find(lost).map(String::as_str)
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
