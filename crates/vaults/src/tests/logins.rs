//! Ways to a token: the methods of Vault, and a role of AWS for a web identity.

use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::os::SystemClock;
use caracal_model::{Clock as _, TestClock};
use caracal_store::custody::SecretBackend;
use serde_json::{Value, json};

use super::{AT, Far, text, wire};
use crate::aws::{Source, WebIdentity};
use crate::token::{Authorized, Given, Shown};
use crate::vault::{By, Login, Vault};

fn vault(far: &Far, by: By, clock: &Arc<TestClock>) -> Vault {
    let namespace = Some("ns1".to_owned());
    let login = Login::new(far.url.clone(), namespace.clone(), by);
    let shown = Shown::In("x-vault-token");
    Vault {
        at: Authorized::new(wire("vault"), Box::new(login), shown, clock.clone()),
        address: far.url.clone(),
        mount: "kv".to_owned(),
        namespace,
    }
}

/// What a login and a renewal answer with.
fn granted(token: &str, seconds: u64) -> (u16, Value) {
    let auth = json!({"client_token": token, "lease_duration": seconds, "renewable": true});
    (200, json!({"auth": auth, "data": null}))
}

const DONE: (u16, Value) = (204, Value::Null);

fn refused() -> (u16, Value) {
    (403, json!({"errors": ["permission denied"]}))
}

const HOUR: Duration = Duration::from_secs(3600);

/// A request of the test, as the server saw it.
fn asked(what: &str, token: Option<&str>, body: &str) -> String {
    let kind = match what.starts_with("GET") {
        true => "",
        false => "content-type: application/json\n",
    };
    let token = token.map_or(String::new(), |token| format!("\nx-vault-token: {token}"));
    let body = match body {
        "" => String::new(),
        body => format!("\n\n{body}"),
    };
    format!("{what}\n{kind}x-vault-namespace: ns1{token}{body}")
}

fn deleted(token: &str) -> String {
    asked(&format!("DELETE /v1/kv/metadata/{AT}"), Some(token), "")
}

fn renewed(token: &str) -> String {
    asked("POST /v1/auth/token/renew-self", Some(token), "{}")
}

#[tokio::test]
async fn vault_logs_a_role_in_and_renews_its_token_while_that_lasts() {
    let far = Far::start().await;
    let clock = Arc::new(TestClock::default());
    let by = By::AppRole {
        mount: "team/approle".to_owned(),
        role_id: "role-1".to_owned(),
        secret_id: text("secret-1"),
    };
    let vault = vault(&far, by, &clock);
    let login = asked(
        "POST /v1/auth/team/approle/login",
        None,
        "{\"role_id\":\"role-1\",\"secret_id\":\"secret-1\"}",
    );
    far.answers([granted("t1", 3600), DONE, DONE]);
    vault.delete(AT).await.unwrap();
    vault.delete(AT).await.unwrap();
    far.was_asked([&login, &deleted("t1"), &deleted("t1")]);

    // Half of its life is over.
    clock.advance(HOUR / 2);
    far.answers([granted("t1", 3600), DONE]);
    vault.delete(AT).await.unwrap();
    far.was_asked([&renewed("t1"), &deleted("t1")]);

    // It nears the end that no renewal puts off.
    clock.advance(HOUR / 2);
    far.answers([granted("t1", 119), granted("t2", 3600), DONE]);
    vault.delete(AT).await.unwrap();
    far.was_asked([&renewed("t1"), &login, &deleted("t2")]);

    // It was revoked.
    far.answers([refused(), refused(), granted("t3", 3600), DONE]);
    vault.delete(AT).await.unwrap();
    far.was_asked([&deleted("t2"), &renewed("t2"), &login, &deleted("t3")]);

    // Without an answer the token is kept, and renewed by the next who asks.
    clock.advance(HOUR / 2);
    far.answers([(503, json!({"errors": ["Vault is sealed"]}))]);
    let error = vault.delete(AT).await.unwrap_err().to_string();
    assert_eq!(error, "vault: answered 503: Vault is sealed");
    far.was_asked([&renewed("t3")]);
    far.answers([granted("t3", 3600), DONE]);
    vault.delete(AT).await.unwrap();
    far.was_asked([&renewed("t3"), &deleted("t3")]);

    // A login that is refused says so, and shows nothing of the secret.
    clock.advance(HOUR);
    far.answers([refused(), (400, json!({"errors": ["invalid secret id"]}))]);
    let error = vault.delete(AT).await.unwrap_err().to_string();
    assert_eq!(error, "vault: answered 400: invalid secret id");
    far.asked();
    let shown = format!("{vault:?}");
    assert!(
        !shown.contains("secret-1") && !shown.contains("t3"),
        "{shown}"
    );
}

#[tokio::test]
async fn vault_takes_the_token_of_a_service_account_as_it_is_by_then() {
    let far = Far::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let by = By::Kubernetes {
        mount: "kubernetes".to_owned(),
        role: "caracal".to_owned(),
        token_file: file.path().to_owned(),
    };
    let clock = Arc::<TestClock>::default();
    let vault = vault(&far, by, &clock);
    let batch = |token: &str| {
        let auth = json!({"client_token": token, "lease_duration": 600, "renewable": false});
        (200, json!({ "auth": auth }))
    };
    let login = |jwt: &str| {
        let body = format!("{{\"jwt\":\"{jwt}\",\"role\":\"caracal\"}}");
        asked("POST /v1/auth/kubernetes/login", None, &body)
    };
    std::fs::write(file.path(), "jwt-1\n").unwrap();
    far.answers([batch("t1"), DONE]);
    vault.delete(AT).await.unwrap();
    far.was_asked([&login("jwt-1"), &deleted("t1")]);
    // One that cannot be renewed is replaced a minute before it ends.
    std::fs::write(file.path(), "jwt-2\n").unwrap();
    clock.advance(Duration::from_secs(540));
    far.answers([batch("t2"), DONE]);
    vault.delete(AT).await.unwrap();
    far.was_asked([&login("jwt-2"), &deleted("t2")]);
}

#[tokio::test]
async fn a_vault_token_of_the_settings_is_renewed_where_it_can_be() {
    let far = Far::start().await;
    let clock = Arc::<TestClock>::default();
    let looked = asked("GET /v1/auth/token/lookup-self", Some("hvs.1"), "");
    let standing = |ttl: u64, renewable: bool| {
        let data = json!({"ttl": ttl, "renewable": renewable, "policies": ["caracal"]});
        (200, json!({ "data": data }))
    };
    let with = |clock: &Arc<TestClock>| vault(&far, By::Token(text("hvs.1")), clock);
    let (done, renewal) = (deleted("hvs.1"), renewed("hvs.1"));

    let periodic = with(&clock);
    far.answers([standing(600, true), granted("hvs.1", 3600), DONE]);
    periodic.delete(AT).await.unwrap();
    far.was_asked([&looked, &renewal, &done]);
    clock.advance(HOUR / 2);
    far.answers([granted("hvs.1", 3600), DONE]);
    periodic.delete(AT).await.unwrap();
    far.was_asked([&renewal, &done]);

    for answer in [standing(0, false), refused()] {
        let lasting = with(&clock);
        far.answers([answer, DONE, DONE]);
        lasting.delete(AT).await.unwrap();
        clock.advance(HOUR);
        lasting.delete(AT).await.unwrap();
        far.was_asked([&looked, &done, &done]);
    }

    let ends = with(&clock);
    far.answers([standing(3600, false), DONE, refused()]);
    ends.delete(AT).await.unwrap();
    let error = ends.delete(AT).await.unwrap_err().to_string();
    assert_eq!(error, "vault: answered 403: permission denied");
    far.was_asked([&looked, &done, &done]);
}

#[test]
fn a_token_file_is_left_to_whoever_writes_it() {
    let by = By::Token(Given::File("/run/token".into()));
    let login = Login::new("http://127.0.0.1:1".parse().unwrap(), None, by);
    assert!(crate::token::Issue::renews(&login));
}

fn role(far: &Far, file: &std::path::Path) -> Source {
    Source::WebIdentity(WebIdentity {
        url: far.url.clone(),
        role: "arn:aws:iam::1:role/caracal".to_owned(),
        session: "caracal".to_owned(),
        token_file: file.to_owned(),
    })
}

#[tokio::test]
async fn aws_gives_a_role_for_the_token_of_a_service_account() {
    let far = Far::start().await;
    let clock = TestClock::default();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a.jwt&more\n").unwrap();
    let source = role(&far, file.path());
    assert!(source.renews());
    let ends = clock.now().plus(HOUR).iso_seconds();
    // As the reference of the service has it.
    let answer = format!(
        r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
          <AssumeRoleWithWebIdentityResult>
            <SubjectFromWebIdentityToken>system:serviceaccount:a:b</SubjectFromWebIdentityToken>
            <Audience>sts.amazonaws.com</Audience>
            <AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/caracal/caracal</Arn>
              <AssumedRoleId>AROA1:caracal</AssumedRoleId></AssumedRoleUser>
            <Credentials>
              <SessionToken>st+/=</SessionToken>
              <SecretAccessKey>sk/1</SecretAccessKey>
              <Expiration>{ends}</Expiration>
              <AccessKeyId>ASIA1</AccessKeyId>
            </Credentials>
            <Provider>arn:aws:iam::1:oidc-provider/oidc.eks</Provider>
          </AssumeRoleWithWebIdentityResult>
          <ResponseMetadata><RequestId>r1</RequestId></ResponseMetadata>
        </AssumeRoleWithWebIdentityResponse>"#
    );
    far.answers([(200, Value::from(answer))]);
    let (keys, lasts) = source
        .issue(&wire("awssecretsmanager"), &clock)
        .await
        .unwrap();
    assert_eq!((keys.key_id.as_str(), lasts), ("ASIA1", HOUR));
    let token = keys
        .session_token
        .as_ref()
        .map(|token| token.expose().as_str());
    assert_eq!(
        (keys.secret.expose().as_str(), token),
        ("sk/1", Some("st+/="))
    );
    let form = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15\
                &RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fcaracal&RoleSessionName=caracal\
                &WebIdentityToken=a.jwt%26more";
    let ask = format!("POST /\ncontent-type: application/x-www-form-urlencoded\n\n{form}");
    far.was_asked([&ask]);

    let denied = "<ErrorResponse xmlns=\"x\"><Error><Type>Sender</Type>\
                  <Code>InvalidIdentityToken</Code><Message>a.jwt</Message></Error></ErrorResponse>";
    for (status, body, told) in [
        (
            400,
            denied,
            "the role was refused with 400: InvalidIdentityToken",
        ),
        (400, "<a.jwt>", "the role was refused with 400"),
        (200, denied, "the answer is not what it should be"),
        (200, "a.jwt", "the answer is not what it should be"),
    ] {
        far.answers([(status, Value::from(body))]);
        let error = source.issue(&wire("awssecretsmanager"), &clock).await;
        let error = error.unwrap_err().to_string();
        assert_eq!(error, format!("awssecretsmanager: {told}"));
        far.asked();
    }
    file.close().unwrap();
    let error = source
        .issue(&wire("awssecretsmanager"), &SystemClock::new())
        .await;
    assert!(error.unwrap_err().to_string().contains("the token file"));
}
