//! Token exchange, keys and probes (sts §1, §2, §4).

use super::{Case, Scene};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

type Fields<'a> = Vec<(&'a str, &'a str)>;

fn encoded(fields: &Fields<'_>) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

pub async fn cases(scene: &Scene) -> Vec<Case> {
    let world = &scene.world;
    let base = world.stack.urls.sts.clone();
    let url = format!("{base}/oauth/2/token");
    let form = "application/x-www-form-urlencoded";
    let post = |what: &str, body: String, expected| {
        Case::new(what, "POST", url.clone(), expected)
            .header("content-type", form)
            .body(body)
    };
    let good: Fields<'_> = vec![
        ("grant_type", GRANT),
        ("zone_id", &world.zone),
        ("application_id", &world.app),
        ("client_secret", &world.secret),
        ("resource", &world.resource),
        ("scope", "agent:lifecycle"),
    ];
    let plus = |what: &str, more: &[(&str, &str)], expected| {
        post(what, encoded(&[&good[..], more].concat()), expected)
    };
    let without = |what: &str, name: &str, expected| {
        let fields = good
            .iter()
            .copied()
            .filter(|(field, _)| *field != name)
            .collect();
        post(what, encoded(&fields), expected)
    };
    let instead = |what: &str, name: &'static str, value: &str, expected| {
        let kept = good.iter().copied().filter(|(field, _)| *field != name);
        post(
            what,
            encoded(&kept.chain([(name, value)]).collect()),
            expected,
        )
    };
    let big = encoded(&vec![("scope", &*"x".repeat(70_000))]);
    let unsigned = "eyJhbGciOiJub25lIn0.eyJ1c2UiOiJzZXNzaW9uIn0.";
    let mandate = world.mandate(&scene.agent).await;
    let (session, edge) = (&*scene.agent.session, &*scene.agent.edge);
    vec![
        Case::new("method", "GET", url.clone(), "405 invalid_token"),
        Case::new("method", "PUT", url.clone(), "405 invalid_token"),
        Case::new(
            "query string",
            "POST",
            format!("{url}?a=b"),
            "400 invalid_token",
        )
        .header("content-type", form)
        .body(encoded(&good)),
        Case::new("no media type", "POST", url.clone(), "415 invalid_token").body(encoded(&good)),
        Case::new("JSON", "POST", url.clone(), "415 invalid_token")
            .header("content-type", "application/json")
            .body("{}"),
        post("oversized", big, "413 payload_too_large"),
        post("empty", String::new(), "400 invalid_token"),
        post(
            "broken escape",
            format!("{}&scope2=%zz", encoded(&good)),
            "400 invalid_token",
        ),
        plus(
            "repeated zone",
            &[("zone_id", &scene.other.zone)],
            "400 invalid_token",
        ),
        plus(
            "repeated unknown field",
            &[("a", "1"), ("a", "1")],
            "400 invalid_token",
        ),
        plus("actor token", &[("actor_token", "")], "400 invalid_token"),
        plus(
            "client assertion",
            &[("client_assertion", "x")],
            "400 invalid_token",
        ),
        plus(
            "client assertion type",
            &[("client_assertion_type", "x")],
            "400 invalid_token",
        ),
        plus(
            "TTL in words",
            &[("ttl_seconds", "soon")],
            "400 invalid_token",
        ),
        plus(
            "negative TTL",
            &[("ttl_seconds", "-5")],
            "400 invalid_token",
        ),
        plus(
            "TTL over the cap",
            &[("ttl_seconds", "3601")],
            "400 invalid_token",
        ),
        plus("blank resource", &[("resource", " ")], "400 invalid_token"),
        without("no grant type", "grant_type", "400 invalid_token"),
        instead(
            "other grant type",
            "grant_type",
            "password",
            "400 invalid_token",
        ),
        plus(
            "token without type",
            &[("subject_token", "x")],
            "400 invalid_token",
        ),
        plus(
            "type without token",
            &[("subject_token_type", ACCESS_TOKEN)],
            "400 invalid_token",
        ),
        plus(
            "unknown token type",
            &[("subject_token", "x"), ("subject_token_type", "x")],
            "400 invalid_token",
        ),
        without("no resource", "resource", "400 invalid_token"),
        without("no application", "application_id", "401 access_denied"),
        without("no secret", "client_secret", "401 access_denied"),
        without("no zone", "zone_id", "401 access_denied"),
        instead(
            "wrong secret",
            "client_secret",
            "cs_wrong",
            "401 access_denied",
        ),
        instead(
            "unknown application",
            "application_id",
            "nobody",
            "401 access_denied",
        ),
        instead(
            "id that is none",
            "application_id",
            "a b",
            "401 access_denied",
        ),
        instead(
            "unknown zone, right secret",
            "zone_id",
            "nowhere",
            "403 zone_invalid",
        ),
        instead(
            "another zone, right secret",
            "zone_id",
            &scene.other.zone,
            "403 zone_invalid",
        ),
        plus(
            "garbage as subject token",
            &[
                ("subject_token", "garbage"),
                ("subject_token_type", ACCESS_TOKEN),
            ],
            "401 invalid_token",
        ),
        plus(
            "unsigned subject token",
            &[
                ("subject_token", unsigned),
                ("subject_token_type", ACCESS_TOKEN),
            ],
            "401 invalid_token",
        ),
        plus(
            "gateway mandate as subject token",
            &[
                ("subject_token", &mandate),
                ("subject_token_type", ACCESS_TOKEN),
            ],
            "401 invalid_token",
        ),
        plus("half a Gateway", &[], "401 access_denied").header("x-caracal-gateway-timestamp", "1"),
        plus("a forged Gateway", &[], "401 access_denied")
            .header("x-caracal-gateway-timestamp", "1790000000")
            .header("x-caracal-gateway-request", "nonce")
            .header("x-caracal-gateway-signature", "00".repeat(32)),
        instead(
            "unknown resource",
            "resource",
            "resource://nowhere",
            "403 access_denied",
        ),
        instead(
            "undeclared scope",
            "scope",
            "desk:admin",
            "403 access_denied",
        ),
        instead("no authority", "scope", "desk:read", "403 access_denied"),
        plus(
            "unknown Session",
            &[("agent_session_id", "nobody")],
            "403 access_denied",
        ),
        plus(
            "Delegation without Session",
            &[("delegation_edge_id", edge)],
            "403 access_denied",
        ),
        plus(
            "unknown Delegation",
            &[
                ("agent_session_id", session),
                ("delegation_edge_id", "nothing"),
            ],
            "403 access_denied",
        ),
        plus(
            "unknown record",
            &[("session_id", "nothing")],
            "403 access_denied",
        ),
        Case::new(
            "no zone",
            "GET",
            format!("{base}/.well-known/jwks.json"),
            "400 invalid_token",
        ),
        Case::new(
            "unknown zone",
            "GET",
            format!("{base}/.well-known/jwks.json?zone_id=nowhere"),
            "404 resource_not_found",
        ),
        Case::new(
            "no such route",
            "GET",
            format!("{base}/v2"),
            "404 not_found",
        ),
        Case::new("no bearer", "GET", format!("{base}/metrics"), "401"),
        Case::new("wrong bearer", "GET", format!("{base}/metrics.json"), "401").bearer("x"),
    ]
}
