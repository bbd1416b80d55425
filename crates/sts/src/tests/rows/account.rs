//! Whose account at a provider a call uses (spec: sts §6.3, §20.10).

use caracal_model::ProviderId;
use caracal_store::connections::{ACCESS_TOKEN_AAD, SHARED_SUBJECT, SealedTokens};
use caracal_store::params;
use serde_json::json;

use super::*;
use crate::tests::gated::later;

const PROVIDER: &str =
    "UPDATE providers SET kind = 'oauth2_authorization_code', config_json = $1 WHERE id = 'p1'";
const MINE: [(&str, &str); 2] = [("agent_session_id", "s2"), ("delegation_edge_id", "e1")];

pub async fn connect(gated: &Gated, subject: &str) {
    let sts = &gated.sts.sts;
    let token = format!("account of {subject}");
    let access = sts
        .keyring
        .seal(&OsRng, ACCESS_TOKEN_AAD, token.as_bytes())
        .unwrap();
    let tokens = SealedTokens {
        access: &access,
        refresh: None,
        expires_at: Some(later(600)),
    };
    let (zone, provider) = (ZoneId::trusted("z1"), ProviderId::trusted("p1"));
    let mut tx = gated.store.begin("a connection").await.unwrap();
    let id = sts.ids.uuid();
    tx.connections(&zone)
        .put(&id, &provider, subject, tokens, later(0))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    sts.announce.announce().await;
}

async fn user_connections(gated: &Gated, on: Option<bool>) {
    let mut config = json!({"token_endpoint": "https://nowhere.example/", "client_id": "c"});
    if let Some(on) = on {
        config["session_user_connection"] = json!(on);
    }
    alter(gated, PROVIDER, &params![config.to_string()]).await;
}

/// The account with which a call under this Delegation goes.
async fn used(gated: &Gated, edge: &[(&str, &str)]) -> String {
    let minted = granted(gated, "a mint", mint(edge), &["allow complete"]).await;
    let token = minted["access_token"].as_str().unwrap();
    let called = granted(gated, "a call", called(token, &[]), &["allow complete"]).await;
    called["upstreams"]["resource://desk"]["provider_token"]
        .as_str()
        .unwrap()
        .to_owned()
}

caracal_store::on_each_engine! {
    async fn a_call_uses_the_account_of_the_sessions_user_where_the_provider_says_so(store: Store) {
        let gated = Gated::start(store).await;
        for subject in ["app-z1", "user_1"] {
            connect(&gated, subject).await;
        }
        for off in [None, Some(false)] {
            user_connections(&gated, off).await;
            assert_eq!(used(&gated, &MINE).await, "account of app-z1", "off unless it is set");
        }
        user_connections(&gated, Some(true)).await;
        assert_eq!(used(&gated, &MINE).await, "account of user_1");
        assert_eq!(used(&gated, &[]).await, "account of app-z1", "a Session of no user");

        let minted = granted(&gated, "a mint", mint(&MINE), &["allow complete"]).await;
        let token = minted["access_token"].as_str().unwrap();
        let mut tx = gated.store.begin("a revocation").await.unwrap();
        let zone = ZoneId::trusted("z1");
        tx.connections(&zone).revoke_subject("user_1", later(0)).await.unwrap();
        tx.commit().await.unwrap();
        gated.sts.sts.announce.announce().await;
        let none = told(403, "credential_not_provisioned", "")
            .on_record(&["deny credential_not_provisioned", "deny exchange_denied"]);
        check(&gated, "a user without an account", called(token, &[]), none).await;
        connect(&gated, SHARED_SUBJECT).await;
        assert_eq!(used(&gated, &MINE).await, "account of caracal:shared");
        gated.stop().await;
    }
}
