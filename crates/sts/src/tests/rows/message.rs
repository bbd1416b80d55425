//! The message (spec: sts §2.1).

use super::*;
use crate::form::{ACCESS_TOKEN_TYPE, MAX_BODY};
use crate::tests::scene::Scene;

/// A lifecycle exchange that is right but for what is added.
fn right(more: &[(&str, &str)]) -> Request<Body> {
    exchange(&lifecycle(more))
}

/// The same as text, to be broken by hand.
fn text() -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", GRANT_TYPE)
        .extend_pairs(lifecycle(&[]));
    form.finish()
}

async fn minted(scene: &Scene, row: &str, request: Request<Body>) -> http::HeaderMap {
    scene.news().await;
    let (status, headers, body) = scene.sts.send(request).await;
    assert_eq!(status, 200, "{row}: {body}");
    is_whole(row, status, &headers, &body);
    is_token(row, &headers, &body);
    let events = scene.news().await;
    assert_eq!(
        on_record(row, &headers, &events),
        ["allow complete"],
        "{row}"
    );
    headers
}

caracal_store::on_each_engine! {
    async fn request_checks_2_1_row_by_row(store: Store) {
        let scene = Scene::start(store).await;
        let bad = |why| told(400, "invalid_token", why);

        let get = Request::get(PATH).body(Body::empty()).unwrap();
        let headers = check(&scene, "row 0: another method", get, told(405, "invalid_token", "POST")).await;
        assert_eq!(headers["allow"], "POST");

        let headers = minted(&scene, "row 1: an id is echoed", with_id("order-7", right(&[]))).await;
        assert_eq!(headers["x-request-id"], "order-7");
        let long = "x".repeat(129);
        for id in [long.as_str(), "two words"] {
            let headers = minted(&scene, "row 1: what is no id is replaced", with_id(id, right(&[]))).await;
            let made = headers["x-request-id"].to_str().unwrap();
            assert!(made.len() == 36 && made.as_bytes()[14] == b'7', "{made} is a UUIDv7");
        }

        let query = post(&format!("{PATH}?zone_id=z1"), FORM, text());
        check(&scene, "row 2: a query string", query, bad("query string must be empty")).await;

        for media in ["application/json", "text/plain", "application/x-www-form-urlencoded-not"] {
            let other = post(PATH, media, text());
            check(&scene, "row 3: another media type", other, told(415, "invalid_token", "content type")).await;
        }
        minted(&scene, "row 3: with parameters", post(PATH, "Application/X-WWW-Form-Urlencoded; charset=utf-8", text())).await;

        let padding = |size: usize| {
            let body = text();
            let fill = size - body.len() - "&padding=".len();
            post(PATH, FORM, format!("{body}&padding={}", "a".repeat(fill)))
        };
        check(&scene, "row 4: one byte too many", padding(MAX_BODY + 1), told(413, "payload_too_large", "")).await;
        minted(&scene, "row 4: the most", padding(MAX_BODY)).await;

        let broken = post(PATH, FORM, format!("{}&x=%zz", text()));
        check(&scene, "row 5: a broken escape", broken, bad("percent escape")).await;
        for (name, value) in [("zone_id", "z1"), ("scope", "agent:lifecycle"), ("unknown", "1")] {
            let twice = post(PATH, FORM, format!("{}&{name}={value}&{name}={value}", text()));
            check(&scene, "row 5: a field twice", twice, bad("repeated")).await;
        }
        minted(&scene, "row 5: resource may be repeated", right(&[("resource", "resource://desk")])).await;

        for name in ["actor_token", "client_assertion", "client_assertion_type"] {
            for value in ["", "x"] {
                let row = format!("row 6: {name}={value}");
                check(&scene, &row, right(&[(name, value)]), bad(name)).await;
            }
        }

        for ttl in ["soon", "1.5", "9999999999999999999999"] {
            check(&scene, "row 7: no integer", right(&[("ttl_seconds", ttl)]), bad("invalid ttl_seconds")).await;
        }
        minted(&scene, "row 7: empty", right(&[("ttl_seconds", "")])).await;

        for name in [crate::gateway::TIMESTAMP, crate::gateway::NONCE, crate::gateway::SIGNATURE] {
            let mut claims = right(&[]);
            claims.headers_mut().insert(name, "1".parse().unwrap());
            let denied = told(401, "access_denied", "gateway");
            check(&scene, &format!("row 8: {name} alone"), claims, denied).await;
        }
        let body = format!("{}&gateway_request_id=r-1", text());
        let denied = || told(401, "access_denied", "gateway");
        check(&scene, "row 8: another request id", signed(&body, "rows-1", "r-2"), denied()).await;
        let wants = bad("subject_token");
        check(&scene, "row 8: signed; then 2.4 row 4", signed(&body, "rows-2", "r-1"), wants).await;
        check(&scene, "row 8: the nonce again", signed(&body, "rows-2", "r-1"), denied()).await;

        for resource in ["", "  "] {
            check(&scene, "row 9: an empty resource", right(&[("resource", resource)]), bad("resource")).await;
        }
        minted(&scene, "row 9: trimmed, and the same", right(&[("resource", " resource://desk ")])).await;

        for grant in ["", "client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange "] {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", grant).extend_pairs(lifecycle(&[]));
            let other = post(PATH, FORM, form.finish());
            check(&scene, "row 10: another grant type", other, bad("grant_type")).await;
        }

        for kind in ["urn:ietf:params:oauth:token-type:refresh_token", "access_token"] {
            let odd = right(&[("subject_token", "x"), ("subject_token_type", kind)]);
            check(&scene, "row 11: another token type", odd, bad("subject_token_type")).await;
        }

        for half in [("subject_token", "x"), ("subject_token_type", ACCESS_TOKEN_TYPE)] {
            check(&scene, "row 12: one of the two", right(&[half]), bad("subject_token")).await;
        }

        let wrong = || {
            let mut fields = lifecycle(&[]);
            fields[2].1 = "cs_guessed";
            exchange(&fields)
        };
        for _ in 0..61 {
            scene.sts.send(wrong()).await;
        }
        let locked = told(429, "provider_rate_limited", "");
        let headers = check(&scene, "row 13: locked out", wrong(), locked).await;
        assert!(headers.contains_key("retry-after"));
        minted(&scene, "row 13: who knows the secret is not", right(&[])).await;
    }
}
