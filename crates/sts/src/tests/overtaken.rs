//! What was decided on is looked at once more before anything leaves (spec: sts §20.6): here it
//! changes between the decision and the answer.

use std::fmt::Write as _;
use std::sync::Arc;

use caracal_model::{Change, DelegationId, Mandate, RecordId, SessionId};
use caracal_store::Sql;
use caracal_store::testing::raw;

use super::gated::Gated;
use super::scene::{Scene, claims, lifecycle, with_id, zone};
use super::*;

/// A statement that changes something, and the one that takes it back.
type Both = (Sql, Sql);

const SESSION: Both = (
    raw("UPDATE sessions SET status = 'suspended' WHERE id = 's2'"),
    raw("UPDATE sessions SET status = 'active' WHERE id = 's2'"),
);
const DELEGATION: Both = (
    raw("UPDATE delegations SET status = 'revoked' WHERE id = 'e1'"),
    raw("UPDATE delegations SET status = 'active' WHERE id = 'e1'"),
);
const RECORD: Both = (
    raw("UPDATE authority_records SET status = 'revoked' WHERE id = 'r-user'"),
    raw("UPDATE authority_records SET status = 'active' WHERE id = 'r-user'"),
);
const APPLICATION: Both = (
    raw("UPDATE applications SET archived_at = 1 WHERE id = 'app-z1'"),
    raw("UPDATE applications SET archived_at = NULL WHERE id = 'app-z1'"),
);
const SCOPES: Both = (
    raw("UPDATE resources SET scopes = '[\"desk:write\"]' WHERE id = 'res-1'"),
    raw("UPDATE resources SET scopes = '[\"desk:read\",\"desk:write\"]' WHERE id = 'res-1'"),
);
const POLICY: Both = (
    raw("DELETE FROM policy_bindings WHERE zone_id = 'z1'"),
    raw(
        "INSERT INTO policy_bindings (zone_id, policy_set_id, version_id, activated_at)
        VALUES ('z1', 'set', 'v1', 0)",
    ),
);
const NAME: Both = (
    raw("UPDATE resources SET name = 'another' WHERE id = 'res-1'"),
    raw("UPDATE resources SET name = 'Desk' WHERE id = 'res-1'"),
);
const ISSUER: Both = (
    raw("UPDATE subject_issuers SET archived_at = 1 WHERE id = 'id-caracal'"),
    raw("UPDATE subject_issuers SET archived_at = NULL WHERE id = 'id-caracal'"),
);

/// Changes the store, and tells this replica.
pub async fn happens(sts: Arc<Sts>, sql: Sql, change: Change) {
    let mut tx = sts.store.begin("a change").await.unwrap();
    tx.execute(&sql, &[]).await.unwrap();
    tx.change(&change);
    tx.commit().await.unwrap();
    sts.announce.announce().await;
}

/// Cuts a subject off, as the kill switch does.
async fn cut_off(sts: Arc<Sts>, subject: &'static str) {
    let (zone, at) = (zone(), sts.clock.now());
    let mut tx = sts.store.begin("a cut-off").await.unwrap();
    let mut subjects = tx.subjects(&zone);
    assert!(
        subjects
            .cut_off(subject, "left", at, at)
            .await
            .unwrap()
            .is_some()
    );
    tx.commit().await.unwrap();
    sts.announce.announce().await;
}

fn changes() -> [(&'static str, Both, Change); 7] {
    let session = Change::Session(zone(), SessionId::trusted("s2"));
    let edge = Change::Delegation(zone(), DelegationId::trusted("e1"));
    let record = Change::Record(zone(), RecordId::trusted("r-user"));
    [
        ("Session", SESSION, session),
        ("Delegation", DELEGATION, edge),
        ("record of the user", RECORD, record),
        ("application", APPLICATION, Change::Zone(zone())),
        ("scopes", SCOPES, Change::Zone(zone())),
        ("policy", POLICY, Change::Zone(zone())),
        ("what does not matter", NAME, Change::Zone(zone())),
    ]
}

fn told(status: StatusCode, body: &Value) -> String {
    let text = |name: &str| body[name].as_str().unwrap_or("-").to_owned();
    format!(
        "{} {}: {}",
        status.as_u16(),
        text("error"),
        text("error_description")
    )
}

/// The call that a mandate is good for.
async fn call(sts: &Sts, token: &str, mandate: &Mandate) -> String {
    let request_id = RequestId::visible_ascii("r1").unwrap();
    let call = caracal_client::GatewayExchange {
        token,
        mandate,
        resource: "resource://desk",
        method: "GET",
        path: "/",
        request_id: &request_id,
        within: WAITS,
    };
    match crate::gateway::exchange(sts, call, true, patience(sts)).await {
        Ok(_) => "granted".to_owned(),
        Err(refused) => format!("{}: {}", refused.refusal.row().status, refused.description),
    }
}

caracal_store::on_each_engine! {
    async fn a_mint_does_not_outlive_what_it_was_decided_on(store: Store) {
        let gated = Gated::start(store).await;
        let sts = &gated.sts.sts;
        assert_eq!(gated.mint("desk:read", &[]).await.0, 200);
        let mut table = String::new();
        for (case, (changed, back), change) in changes() {
            let from = gated.evidence().await.len();
            sts.interlude.then(happens(Arc::clone(sts), changed, change.clone()));
            let (status, body) = gated.mint("desk:read", &[]).await;
            let kinds = gated.kinds(from).await.join(", ");
            writeln!(table, "{case:<20} | {} | {kinds}", told(status, &body)).unwrap();
            happens(Arc::clone(sts), back, change).await;
        }
        assert_eq!(gated.mint("desk:read", &[]).await.0, 200, "all is as it was");
        sts.interlude.then(cut_off(Arc::clone(sts), "app-z1"));
        let from = gated.evidence().await.len();
        let (status, body) = gated.mint("desk:read", &[]).await;
        let kinds = gated.kinds(from).await.join(", ");
        writeln!(table, "{:<20} | {} | {kinds}", "subject, issued anew", told(status, &body)).unwrap();
        let token = body["access_token"].as_str().unwrap();
        assert_eq!(call(sts, token, &claims(token)).await, "granted", "it was issued after the cut");
        insta::allow_duplicates! { insta::assert_snapshot!(table, @"
        Session              | 403 access_denied: agent session is not live | token_exchange deny exchange_denied
        Delegation           | 403 access_denied: delegation is not active | token_exchange deny exchange_denied
        record of the user   | 403 access_denied: agent session is not live | token_exchange deny exchange_denied
        application          | 401 access_denied: invalid client credentials | token_exchange deny exchange_denied
        scopes               | 403 access_denied: policy denied (scope_mismatch) | token_exchange deny scope_mismatch, token_exchange deny exchange_denied
        policy               | 403 access_denied: policy denied (no_active_policy_set) | token_exchange deny complete, token_exchange deny exchange_denied
        what does not matter | 200 -: - | token_exchange allow complete
        subject, issued anew | 200 -: - | token_exchange allow complete
        ") }
        gated.stop().await;
    }

    async fn a_call_does_not_outlive_what_it_was_decided_on(store: Store) {
        let gated = Gated::start(store).await;
        let sts = &gated.sts.sts;
        let (_, body) = gated.mint("desk:read", &[]).await;
        let token = body["access_token"].as_str().unwrap().to_owned();
        let mandate = claims(&token);
        let mut table = String::new();
        for (case, (changed, back), change) in changes() {
            sts.interlude.then(happens(Arc::clone(sts), changed, change.clone()));
            writeln!(table, "{case:<20} | {}", call(sts, &token, &mandate).await).unwrap();
            happens(Arc::clone(sts), back, change).await;
        }
        assert_eq!(call(sts, &token, &mandate).await, "granted");
        sts.interlude.then(cut_off(Arc::clone(sts), "app-z1"));
        writeln!(table, "{:<20} | {}", "subject", call(sts, &token, &mandate).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @"
        Session              | 403: agent session is not live
        Delegation           | 403: delegation is not active
        record of the user   | 403: agent session is not live
        application          | 401: invalid client credentials
        scopes               | 403: policy denied (scope_mismatch)
        policy               | 403: policy denied (no_active_policy_set)
        what does not matter | granted
        subject              | 401: session revoked
        ") }
        gated.stop().await;
    }

    async fn an_approval_is_not_spent_on_what_does_not_stand(store: Store) {
        let gated = Gated::start(store).await;
        let sts = &gated.sts.sts;
        let id = gated.held("desk:write", &[]).await;
        assert!(gated.operator(&id, true).await);
        let (session, (changed, back)) = (Change::Session(zone(), SessionId::trusted("s2")), SESSION);
        sts.interlude.then(happens(Arc::clone(sts), changed, session.clone()));
        let (status, body) = gated.mint("desk:write", &[("approval_id", &id)]).await;
        assert_eq!(status, 403, "{body}");
        assert_eq!(gated.hold(&id).await.consumed_at, None);
        happens(Arc::clone(sts), back, session).await;
        let (status, body) = gated.mint("desk:write", &[("approval_id", &id)]).await;
        assert_eq!(status, 200, "{body}");
        gated.stop().await;
    }

    async fn a_mint_that_is_decided_twice_is_charged_once(store: Store) {
        let sts = super::limits::furnished(&store, &super::limits::bus(), |config| config.mint_rate = 2).await;
        let mut fields = caller("z1", "app-z1", "cs_of_z1");
        fields.extend([
            ("resource", "resource://desk"), ("scope", "desk:read"),
            ("agent_session_id", "s4"), ("delegation_edge_id", "e2"),
        ]);
        let mut seen = Vec::new();
        for (sql, _) in [(NAME.0, 1), (NAME.1, 2), (NAME.0, 3)] {
            sts.sts.interlude.then(happens(Arc::clone(&sts.sts), sql, Change::Zone(zone())));
            seen.push(sts.send(exchange(&fields)).await.0.as_u16());
        }
        assert_eq!(seen, [200, 200, 429]);
    }

    async fn what_changes_each_time_is_refused_in_the_end(store: Store) {
        let gated = Gated::start(store).await;
        let sts = &gated.sts.sts;
        for _ in 0..crate::anew::TRIES {
            sts.interlude.then(happens(Arc::clone(sts), NAME.0, Change::Zone(zone())));
        }
        let (status, body) = gated.mint("desk:read", &[]).await;
        assert_eq!(told(status, &body), "503 sts_unavailable: what this rests on keeps changing, try again shortly");
        assert_eq!(gated.mint("desk:read", &[]).await.0, 200);
        gated.stop().await;
    }

    async fn a_session_mandate_and_a_federation_do_not_either(store: Store) {
        let scene = Scene::start(store).await;
        let sts = &scene.sts.sts;
        let token = scene.id_token(|_| ());
        let (session, user) = (lifecycle(&[]), with_id(&token, &[]));
        let mut table = String::new();
        for (case, fields, (changed, back)) in [
            ("lifecycle, application", &session, APPLICATION),
            ("lifecycle, other", &session, NAME),
            ("user, application", &user, APPLICATION),
            ("user, issuer", &user, ISSUER),
            ("user, other", &user, NAME),
        ] {
            let zone = Change::Zone(zone());
            sts.interlude.then(happens(Arc::clone(sts), changed, zone.clone()));
            writeln!(table, "{}", scene.row(case, fields).await).unwrap();
            happens(Arc::clone(sts), back, zone).await;
        }
        for (case, fields, subject) in [
            ("lifecycle, issued anew", &session, "app-z1"), ("user, cut off", &user, "user_123"),
        ] {
            sts.interlude.then(cut_off(Arc::clone(sts), subject));
            writeln!(table, "{}", scene.row(case, fields).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @"
        lifecycle, application | 401 access_denied: invalid client credentials | deny exchange_denied
        lifecycle, other       | 200 access_token for 900 s | allow complete
        user, application      | 401 access_denied: invalid client credentials | deny subject_federation_rejected
        user, issuer           | 401 invalid_token: invalid subject_token: its issuer is not trusted in this zone any more | deny subject_federation_invalid
        user, other            | 200 access_token for 900 s | allow complete
        lifecycle, issued anew | 200 access_token for 900 s | allow complete
        user, cut off          | 403 access_denied: what was issued to this user up to now has been revoked | deny subject_federation_rejected
        ") }
    }
}
