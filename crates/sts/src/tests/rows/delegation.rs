//! Sessions and Delegations (spec: sts §9).

use caracal_model::Timestamp;
use caracal_store::params;
use serde_json::json;

use super::*;
use crate::tests::gated::later;

const SESSION: &str = "INSERT INTO sessions (id, zone_id, application_id, subject_record_id,
    subject_type, lifecycle, labels, metadata_json, status, depth, live_children, ttl_seconds, started_at,
    ends_at, last_active_at, heartbeat_deadline_at, lease_generation, updated_at)
    VALUES ($1, 'z1', $2, $3, $4, $5, '[\"desk\"]', '{}', $6, 0, 0, 60, 0, $7, 0, $8, 0, 0)";
const EDGE: &str = "INSERT INTO delegations (id, zone_id, source_session_id, target_session_id,
    issuer_application_id, receiver_application_id, parent_edge_id, mirrored, scopes, constraints_json,
    status, edge_version, expires_at, created_at)
    VALUES ($1, 'z1', $2, $3, $4, $5, $6, FALSE, '[\"desk:read\"]', $7, $8, 0, $9, 0)";

/// A Session that is in order but for what differs.
struct Session {
    id: &'static str,
    application: &'static str,
    record: &'static str,
    subject: &'static str,
    lifecycle: &'static str,
    status: &'static str,
    ends: Option<Timestamp>,
    deadline: Option<Timestamp>,
}

impl Session {
    fn new(id: &'static str) -> Self {
        Self {
            id,
            application: "app-z1",
            record: "r-app",
            subject: "application",
            lifecycle: "task",
            status: "active",
            ends: Some(later(3600)),
            deadline: None,
        }
    }

    async fn start(self, gated: &Gated) {
        let params = params![
            self.id,
            self.application,
            self.record,
            self.subject,
            self.lifecycle,
            self.status,
            self.ends,
            self.deadline,
        ];
        alter(gated, SESSION, &params).await;
    }
}

/// A Delegation that is in order but for what differs.
struct Edge {
    id: &'static str,
    from: &'static str,
    to: &'static str,
    issuer: &'static str,
    receiver: &'static str,
    parent: Option<&'static str>,
    constraints: Value,
    status: &'static str,
    expires: Timestamp,
}

impl Edge {
    fn new(id: &'static str, from: &'static str, to: &'static str) -> Self {
        Self {
            id,
            from,
            to,
            issuer: "app-z1",
            receiver: "app-z1",
            parent: None,
            constraints: json!({"max_hops": 2}),
            status: "active",
            expires: later(3600),
        }
    }

    async fn delegate(self, gated: &Gated) {
        let params = params![
            self.id,
            self.from,
            self.to,
            self.issuer,
            self.receiver,
            self.parent,
            self.constraints.to_string(),
            self.status,
            self.expires,
        ];
        alter(gated, EDGE, &params).await;
    }
}

/// Sessions `s-…`, each with a Delegation `e-…` of the same name from `s3`.
async fn sessions(gated: &Gated) {
    let over = Some(Timestamp::from_unix_seconds(1));
    for session in [
        Session {
            status: "suspended",
            ..Session::new("s-suspended")
        },
        Session {
            status: "terminated",
            ..Session::new("s-terminated")
        },
        Session {
            ends: over,
            ..Session::new("s-over")
        },
        Session {
            ends: None,
            ..Session::new("s-endless")
        },
        Session {
            lifecycle: "service",
            deadline: over,
            ..Session::new("s-lapsed")
        },
        Session {
            subject: "user",
            record: "r-revoked",
            ..Session::new("s-user")
        },
        Session {
            application: "app-z2",
            ..Session::new("s-other")
        },
        Session::new("s-mid"),
        Session::new("s-end"),
        Session::new("s-last"),
    ] {
        session.start(gated).await;
    }
}

caracal_store::on_each_engine! {
    async fn sessions_and_delegations_9_row_by_row(store: Store) {
        let gated = Gated::start(store).await;
        sessions(&gated).await;
        let denied = |why| refused(403, "access_denied", why);
        for (row, id, why) in [
            ("row 1: no record", "r-none", "authority record is not active"),
            ("row 1: a revoked one", "r-revoked", "authority record is not active"),
            ("row 1: a user's", "r-user", "authority record belongs to another subject"),
            ("row 1: not an id", "two words", "session_id does not exist"),
        ] {
            check(&gated, row, mint(&[("session_id", id)]), denied(why)).await;
        }

        let alone = |id| mint(&[("agent_session_id", id), ("delegation_edge_id", ""), ("scope", "agent:lifecycle")]);
        for (row, id, why) in [
            ("row 2: no Session", "s-none", "agent session is not live"),
            ("row 2: suspended", "s-suspended", "agent session is not live"),
            ("row 2: terminated", "s-terminated", "agent session is not live"),
            ("row 2: a task that is over", "s-over", "agent session is not live"),
            ("row 2: a task without an end", "s-endless", "agent session is not live"),
            ("row 2: a lease that lapsed", "s-lapsed", "agent session is not live"),
            ("row 2: of a user whose record is revoked", "s-user", "agent session is not live"),
            ("row 2: another application's", "s-other", "agent session belongs to another application"),
            ("row 2: not an id", "two words", "agent_session_id does not exist"),
        ] {
            check(&gated, row, alone(id), denied(why)).await;
        }

        let over = Timestamp::from_unix_seconds(1);
        for edge in [
            Edge { status: "revoked", ..Edge::new("e-revoked", "s3", "s4") },
            Edge { expires: over, ..Edge::new("e-over", "s3", "s4") },
            Edge::new("e-elsewhere", "s3", "s-mid"),
            Edge::new("e-dead-source", "s-suspended", "s4"),
            Edge { issuer: "app-z2", ..Edge::new("e-issuer", "s3", "s4") },
            Edge { receiver: "app-z2", ..Edge::new("e-receiver", "s3", "s4") },
            Edge { constraints: json!({"colour": "red"}), ..Edge::new("e-odd", "s3", "s4") },
            Edge { constraints: json!({"max_hops": -1}), ..Edge::new("e-negative", "s3", "s4") },
            Edge { constraints: json!({"max_hops": 11}), ..Edge::new("e-many", "s3", "s4") },
            Edge { constraints: json!({"max_hops": 1, "max_depth": 2}), ..Edge::new("e-both", "s3", "s4") },
            // Lineages of two.
            Edge { status: "revoked", ..Edge::new("e-up-revoked", "s3", "s-mid") },
            Edge { parent: Some("e-up-revoked"), ..Edge::new("e-under-revoked", "s-mid", "s-end") },
            Edge { constraints: json!({"max_hops": 1}), ..Edge::new("e-up-short", "s3", "s-mid") },
            Edge { parent: Some("e-up-short"), ..Edge::new("e-under-short", "s-mid", "s-end") },
            Edge::new("e-up", "s3", "s-mid"),
            Edge { parent: Some("e-up"), ..Edge::new("e-under", "s-mid", "s-end") },
            Edge { parent: Some("e-up"), ..Edge::new("e-gap", "s-last", "s-end") },
            Edge { parent: Some("e-none"), ..Edge::new("e-orphan", "s-mid", "s-end") },
            Edge { parent: Some("e-round-2"), ..Edge::new("e-round-1", "s-mid", "s-end") },
            Edge { parent: Some("e-round-1"), ..Edge::new("e-round-2", "s-end", "s-mid") },
        ] {
            edge.delegate(&gated).await;
        }
        let under = |edge: &str, session: &str| mint(&[("delegation_edge_id", edge), ("agent_session_id", session)]);
        let inconsistent = "delegation lineage is inconsistent";
        let odd = "constraints are not understood";
        for (row, edge, session, why) in [
            ("row 3: without a Session", "e2", "", "a delegation needs its agent session"),
            ("row 3: no Delegation", "e-none", "s4", "delegation not found"),
            ("row 3: not an id", "two words", "s4", "delegation_edge_id does not exist"),
            ("row 3: revoked", "e-revoked", "s4", "delegation is not active"),
            ("row 3: over", "e-over", "s4", "delegation is not active"),
            ("row 3: to another Session", "e-elsewhere", "s4", "does not lead to this session"),
            ("row 4: a source that is not live", "e-dead-source", "s4", "a session of the delegation is not live"),
            ("row 4: a source of another issuer", "e-issuer", "s4", inconsistent),
            ("row 4: another receiver", "e-receiver", "s4", "does not lead to this application"),
            ("row 5: an unknown constraint", "e-odd", "s4", odd),
            ("row 5: a negative one", "e-negative", "s4", odd),
            ("row 5: more hops than there are", "e-many", "s4", odd),
            ("row 5: an alias that differs", "e-both", "s4", odd),
            ("row 7: an ancestor revoked", "e-under-revoked", "s-end", "delegation is not active"),
            ("row 7: out of hops", "e-under-short", "s-end", "delegation allows no further hop"),
            ("row 7: no root", "e-orphan", "s-end", inconsistent),
            ("row 9: links that do not meet", "e-gap", "s-end", inconsistent),
        ] {
            check(&gated, row, under(edge, session), denied(why)).await;
        }
        check(&gated, "row 7: a circle", under("e-round-1", "s-end"), denied("delegation")).await;
        let more = mint(&[("scope", "desk:read mail:send")]);
        check(&gated, "row 6: scopes of nobody", more, denied("requested scopes exceed the delegation")).await;

        let answer = granted(&gated, "rows 1 to 9, in order", under("e-under", "s-end"), &["allow complete"]).await;
        let mandate = crate::tests::scene::claims(answer["access_token"].as_str().unwrap());
        assert_eq!(json!(mandate.delegation_path), json!(["e-up", "e-under"]));
        assert_eq!((mandate.hop_count, mandate.delegation_chain.len()), (Some(2), 3));
        gated.stop().await;
    }
}
