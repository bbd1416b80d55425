//! Who speaks for the Gateway (spec: sts §5), and what its exchange must say (spec: sts §2.4 row 4,
//! §2.5 step 4).

use super::*;

const ARCHIVE: &str = "UPDATE applications SET archived_at = 1 WHERE id = 'app-z1'";

caracal_store::on_each_engine! {
    async fn exchanges_of_the_gateway_row_by_row(store: Store) {
        let gated = Gated::start(store).await;
        let (status, body) = gated.mint("desk:read", &[("agent_session_id", "s4"), ("delegation_edge_id", "e2")]).await;
        assert_eq!(status, 200, "{body}");
        let token = body["access_token"].as_str().unwrap();

        let now = SystemClock::new().now().unix_seconds();
        let forged = told(401, "access_denied", "invalid gateway exchange signature");
        for (row, at) in [("§5: 62 s old", now - 62), ("§5: 62 s ahead", now + 62)] {
            let id = nonce();
            check(&gated, row, signed_at(at, &format!("gateway_request_id={id}"), &id, &id), forged).await;
        }
        for name in [crate::gateway::TIMESTAMP, crate::gateway::NONCE, crate::gateway::SIGNATURE] {
            for value in ["", "1", "00"] {
                let mut request = called(token, &[]);
                request.headers_mut().insert(name, value.parse().unwrap());
                check(&gated, &format!("§5: {name} is {value:?}"), request, forged).await;
            }
            let mut request = called(token, &[]);
            let twice = request.headers()[name].clone();
            request.headers_mut().append(name, twice);
            check(&gated, &format!("§5: {name} twice"), request, forged).await;
        }
        let mut changed = called(token, &[]);
        *changed.body_mut() = Body::from("grant_type=x");
        check(&gated, "§5: another body", changed, forged).await;

        let missing = told(400, "invalid_token", "subject_token");
        let none = called(token, &[("subject_token", ""), ("subject_token_type", "")]);
        check(&gated, "§2.4 row 4: no subject token", none, missing).await;
        let two = told(400, "invalid_token", "names one resource");
        check(&gated, "no resource", called(token, &[("resource", "")]), two).await;
        let bad = told(401, "invalid_token", "invalid subject_token");
        check(&gated, "§2.5 step 4: not a mandate", called("x", &[]), bad).await;
        let user = gated.signed_in("r-again", "user_1", serde_json::json!({})).await;
        check(&gated, "§2.5 step 4: a session mandate", called(&user, &[]), bad).await;
        for (row, field, why) in [
            ("§2.5 step 4: another application", ("application_id", "app-z2"), "belongs to another application"),
            ("§2.5 step 4: another record", ("session_id", "r-1"), "session_id does not match"),
            ("§2.5 step 4: another Session", ("agent_session_id", "s3"), "agent_session_id does not match"),
            ("§2.5 step 4: another Delegation", ("delegation_edge_id", "e1"), "delegation_edge_id does not match"),
        ] {
            check(&gated, row, called(token, &[field]), refused(403, "access_denied", why)).await;
        }
        let same = called(token, &[("agent_session_id", "s4"), ("delegation_edge_id", "e2")]);
        granted(&gated, "§2.5 step 4: what the mandate says", same, &["allow complete"]).await;

        let answer = granted(&gated, "§2.8: upstreams", called(token, &[]), &["allow complete"]).await;
        assert_eq!(answer["upstreams"]["resource://desk"]["url"], "https://desk.example");
        let mandate = crate::tests::scene::claims(answer["access_token"].as_str().unwrap());
        assert_eq!(mandate.aud, mandate.target);

        alter(&gated, ARCHIVE, &[]).await;
        check(&gated, "§2.4 row 4: an application that is gone", called(token, &[]),
            refused(401, "access_denied", "invalid client credentials")).await;
        gated.stop().await;
    }
}
