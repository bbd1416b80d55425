//! AWS Secrets Manager.

mod credentials;
mod sigv4;
mod web_identity;

use std::sync::Arc;

use async_trait::async_trait;
use caracal_crypto::digest::hex_encode;
use caracal_model::{Clock, Rng};
use caracal_store::custody::{BackendError, SecretBackend};
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

pub use self::credentials::{Container, Credentials, Source};
use self::sigv4::{Signing, amz_date};
pub use self::web_identity::{WebIdentity, endpoint as sts_endpoint};
use crate::lasting::Lasting;
use crate::wire::{Answer, Wire, encode};

const SERVICE: &str = "secretsmanager";
const CONTENT: &str = "application/x-amz-json-1.1";

/// The secrets of one account in one region.
pub struct SecretsManager {
    pub(crate) wire: Wire,
    pub(crate) endpoint: Url,
    pub(crate) region: String,
    pub(crate) source: Source,
    pub(crate) credentials: Lasting<Credentials>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
}

impl std::fmt::Debug for SecretsManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretsManager({}, {:?})", self.region, self.source)
    }
}

/// Where the region answers, unless the settings say otherwise.
pub fn endpoint(region: &str) -> String {
    format!("https://{SERVICE}.{region}.{}", domain(region))
}

fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Read {
    secret_string: String,
}

impl SecretsManager {
    async fn ask(&self, action: &str, body: &Value) -> Result<Answer, BackendError> {
        let (answer, credentials) = self.once(action, body).await?;
        let expired = ["ExpiredTokenException", "UnrecognizedClientException"];
        if self.source.renews() && expired.iter().any(|kind| is(&answer, kind)) {
            self.credentials.forget(&credentials).await;
            return Ok(self.once(action, body).await?.0);
        }
        Ok(answer)
    }

    async fn once(
        &self,
        action: &str,
        body: &Value,
    ) -> Result<(Answer, Arc<Credentials>), BackendError> {
        let issue = self.source.issue(&self.wire, self.clock.as_ref());
        let credentials = self.credentials.get(issue).await?;
        let body = body.to_string();
        let (target, now) = (format!("{SERVICE}.{action}"), self.clock.now());
        let (date, host) = (amz_date(now), host(&self.endpoint));
        let mut headers = vec![
            ("content-type", CONTENT),
            ("host", host.as_str()),
            ("x-amz-date", date.as_str()),
        ];
        let token = credentials.session_token.as_ref();
        if let Some(token) = token {
            headers.push(("x-amz-security-token", token.expose().as_str()));
        }
        headers.push(("x-amz-target", target.as_str()));
        let signing = Signing {
            credentials: &credentials,
            region: &self.region,
            service: SERVICE,
            at: now,
        };
        let authorization = signing.authorization("POST", "/", "", &headers, body.as_bytes());
        let mut request = Request::post(self.endpoint.as_str())
            .header(CONTENT_TYPE, CONTENT)
            .header(HOST, &host)
            .header("x-amz-date", &date)
            .header("x-amz-target", &target)
            .header(AUTHORIZATION, self.wire.hidden(&authorization)?);
        if let Some(token) = token {
            request = request.header("x-amz-security-token", self.wire.hidden(token.expose())?);
        }
        Ok((self.wire.send(request, body).await?, credentials))
    }

    /// A name for one write. Not made of what is written: an envelope that is put back is a new
    /// version, and a name that was used before would leave the current one in force.
    fn request_token(&self) -> String {
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes);
        hex_encode(&bytes)
    }
}

/// As it stands in the URL, with its port if that is not the usual one.
fn host(endpoint: &Url) -> String {
    let host = endpoint.host_str().unwrap_or_default();
    match endpoint.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether the answer is a refusal of this kind. The kind may stand behind a namespace.
fn is(answer: &Answer, kind: &str) -> bool {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let told = body
        .get("__type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    !answer.status().is_success() && told.rsplit('#').next() == Some(kind)
}

const ABSENT: &str = "ResourceNotFoundException";

#[async_trait]
impl SecretBackend for SecretsManager {
    fn name(&self) -> &'static str {
        self.wire.name()
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let answer = self.ask("GetSecretValue", &json!({"SecretId": at})).await?;
        if is(&answer, ABSENT) {
            return Ok(None);
        }
        let read: Read = self.wire.read(&answer)?;
        self.wire.decode(&read.secret_string).map(Some)
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        let (value, token) = (encode(envelope), self.request_token());
        let body = json!({"SecretId": at, "SecretString": value, "ClientRequestToken": token});
        let answer = self.ask("PutSecretValue", &body).await?;
        if !is(&answer, ABSENT) {
            return self.wire.done(&answer);
        }
        let body = json!({"Name": at, "SecretString": value, "ClientRequestToken": token});
        let answer = self.ask("CreateSecret", &body).await?;
        self.wire.done(&answer)
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        // What is kept for a while blocks its name.
        let body = json!({"SecretId": at, "ForceDeleteWithoutRecovery": true});
        let answer = self.ask("DeleteSecret", &body).await?;
        if is(&answer, ABSENT) {
            return Ok(());
        }
        self.wire.done(&answer)
    }
}
