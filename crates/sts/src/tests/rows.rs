//! Every row of the check tables of `POST /oauth/2/token` (spec: sts §2.1 and §2.4) by its number:
//! status, code, body, header and evidence. The rows of §7 and §8 are in `federation` and `control`.

use caracal_model::{Change, Timestamp};
use caracal_store::zones::{Author, Provenance};

use super::scene::{Scene, application, lifecycle, zone};
use super::*;
use crate::form::{ACCESS_TOKEN_TYPE, GRANT_TYPE, MAX_BODY};

const PATH: &str = "/oauth/2/token";
const FORM: &str = "application/x-www-form-urlencoded";

/// What a row answers.
struct Told {
    status: u16,
    error: &'static str,
    /// What its description holds.
    why: &'static str,
    /// `decision status`, in order.
    evidence: &'static [&'static str],
}

const fn told(status: u16, error: &'static str, why: &'static str) -> Told {
    Told {
        status,
        error,
        why,
        evidence: &[],
    }
}

impl Told {
    const fn on_record(self, evidence: &'static [&'static str]) -> Self {
        Self { evidence, ..self }
    }
}

/// 401, the same for everybody who proves nothing.
const INVALID: Told = told(401, "access_denied", "invalid client credentials");

async fn check(
    scene: &Scene,
    row: &str,
    request: Request<Body>,
    expected: Told,
) -> http::HeaderMap {
    scene.evidence().await;
    let (status, headers, body) = scene.sts.send(request).await;
    let code = body["error"].as_str().unwrap_or("none");
    assert_eq!(
        (status.as_u16(), code),
        (expected.status, expected.error),
        "{row}: {body}"
    );
    let why = body["error_description"].as_str().unwrap_or_default();
    assert!(why.contains(expected.why), "{row}: {why}");
    assert_eq!(headers["content-type"], "application/json", "{row}");
    let id = headers["x-request-id"].to_str().unwrap();
    assert_eq!(body["requestId"], id, "{row}");
    assert_eq!(body.get("access_token"), None, "{row}");
    let mut events = scene.evidence().await;
    events.sort_by_key(|event| event["id"].as_str().unwrap().to_owned());
    let written: Vec<String> = events
        .iter()
        .map(|event| {
            assert_eq!(
                (&event["event_type"], &event["request_id"]),
                (&"token_exchange".into(), &id.into()),
                "{row}"
            );
            let part = |name: &str| event[name].as_str().unwrap().to_owned();
            format!("{} {}", part("decision"), part("evaluation_status"))
        })
        .collect();
    assert_eq!(written, expected.evidence, "{row}");
    headers
}

fn with_id(id: &str, mut request: Request<Body>) -> Request<Body> {
    request
        .headers_mut()
        .insert("x-request-id", id.parse().unwrap());
    request
}

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

/// Signed by the Gateway's key over whatever body this is.
fn signed(body: &str, nonce: &str, id: &str) -> Request<Body> {
    let at = SystemClock::new().now().unix_seconds();
    let (method, path) = ("POST", PATH);
    let signature = GatewaySignature {
        timestamp: at,
        nonce,
        method,
        path,
        body: body.as_bytes(),
    };
    let signature = signature.sign(&HmacKey::from_hex(KEY).unwrap());
    let mut request = with_id(id, post(PATH, FORM, body.to_owned()));
    let headers = request.headers_mut();
    headers.insert(crate::gateway::TIMESTAMP, at.to_string().parse().unwrap());
    headers.insert(crate::gateway::NONCE, nonce.parse().unwrap());
    headers.insert(crate::gateway::SIGNATURE, signature.parse().unwrap());
    request
}

async fn minted(scene: &Scene, row: &str, request: Request<Body>) -> http::HeaderMap {
    let (status, headers, body) = scene.sts.send(request).await;
    assert_eq!(status, 200, "{row}: {body}");
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

    async fn client_authentication_2_4_row_by_row(store: Store) {
        let scene = Scene::start(store).await;
        furnish(&scene).await;
        let ask = |zone: &str, app: &str, secret: &str| {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", GRANT_TYPE).append_pair("scope", "agent:lifecycle");
            form.append_pair("resource", "resource://desk").append_pair("application_id", app);
            if !zone.is_empty() {
                form.append_pair("zone_id", zone);
            }
            if !secret.is_empty() {
                form.append_pair("client_secret", secret);
            }
            post(PATH, FORM, form.finish())
        };
        let failed: &[&str] = &["deny client_auth_failed"];
        for (row, request, expected) in [
            ("row 1: no application", ask("z1", "", "cs_of_z1"), INVALID),
            ("row 2: no zone, and not for Control", ask("", "key", "cs_of_key"), INVALID),
            ("row 3: of nobody", ask("z1", "app-z9", "cs_of_z1"), INVALID),
            ("row 3: in a zone of nobody", ask("z9", "app-z9", "cs_of_z1"), INVALID),
            ("row 3: archived", ask("z1", "app-archived", "cs_of_key"), INVALID),
            ("row 3: expired", ask("z1", "app-expired", "cs_of_key"), INVALID),
            (
                "row 3: of another zone, proven",
                ask("z1", "app-z2", "cs_of_z2"),
                told(403, "zone_invalid", "belongs to zone z2, not to zone z1").on_record(failed),
            ),
            ("row 3: of another zone, not proven", ask("z1", "app-far", "cs_guessed"), INVALID.on_record(failed)),
            ("row 5: another secret", ask("z1", "app-near", "cs_guessed"), INVALID.on_record(failed)),
            ("row 5: no secret", ask("z1", "app-silent", ""), INVALID.on_record(failed)),
            ("row 5: no stored hash", ask("z1", "app-hashless", "cs_of_key"), INVALID.on_record(failed)),
        ] {
            check(&scene, row, request, expected).await;
        }
        // Row 4, the Gateway's, whose application must still be there, is in `tests`:
        // `a_call_of_an_application_that_is_gone_is_refused_on_record`.
    }
}

/// Applications of every standing.
async fn furnish(scene: &Scene) {
    let sts = &scene.sts.sts;
    let author = Author {
        name: "admin:1".to_owned(),
        via_operator: false,
        at: sts.clock.now(),
    };
    let made = Provenance::created(&author);
    let mut tx = sts.store.begin("applications").await.unwrap();
    let far = ZoneId::trusted("z2");
    for (id, zone) in [
        ("app-archived", zone()),
        ("app-expired", zone()),
        ("app-near", zone()),
        ("app-silent", zone()),
        ("app-hashless", zone()),
        ("app-far", far.clone()),
    ] {
        let mut row = application(&scene.sts, id, &[], &made);
        match id {
            "app-expired" => row.expires_at = Some(Timestamp::from_unix_seconds(1)),
            "app-hashless" => row.secret_verifier = None,
            _ => {}
        }
        tx.applications(&zone).insert(&row).await.unwrap();
        if id == "app-archived" {
            tx.applications(&zone).archive(id, &author).await.unwrap();
        }
    }
    tx.change(&Change::Zone(zone()));
    tx.change(&Change::Zone(far));
    tx.commit().await.unwrap();
    sts.announce.announce().await;
}
