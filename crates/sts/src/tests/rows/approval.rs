//! The gate (spec: sts §11.2), and an approval that is presented (spec: sts §11.4).

use super::*;

const UNKNOWN: &str = "5c0e0000-0000-4000-8000-000000000000";

fn with(scope: &str, id: &str) -> Request<Body> {
    mint(&[("scope", scope), ("approval_id", id)])
}

/// Refused before policy was asked, with this status.
const fn presented(
    status: u16,
    error: &'static str,
    why: &'static str,
    evidence: &'static [&'static str],
) -> Told {
    told(status, error, why).on_record(evidence)
}

caracal_store::on_each_engine! {
    async fn approvals_11_2_and_11_4_row_by_row(store: Store) {
        let gated = Gated::start(store).await;
        let under_e2 = [("agent_session_id", "s4"), ("delegation_edge_id", "e2")];
        let waiting = "Human approval required for this request";
        let first = told(401, "interaction_required", waiting)
            .on_record(&["step_up_issued pending complete", "deny complete", "deny exchange_denied"]);
        check(&gated, "§11.2: a new hold", mint(&[("scope", "desk:write")]), first).await;
        let again = told(401, "interaction_required", waiting).on_record(&["deny complete", "deny exchange_denied"]);
        check(&gated, "§11.2: the same again", mint(&[("scope", "desk:write")]), again).await;
        // Whether or not anybody ever decides about it, what policy was asked can be asked again.
        let asked = gated.evidence().await;
        let held = asked.iter().rev().find(|event| event.metadata_json.get("policy_input").is_some()).unwrap();
        assert_eq!(held.metadata_text("policy_decision").as_deref(), Some("hold"));
        let asked = held.metadata_json.get("policy_input").unwrap();
        let question = caracal_policy::recorded(&asked, &held.request_id).unwrap();
        let zone = gated.sts.sts.views.zone(&ZoneId::trusted("z1")).await.unwrap();
        let again = zone.policy.contract.evaluate(&question).unwrap();
        assert!(again.allow && again.step_up().is_some(), "{again:?}");
        let id = gated.held("desk:write", &under_e2).await;

        let invalid = presented(401, "access_denied", "approval not found or bindings do not match", &["deny approval_invalid"]);
        check(&gated, "§11.4: not an id", with("desk:write", "a1"), invalid).await;
        check(&gated, "§11.4: unknown", with("desk:write", UNKNOWN), invalid).await;
        check(&gated, "§11.4: for another scope", with("desk:pay", &id), invalid).await;
        let user = mint(&[("scope", "desk:write"), ("approval_id", &id), ("agent_session_id", "s2"), ("delegation_edge_id", "e1")]);
        check(&gated, "§11.4: for another Session", user, invalid).await;
        let pending = told(401, "interaction_required", waiting).on_record(&["deny exchange_denied"]);
        check(&gated, "§11.4: pending", with("desk:write", &id), pending).await;

        assert!(gated.operator(&id, true).await);
        let spent = ["step_up_consumed consumed complete", "allow complete"];
        granted(&gated, "§11.4: approved", with("desk:write", &id), &spent).await;
        granted(&gated, "§11.4: within two minutes", with("desk:write", &id), &spent).await;
        gated.spent_long_ago(&id).await;
        let used = presented(409, "approval_consumed", "approval was used already", &["deny approval_already_consumed"]);
        check(&gated, "§11.4: later", with("desk:write", &id), used).await;

        let id = gated.held("desk:write", &under_e2).await;
        assert!(gated.operator(&id, false).await);
        let no = presented(403, "access_denied", "approval was rejected", &["deny approval_rejected"]);
        check(&gated, "§11.4: rejected", with("desk:write", &id), no).await;
        let no = no.on_record(&["deny approval_rejected", "deny exchange_denied"]);
        check(&gated, "§11.2: rejected", mint(&[("scope", "desk:write")]), no).await;
        gated.expire(&id).await;

        let id = gated.held("desk:write", &under_e2).await;
        assert!(gated.operator(&id, true).await);
        gated.expire(&id).await;
        let late = presented(401, "access_denied", "approval has expired", &["deny approval_expired"]);
        check(&gated, "§11.4: expired", with("desk:write", &id), late).await;

        let id = gated.held("desk:write", &under_e2).await;
        assert!(gated.operator(&id, true).await);
        granted(&gated, "§11.2: approved, and no id sent", mint(&[("scope", "desk:write")]), &spent).await;

        let id = gated.held("desk:write", &under_e2).await;
        assert!(gated.operator(&id, true).await);
        gated.activate("v2").await;
        check(&gated, "§11.4: another policy", with("desk:write", &id), invalid).await;
        let over = mint(&[("scope", "desk:write"), ("ttl_seconds", "3601")]);
        check(&gated, "§11.2: refused before the gate", over,
            refused(400, "invalid_token", "ttl_seconds must not exceed 3600")).await;
        gated.stop().await;
    }
}
