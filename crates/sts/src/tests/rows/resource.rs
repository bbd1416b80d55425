//! Each resource (spec: sts §2.6).

use caracal_model::ResourceId;
use caracal_store::params;
use serde_json::json;

use super::*;
use crate::tests::gated::later;

const RESOURCE: &str = "INSERT INTO resources (id, zone_id, name, identifier, upstream_url,
    credential_provider_id, scopes, operations, operation_enforcement, created_via_operator,
    updated_via_operator, created_at, updated_at)
    VALUES ($1, 'z1', $1, $2, $3, 'p1', $4, '[]', 'transport_uniform', FALSE, FALSE, 0, 0)";
const ARCHIVE: &str = "UPDATE resources SET archived_at = 1 WHERE id = $1";
const ENFORCE: &str =
    "UPDATE resources SET operation_enforcement = 'enforced', operations = $1 WHERE id = 'res-1'";
const UNIFORM: &str =
    "UPDATE resources SET operation_enforcement = 'transport_uniform' WHERE id = 'res-1'";
const PROVIDER: &str = "UPDATE providers SET kind = $1, config_json = $2 WHERE id = 'p1'";
const EDGE: &str = "INSERT INTO delegations (id, zone_id, source_session_id, target_session_id,
    issuer_application_id, receiver_application_id, mirrored, resource_id, scopes, constraints_json, status,
    edge_version, expires_at, created_at)
    VALUES ($1, 'z1', 's3', 's4', 'app-z1', 'app-z1', FALSE, $2, $3, $4, 'active', 0, $5, 0)";
const DOCUMENT: &str = "UPDATE policy_versions SET content = $1 WHERE id = 'pv-1'";

const HEAD: &str = "# caracal:data-document\npackage caracal.authz\nimport rego.v1\n\
    app_ids := {\"desk\": \"app-z1\"}\n\
    grants := {\"resource://desk\": {\"application\": \"desk\", \"roles\": {\"desk\": [\"desk:read\", \"desk:write\"]}}}\n";

const fn dropped(status: &'static [&'static str], why: &'static str) -> Told {
    told(403, "access_denied", why).on_record(status)
}

async fn token(gated: &Gated) -> String {
    let (status, body) = gated
        .mint(
            "desk:read",
            &[("agent_session_id", "s4"), ("delegation_edge_id", "e2")],
        )
        .await;
    assert_eq!(status, 200, "{body}");
    body["access_token"].as_str().unwrap().to_owned()
}

caracal_store::on_each_engine! {
    async fn resources_2_6_row_by_row(store: Store) {
        let gated = Gated::start(store).await;
        let mute: Option<&str> = None;
        for (id, identifier, upstream, scopes) in [
            ("res-mute", "resource://mute", mute, json!(["mute:read"])),
            ("res-gone", "resource://gone", Some("https://gone.example"), json!(["desk:read"])),
            ("res-control", "caracal-control", mute, json!(["desk:read"])),
        ] {
            alter(&gated, RESOURCE, &params![id, identifier, upstream, scopes.to_string()]).await;
        }
        alter(&gated, ARCHIVE, &params!["res-gone"]).await;
        let none: Option<&ResourceId> = None;
        let elsewhere = ResourceId::trusted("res-mute");
        for (id, resource, scopes, constraints) in [
            ("e-wide", none, json!(["desk:read", "desk:other", "agent:lifecycle"]), json!({})),
            ("e-mute", Some(&elsewhere), json!(["desk:read"]), json!({})),
            ("e-named", none, json!(["desk:read"]), json!({"resources": ["resource://mute"]})),
        ] {
            let resource = resource.map(|id| id.as_str());
            let (scopes, constraints) = (scopes.to_string(), constraints.to_string());
            alter(&gated, EDGE, &params![id, resource, scopes, constraints, later(3600)]).await;
        }

        let gone = dropped(&["deny resource_not_found", "deny exchange_denied"], "policy denied (resource_not_found)");
        check(&gated, "row 1: no resource", mint(&[("resource", "resource://none")]), gone).await;
        check(&gated, "row 1: archived", mint(&[("resource", "resource://gone")]), gone).await;
        let by_id = granted(&gated, "row 1: by its row id", mint(&[("resource", "res-1")]), &["allow complete"]).await;
        assert_eq!(by_id["target_resources"], json!(["resource://desk"]));
        let mut both = fields(&[("resource", "resource://desk")]);
        both.push(("resource", "resource://none"));
        let evidence = ["allow complete", "deny resource_not_found"];
        let partly = granted(&gated, "row 1: dropped, the other granted", exchange(&both), &evidence).await;
        assert_eq!(partly["target_resources"], json!(["resource://desk"]));

        let mismatch = dropped(&["deny scope_mismatch", "deny exchange_denied"], "policy denied (scope_mismatch)");
        let other = mint(&[("delegation_edge_id", "e-wide"), ("scope", "desk:other")]);
        check(&gated, "row 2: a scope that it does not declare", other, mismatch).await;
        let lifecycle = |resource| {
            mint(&[("agent_session_id", ""), ("delegation_edge_id", ""), ("scope", "agent:lifecycle"), ("resource", resource)])
        };
        granted(&gated, "row 2: implied by an upstream", lifecycle("resource://desk"), &["allow complete"]).await;
        check(&gated, "row 2: not implied without one", lifecycle("resource://mute"), mismatch).await;

        let outside = dropped(&["deny resource_outside_delegation", "deny exchange_denied"],
            "policy denied (resource_outside_delegation)");
        for edge in ["e-mute", "e-named"] {
            check(&gated, &format!("row 3: {edge}"), mint(&[("delegation_edge_id", edge)]), outside).await;
        }

        let operations = json!([{"method": "GET", "path": "/tickets", "scope": "desk:read"},
            {"method": "POST", "path": "/tickets", "scope": "desk:write"}]);
        alter(&gated, ENFORCE, &params![operations.to_string()]).await;
        let floor = told(403, "operation_not_permitted", "operation not permitted")
            .on_record(&["deny operation_not_permitted", "deny exchange_denied"]);
        let token = token(&gated).await;
        granted(&gated, "row 4: declared, in any case", called(&token, &[("request_method", "get")]), &["allow complete"]).await;
        for (row, field) in [
            ("row 4: no such path", ("request_path", "/tickets/1")),
            ("row 4: no such method", ("request_method", "PUT")),
            ("row 4: a scope that is not carried", ("request_method", "POST")),
        ] {
            check(&gated, row, called(&token, &[field]), floor).await;
        }
        alter(&gated, UNIFORM, &[]).await;
        let anywhere = called(&token, &[("request_path", "/anywhere")]);
        granted(&gated, "row 4: not enforced", anywhere, &["allow complete"]).await;

        let control = told(403, "access_denied", "the control resource requires a control key")
            .on_record(&["deny control_resource_requires_control_key", "deny exchange_denied"]);
        check(&gated, "row 7: the control resource", mint(&[("resource", "caracal-control")]), control).await;
        gated.stop().await;
    }

    async fn the_rest_of_2_6_row_by_row(store: Store) {
        let gated = Gated::start(store.clone()).await;
        let token = token(&gated).await;
        let (oauth, config) = ("oauth2_authorization_code", json!({"token_endpoint": "https://nowhere.example/"}));
        for (row, kind, config, code, status) in [
            ("row 8: no secret", "api_key", json!({"header_name": "X-Key"}), "provider_unavailable",
                &["deny provider_unavailable", "deny exchange_denied"][..]),
            ("row 8: not connected", oauth, config, "credential_not_provisioned",
                &["deny credential_not_provisioned", "deny exchange_denied"]),
        ] {
            alter(&gated, PROVIDER, &params![kind, config.to_string()]).await;
            check(&gated, row, called(&token, &[]), told(403, code, "").on_record(status)).await;
            granted(&gated, "row 8: not at the mint", mint(&[]), &["allow complete"]).await;
        }
        let sealed = gated.sts.sts.keyring.seal(&OsRng, caracal_store::connections::ACCESS_TOKEN_AAD, b"t").unwrap();
        let ended = caracal_store::connections::SealedTokens {
            access: &sealed, refresh: None, expires_at: Some(caracal_model::Timestamp::from_unix_seconds(1)),
        };
        let mut tx = store.begin("a connection").await.unwrap();
        let (zone, provider) = (ZoneId::trusted("z1"), caracal_model::ProviderId::trusted("p1"));
        tx.connections(&zone).put("c1", &provider, "app-z1", ended, later(0)).await.unwrap();
        tx.commit().await.unwrap();
        gated.sts.sts.announce.announce().await;
        check(&gated, "row 8: over, and not renewable", called(&token, &[]),
            told(403, "credential_expired_not_renewable", "")
                .on_record(&["deny credential_refresh_failed", "deny exchange_denied"])).await;
        alter(&gated, PROVIDER, &params!["none", "{}"]).await;

        // A version is what it was, so another one goes into force each time.
        let policy = async |version: &str, more: &str| {
            alter(&gated, DOCUMENT, &params![format!("{HEAD}{more}")]).await;
            gated.activate(version).await;
        };
        let role = dropped(&["deny complete", "deny exchange_denied"], "policy denied (role_scope_mismatch)");
        policy("v2", "").await;
        check(&gated, "row 9: denied", mint(&[("scope", "desk:pay")]), role).await;
        policy("v1", "risk := [{\"scope\": \"desk:read\", \"tier\": \"a\"}, {\"scope\": \"desk:read\", \"tier\": \"b\"}]\n").await;
        check(&gated, "row 9: no answer", mint(&[]), told(503, "policy_eval_failed", "policy evaluation failed")
            .on_record(&["deny policy_eval_failed", "deny exchange_denied"])).await;
        policy("v2", "restrict := [\"all\"]\n").await;
        check(&gated, "row 9: restricted", mint(&[]),
            dropped(&["deny complete", "deny exchange_denied"], "policy denied (restriction_active)")).await;
        policy("v1", "").await;

        // As an operator sets it: what was minted above counts as well.
        let mut tx = store.begin("a setting").await.unwrap();
        let setting = caracal_store::platform_settings::PlatformSetting {
            value: 1, updated_by: "admin:t".to_owned(), updated_at: later(0),
        };
        tx.put_platform_setting(caracal_store::platform_settings::MINT_RATE, &setting).await.unwrap();
        tx.commit().await.unwrap();
        crate::rate::read(&gated.sts.sts).await;
        let headers = check(&gated, "row 5: over the mint rate", mint(&[]),
            told(429, "provider_rate_limited", "mint rate limit exceeded")
                .on_record(&["deny rate_limited", "deny exchange_denied"])).await;
        assert_eq!(headers["retry-after"], "60");
        granted(&gated, "row 5: a call is not charged", called(&token, &[]), &["allow complete"]).await;
        gated.stop().await;
    }
}
