//! Federation over the router: answer and evidence, row by row (spec: sts §7).

use std::fmt::Write as _;

use caracal_crypto::es256::SigningKey;
use caracal_model::{Kid, Timestamp};
use serde_json::{Value, json};

use super::scene::{IDP, Scene, now, with_id, zone};
use super::{ISSUER, exchange};

caracal_store::on_each_engine! {
    async fn an_id_token_becomes_a_session_mandate_of_its_user(store: Store) {
        let scene = Scene::start(store).await;
        let token = scene.id_token(|claims| claims["sub"] = "Auth0|\u{e4} b".into());
        let mandate = scene.minted(&with_id(&token, &[("ttl_seconds", "60")])).await;
        let (sid, jti) = (mandate.sid.clone(), mandate.jti.clone());
        assert_eq!(serde_json::to_value(&mandate).unwrap(), json!({
            "iss": ISSUER, "sub": "Auth0|\u{e4} b", "aud": [ISSUER], "exp": mandate.iat + 60,
            "iat": mandate.iat, "jti": jti, "zone_id": "z1", "client_id": "app-z1", "sid": sid,
            "root_sid": sid, "use": "session", "sub_type": "user",
        }));
        let record = scene.sts.sts.store.zone(&zone()).authority_record(&sid).await.unwrap().unwrap();
        assert_eq!(record.record_type, "user");
        assert_eq!((record.subject_id.as_str(), record.client_id.as_str()), ("Auth0|\u{e4} b", "app-z1"));
        assert_eq!(record.issuer.as_deref(), Some(IDP));
        assert_eq!(record.expires_at, Timestamp::from_unix_seconds(mandate.exp));
        let events = scene.evidence().await;
        assert_eq!(events.len(), 1);
        let event = &events[0];
        assert_eq!((&event["event_type"], &event["decision"]), (&json!("token_exchange"), &json!("allow")));
        assert_eq!(event["determining_policies_json"], json!([{"policy": "caracal-subject-federation"}]));
        let metadata = &event["metadata_json"];
        assert_eq!(metadata["federated_user_issuer"], IDP);
        assert_eq!(metadata["subject_kind"], "user");
        assert_eq!(metadata["issued_record_id"], json!(sid));
        let text = event.to_string();
        assert!(!text.contains("Auth0|") && !text.contains(&token), "no subject, no token: {text}");
        let default = scene.minted(&with_id(&scene.id_token(|_| ()), &[])).await;
        assert_eq!(default.exp - default.iat, 900);
        let longest = scene.minted(&with_id(&scene.id_token(|_| ()), &[("ttl_seconds", "3600")])).await;
        assert_eq!(longest.exp - longest.iat, 3600);
    }

    async fn what_does_not_go_with_an_id_token_is_refused(store: Store) {
        let scene = Scene::start(store).await;
        let token = scene.id_token(|_| ());
        let mut table = String::new();
        for (case, field, value) in [
            ("resource", "resource", "resource://desk"),
            ("scope", "scope", "desk:read"),
            ("session_id", "session_id", "r1"),
            ("agent_session_id", "agent_session_id", "s1"),
            ("delegation_edge_id", "delegation_edge_id", "e1"),
            ("approval_id", "approval_id", "a1"),
            ("ttl over the cap", "ttl_seconds", "3601"),
        ] {
            let row = scene.row(case, &with_id(&token, &[(field, value)])).await;
            writeln!(table, "{row}").unwrap();
        }
        assert_eq!(scene.sts.idp.asked(), 0, "nobody was asked for keys");
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        resource               | 400 invalid_token: resource does not go with an id_token: leave it out | deny subject_federation_rejected
        scope                  | 400 invalid_token: scope does not go with an id_token: leave it out | deny subject_federation_rejected
        session_id             | 400 invalid_token: session_id does not go with an id_token: leave it out | deny subject_federation_rejected
        agent_session_id       | 400 invalid_token: agent_session_id does not go with an id_token: leave it out | deny subject_federation_rejected
        delegation_edge_id     | 400 invalid_token: delegation_edge_id does not go with an id_token: leave it out | deny subject_federation_rejected
        approval_id            | 400 invalid_token: approval_id does not go with an id_token: leave it out | deny subject_federation_rejected
        ttl over the cap       | 400 invalid_token: ttl_seconds must not exceed 3600 | deny subject_federation_rejected
        "); }
    }

    async fn an_id_token_that_proves_nothing_is_refused(store: Store) {
        let scene = Scene::start(store).await;
        let stranger = SigningKey::generate(Kid::trusted("idp-1")).unwrap();
        let unknown = SigningKey::generate(Kid::trusted("idp-2")).unwrap();
        let at = now();
        let signed = |key: &SigningKey| {
            key.sign(&json!({"iss": IDP, "sub": "u", "aud": "caracal", "exp": at + 60})).unwrap()
        };
        let with = |name: &str, value: Value| scene.id_token(|claims| claims[name] = value);
        let without = |name: &str| scene.id_token(|claims| drop(claims.as_object_mut().unwrap().remove(name)));
        let genuine = scene.id_token(|_| ());
        let parts: Vec<_> = genuine.split('.').collect();
        let none = format!("eyJhbGciOiJub25lIiwia2lkIjoiaWRwLTEifQ.{}.", parts[1]);
        let symmetric = format!("eyJhbGciOiJIUzI1NiIsImtpZCI6ImlkcC0xIn0.{}.{}", parts[1], parts[2]);
        let no_kid = format!("eyJhbGciOiJFUzI1NiJ9.{}.{}", parts[1], parts[2]);
        let mut table = String::new();
        for (case, token) in [
            ("garbage", "x".to_owned()),
            ("alg none", none),
            ("alg HS256", symmetric),
            ("no kid", no_kid),
            ("issuer of nobody", with("iss", "https://evil.example".into())),
            ("issuer, a slash more", with("iss", format!("{IDP}/").into())),
            ("no issuer", without("iss")),
            ("unknown key", signed(&unknown)),
            ("stolen key id", signed(&stranger)),
            ("other audience", with("aud", json!(["other", "Caracal"]))),
            ("no audience", without("aud")),
            ("expired", with("exp", json!(at - 61))),
            ("no expiry", without("exp")),
            ("expiry in words", with("exp", "soon".into())),
            ("expiry beyond time", with("exp", json!(1e300))),
            ("from the future", with("iat", json!(at + 120))),
            ("not before", with("nbf", json!(at + 120))),
            ("no subject", without("sub")),
            ("empty subject", with("sub", "".into())),
            ("reserved subject", with("sub", "caracal:shared".into())),
            ("long subject", with("sub", "x".repeat(513).into())),
            ("spaced subject", with("sub", " u".into())),
            ("turned subject", with("sub", "u\u{202e}".into())),
            ("broken subject", with("sub", "u\u{fffd}".into())),
            ("subject, a number", with("sub", json!(7))),
        ] {
            writeln!(table, "{}", scene.row(case, &with_id(&token, &[])).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        garbage                | 401 invalid_token: invalid subject_token: it is not a signed JWT | deny subject_federation_invalid
        alg none               | 401 invalid_token: invalid subject_token: it must be a JWT signed with RS256, RS384, RS512, ES256, ES384 or ES512 | deny subject_federation_invalid
        alg HS256              | 401 invalid_token: invalid subject_token: it must be a JWT signed with RS256, RS384, RS512, ES256, ES384 or ES512 | deny subject_federation_invalid
        no kid                 | 401 invalid_token: invalid subject_token: its header names no key (kid) | deny subject_federation_invalid
        issuer of nobody       | 401 invalid_token: invalid subject_token: its issuer is not trusted in this zone | deny subject_federation_invalid
        issuer, a slash more   | 401 invalid_token: invalid subject_token: its issuer is not trusted in this zone | deny subject_federation_invalid
        no issuer              | 401 invalid_token: invalid subject_token: its claims must hold iss, sub, aud and exp | deny subject_federation_invalid
        unknown key            | 401 invalid_token: invalid subject_token: its issuer publishes no such key | deny subject_federation_invalid
        stolen key id          | 401 invalid_token: invalid subject_token: its signature is wrong | deny subject_federation_invalid
        other audience         | 401 invalid_token: invalid subject_token: it is meant for another audience | deny subject_federation_invalid
        no audience            | 401 invalid_token: invalid subject_token: its claims must hold iss, sub, aud and exp | deny subject_federation_invalid
        expired                | 401 invalid_token: invalid subject_token: it has expired | deny subject_federation_invalid
        no expiry              | 401 invalid_token: invalid subject_token: its claims must hold iss, sub, aud and exp | deny subject_federation_invalid
        expiry in words        | 401 invalid_token: invalid subject_token: its claims must hold iss, sub, aud and exp | deny subject_federation_invalid
        expiry beyond time     | 401 invalid_token: invalid subject_token: its exp is no time | deny subject_federation_invalid
        from the future        | 401 invalid_token: invalid subject_token: it is not valid yet | deny subject_federation_invalid
        not before             | 401 invalid_token: invalid subject_token: it is not valid yet | deny subject_federation_invalid
        no subject             | 401 invalid_token: invalid subject_token: its claims must hold iss, sub, aud and exp | deny subject_federation_invalid
        empty subject          | 401 invalid_token: invalid subject_token: its sub is empty | deny subject_federation_invalid
        reserved subject       | 401 invalid_token: invalid subject_token: its sub starts with `caracal:`, which is reserved | deny subject_federation_invalid
        long subject           | 401 invalid_token: invalid subject_token: its sub is longer than 512 bytes | deny subject_federation_invalid
        spaced subject         | 401 invalid_token: invalid subject_token: its sub starts or ends with white space | deny subject_federation_invalid
        turned subject         | 401 invalid_token: invalid subject_token: its sub holds control characters | deny subject_federation_invalid
        broken subject         | 401 invalid_token: invalid subject_token: its sub is not valid UTF-8 | deny subject_federation_invalid
        subject, a number      | 401 invalid_token: invalid subject_token: its claims must hold iss, sub, aud and exp | deny subject_federation_invalid
        "); }
        for (case, token) in [
            ("within the leeway", with("exp", json!(now() - 50))),
            ("one of several", with("aud", json!(["other", "caracal"]))),
            ("times with fractions", with("iat", json!(now() as f64 - 0.5))),
            ("without iat", without("iat")),
        ] {
            let row = scene.row(case, &with_id(&token, &[])).await;
            assert!(row.contains("| 200 ") && row.ends_with("allow complete"), "{row}");
        }
    }

    async fn an_issuer_that_lies_is_an_outage_and_nobody_is_let_in(store: Store) {
        let scene = Scene::start(store).await;
        let token = scene.id_token(|_| ());
        for lie in ["", "x", "<h1>Sign in</h1>", "null", "[]", "{}", r#"{"keys":7}"#, r#"{"keys":{"kid":"idp-1"}}"#] {
            scene.sts.idp.says(lie);
            let row = scene.row(lie, &with_id(&token, &[])).await;
            let told = row.split_once(" | ").unwrap().1;
            assert!(told.starts_with("503 sts_unavailable: ") && told.ends_with("| deny exchange_denied"), "{row}");
        }
        // Keys, but none that anything could be verified with.
        scene.sts.idp.says(r#"{"keys":[7,null,{},{"kid":"idp-1","kty":"oct","k":"c2VjcmV0"},
            {"kid":"idp-1","kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}]}"#);
        let row = scene.row("no usable key", &with_id(&token, &[])).await;
        assert!(row.contains("| 401 invalid_token: invalid subject_token: its issuer publishes no such key"), "{row}");
    }

    async fn an_issuer_that_does_not_answer_is_an_outage(store: Store) {
        let scene = Scene::start(store).await;
        scene.sts.idp.is_out();
        let token = scene.id_token(|_| ());
        let (status, headers, body) = scene.sts.send(exchange(&with_id(&token, &[]))).await;
        assert_eq!((status.as_u16(), &body["error"]), (503, &json!("sts_unavailable")));
        assert_eq!(headers["retry-after"], "1");
        let events = scene.evidence().await;
        assert_eq!(events[0]["evaluation_status"], "exchange_denied");
        assert_eq!(events[0]["metadata_json"]["federated_user_issuer"], IDP);
        scene.sts.idp.publishes(&[&scene.key]);
        scene.minted(&with_id(&token, &[])).await;
        for _ in 0..61 {
            let mut fields = with_id(&token, &[]);
            fields[2].1 = "cs_wrong";
            scene.sts.send(exchange(&fields)).await;
        }
        let row = scene.row("locked out", &{ let mut f = with_id(&token, &[]); f[2].1 = "cs_wrong"; f }).await;
        assert!(row.contains("| 429 provider_rate_limited"), "{row}");
    }
}
