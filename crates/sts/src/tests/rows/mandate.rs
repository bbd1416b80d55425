//! The claims of each class of mandate, whole (spec: sts §3). Those of a federated user are in
//! `federation`.

use caracal_crypto::digest::b64url_decode;
use serde_json::json;

use super::*;
use crate::tests::scene::Scene;

/// The header and the claims of a token.
fn parts(body: &Value) -> [Value; 2] {
    let mut parts = body["access_token"].as_str().unwrap().split('.');
    [(); 2].map(|()| {
        let bytes = b64url_decode(parts.next().unwrap()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    })
}

/// They are these, besides those that are new each time.
fn are(row: &str, body: &Value, expected: Value) -> Value {
    let [head, claims] = parts(body);
    assert_eq!(
        head,
        json!({"alg": "ES256", "kid": "kid-z1", "typ": "JWT"}),
        "{row}"
    );
    let mut whole = expected;
    for name in ["jti", "iat", "exp", "sid"] {
        whole[name] = claims[name].clone();
    }
    if whole.get("root_sid").is_none() {
        whole["root_sid"] = claims["sid"].clone();
    }
    assert_eq!(claims, whole, "{row}");
    let made = |name: &str| claims[name].as_str().unwrap().as_bytes()[14];
    assert_eq!((made("jti"), made("sid")), (b'7', b'7'), "{row}: UUIDv7");
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(body["expires_in"], life, "{row}");
    claims
}

caracal_store::on_each_engine! {
    async fn claims_3_class_by_class(store: Store) {
        let gated = Gated::start(store).await;
        let allow = ["allow complete"];
        let bootstrap = mint(&[("agent_session_id", ""), ("delegation_edge_id", ""), ("scope", "agent:lifecycle")]);
        let body = granted(&gated, "session", bootstrap, &allow).await;
        are("session", &body, json!({
            "iss": ISSUER, "sub": "app-z1", "sub_type": "application", "aud": [ISSUER], "use": "session",
            "zone_id": "z1", "client_id": "app-z1", "target": ["resource://desk"], "scope": "agent:lifecycle",
        }));
        assert_eq!(body["scope"], "agent:lifecycle");

        let lineage = json!({
            "agent_session_id": "s4", "delegation_edge_id": "e2", "source_session_id": "s3",
            "target_session_id": "s4", "delegation_path": ["e2"], "hop_count": 1,
            "delegation_chain": [
                {"application_id": "app-z1", "agent_session_id": "s3", "delegation_edge_id": "e2"},
                {"application_id": "app-z1", "agent_session_id": "s4"},
            ],
        });
        let under = |mut claims: Value| {
            claims.as_object_mut().unwrap().extend(lineage.as_object().unwrap().clone());
            claims
        };
        // The scope is what was asked for, letter by letter.
        let minted = granted(&gated, "gateway", mint(&[("scope", "desk:read desk:read")]), &allow).await;
        let presented = are("gateway", &minted, under(json!({
            "iss": ISSUER, "sub": "app-z1", "sub_type": "application", "aud": [ISSUER], "use": "gateway",
            "zone_id": "z1", "client_id": "app-z1", "target": ["resource://desk"], "scope": "desk:read desk:read",
        })));
        let token = minted["access_token"].as_str().unwrap();
        let body = granted(&gated, "resource", called(token, &[]), &allow).await;
        let claims = are("resource", &body, under(json!({
            "iss": ISSUER, "sub": "app-z1", "sub_type": "application", "aud": ["resource://desk"],
            "use": "resource", "zone_id": "z1", "client_id": "app-z1", "target": ["resource://desk"],
            "scope": "desk:read desk:read", "root_sid": presented["sid"],
        })));
        assert!(claims["exp"].as_i64() <= presented["exp"].as_i64(), "no longer than what was presented");
        assert_ne!(claims["sid"], presented["sid"]);
        gated.stop().await;
    }

    async fn claims_3_of_control(store: Store) {
        let scene = Scene::start(store).await;
        let fields = [
            ("application_id", "key"), ("client_secret", "cs_of_key"), ("resource", "caracal-control"),
            ("scope", "control:app:read"),
        ];
        let body = granted(&scene, "Control", exchange(&fields), &["allow complete"]).await;
        are("Control", &body, json!({
            "iss": ISSUER, "sub": "key", "sub_type": "application", "aud": ["caracal-control"],
            "use": "resource", "zone_id": "z1", "client_id": "key", "target": ["caracal-control"],
            "scope": "control:app:read",
        }));
    }
}
