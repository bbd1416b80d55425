//! Management (admin-api §2, §4, §7, §8, §11).

use serde_json::{Value, json};

use super::{Case, Scene};

pub async fn cases(scene: &Scene) -> Vec<Case> {
    let mut cases = framing(scene);
    cases.extend(zones(scene));
    cases.extend(inventory(scene).await);
    cases.extend(policy(scene));
    cases.extend(reads(scene));
    cases.extend(tokens(scene).await);
    cases
}

fn bare(
    scene: &Scene,
    what: &str,
    method: &'static str,
    path: &str,
    expected: &'static str,
) -> Case {
    Case::new(
        what,
        method,
        format!("{}{path}", scene.world.stack.urls.api),
        expected,
    )
}

fn at(scene: &Scene, what: &str, method: &'static str, path: &str, expected: &'static str) -> Case {
    bare(scene, what, method, path, expected).bearer(&scene.world.stack.admin_token)
}

#[rustfmt::skip] // a table reads best as a table
fn framing(scene: &Scene) -> Vec<Case> {
    let z = format!("/v1/zones/{}", scene.world.zone);
    let post = |what: &str, expected| at(scene, what, "POST", "/v1/zones", expected);
    vec![
        bare(scene, "no token", "GET", "/v1/zones", "401 invalid_admin_token"),
        bare(scene, "no token", "POST", "/v1/zones", "401 invalid_admin_token").json(&json!({"name": "x"})),
        bare(scene, "wrong token", "GET", &z, "401 invalid_admin_token").bearer("wrong"),
        bare(scene, "lower-case scheme", "GET", &z, "401 invalid_admin_token").header("authorization", format!("bearer {}", scene.world.stack.admin_token)),
        bare(scene, "two tokens", "GET", &z, "401 invalid_admin_token").bearer(&scene.world.stack.admin_token).bearer("x"),
        bare(scene, "lifecycle token", "GET", &z, "401 invalid_admin_token").bearer(&scene.agent.lifecycle),
        bare(scene, "unknown route, no token", "GET", "/v1/nothing", "401 invalid_admin_token"),
        at(scene, "unknown route", "GET", "/v1/nothing", "404 not_found"),
        at(scene, "unknown method", "PUT", "/v1/zones", "404 not_found"),
        bare(scene, "unknown route", "GET", "/nothing", "404 not_found"),
        post("not JSON", "400 invalid_request").header("content-type", "application/json").body("{"),
        post("not UTF-8", "400 invalid_request").header("content-type", "application/json").body(&b"{\"name\":\"\xff\"}"[..]),
        post("another media type", "415 unsupported_media_type").header("content-type", "text/plain").body("{}"),
        post("oversized", "413 payload_too_large").json(&json!({"name": "a".repeat(1_200_000)})),
        bare(scene, "no bearer", "GET", "/metrics", "401 unauthorized"),
    ]
}

#[rustfmt::skip] // a table reads best as a table
fn zones(scene: &Scene) -> Vec<Case> {
    let z = format!("/v1/zones/{}", scene.world.zone);
    let post = |what: &str, body: Value, expected| at(scene, what, "POST", "/v1/zones", expected).json(&body);
    let patch = |what: &str, body: Value, expected| at(scene, what, "PATCH", &z, expected).json(&body);
    vec![
        at(scene, "empty", "POST", "/v1/zones", "400 invalid_zone"),
        post("no name", json!({}), "400 invalid_zone"),
        post("a list", json!([]), "400 invalid_zone"),
        post("name is a number", json!({"name": 5}), "400 invalid_zone"),
        post("blank name", json!({"name": "  "}), "400 invalid_zone"),
        post("long name", json!({"name": "a".repeat(121)}), "400 invalid_zone"),
        post("slug with capitals", json!({"name": "a", "slug": "Caps"}), "400 invalid_zone"),
        post("unknown member", json!({"name": "a", "color": "red"}), "400 invalid_zone"),
        patch("nothing to change", json!({}), "400 no_fields"),
        patch("name is a list", json!({"name": []}), "400 invalid_zone"),
        patch("unknown member", json!({"archived_at": null}), "400 invalid_zone"),
        at(scene, "unknown", "GET", "/v1/zones/nowhere", "404 zone_not_found"),
        at(scene, "unknown", "PATCH", "/v1/zones/nowhere", "404 zone_not_found").json(&json!({"name": "a"})),
        at(scene, "unknown", "DELETE", "/v1/zones/nowhere", "404 zone_not_found"),
        at(scene, "no limit", "GET", "/v1/zones?limit=0", "400 invalid_query"),
        at(scene, "too many", "GET", "/v1/zones?limit=501", "400 invalid_query"),
        at(scene, "limit twice", "GET", "/v1/zones?limit=1&limit=2", "400 invalid_query"),
        at(scene, "cursor", "GET", "/v1/zones?cursor=garbage", "400 invalid_cursor"),
    ]
}

#[rustfmt::skip] // a table reads best as a table
async fn inventory(scene: &Scene) -> Vec<Case> {
    let (z, other) = (format!("/v1/zones/{}", scene.world.zone), format!("/v1/zones/{}", scene.other.zone));
    let providers = scene.world.stack.read(&format!("{z}/providers")).await.expect(200).json();
    let provider = providers["items"][0]["id"].as_str().unwrap().to_owned();
    let resources = scene.world.stack.read(&format!("{z}/resources")).await.expect(200).json();
    let desk = resources["items"][0]["id"].as_str().unwrap().to_owned();
    let app = |what: &str, body: Value, expected| at(scene, what, "POST", &format!("{z}/applications"), expected).json(&body);
    let managed = |name: &str, more: Value| {
        let mut body = json!({"name": name, "registration_method": "managed"});
        for (member, value) in more.as_object().unwrap() { body[member] = value.clone(); }
        body
    };
    let resource = |what: &str, more: Value, expected| {
        let mut body = json!({"identifier": "resource://new", "name": "New", "scopes": ["a"], "upstream_url": "http://127.0.0.1:9", "credential_provider_id": provider});
        for (member, value) in more.as_object().unwrap() { body[member] = value.clone(); }
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        at(scene, what, "POST", &format!("{z}/resources"), expected).json(&body)
    };
    let operation = |method: &str, path: &str, scope: &str| json!({"operations": [{"method": method, "path": path, "scope": scope}]});
    let make = |what: &str, body: Value, expected| at(scene, what, "POST", &format!("{z}/providers"), expected).json(&body);
    let foreign = format!("{other}/applications/{}", scene.world.app);
    let twice = json!([{"method": "GET", "path": "/a", "scope": "a"}, {"method": "get", "path": "/a", "scope": "a"}]);
    vec![
        app("no method", json!({"name": "x"}), "400 invalid_application"),
        app("unknown method", managed("x", json!({"registration_method": "magic"})), "400 invalid_application"),
        app("name is a number", managed("x", json!({"name": 1})), "400 invalid_application"),
        app("long name", managed(&"a".repeat(201), json!({})), "400 invalid_application"),
        app("unknown member", managed("x", json!({"secret": "mine"})), "400 invalid_application"),
        app("name taken", managed("Desk", json!({})), "409 application_name_taken"),
        app("trait is a number", managed("x", json!({"traits": [1]})), "400 invalid_application"),
        app("trait with a blank", managed("x", json!({"traits": ["a b"]})), "403 trait_invalid"),
        app("trait twice", managed("x", json!({"traits": ["a", "a"]})), "403 trait_duplicate"),
        at(scene, "unknown zone", "POST", "/v1/zones/nowhere/applications", "404 zone_not_found").json(&managed("x", json!({}))),
        at(scene, "registration is off", "POST", &format!("{z}/applications/dcr"), "403 dcr_disabled").json(&json!({"name": "x"})),
        at(scene, "another zone", "GET", &foreign, "404 application_not_found"),
        at(scene, "another zone", "PATCH", &foreign, "404 application_not_found").json(&json!({"name": "stolen"})),
        at(scene, "another zone", "DELETE", &foreign, "404 application_not_found"),
        at(scene, "another zone", "POST", &format!("{foreign}/rotate-secret"), "404 application_not_found"),
        at(scene, "another zone", "GET", &format!("{foreign}/client-secret"), "404 application_not_found"),
        at(scene, "nothing to change", "PATCH", &format!("{z}/applications/{}", scene.world.app), "400 no_fields").json(&json!({})),
        at(scene, "short secret", "PATCH", &format!("{z}/applications/{}", scene.world.app), "400 invalid_application").json(&json!({"client_secret": "short"})),
        make("unknown kind", json!({"identifier": "provider://x", "kind": "magic"}), "400 invalid_provider"),
        make("identifier", json!({"identifier": "https://x", "kind": "none"}), "400 invalid_provider_identifier"),
        make("taken", json!({"identifier": "provider://plain", "kind": "none"}), "409 provider_identifier_conflict"),
        make("no header name", json!({"identifier": "provider://x", "kind": "api_key", "config_json": {"api_key": "k"}}), "400 invalid_provider_config"),
        make("reserved header", json!({"identifier": "provider://x", "kind": "api_key", "config_json": {"api_key": "k", "header_name": "X-Caracal-Key"}}), "400 invalid_provider_config"),
        make("unknown key", json!({"identifier": "provider://x", "kind": "none", "config_json": {"a": "b"}}), "400 invalid_provider_config"),
        at(scene, "another zone", "GET", &format!("{other}/providers/{provider}"), "404 provider_not_found"),
        at(scene, "another zone", "DELETE", &format!("{other}/providers/{provider}"), "404 provider_not_found"),
        resource("no scopes", json!({"scopes": []}), "400 invalid_resource"),
        resource("scopes are text", json!({"scopes": "a"}), "400 invalid_resource"),
        resource("not a URI", json!({"identifier": "new"}), "400 invalid_resource_identifier"),
        resource("a provider's URI", json!({"identifier": "provider://new"}), "400 invalid_resource_identifier"),
        resource("unknown provider", json!({"credential_provider_id": "nobody"}), "404 provider_not_found"),
        resource("no provider", json!({"credential_provider_id": null}), "400 credential_provider_required"),
        resource("no upstream", json!({"upstream_url": null}), "400 upstream_url_required"),
        resource("upstream is no URL", json!({"upstream_url": "ftp://x"}), "400 invalid_resource"),
        resource("relative path", operation("GET", "a", "a"), "400 operation_path_must_be_absolute"),
        resource("undeclared scope", operation("GET", "/a", "b"), "400 operation_scope_not_in_resource_scopes"),
        resource("operation twice", json!({"operations": twice}), "400 operation_duplicate"),
        resource("taken", json!({"identifier": xtest::DESK}), "409 resource_identifier_conflict"),
        at(scene, "another zone", "GET", &format!("{other}/resources/{desk}"), "404 resource_not_found"),
        at(scene, "another zone", "PATCH", &format!("{other}/resources/{desk}"), "404 resource_not_found").json(&json!({"name": "stolen"})),
        at(scene, "another zone", "DELETE", &format!("{other}/resources/{desk}"), "404 resource_not_found"),
        at(scene, "no such probe", "POST", &format!("{z}/resources/{desk}/test"), "400 resource_verification_unsupported"),
    ]
}

#[rustfmt::skip] // a table reads best as a table
fn policy(scene: &Scene) -> Vec<Case> {
    let z = format!("/v1/zones/{}", scene.world.zone);
    let make = |what: &str, body: Value, expected| at(scene, what, "POST", &format!("{z}/policies"), expected).json(&body);
    let good = "# caracal:data-document\npackage caracal.authz\nimport rego.v1\ngrants := {}\n";
    let set = |what: &str, body: Value, expected| at(scene, what, "POST", &format!("{z}/policy-sets"), expected).json(&body);
    vec![
        make("no name", json!({"content": good}), "400 invalid_body"),
        make("content is a list", json!({"name": "x", "content": []}), "400 invalid_body"),
        make("another package", json!({"name": "x", "content": "package x\nallow := true\n"}), "422 invalid_rego"),
        make("a result", json!({"name": "x", "content": format!("{good}result := 1\n")}), "422 invalid_rego"),
        make("a forbidden call", json!({"name": "x", "content": format!("{good}risk := http.send({{}})\n")}), "422 invalid_rego"),
        at(scene, "no content", "POST", "/v1/policies/validate", "400 invalid_body").json(&json!({})),
        set("no name", json!({}), "400 invalid_body"),
        set("name is a number", json!({"name": 1}), "400 invalid_body"),
        at(scene, "unknown", "GET", &format!("{z}/policy-sets/nothing"), "404 policy_set_not_found"),
        at(scene, "unknown", "GET", &format!("{z}/policies/nothing"), "404 policy_not_found"),
    ]
}

#[rustfmt::skip] // a table reads best as a table
fn reads(scene: &Scene) -> Vec<Case> {
    let z = format!("/v1/zones/{}/audit", scene.world.zone);
    vec![
        at(scene, "decision", "GET", &format!("{z}?decision=maybe"), "400 invalid_query"),
        at(scene, "since", "GET", &format!("{z}?since=yesterday"), "400 invalid_query"),
        at(scene, "limit", "GET", &format!("{z}?limit=1001"), "400 invalid_query"),
        at(scene, "cursor", "GET", &format!("{z}?cursor=x"), "400 invalid_cursor"),
        at(scene, "unknown", "GET", &format!("{z}/by-request/nothing"), "404 request_not_found"),
        at(scene, "unknown", "GET", &format!("{z}/by-request/nothing/explain"), "404 request_not_found"),
        bare(scene, "no token", "GET", &z, "401 invalid_admin_token"),
    ]
}

/// Tokens that may less than the bootstrap token.
#[rustfmt::skip] // a table reads best as a table
async fn tokens(scene: &Scene) -> Vec<Case> {
    let stack = &scene.world.stack;
    let token = async |body: Value| stack.post("/v1/admin-tokens", &body).await.expect(201).text("token");
    let (z, other) = (format!("/v1/zones/{}", scene.world.zone), format!("/v1/zones/{}", scene.other.zone));
    let reader = token(json!({"name": "reader", "scope": "global", "capability": "read"})).await;
    let local = token(json!({"name": "local", "scope": "zone", "zone_id": scene.world.zone})).await;
    let name = json!({"name": "x"});
    let make = |what: &str, body: Value, expected| at(scene, what, "POST", "/v1/admin-tokens", expected).json(&body);
    vec![
        bare(scene, "reader writes", "POST", "/v1/zones", "403 admin_token_read_only").bearer(&reader).json(&name),
        bare(scene, "reader deletes", "DELETE", &z, "403 admin_token_read_only").bearer(&reader),
        bare(scene, "zone token elsewhere", "GET", &other, "403 admin_token_zone_mismatch").bearer(&local),
        bare(scene, "zone token elsewhere", "POST", &format!("{other}/policy-sets"), "403 admin_token_zone_mismatch").bearer(&local).json(&name),
        bare(scene, "zone token lists zones", "GET", "/v1/zones", "403 admin_token_zone_mismatch").bearer(&local),
        make("no scope", json!({"name": "x"}), "400 invalid_admin_token_request"),
        make("unknown capability", json!({"name": "x", "scope": "global", "capability": "all"}), "400 invalid_admin_token_request"),
        make("zone token without zone", json!({"name": "x", "scope": "zone"}), "400 zone_id_required"),
        make("global token with zone", json!({"name": "x", "scope": "global", "zone_id": scene.world.zone}), "400 zone_id_not_allowed_for_global"),
        make("unknown zone", json!({"name": "x", "scope": "zone", "zone_id": "nowhere"}), "404 zone_not_found"),
        at(scene, "unknown", "DELETE", "/v1/admin-tokens/nothing", "404 admin_token_not_found"),
    ]
}
