//! The proxy (gateway §3, §4).

use super::{Case, Scene};

pub async fn cases(scene: &Scene) -> Vec<Case> {
    let world = &scene.world;
    let base = world.stack.urls.gateway.clone();
    let at = |what: &str, method, path: &str, expected| {
        Case::new(what, method, format!("{base}{path}"), expected)
    };
    // Each call spends a mandate, if it comes that far.
    let mut mandates = Vec::new();
    for _ in 0..24 {
        mandates.push(world.mandate(&scene.agent).await);
    }
    let mut fresh = mandates.into_iter();
    let mut mandate = || fresh.next().expect("enough mandates");
    let forged = {
        let good = mandate();
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        format!("{signed}.{flipped}{}", &signature[1..])
    };
    let resource = |case: Case| case.header("x-caracal-resource", world.resource.clone());
    let mut cases = vec![
        resource(at("no token", "GET", "/tickets", "401 invalid_token")),
        resource(at("another scheme", "GET", "/tickets", "401 invalid_token"))
            .header("authorization", "Basic YTpi"),
        resource(at("garbage", "GET", "/tickets", "401 invalid_token")).bearer("garbage"),
        resource(at(
            "three empty parts",
            "GET",
            "/tickets",
            "401 invalid_token",
        ))
        .bearer(".."),
        resource(at(
            "oversized token",
            "GET",
            "/tickets",
            "401 invalid_token",
        ))
        .bearer(&"a".repeat(9_000)),
        resource(at(
            "forged signature",
            "GET",
            "/tickets",
            "401 invalid_token",
        ))
        .bearer(&forged),
        resource(at(
            "lifecycle token",
            "GET",
            "/tickets",
            "401 invalid_token",
        ))
        .bearer(&scene.agent.lifecycle),
        resource(at("token twice", "GET", "/tickets", "401 invalid_token"))
            .bearer(&mandate())
            .bearer(&mandate()),
        at("no resource", "GET", "/tickets", "400 invalid_token").bearer(&mandate()),
        at("blank resource", "GET", "/tickets", "400 invalid_token")
            .bearer(&mandate())
            .header("x-caracal-resource", " "),
        resource(resource(at(
            "resource twice",
            "GET",
            "/tickets",
            "400 invalid_token",
        )))
        .bearer(&mandate()),
        resource(at("claimed client", "GET", "/tickets", "400 invalid_token"))
            .bearer(&mandate())
            .header("x-caracal-client-id", world.app.clone()),
        at("unknown resource", "GET", "/tickets", "403 access_denied")
            .bearer(&mandate())
            .header("x-caracal-resource", "resource://nowhere"),
        resource(at(
            "undeclared operation",
            "DELETE",
            "/tickets",
            "403 operation_not_permitted",
        ))
        .bearer(&mandate()),
    ];
    for path in [
        "/a/%2e%2e/b",
        "/a/..%2fb",
        "/%252e%252e/b",
        "/a%5cb",
        "/./tickets",
        "/a/../tickets",
    ] {
        cases
            .push(resource(at("dot segment", "GET", path, "400 invalid_token")).bearer(&mandate()));
    }
    cases.push(at(
        "reload without a token",
        "POST",
        "/internal/revocations/reload",
        "404",
    ));
    cases.push(at("no bearer", "GET", "/metrics", "401"));
    cases
}
