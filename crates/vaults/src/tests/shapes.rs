//! Backends that want one token: Vault, Infisical, custom.

use caracal_store::custody::SecretBackend;
use serde_json::{Value, json};

use super::{AT, ENVELOPE, Far, TEXT, given, text, wire};
use crate::custom::Custom;
use crate::infisical::Infisical;
use crate::token::{Given, Shown};
use crate::vault::Vault;

fn vault(far: &Far, token: Given, namespace: Option<&str>) -> Vault {
    Vault {
        at: given("vault", token, Shown::In("x-vault-token")),
        address: far.url.clone(),
        mount: "kv/team".to_owned(),
        namespace: namespace.map(str::to_owned),
    }
}

#[tokio::test]
async fn vault_is_asked_as_version_2_of_its_key_value_engine_is_documented() {
    let far = Far::start().await;
    let vault = vault(&far, text("hvs.1"), Some("ns1"));
    far.answers([
        (
            200,
            json!({"data": {"data": {"value": TEXT}, "metadata": {"version": 3}}}),
        ),
        (404, json!({"errors": []})),
        (
            404,
            json!({"data": {"data": null, "metadata": {"deletion_time": "2026-01-01T00:00:00Z"}}}),
        ),
        (200, json!({"data": {"version": 4}})),
        (204, Value::Null),
        (404, json!({"errors": []})),
    ]);
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    assert_eq!(vault.get(AT).await.unwrap(), None);
    assert_eq!(vault.get(AT).await.unwrap(), None, "all versions deleted");
    vault.put(AT, ENVELOPE).await.unwrap();
    vault.delete(AT).await.unwrap();
    vault.delete(AT).await.unwrap();
    let headers = "content-type: application/json\nx-vault-namespace: ns1\nx-vault-token: hvs.1";
    let get = format!("GET /v1/kv/team/data/{AT}\n{headers}");
    let delete = format!("DELETE /v1/kv/team/metadata/{AT}\n{headers}");
    let post =
        format!("POST /v1/kv/team/data/{AT}\n{headers}\n\n{{\"data\":{{\"value\":\"{TEXT}\"}}}}");
    far.was_asked([&get, &get, &get, &post, &delete, &delete]);
}

#[tokio::test]
async fn what_is_not_an_answer_is_an_error_and_never_an_absence() {
    let far = Far::start().await;
    let vault = vault(&far, text("hvs.1"), None);
    let no_mount = json!({"errors": ["no handler for route \"kv/team/data/x\""]});
    for (status, body, told) in [
        (
            404,
            no_mount,
            "vault: answered 404: no handler for route \"kv/team/data/x\"",
        ),
        (
            403,
            json!({"errors": ["hvs.CAESIJ4x9Q may not do that"]}),
            "vault: answered 403: … may not do that",
        ),
        (404, Value::from("<html>"), "vault: answered 404"),
        (
            403,
            json!({"errors": ["permission denied"]}),
            "vault: answered 403: permission denied",
        ),
        (
            503,
            json!({"errors": ["Vault is sealed"]}),
            "vault: answered 503: Vault is sealed",
        ),
        (302, Value::Null, "vault: answered 302"),
        (
            200,
            json!({"data": {}}),
            "vault: the answer is not what it should be",
        ),
        (
            200,
            json!({"data": {"data": {"value": "%%"}}}),
            "vault: holds a value that is not base64",
        ),
    ] {
        far.answers([(status, body)]);
        let error = vault.get(AT).await.unwrap_err();
        assert_eq!(error.to_string(), told);
        far.asked();
    }
    let nobody = Vault {
        address: "http://127.0.0.1:9".parse().unwrap(),
        ..vault
    };
    let error = nobody.get(AT).await.unwrap_err().to_string();
    assert_eq!(error, "vault: no answer: transport failure");
}

#[tokio::test]
async fn a_token_file_is_read_again_when_its_token_is_refused() {
    let far = Far::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hvs.old\n").unwrap();
    let vault = vault(&far, Given::File(file.path().to_owned()), None);
    far.answers([
        (204, Value::Null),
        (403, json!({"errors": ["permission denied"]})),
        (204, Value::Null),
    ]);
    vault.delete(AT).await.unwrap();
    std::fs::write(file.path(), "hvs.new\n").unwrap();
    vault.delete(AT).await.unwrap();
    let tokens = far.asked();
    let tokens: Vec<_> = tokens
        .iter()
        .map(|asked| asked.lines().last().unwrap())
        .collect();
    let (old, new) = ("x-vault-token: hvs.old", "x-vault-token: hvs.new");
    assert_eq!(tokens, [old, old, new]);
    std::fs::remove_file(file.path()).unwrap();
    far.answers([(403, Value::Null)]);
    let error = vault.delete(AT).await.unwrap_err().to_string();
    assert!(error.contains("the token file"), "{error}");
    assert!(!error.contains("hvs"), "{error}");
}

#[tokio::test]
async fn infisical_is_asked_for_one_raw_secret_of_a_folder() {
    let far = Far::start().await;
    let infisical = Infisical {
        at: given("infisical", text("it"), Shown::Bearer),
        url: far.url("/self/hosted/"),
        project: "w 1".to_owned(),
        environment: "prod".to_owned(),
        path: "/caracal".to_owned(),
    };
    let secret = json!({"secret": {"secretKey": "k", "secretValue": TEXT, "version": 1}});
    far.answers([
        (200, secret.clone()),
        (
            404,
            json!({"statusCode": 404, "message": "not found", "error": "NotFound"}),
        ),
        (200, secret.clone()),
        (404, json!({"error": "NotFound"})),
        (200, secret.clone()),
        (200, secret),
        (404, json!({"error": "NotFound"})),
    ]);
    assert_eq!(infisical.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    assert_eq!(infisical.get(AT).await.unwrap(), None);
    infisical.put(AT, ENVELOPE).await.unwrap();
    infisical.put(AT, ENVELOPE).await.unwrap();
    infisical.delete(AT).await.unwrap();
    infisical.delete(AT).await.unwrap();
    let headers = "authorization: Bearer it\ncontent-type: application/json";
    let path = "/self/hosted/api/v3/secrets/raw/zones.z1.providers.p1.secretConfig";
    let place = "\"secretPath\":\"/caracal\"";
    let get =
        format!("GET {path}?workspaceId=w%201&environment=prod&secretPath=%2Fcaracal\n{headers}");
    let change = |method: &str, value: &str| {
        format!(
            "{method} {path}\n{headers}\n\n{{\"environment\":\"prod\",{place}{value},\
             \"type\":\"shared\",\"workspaceId\":\"w 1\"}}"
        )
    };
    let value = format!(",\"secretValue\":\"{TEXT}\"");
    let (patch, post) = (change("PATCH", &value), change("POST", &value));
    let delete = change("DELETE", "");
    far.was_asked([&get, &get, &patch, &patch, &post, &delete, &delete]);
}

#[tokio::test]
async fn a_custom_service_keeps_bytes_by_reference() {
    let far = Far::start().await;
    let custom = Custom {
        at: given("custom", text("ct"), Shown::Bearer),
        url: far.url("/vaults/"),
    };
    far.answers([
        (200, Value::from("CSS1 as it is")),
        (404, Value::Null),
        (201, Value::Null),
        (204, Value::Null),
        (404, Value::Null),
        (401, Value::Null),
        (507, Value::from("disk full, and a page of it")),
    ]);
    assert_eq!(
        custom.get(AT).await.unwrap().as_deref(),
        Some(&b"CSS1 as it is"[..])
    );
    assert_eq!(custom.get(AT).await.unwrap(), None);
    custom.put(AT, b"CSS1").await.unwrap();
    custom.delete(AT).await.unwrap();
    custom.delete(AT).await.unwrap();
    let refused = custom.get(AT).await.unwrap_err().to_string();
    assert_eq!(refused, "custom: answered 401");
    let refused = custom.put(AT, b"CSS1").await.unwrap_err().to_string();
    assert_eq!(refused, "custom: answered 507");
    let headers = "authorization: Bearer ct\ncontent-type: application/octet-stream";
    let path = format!("/vaults/secrets/{AT}");
    let get = format!("GET {path}\n{headers}");
    let put = format!("PUT {path}\n{headers}\n\nCSS1");
    let delete = format!("DELETE {path}\n{headers}");
    far.was_asked([&get, &get, &put, &delete, &delete, &get, &put]);
}

#[tokio::test]
async fn nothing_shows_a_token() {
    let far = Far::start().await;
    let shown = format!(
        "{:?} {:?}",
        vault(&far, text("hvs.1"), None),
        wire("custom").hidden("Bearer hvs.1")
    );
    assert!(!shown.contains("hvs.1"), "{shown}");
    let odd = vault(&far, text("two\nlines"), None)
        .get(AT)
        .await
        .unwrap_err();
    assert_eq!(
        odd.to_string(),
        "vault: the token has characters that no header may have"
    );
}
