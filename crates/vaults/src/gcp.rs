//! Google Secret Manager.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use caracal_crypto::ClientKey;
use caracal_model::{Clock, Secret};
use caracal_store::custody::{BackendError, SecretBackend};
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::token::{Authorized, Granted, Issue};
use crate::wire::{self, Answer, Wire, below, encode, segment};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// How long an assertion is good: the most that is accepted.
const ASSERTION: Duration = Duration::from_secs(3600);
const METADATA_PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";

/// The secrets of one project.
#[derive(Debug)]
pub struct SecretManager {
    pub(crate) at: Authorized,
    pub(crate) endpoint: Url,
    pub(crate) project: String,
}

/// A service account.
pub enum Identity {
    /// By its key, as its file holds it.
    Key {
        account: ServiceAccount,
        clock: Arc<dyn Clock>,
    },
    /// The one that the machine runs as.
    Metadata(Url),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key { account, .. } => account.fmt(f),
            Self::Metadata(_) => f.write_str("Metadata"),
        }
    }
}

/// What a key file says.
#[derive(Debug)]
pub struct ServiceAccount {
    pub email: String,
    pub key: ClientKey,
    pub key_id: Option<String>,
    pub token_uri: Url,
    pub project: Option<String>,
}

#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    client_email: Option<String>,
    private_key: Option<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
    project_id: Option<String>,
}

impl ServiceAccount {
    /// From the text of a key file.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: KeyFile =
            serde_json::from_str(text).map_err(|_| "is not a key file in JSON".to_owned())?;
        if file.kind != "service_account" {
            return Err("is not the key file of a service account".to_owned());
        }
        let missing = |name: &str| format!("has no {name}");
        let pem = file.private_key.ok_or_else(|| missing("private_key"))?;
        let pem = Secret::new(pem);
        let key = ClientKey::from_pem(pem.expose())
            .map_err(|_| "has a private_key that cannot be used".to_owned())?;
        let uri = file
            .token_uri
            .unwrap_or_else(|| "https://oauth2.googleapis.com/token".to_owned());
        Ok(Self {
            email: file.client_email.ok_or_else(|| missing("client_email"))?,
            key,
            key_id: file.private_key_id,
            token_uri: Url::parse(&uri).map_err(|_| "has a token_uri that is no URL".to_owned())?,
            project: file.project_id,
        })
    }
}

#[async_trait]
impl Issue for Identity {
    async fn issue(&self, wire: &Wire) -> Result<(Secret<String>, Duration), BackendError> {
        let answer = match self {
            Self::Metadata(metadata) => {
                let uri = below(metadata, METADATA_PATH);
                let request = Request::get(uri).header("metadata-flavor", "Google");
                wire.send(request, "").await?
            }
            Self::Key { account, clock } => {
                let assertion = assertion(account, clock.as_ref(), wire)?;
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", GRANT)
                    .append_pair("assertion", assertion.expose())
                    .finish();
                let request = Request::post(account.token_uri.as_str())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                wire.send(request, form).await?
            }
        };
        Ok(wire.read::<Granted>(&answer)?.token())
    }
}

fn assertion(
    account: &ServiceAccount,
    clock: &dyn Clock,
    wire: &Wire,
) -> Result<Secret<String>, BackendError> {
    let now = clock.now();
    let claims = json!({
        "iss": account.email,
        "scope": SCOPE,
        "aud": account.token_uri.as_str(),
        "iat": now.unix_seconds(),
        "exp": now.plus(ASSERTION).unix_seconds(),
    });
    let signed = account.key.sign(account.key_id.as_deref(), None, &claims);
    signed.map_err(|error| wire.failed(error.to_string()))
}

#[derive(Deserialize)]
struct Accessed {
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    data: String,
}

impl SecretManager {
    /// Names have no slashes there.
    fn uri(&self, at: &str, rest: &str) -> String {
        let (project, name) = (segment(&self.project), segment(&at.replace('/', "-")));
        let path = format!("v1/projects/{project}/secrets/{name}{rest}");
        below(&self.endpoint, &path)
    }

    async fn ask(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<Answer, BackendError> {
        let request = || wire::json(method.clone(), uri);
        self.at.send(request, body).await
    }

    async fn create(&self, at: &str) -> Result<(), BackendError> {
        let (project, name) = (segment(&self.project), segment(&at.replace('/', "-")));
        let path = format!("v1/projects/{project}/secrets?secretId={name}");
        let body = json!({"replication": {"automatic": {}}}).to_string();
        let uri = below(&self.endpoint, &path);
        let answer = self.ask(Method::POST, &uri, body.into()).await?;
        // Somebody else may have made it meanwhile.
        if answer.status() == StatusCode::CONFLICT {
            return Ok(());
        }
        self.at.wire().done(&answer)
    }
}

#[async_trait]
impl SecretBackend for SecretManager {
    fn name(&self) -> &'static str {
        self.at.wire().name()
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let uri = self.uri(at, "/versions/latest:access");
        let answer = self.ask(Method::GET, &uri, Vec::new()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let wire = self.at.wire();
        let accessed: Accessed = wire.read(&answer)?;
        // Their base64 around ours.
        let text = wire.decode(&accessed.payload.data)?;
        wire.decode(&String::from_utf8_lossy(&text)).map(Some)
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        let data = encode(encode(envelope).as_bytes());
        let body = json!({"payload": {"data": data}}).to_string();
        let uri = self.uri(at, ":addVersion");
        let add = || self.ask(Method::POST, &uri, body.clone().into());
        let answer = add().await?;
        if answer.status() != StatusCode::NOT_FOUND {
            return self.at.wire().done(&answer);
        }
        self.create(at).await?;
        self.at.wire().done(&add().await?)
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        let answer = self
            .ask(Method::DELETE, &self.uri(at, ""), Vec::new())
            .await?;
        self.at.wire().gone(&answer)
    }
}
