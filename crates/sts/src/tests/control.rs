//! Control keys over the router: answer and evidence, row by row (spec: sts §2.4, §8).

use std::fmt::Write as _;

use serde_json::json;

use super::scene::{Scene, zone};
use crate::form::ACCESS_TOKEN_TYPE;

caracal_store::on_each_engine! {
    async fn a_control_key_needs_no_zone_and_opens_what_its_traits_list(store: Store) {
        let scene = Scene::start(store).await;
        let mut table = String::new();
        let ask = |app: &'static str, more: &[(&'static str, &'static str)]| {
            let mut fields = vec![("application_id", app), ("client_secret", "cs_of_key")];
            fields.extend([("resource", "caracal-control")]);
            fields.extend_from_slice(more);
            fields
        };
        let read = ("scope", "control:app:read");
        let other = |resource: &'static str| {
            vec![("application_id", "key"), ("client_secret", "cs_of_key"), ("resource", resource), read]
        };
        for (case, fields) in [
            ("without a zone", ask("key", &[read])),
            ("in its zone", ask("key", &[read, ("zone_id", "z1")])),
            ("in another zone", ask("key", &[read, ("zone_id", "z2")])),
            ("capped", ask("key-soon", &[read, ("ttl_seconds", "3600")])),
            ("ttl over the cap", ask("key", &[read, ("ttl_seconds", "3601")])),
            ("not listed", ask("key", &[("scope", "control:app:write")])),
            ("not of Control", ask("key", &[("scope", "control:app:read desk:read")])),
            ("no scope", ask("key", &[])),
            ("past its deadline", ask("key-past", &[read])),
            ("unreadable deadline", ask("key-odd", &[read])),
            ("no key", ask("no-key", &[read])),
            ("no key, in its zone", ask("no-key", &[read, ("zone_id", "z1")])),
            ("wrong secret", ask("app-z1", &[read])),
            ("unknown", ask("nobody", &[read])),
            ("session", ask("key", &[read, ("agent_session_id", "s1")])),
            ("delegation", ask("key", &[read, ("delegation_edge_id", "e1")])),
            ("record", ask("key", &[read, ("session_id", "r1")])),
            ("subject token", ask("key", &[read, ("subject_token", "x"), ("subject_token_type", ACCESS_TOKEN_TYPE)])),
            ("actor token", ask("key", &[read, ("actor_token", "x"), ("actor_token_type", ACCESS_TOKEN_TYPE)])),
            ("another resource", other("resource://desk")),
            ("two resources", ask("key", &[read, ("resource", "resource://desk")])),
            ("two, in its zone", ask("key", &[read, ("resource", "resource://desk"), ("zone_id", "z1")])),
        ] {
            writeln!(table, "{}", scene.row(case, &fields).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        without a zone         | 200 access_token for 900 s | allow complete
        in its zone            | 200 access_token for 900 s | allow complete
        in another zone        | 403 zone_invalid: the application belongs to zone z1, not to zone z2 | deny client_auth_failed
        capped                 | 200 access_token for 120 s | allow complete
        ttl over the cap       | 400 invalid_token: ttl_seconds must not exceed 3600 | deny exchange_denied
        not listed             | 403 access_denied: the control resource requires a control key | deny control_resource_requires_control_key, deny exchange_denied
        not of Control         | 401 access_denied: invalid client credentials |
        no scope               | 401 access_denied: invalid client credentials |
        past its deadline      | 403 access_denied: the control resource requires a control key | deny control_resource_requires_control_key, deny exchange_denied
        unreadable deadline    | 403 access_denied: the control resource requires a control key | deny control_resource_requires_control_key, deny exchange_denied
        no key                 | 401 access_denied: invalid client credentials |
        no key, in its zone    | 403 access_denied: the control resource requires a control key | deny control_resource_requires_control_key, deny exchange_denied
        wrong secret           | 401 access_denied: invalid client credentials |
        unknown                | 401 access_denied: invalid client credentials |
        session                | 401 access_denied: invalid client credentials |
        delegation             | 401 access_denied: invalid client credentials |
        record                 | 401 access_denied: invalid client credentials |
        subject token          | 401 access_denied: invalid client credentials |
        actor token            | 400 invalid_token: actor_token is not supported: leave it out |
        another resource       | 401 access_denied: invalid client credentials |
        two resources          | 401 access_denied: invalid client credentials |
        two, in its zone       | 403 access_denied: the control resource requires a control key | deny control_resource_requires_control_key, deny exchange_denied, deny exchange_denied
        "); }
        let mandate = scene.minted(&ask("key", &[read])).await;
        assert_eq!((mandate.aud.as_slice(), &mandate.aud), (&["caracal-control".to_owned()][..], &mandate.target));
        assert_eq!(mandate.scope, "control:app:read");
        let record = scene.sts.sts.store.zone(&zone()).authority_record(&mandate.sid).await.unwrap();
        assert_eq!(record.unwrap().record_type, "application");
        let events = scene.evidence().await;
        let allow = events.iter().rev().find(|event| event["decision"] == "allow").unwrap();
        assert_eq!(allow["determining_policies_json"], json!([{"policy": "control-key"}]));
        assert!(allow["policy_set_version_id"].is_null(), "no policy was asked");
    }
}
