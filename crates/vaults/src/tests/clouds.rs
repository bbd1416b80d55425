//! Backends of clouds, each with its own way to a token.

use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Secret, TestClock, TestRng};
use caracal_store::custody::SecretBackend;
use serde_json::{Value, json};

use super::{AT, ENVELOPE, Far, TEXT, wire};
use crate::aws::{Container, Credentials, SecretsManager, Source};
use crate::azure::{Identity, KeyVault, audience};
use crate::gcp::{self, SecretManager, ServiceAccount};
use crate::lasting::Lasting;
use crate::token::{Authorized, Shown};

const NAME: &str = "zones-z1-providers-p1-secretConfig";

fn key_vault(far: &Far, identity: Identity, clock: Arc<TestClock>) -> KeyVault {
    let wire = wire("azurekeyvault");
    KeyVault {
        at: Authorized::new(wire, Box::new(identity), Shown::Bearer, clock),
        url: far.url.clone(),
    }
}

fn managed(far: &Far) -> Identity {
    Identity::Managed {
        metadata: far.url.clone(),
        client: Some("user assigned".to_owned()),
        audience: "https://vault.azure.net".to_owned(),
    }
}

#[tokio::test]
async fn azure_gives_an_application_its_token_once_an_hour() {
    let far = Far::start().await;
    let clock = Arc::new(TestClock::default());
    let identity = Identity::Client {
        authority: far.url.clone(),
        tenant: "t1".to_owned(),
        client: "c1".to_owned(),
        secret: Secret::new("s&1".to_owned()),
        audience: "https://vault.azure.net".to_owned(),
    };
    let vault = key_vault(&far, identity, clock.clone());
    let token = |token: &str| {
        (
            200,
            json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token}),
        )
    };
    far.answers([
        token("a1"),
        (200, json!({"value": TEXT, "id": "https://v/secrets/n/1"})),
        (
            404,
            json!({"error": {"code": "SecretNotFound", "message": "…"}}),
        ),
        (200, json!({"value": TEXT})),
        (200, json!({"recoveryId": "…"})),
        token("a2"),
        (404, json!({"error": {"code": "SecretNotFound"}})),
        (401, json!({"error": {"code": "Unauthorized"}})),
        token("a3"),
        (
            403,
            json!({"error": {"code": "Forbidden", "innererror": {"code": "AccessDenied"}}}),
        ),
    ]);
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    assert_eq!(vault.get(AT).await.unwrap(), None);
    vault.put(AT, ENVELOPE).await.unwrap();
    vault.delete(AT).await.unwrap();
    clock.advance(Duration::from_secs(3540));
    vault.delete(AT).await.unwrap();
    let refused = vault.get(AT).await.unwrap_err().to_string();
    assert_eq!(refused, "azurekeyvault: answered 403: AccessDenied");
    let form = "grant_type=client_credentials&client_id=c1&client_secret=s%261\
                &scope=https%3A%2F%2Fvault.azure.net%2F.default";
    let ask = format!(
        "POST /t1/oauth2/v2.0/token\ncontent-type: application/x-www-form-urlencoded\n\n{form}"
    );
    let with = |method: &str, token: &str, body: &str| {
        format!(
            "{method} /secrets/{NAME}?api-version=7.4\nauthorization: Bearer {token}\n\
             content-type: application/json{body}"
        )
    };
    let put = with("PUT", "a1", &format!("\n\n{{\"value\":\"{TEXT}\"}}"));
    far.was_asked([
        &ask,
        &with("GET", "a1", ""),
        &with("GET", "a1", ""),
        &put,
        &with("DELETE", "a1", ""),
        &ask,
        &with("DELETE", "a2", ""),
        &with("GET", "a2", ""),
        &ask,
        &with("GET", "a3", ""),
    ]);
}

#[tokio::test]
async fn azure_tells_a_machine_who_it_is_and_gives_back_what_was_deleted() {
    let far = Far::start().await;
    let vault = key_vault(&far, managed(&far), Arc::default());
    let deleted = json!({"error": {"code": "Conflict", "innererror": {"code": "ObjectIsDeletedButRecoverable"}}});
    far.answers([
        (
            200,
            json!({"access_token": "m1", "expires_in": "86399", "token_type": "Bearer"}),
        ),
        (409, deleted),
        (200, json!({"id": "…"})),
        (404, json!({"error": {"code": "SecretNotFound"}})),
        (200, json!({"value": "b2xk"})),
        (200, json!({"value": TEXT})),
        (409, json!({"error": {"code": "Conflict"}})),
    ]);
    vault.put(AT, ENVELOPE).await.unwrap();
    let refused = vault.put(AT, ENVELOPE).await.unwrap_err().to_string();
    assert_eq!(refused, "azurekeyvault: answered 409: Conflict");
    let asked = far.asked();
    let first_lines: Vec<_> = asked
        .iter()
        .map(|asked| asked.lines().next().unwrap())
        .collect();
    let name = |method: &str| format!("{method} /secrets/{NAME}?api-version=7.4");
    assert_eq!(
        asked[0],
        "GET /metadata/identity/oauth2/token?api-version=2018-02-01\
         &resource=https%3A%2F%2Fvault.azure.net&client_id=user%20assigned\nmetadata: true"
    );
    assert_eq!(
        first_lines[1..],
        [
            name("PUT"),
            format!("POST /deletedsecrets/{NAME}/recover?api-version=7.4"),
            name("GET"),
            name("GET"),
            name("PUT"),
            name("PUT"),
        ]
    );
}

#[test]
fn the_audience_of_a_token_is_that_of_the_cloud_of_the_vault() {
    for (vault, expected) in [
        ("https://v.vault.azure.net/", "https://vault.azure.net"),
        ("https://v.vault.azure.cn/", "https://vault.azure.cn"),
        (
            "https://v.vault.usgovcloudapi.net/",
            "https://vault.usgovcloudapi.net",
        ),
        ("https://vault.internal.example/", "https://vault.azure.net"),
        ("http://127.0.0.1:1/", "https://vault.azure.net"),
    ] {
        assert_eq!(audience(&vault.parse().unwrap()), expected, "{vault}");
    }
}

fn secrets_manager(far: &Far, source: Source, clock: Arc<TestClock>) -> SecretsManager {
    SecretsManager {
        wire: wire("awssecretsmanager"),
        endpoint: far.url.clone(),
        region: "eu-central-1".to_owned(),
        source,
        credentials: Lasting::new(clock.clone()),
        clock,
        rng: Arc::new(TestRng::default()),
    }
}

fn is_signed(asked: &str, key_id: &str, headers: &str) {
    let line = asked
        .lines()
        .find(|line| line.starts_with("authorization: "));
    let (scheme, signature) = line.unwrap().rsplit_once("Signature=").unwrap();
    assert_eq!(
        scheme,
        format!(
            "authorization: AWS4-HMAC-SHA256 Credential={key_id}/20261123/eu-central-1/\
             secretsmanager/aws4_request, SignedHeaders={headers}, "
        )
    );
    assert_eq!(signature.len(), 64);
    assert!(asked.starts_with("POST /\n"), "{asked}");
    assert!(
        asked.contains("\ncontent-type: application/x-amz-json-1.1\n"),
        "{asked}"
    );
    assert!(
        asked.contains("\nx-amz-date: 20261123T000000Z\n"),
        "{asked}"
    );
}

/// The action and the body of a request.
fn action(asked: &str) -> (String, Value) {
    let (head, body) = asked.split_once("\n\n").unwrap();
    let target = head
        .lines()
        .find_map(|line| line.strip_prefix("x-amz-target: secretsmanager."));
    (
        target.unwrap().to_owned(),
        serde_json::from_str(body).unwrap(),
    )
}

#[tokio::test]
async fn aws_is_asked_with_signed_requests() {
    let far = Far::start().await;
    let source = Source::Static(Credentials {
        key_id: "AKID".to_owned(),
        secret: Secret::new("sk".to_owned()),
        session_token: None,
    });
    let aws = secrets_manager(&far, source, Arc::default());
    let absent = json!({"__type": "ResourceNotFoundException", "Message": "…"});
    far.answers([
        (
            200,
            json!({"Name": AT, "SecretString": TEXT, "VersionId": "1"}),
        ),
        (400, absent.clone()),
        (200, json!({"VersionId": "2"})),
        (400, absent.clone()),
        (200, json!({"VersionId": "1"})),
        (200, json!({})),
        (400, absent),
        (
            400,
            json!({"__type": "com.amazonaws#AccessDeniedException"}),
        ),
    ]);
    assert_eq!(aws.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    assert_eq!(aws.get(AT).await.unwrap(), None);
    aws.put(AT, ENVELOPE).await.unwrap();
    aws.put(AT, ENVELOPE).await.unwrap();
    aws.delete(AT).await.unwrap();
    aws.delete(AT).await.unwrap();
    let refused = aws.get(AT).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "awssecretsmanager: answered 400: com.amazonaws#AccessDeniedException"
    );
    let asked = far.asked();
    for request in &asked {
        is_signed(request, "AKID", "content-type;host;x-amz-date;x-amz-target");
    }
    let bodies: Vec<_> = asked.iter().map(|asked| action(asked)).collect();
    let token = |at: usize| bodies[at].1["ClientRequestToken"].clone();
    let (read, delete) = (
        ("GetSecretValue".to_owned(), json!({"SecretId": AT})),
        (
            "DeleteSecret".to_owned(),
            json!({"SecretId": AT, "ForceDeleteWithoutRecovery": true}),
        ),
    );
    let put = |at: usize| {
        let body = json!({"SecretId": AT, "SecretString": TEXT, "ClientRequestToken": token(at)});
        ("PutSecretValue".to_owned(), body)
    };
    let create = json!({"Name": AT, "SecretString": TEXT, "ClientRequestToken": token(3)});
    assert_eq!(
        bodies,
        [
            read.clone(),
            read.clone(),
            put(2),
            put(3),
            ("CreateSecret".to_owned(), create),
            delete.clone(),
            delete,
            read,
        ]
    );
    // A write of the same envelope is a write of its own.
    assert_ne!(token(2), token(3));
    assert_eq!(token(2).as_str().unwrap().len(), 32);
}

#[tokio::test]
async fn aws_gives_a_container_keys_that_end() {
    let far = Far::start().await;
    let clock = Arc::new(TestClock::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "pod token\n").unwrap();
    let source = Source::Container(Container {
        url: far.url("/v1/credentials"),
        token: None,
        token_file: Some(file.path().to_owned()),
    });
    let aws = secrets_manager(&far, source, clock.clone());
    let keys = |id: &str, at: &TestClock, seconds: u64| {
        let ends = at.now().plus(Duration::from_secs(seconds)).iso_seconds();
        (
            200,
            json!({"AccessKeyId": id, "SecretAccessKey": "sk", "Token": "st", "Expiration": ends}),
        )
    };
    far.answers([
        keys("AK1", &clock, 600),
        (200, json!({})),
        (400, json!({"__type": "ExpiredTokenException"})),
        keys("AK2", &clock, 600),
        (200, json!({})),
    ]);
    aws.delete(AT).await.unwrap();
    aws.delete(AT).await.unwrap();
    let asked = far.asked();
    let keys_asked = "GET /v1/credentials\nauthorization: pod token";
    assert_eq!([&asked[0], &asked[3]], [keys_asked; 2]);
    let headers = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target";
    for (at, key) in [(1, "AK1"), (2, "AK1"), (4, "AK2")] {
        is_signed(&asked[at], key, headers);
        assert!(asked[at].contains("\nx-amz-security-token: st\n"));
    }
    // Not used in their last minute.
    far.answers([keys("AK3", &clock, 600), (200, json!({}))]);
    clock.advance(Duration::from_secs(540));
    aws.delete(AT).await.unwrap();
    assert_eq!(far.asked()[0], keys_asked);
}

fn secret_manager(far: &Far, identity: gcp::Identity, clock: Arc<TestClock>) -> SecretManager {
    let wire = wire("gcpsecretmanager");
    SecretManager {
        at: Authorized::new(wire, Box::new(identity), Shown::Bearer, clock),
        endpoint: far.url.clone(),
        project: "my-project".to_owned(),
    }
}

#[tokio::test]
async fn google_keeps_versions_of_a_secret_in_a_project() {
    let far = Far::start().await;
    let identity = gcp::Identity::Metadata(far.url.clone());
    let gcp = secret_manager(&far, identity, Arc::default());
    // base64 of our base64.
    let data = "UTFOVE1mOEFBWE5sWVd4bFpBPT0=";
    let absent = json!({"error": {"code": 404, "status": "NOT_FOUND", "message": "…"}});
    far.answers([
        (
            200,
            json!({"access_token": "g1", "expires_in": 3599, "token_type": "Bearer"}),
        ),
        (
            200,
            json!({"name": "…/versions/1", "payload": {"data": data}}),
        ),
        (404, absent.clone()),
        (200, json!({"name": "…/versions/2"})),
        (404, absent.clone()),
        (200, json!({"name": "…"})),
        (200, json!({"name": "…/versions/1"})),
        (200, json!({})),
        (404, absent),
        (
            429,
            json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}),
        ),
    ]);
    assert_eq!(gcp.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    assert_eq!(gcp.get(AT).await.unwrap(), None);
    gcp.put(AT, ENVELOPE).await.unwrap();
    gcp.put(AT, ENVELOPE).await.unwrap();
    gcp.delete(AT).await.unwrap();
    gcp.delete(AT).await.unwrap();
    let refused = gcp.get(AT).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "gcpsecretmanager: answered 429: RESOURCE_EXHAUSTED"
    );
    let headers = "authorization: Bearer g1\ncontent-type: application/json";
    let secrets = "/v1/projects/my-project/secrets";
    let get = format!("GET {secrets}/{NAME}/versions/latest:access\n{headers}");
    let add = format!(
        "POST {secrets}/{NAME}:addVersion\n{headers}\n\n{{\"payload\":{{\"data\":\"{data}\"}}}}"
    );
    let create = format!(
        "POST {secrets}?secretId={NAME}\n{headers}\n\n{{\"replication\":{{\"automatic\":{{}}}}}}"
    );
    let delete = format!("DELETE {secrets}/{NAME}\n{headers}");
    let token = "GET /computeMetadata/v1/instance/service-accounts/default/token\n\
                 metadata-flavor: Google";
    far.was_asked([
        token, &get, &get, &add, &add, &create, &add, &delete, &delete, &get,
    ]);
}

#[tokio::test]
async fn google_takes_an_assertion_of_a_service_account() {
    let far = Far::start().await;
    let clock = Arc::new(TestClock::default());
    let file = key_file(far.url("/token").as_str());
    let account = ServiceAccount::parse(&file.to_string()).unwrap();
    let shown = format!("{account:?}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
    let identity = gcp::Identity::Key {
        account,
        clock: clock.clone(),
    };
    let gcp = secret_manager(&far, identity, clock.clone());
    far.answers([
        (200, json!({"access_token": "g1", "expires_in": 3599})),
        (200, json!({})),
    ]);
    gcp.delete(AT).await.unwrap();
    let asked = far.asked();
    let (head, form) = asked[0].split_once("\n\n").unwrap();
    assert_eq!(
        head,
        "POST /token\ncontent-type: application/x-www-form-urlencoded"
    );
    let grant = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";
    let assertion: Vec<&str> = form.strip_prefix(grant).unwrap().split('.').collect();
    let part = |at: usize| -> Value {
        let bytes = caracal_crypto::digest::b64url_decode(assertion[at]).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    assert_eq!(part(0), json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
    let now = clock.now().unix_seconds();
    assert_eq!(
        part(1),
        json!({
            "iss": "sa@my-project.iam.gserviceaccount.com",
            "scope": "https://www.googleapis.com/auth/cloud-platform",
            "aud": far.url("/token").as_str(), "iat": now, "exp": now + 3600,
        })
    );
    assert!(asked[1].contains("\nauthorization: Bearer g1\n"));
}

/// As Google hands them out, with a key that proves nothing to anybody.
pub(super) fn key_file(token_uri: &str) -> Value {
    json!({
        "type": "service_account",
        "project_id": "file-project",
        "private_key_id": "k1",
        "private_key": include_str!("../../testdata/test-only-rsa.key"),
        "client_email": "sa@my-project.iam.gserviceaccount.com",
        "token_uri": token_uri,
    })
}

/// Against a server of another's making that speaks as AWS does (PyPI: `moto[server]`), whose address
/// `CARACAL_TEST_AWS` holds. With keys that it has issued (`ID:SECRET` in `CARACAL_TEST_AWS_KEY`), it
/// can be told to check signatures.
#[tokio::test]
async fn aws_as_another_speaks_it() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how tests are told of their servers"
    )]
    let set = |name: &str| std::env::var(name).ok();
    let Some(url) = set("CARACAL_TEST_AWS") else {
        return;
    };
    let key = set("CARACAL_TEST_AWS_KEY").unwrap_or_else(|| "id:secret".to_owned());
    let (key_id, secret) = key.split_once(':').unwrap();
    let aws = super::settings::open(&[
        ("CARACAL_SECRET_BACKEND", "awssecretsmanager"),
        ("CARACAL_AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", key_id),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &url),
    ]);
    let at = format!("zones/{}/applications/a1/clientSecret", std::process::id());
    assert_eq!(aws.get(&at).await.unwrap(), None);
    // The last one is in force, also when it was in force before.
    for envelope in [&b"CSS1 one"[..], b"CSS1 two", b"CSS1 one"] {
        aws.put(&at, envelope).await.unwrap();
        assert_eq!(aws.get(&at).await.unwrap().as_deref(), Some(envelope));
    }
    for _ in 0..2 {
        aws.delete(&at).await.unwrap();
        assert_eq!(aws.get(&at).await.unwrap(), None);
    }
    aws.put(&at, ENVELOPE).await.unwrap();
    assert_eq!(aws.get(&at).await.unwrap().as_deref(), Some(ENVELOPE));
    aws.delete(&at).await.unwrap();
}
