//! Requests that make no sense: code, description, and nothing changed.

use std::fmt::Write as _;

use axum::body::Body;
use http::Request;
use serde_json::json;

use super::Stack;
use super::stack::BOOTSTRAP;
use crate::on_stack;

on_stack! {
    async fn malformed_requests_say_what_to_fix_and_change_nothing(stack: Stack) {
        let zone = stack.zone("z").await;
        let z = format!("/v1/zones/{zone}");
        let provider = stack.make(&format!("{z}/providers"), json!({"name": "none", "kind": "none"})).await;
        let up = format!(r#""upstream_url":"https://x.example","credential_provider_id":"{provider}""#);
        let before = snapshot(&stack, &z).await;
        let mut table = String::new();
        for (method, path, body) in [
            ("POST", "/v1/zones", ""),
            ("POST", "/v1/zones", "{"),
            ("POST", "/v1/zones", "[]"),
            ("POST", "/v1/zones", r#"{"name":"a\u0000b"}"#),
            ("POST", "/v1/zones", r#"{"name":"  "}"#),
            ("POST", "/v1/zones", r#"{"name":7}"#),
            ("POST", "/v1/zones", r#"{"name":"a","extra":1}"#),
            ("POST", "/v1/zones", r#"{"name":"a","slug":"A b"}"#),
            ("POST", "/v1/zones", r#"{"name":"a","dcr_enabled":"yes"}"#),
            ("POST", "/v1/zones", r#"{"name":"a","slug":"z"}"#),
            ("PATCH", "Z", "{}"),
            ("PATCH", "Z", r#"{"name":null}"#),
            ("PATCH", "Z", r#"{"dcr_shutdown":"keep_live"}"#),
            ("PATCH", "Z", r#"{"dcr_enabled":true,"dcr_shutdown":"keep_live"}"#),
            ("PATCH", "Z", r#"{"dcr_enabled":false,"dcr_shutdown":"never"}"#),
            ("GET", "/v1/zones/a%20b", ""),
            ("GET", "/v1/zones/%FF", ""),
            ("GET", "/v1/zones/nope", ""),
            ("PATCH", "/v1/zones/nope", r#"{"name":"a"}"#),
            ("DELETE", "/v1/zones/nope", ""),
            ("GET", "/v1/zones?limit=0", ""),
            ("GET", "/v1/zones?limit=501", ""),
            ("GET", "/v1/zones?limit=5&limit=5", ""),
            ("GET", "/v1/zones?cursor=zzz", ""),
            ("GET", "Z/applications?status=all", ""),
            ("POST", "/v1/zones/nope/applications", "{}"),
            ("POST", "Z/applications", "{}"),
            ("POST", "Z/applications", r#"{"name":"a"}"#),
            ("POST", "Z/applications", r#"{"name":"a","registration_method":"dcr"}"#),
            ("POST", "Z/applications", r#"{"name":"a","registration_method":"managed","traits":"x"}"#),
            ("POST", "Z/applications", r#"{"name":"a","registration_method":"managed","traits":["1"]}"#),
            ("PATCH", "Z/applications/nope", "{}"),
            ("PATCH", "Z/applications/nope", r#"{"name":"b"}"#),
            ("PATCH", "Z/applications/nope", r#"{"client_secret":"short"}"#),
            ("POST", "Z/applications/nope/rotate-secret", ""),
            ("GET", "Z/applications/nope/client-secret", ""),
            ("DELETE", "Z/applications/nope", ""),
            ("POST", "Z/applications/dcr", r#"{"name":"a","expires_in":0}"#),
            ("POST", "Z/applications/dcr", r#"{"name":"a"}"#),
            ("POST", "Z/providers", "{}"),
            ("POST", "Z/providers", r#"{"name":"a","kind":"magic"}"#),
            ("POST", "Z/providers", r#"{"name":"a","kind":"http_basic"}"#),
            ("POST", "Z/providers", r#"{"identifier":"provider://A","kind":"none"}"#),
            ("POST", "Z/providers", r#"{"identifier":"provider://a--b","kind":"none"}"#),
            ("POST", "Z/providers", r#"{"name":"a","kind":"api_key"}"#),
            ("POST", "Z/providers", r#"{"name":"a","kind":"none","config_json":[]}"#),
            ("POST", "Z/providers", r#"{"name":"a","kind":"none","check":true}"#),
            ("POST", "Z/providers", r#"{"name":"none","kind":"none"}"#),
            ("PATCH", "Z/providers/PROVIDER", "{}"),
            ("PATCH", "Z/providers/PROVIDER", r#"{"kind":"api_key"}"#),
            ("PATCH", "Z/providers/nope", r#"{"name":"x"}"#),
            ("POST", "Z/providers/PROVIDER/test", ""),
            ("POST", "Z/resources", "{}"),
            ("POST", "Z/resources", r#"{"name":"a","scopes":[]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],"upstream_url":"ftp://x"}"#),
            ("POST", "Z/resources", r#"{"identifier":"crm","scopes":["s"]}"#),
            ("POST", "Z/resources", r#"{"identifier":"https://u:p@x.example","scopes":["s"]}"#),
            ("POST", "Z/resources", r#"{"identifier":"provider://x","scopes":["s"]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],"credential_provider_id":"nope"}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],"credential_provider_id":"PROVIDER"}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"operations":[{"method":"GET","path":"x","scope":"s"}]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"operations":[{"method":"GET","path":"/x","scope":"t"}]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"operations":[{"method":" ","path":"/x","scope":"s"}]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"operations":[{"method":"GET","path":"/x","scope":"s"},{"method":"get","path":" /x","scope":"s"}]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"operations":[{"method":"GET"},7]}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"operation_enforcement":"off"}"#),
            ("POST", "Z/resources", r#"{"name":"a","scopes":["s"],UP,"check":true}"#),
            ("PATCH", "Z/resources/nope", r#"{"name":"a"}"#),
            ("POST", "Z/policies", "{}"),
            ("POST", "Z/policies/nope/versions", r#"{"content":7}"#),
            ("POST", "Z/policy-sets", "{}"),
            ("POST", "Z/policy-sets/nope/versions", r#"{"manifest":[{"policy_version_id":"v"}]}"#),
            ("POST", "Z/policy-sets/nope/versions", r#"{"manifest":[]}"#),
            ("POST", "Z/policy-sets/nope/activate", "{}"),
            ("POST", "Z/policy-sets/nope/activate", r#"{"version_id":"v"}"#),
            ("POST", "Z/policy-sets/nope/simulate", r#"{"version_id":"v","input":3}"#),
            ("GET", "Z/policy-sets/nope/activation-status", ""),
            ("GET", "Z/policy-sets/nope/activation-status?version_id=", ""),
            ("GET", "Z/policy-sets/nope/activation-status?version_id=v&outbox_id=o", ""),
            ("GET", "Z/policy-sets/nope/versions", ""),
            ("DELETE", "Z/policy-sets/nope", ""),
            ("POST", "/v1/policies/validate", "{}"),
            ("POST", "/v1/admin-tokens", "{}"),
            ("POST", "/v1/admin-tokens", r#"{"name":"t","scope":"zone"}"#),
            ("POST", "/v1/admin-tokens", r#"{"name":"t","scope":"global","zone_id":"z"}"#),
            ("POST", "/v1/admin-tokens", r#"{"name":"t","scope":"zone","zone_id":"nope"}"#),
            ("POST", "/v1/admin-tokens", r#"{"name":"t","scope":"zone","zone_id":"a b"}"#),
            ("POST", "/v1/admin-tokens", r#"{"name":"t","scope":"global","capability":"all"}"#),
            ("DELETE", "/v1/admin-tokens/nope", ""),
            ("GET", "Z/audit?since=yesterday", ""),
            ("GET", "Z/audit?decision=maybe", ""),
            ("GET", "Z/audit?request_id=", ""),
            ("GET", "Z/audit?event_type=a,,b", ""),
            ("GET", "Z/audit?fields=nope", ""),
            ("GET", "Z/audit?limit=1001", ""),
            ("GET", "Z/audit?cursor=e30", ""),
            ("GET", "Z/audit/by-request/nope", ""),
            ("GET", "Z/audit/by-request/nope/explain", ""),
            ("GET", "Z/grants", ""),
        ] {
            let full = path.replacen('Z', &z, usize::from(path.starts_with('Z'))).replace("PROVIDER", &provider);
            let sent = body.replace("UP", &up).replace("PROVIDER", &provider);
            let reply = stack.send_as(BOOTSTRAP, method, &full, &sent).await;
            let shown = reply.to_string().replace(zone.as_str(), "<zone>");
            writeln!(table, "{method} {path} {body}\n    {shown}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r#"
        POST /v1/zones 
            400 invalid_zone: name is required
        POST /v1/zones {
            400 invalid_request: the body is not JSON: EOF while parsing an object at line 1 column 1
        POST /v1/zones []
            400 invalid_zone: the body must be a JSON object
        POST /v1/zones {"name":"a\u0000b"}
            400 invalid_request: the body must not contain U+0000
        POST /v1/zones {"name":"  "}
            400 invalid_zone: name must be 1 to 120 characters
        POST /v1/zones {"name":7}
            400 invalid_zone: name must be a string
        POST /v1/zones {"name":"a","extra":1}
            400 invalid_zone: extra is not a field of this request
        POST /v1/zones {"name":"a","slug":"A b"}
            400 invalid_zone: slug must be lower-case letters, digits and `-`
        POST /v1/zones {"name":"a","dcr_enabled":"yes"}
            400 invalid_zone: dcr_enabled must be true or false
        POST /v1/zones {"name":"a","slug":"z"}
            409 zone_slug_conflict: the slug is taken; choose another
        PATCH Z {}
            400 no_fields: send at least one field to change
        PATCH Z {"name":null}
            400 no_fields: send at least one field to change
        PATCH Z {"dcr_shutdown":"keep_live"}
            400 dcr_shutdown_not_applicable: dcr_shutdown goes with dcr_enabled: false
        PATCH Z {"dcr_enabled":true,"dcr_shutdown":"keep_live"}
            400 dcr_shutdown_not_applicable: dcr_shutdown goes with dcr_enabled: false
        PATCH Z {"dcr_enabled":false,"dcr_shutdown":"never"}
            400 invalid_zone: dcr_shutdown must be one of keep_live, revoke_live
        GET /v1/zones/a%20b 
            400 invalid_params: an id is 1 to 128 letters, digits, `_.-:`
        GET /v1/zones/%FF 
            400 invalid_params: an id is 1 to 128 letters, digits, `_.-:`
        GET /v1/zones/nope 
            404 zone_not_found: there is no zone nope
        PATCH /v1/zones/nope {"name":"a"}
            404 zone_not_found: there is no zone nope
        DELETE /v1/zones/nope 
            404 zone_not_found: there is no zone nope
        GET /v1/zones?limit=0 
            400 invalid_query: limit must be a whole number from 1 to 500
        GET /v1/zones?limit=501 
            400 invalid_query: limit must be a whole number from 1 to 500
        GET /v1/zones?limit=5&limit=5 
            400 invalid_query: limit is repeated; send it once
        GET /v1/zones?cursor=zzz 
            400 invalid_cursor: cursor must be a next_cursor of this list
        GET Z/applications?status=all 
            400 invalid_query: status must be one of active, archived
        POST /v1/zones/nope/applications {}
            404 zone_not_found: there is no zone nope
        POST Z/applications {}
            400 invalid_application: name is required
        POST Z/applications {"name":"a"}
            400 invalid_application: registration_method must be managed
        POST Z/applications {"name":"a","registration_method":"dcr"}
            400 invalid_application: registration_method must be one of managed
        POST Z/applications {"name":"a","registration_method":"managed","traits":"x"}
            400 invalid_application: traits must be a list
        POST Z/applications {"name":"a","registration_method":"managed","traits":["1"]}
            403 trait_invalid: trait 0 must be 1 to 128 letters, digits, `.`, `_`, `:` or `-`, a letter first
        PATCH Z/applications/nope {}
            400 no_fields: send at least one field to change
        PATCH Z/applications/nope {"name":"b"}
            404 application_not_found: there is no application nope in this zone
        PATCH Z/applications/nope {"client_secret":"short"}
            400 invalid_application: client_secret must be 32 to 1024 characters
        POST Z/applications/nope/rotate-secret 
            404 application_not_found: there is no application nope in this zone
        GET Z/applications/nope/client-secret 
            404 application_not_found: there is no application nope in this zone
        DELETE Z/applications/nope 
            404 application_not_found: there is no application nope in this zone
        POST Z/applications/dcr {"name":"a","expires_in":0}
            400 invalid_application: expires_in must be a whole number from 1 to 3600
        POST Z/applications/dcr {"name":"a"}
            403 dcr_disabled: dynamic registration is disabled in this zone; create a managed application
        POST Z/providers {}
            400 invalid_provider: kind is required
        POST Z/providers {"name":"a","kind":"magic"}
            400 invalid_provider: kind must be one of none, caracal_mandate, api_key, bearer_token, http_basic, oauth2_authorization_code, oauth2_client_credentials
        POST Z/providers {"name":"a","kind":"http_basic"}
            400 invalid_provider_config: username is required
        POST Z/providers {"identifier":"provider://A","kind":"none"}
            400 invalid_provider_identifier: an identifier is provider:// and words of lower-case letters and digits joined by `-`
        POST Z/providers {"identifier":"provider://a--b","kind":"none"}
            400 invalid_provider_identifier: an identifier is provider:// and words of lower-case letters and digits joined by `-`
        POST Z/providers {"name":"a","kind":"api_key"}
            400 invalid_provider_config: header_name is required with auth_location header
        POST Z/providers {"name":"a","kind":"none","config_json":[]}
            400 invalid_provider: config_json must be an object
        POST Z/providers {"name":"a","kind":"none","check":true}
            400 provider_check_unsupported: only OAuth kinds can be tested; leave check out
        POST Z/providers {"name":"none","kind":"none"}
            409 provider_identifier_conflict: another provider of this zone has that identifier
        PATCH Z/providers/PROVIDER {}
            400 no_fields: send at least one field to change
        PATCH Z/providers/PROVIDER {"kind":"api_key"}
            400 provider_config_required: a new kind needs its whole config_json, secrets included
        PATCH Z/providers/nope {"name":"x"}
            404 provider_not_found: there is no provider nope in this zone
        POST Z/providers/PROVIDER/test 
            400 provider_check_unsupported: only OAuth kinds can be tested; leave check out
        POST Z/resources {}
            400 invalid_resource: scopes is required
        POST Z/resources {"name":"a","scopes":[]}
            400 invalid_resource: scopes must have 1 to 64 items
        POST Z/resources {"name":"a","scopes":["s"],"upstream_url":"ftp://x"}
            400 invalid_resource: upstream_url must be an http or https URL
        POST Z/resources {"identifier":"crm","scopes":["s"]}
            400 invalid_resource_identifier: an identifier is an absolute URI such as resource://crm, without user info
        POST Z/resources {"identifier":"https://u:p@x.example","scopes":["s"]}
            400 invalid_resource_identifier: an identifier is an absolute URI such as resource://crm, without user info
        POST Z/resources {"identifier":"provider://x","scopes":["s"]}
            400 invalid_resource_identifier: an identifier is an absolute URI such as resource://crm, without user info
        POST Z/resources {"name":"a","scopes":["s"]}
            400 credential_provider_required: name the provider that authenticates calls; kind none is one too
        POST Z/resources {"name":"a","scopes":["s"],"credential_provider_id":"nope"}
            404 provider_not_found: there is no provider nope in this zone
        POST Z/resources {"name":"a","scopes":["s"],"credential_provider_id":"PROVIDER"}
            400 upstream_url_required: name the URL that the Gateway sends the calls of this resource to
        POST Z/resources {"name":"a","scopes":["s"],UP,"operations":[{"method":"GET","path":"x","scope":"s"}]}
            400 operation_path_must_be_absolute: the path `x` must start with `/`
        POST Z/resources {"name":"a","scopes":["s"],UP,"operations":[{"method":"GET","path":"/x","scope":"t"}]}
            400 operation_scope_not_in_resource_scopes: the scope `t` of GET /x is not a scope of the resource
        POST Z/resources {"name":"a","scopes":["s"],UP,"operations":[{"method":" ","path":"/x","scope":"s"}]}
            400 operation_method_and_path_required: operation 0 needs a method and a path
        POST Z/resources {"name":"a","scopes":["s"],UP,"operations":[{"method":"GET","path":"/x","scope":"s"},{"method":"get","path":" /x","scope":"s"}]}
            400 operation_duplicate: GET /x is listed twice
        POST Z/resources {"name":"a","scopes":["s"],UP,"operations":[{"method":"GET"},7]}
            400 invalid_resource: operations.0.path is required
        POST Z/resources {"name":"a","scopes":["s"],UP,"operation_enforcement":"off"}
            400 invalid_resource: operation_enforcement must be one of enforced, transport_uniform
        POST Z/resources {"name":"a","scopes":["s"],UP,"check":true}
            400 resource_verification_unsupported: only resources of a caracal_mandate provider can be verified; leave check out
        PATCH Z/resources/nope {"name":"a"}
            404 resource_not_found: there is no resource nope in this zone
        POST Z/policies {}
            400 invalid_body: name is required
        POST Z/policies/nope/versions {"content":7}
            400 invalid_body: content must be a string
        POST Z/policy-sets {}
            400 invalid_body: name is required
        POST Z/policy-sets/nope/versions {"manifest":[{"policy_version_id":"v"}]}
            404 policy_set_not_found: there is no policy set nope in this zone
        POST Z/policy-sets/nope/versions {"manifest":[]}
            400 invalid_body: manifest must have 1 to 256 items
        POST Z/policy-sets/nope/activate {}
            400 invalid_body: version_id is required
        POST Z/policy-sets/nope/activate {"version_id":"v"}
            404 policy_set_not_found: there is no policy set nope in this zone
        POST Z/policy-sets/nope/simulate {"version_id":"v","input":3}
            400 invalid_body: input must be an object
        GET Z/policy-sets/nope/activation-status 
            404 policy_set_binding_not_found: there is no policy set nope in this zone
        GET Z/policy-sets/nope/activation-status?version_id= 
            400 invalid_body: version_id must be 1 to 128 characters
        GET Z/policy-sets/nope/activation-status?version_id=v&outbox_id=o 
            404 policy_set_binding_not_found: there is no policy set nope in this zone
        GET Z/policy-sets/nope/versions 
            404 policy_set_not_found: there is no policy set nope in this zone
        DELETE Z/policy-sets/nope 
            404 policy_set_not_found: there is no policy set nope in this zone
        POST /v1/policies/validate {}
            400 invalid_body: content is required
        POST /v1/admin-tokens {}
            400 invalid_admin_token_request: name is required
        POST /v1/admin-tokens {"name":"t","scope":"zone"}
            400 zone_id_required: a zone token needs its zone_id
        POST /v1/admin-tokens {"name":"t","scope":"global","zone_id":"z"}
            400 zone_id_not_allowed_for_global: a global token has no zone_id; leave it out or say scope: zone
        POST /v1/admin-tokens {"name":"t","scope":"zone","zone_id":"nope"}
            404 zone_not_found: there is no zone nope
        POST /v1/admin-tokens {"name":"t","scope":"zone","zone_id":"a b"}
            400 invalid_admin_token_request: zone_id must be the id of a zone
        POST /v1/admin-tokens {"name":"t","scope":"global","capability":"all"}
            400 invalid_admin_token_request: capability must be one of read, write, approve
        DELETE /v1/admin-tokens/nope 
            404 admin_token_not_found: there is no live admin token nope
        GET Z/audit?since=yesterday 
            400 invalid_query: since must be a UTC time such as 2026-01-01T00:00:00Z
        GET Z/audit?decision=maybe 
            400 invalid_query: decision must be one of allow, deny, partial, pending, approved, rejected, consumed, started, suspended, resumed, terminated, created, revoked, expired, activated, archived
        GET Z/audit?request_id= 
            400 invalid_query: request_id must be 1 to 8192 characters
        GET Z/audit?event_type=a,,b 
            400 invalid_query: event_type must be 1 to 16 names separated by commas
        GET Z/audit?fields=nope 
            400 invalid_fields: `nope` is not a field of an export
        GET Z/audit?limit=1001 
            400 invalid_query: limit must be a whole number from 1 to 1000
        GET Z/audit?cursor=e30 
            400 invalid_cursor: cursor must be a next_cursor of this list
        GET Z/audit/by-request/nope 
            404 request_not_found: no event of request nope is on record in this zone
        GET Z/audit/by-request/nope/explain 
            404 request_not_found: no event of request nope is on record in this zone
        GET Z/grants 
            404 not_found: no such route
        "#) };
        assert_eq!(snapshot(&stack, &z).await, before);
    }

    async fn bodies_are_json_and_bounded(stack: Stack) [("API_BODY_LIMIT_BYTES", "1024")] {
        let post = |kind: &str, body: String| {
            let request = Request::post("/v1/zones").header("authorization", format!("Bearer {BOOTSTRAP}"));
            let request = if kind.is_empty() { request } else { request.header("content-type", kind) };
            stack.raw(request.body(Body::from(body)).unwrap())
        };
        let mut table = String::new();
        for (case, kind, body) in [
            ("text", "text/plain", r#"{"name":"a"}"#.to_owned()),
            ("no type", "", r#"{"name":"a"}"#.to_owned()),
            ("empty", "application/json", String::new()),
            ("charset", "application/json; charset=utf-8", r#"{"name":"a"}"#.to_owned()),
            ("too large", "application/json", format!(r#"{{"name":"{}"}}"#, "x".repeat(2000))),
            ("too deep", "application/json", "[".repeat(500)),
        ] {
            let reply = post(kind, body).await;
            let shown = if reply.body["error"].is_null() { reply.status.to_string() } else { reply.to_string() };
            writeln!(table, "{case:<10} {shown}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        text       415 unsupported_media_type: send the body as Content-Type: application/json
        no type    415 unsupported_media_type: send the body as Content-Type: application/json
        empty      400 invalid_zone: name is required
        charset    201 Created
        too large  413 payload_too_large: request body too large
        too deep   400 invalid_request: the body is not JSON: recursion limit exceeded at line 1 column 128
        ") };
    }
}

/// Everything that the requests above could have changed.
async fn snapshot(stack: &Stack, z: &str) -> String {
    let mut all = String::new();
    let lists = [
        "applications",
        "providers",
        "resources",
        "policies",
        "policy-sets",
    ];
    let paths = lists.iter().map(|list| format!("{z}/{list}"));
    for path in paths.chain(["/v1/zones".to_owned(), "/v1/admin-tokens".to_owned()]) {
        let mut reply = stack.get(&path).await.is(200);
        for item in reply["items"].as_array_mut().unwrap() {
            item.as_object_mut().unwrap().remove("last_used_at");
        }
        writeln!(all, "{reply}").unwrap();
    }
    all
}
