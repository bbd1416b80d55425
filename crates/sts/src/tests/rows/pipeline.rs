//! The order after authentication (spec: sts §2.5), and lifetimes (spec: sts §2.7).

use caracal_crypto::es256::SigningKey;
use caracal_model::{Kid, Mandate};
use caracal_store::params;
use serde_json::json;

use super::*;
use crate::form::ACCESS_TOKEN_TYPE;
use crate::tests::gated::later;

const OWN: &str = "INSERT INTO authority_records (id, zone_id, record_type, subject_id, client_id,
    status, expires_at, created_at) VALUES ($1, 'z1', 'application', 'app-z1', 'app-z1', 'active', $2, 0)";
const EDGE: &str = "INSERT INTO delegations (id, zone_id, source_session_id, target_session_id,
    issuer_application_id, receiver_application_id, mirrored, scopes, constraints_json, status,
    edge_version, expires_at, created_at)
    VALUES ($1, 'z1', 's3', 's4', 'app-z1', 'app-z1', FALSE, '[\"desk:read\"]', $2, 'active', 0, $3, 0)";

/// A request with this subject token and no Session.
fn with(token: &str, more: &[(&str, &str)]) -> Request<Body> {
    let mut fields = vec![
        ("agent_session_id", ""),
        ("delegation_edge_id", ""),
        ("subject_token", token),
        ("subject_token_type", ACCESS_TOKEN_TYPE),
    ];
    fields.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    fields.extend_from_slice(more);
    mint(&fields)
}

/// The same claims, signed by somebody else under this key id.
fn forged(token: &str, kid: &str) -> String {
    let claims: Mandate = serde_json::from_slice(Jws::parse(token).unwrap().payload()).unwrap();
    let key = SigningKey::generate(Kid::trusted(kid)).unwrap();
    key.sign(&claims).unwrap()
}

caracal_store::on_each_engine! {
    async fn the_request_as_a_whole_2_5_row_by_row(store: Store) {
        let gated = Gated::start(store).await;
        let alone = [("agent_session_id", ""), ("delegation_edge_id", ""), ("scope", "agent:lifecycle")];
        let nothing = mint(&[&alone[..], &[("resource", "")]].concat());
        check(&gated, "step 2: no resource", nothing,
            refused(400, "invalid_token", "at least one resource is required")).await;

        alter(&gated, OWN, &params!["r-own", later(3600)]).await;
        alter(&gated, OWN, &params!["r-over", later(0)]).await;
        let now = SystemClock::new().now().unix_seconds();
        let own = async |record: &str, change: Value| {
            let mut claims = json!({"sub_type": "application"});
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            gated.signed_in(record, "app-z1", claims).await
        };
        let good = own("r-own", json!({})).await;
        let invalid = refused(401, "invalid_token", "invalid subject_token");
        for (row, token) in [
            ("step 4: not a token", "x".to_owned()),
            ("step 4: another key of this id", forged(&good, "kid-z1")),
            ("step 4: an unknown key", forged(&good, "kid-z9")),
            ("step 4: another issuer", own("r-own", json!({"iss": "https://other.example"})).await),
            ("step 4: another audience", own("r-own", json!({"aud": ["https://other.example"]})).await),
            ("step 4: another zone", own("r-own", json!({"zone_id": "z2"})).await),
            ("step 4: another use", own("r-own", json!({"use": "gateway"})).await),
            ("step 4: over", own("r-own", json!({"exp": now - 61})).await),
            ("step 4: from the future", own("r-own", json!({"iat": now + 120})).await),
        ] {
            check(&gated, row, with(&token, &[]), invalid).await;
        }
        let dead = refused(403, "access_denied", "authority record is not active");
        let others = refused(403, "access_denied", "authority record belongs to another subject");
        for (row, token, expected) in [
            ("step 4: no record", own("r-none", json!({})).await, dead),
            ("step 4: a record that is over", own("r-over", json!({})).await, dead),
            ("step 4: a revoked record", gated.signed_in("r-revoked", "user_1", json!({})).await, dead),
            ("step 4: a record of another subject", gated.signed_in("r-other", "user_1", json!({})).await, others),
            ("step 4: a record of another client", gated.signed_in("r-elsewhere", "user_1", json!({})).await, others),
            ("step 4: a token of another client", own("r-own", json!({"client_id": "app-z2"})).await,
                refused(403, "access_denied", "subject_token belongs to another application")),
        ] {
            check(&gated, row, with(&token, &[]), expected).await;
        }
        let bound = json!({"agent_session_id": "s4", "delegation_edge_id": "e2"});
        let bound = own("r-own", bound).await;
        for (row, token, field, why) in [
            ("step 4: another session_id", &good, ("session_id", "r-again"), "session_id does not match"),
            ("step 4: another Session", &bound, ("agent_session_id", "s3"), "agent_session_id does not match"),
            ("step 4: another Delegation", &bound, ("delegation_edge_id", "e1"), "delegation_edge_id does not match"),
            ("§9 row 2: a Session of another record", &good, ("agent_session_id", "s4"),
                "agent session hangs on another authority record"),
        ] {
            check(&gated, row, with(token, &[field]), refused(403, "access_denied", why)).await;
        }
        let asked = told(403, "access_denied", "policy denied (no_rule_matched)")
            .on_record(&["deny complete", "deny exchange_denied"]);
        check(&gated, "step 11: no mint for a session mandate", with(&good, &[]), asked).await;
        let named = with(&good, &[("session_id", "r-own")]);
        check(&gated, "step 4: its own session_id", named, asked).await;
        gated.stop().await;
    }

    async fn lifetimes_2_7_row_by_row(store: Store) {
        let gated = Gated::start(store).await;
        let life = async |row: &str, more: &[(&str, &str)]| {
            granted(&gated, row, mint(more), &["allow complete"]).await["expires_in"].as_i64().unwrap()
        };
        assert_eq!(life("the default", &[]).await, 900);
        assert_eq!(life("0 is the default", &[("ttl_seconds", "0")]).await, 900);
        assert_eq!(life("as asked", &[("ttl_seconds", "1")]).await, 1);
        let most = life("the Delegation's end", &[("ttl_seconds", "3600")]).await;
        assert!((3500..=3600).contains(&most), "{most}");
        check(&gated, "negative", mint(&[("ttl_seconds", "-1")]),
            told(400, "invalid_token", "ttl_seconds must be positive")).await;
        check(&gated, "over the cap", mint(&[("ttl_seconds", "3601")]),
            refused(400, "invalid_token", "ttl_seconds must not exceed 3600")).await;
        alter(&gated, OWN, &params!["r-own", later(3600)]).await;
        let token = gated.signed_in("r-own", "app-z1", json!({"sub_type": "application"})).await;
        check(&gated, "over the cap with a subject token", with(&token, &[("ttl_seconds", "901")]),
            refused(400, "invalid_token", "ttl_seconds must not exceed 900")).await;

        let soon = later(100).iso_seconds();
        for (edge, constraints) in [
            ("e-ttl", json!({"ttl_seconds": 60})),
            ("e-soon", json!({"expires_at": soon})),
            ("e-past", json!({"expires_at": "2020-01-01T00:00:00Z"})),
            ("e-words", json!({"expires_at": "tomorrow"})),
        ] {
            alter(&gated, EDGE, &params![edge, constraints.to_string(), later(3600)]).await;
        }
        assert_eq!(life("constraints.ttl_seconds", &[("delegation_edge_id", "e-ttl")]).await, 60);
        let left = life("constraints.expires_at", &[("delegation_edge_id", "e-soon")]).await;
        assert!((60..=100).contains(&left), "{left}");
        for (row, more, why) in [
            ("§9 row 6: over constraints.ttl_seconds",
                &[("delegation_edge_id", "e-ttl"), ("ttl_seconds", "61")][..], "ttl_seconds exceeds the delegation"),
            ("constraints.expires_at, past", &[("delegation_edge_id", "e-past")], "delegation is not active"),
            ("constraints.expires_at, no time", &[("delegation_edge_id", "e-words")], "constraints are not understood"),
        ] {
            check(&gated, row, mint(more), refused(403, "access_denied", why)).await;
        }
        gated.stop().await;
    }

    async fn what_comes_to_nothing_after_policy_has_allowed_it_is_on_record_with_its_resource(store: Store) {
        let gated = Gated::start(store).await;
        let nothing: &'static [&str] = &["deny exchange_denied", "deny exchange_denied"];
        let long = vec!["desk:read"; 1_000].join(" ");
        let too_long = told(400, "invalid_token", "the mandate would be longer than 8 KiB").on_record(nothing);
        check(&gated, "§20.13: a mandate that nobody takes", mint(&[("scope", &long)]), too_long).await;
        let minted = granted(&gated, "a mint", mint(&[]), &["allow complete"]).await;
        alter(&gated, "UPDATE resources SET upstream_url = NULL WHERE id = 'res-1'", &[]).await;
        let nowhere = told(403, "access_denied", "resource upstream not configured").on_record(nothing);
        let call = called(minted["access_token"].as_str().unwrap(), &[]);
        check(&gated, "§6.1: no upstream", call, nowhere).await;
        gated.stop().await;
    }
}
