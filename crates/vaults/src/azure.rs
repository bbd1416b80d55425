//! Azure Key Vault.

use std::time::Duration;

use async_trait::async_trait;
use caracal_model::Secret;
use caracal_store::custody::{BackendError, SecretBackend};
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::token::{Authorized, Granted, Issue};
use crate::wire::{self, Answer, Wire, below, encode, segment};

/// What this speaks.
const VERSION: &str = "api-version=7.4";
/// The public cloud's; sovereign clouds have their own.
const PUBLIC: &str = "vault.azure.net";
/// A deleted secret takes some seconds to come back.
const RECOVERY_LOOKS: u32 = 10;
const RECOVERY_PAUSE: Duration = Duration::from_millis(500);

/// One vault.
#[derive(Debug)]
pub struct KeyVault {
    pub(crate) at: Authorized,
    pub(crate) url: Url,
}

/// A token for the vault's audience.
#[derive(Debug)]
pub enum Identity {
    /// An application of the tenant, by its secret.
    Client {
        authority: Url,
        tenant: String,
        client: String,
        secret: Secret<String>,
        audience: String,
    },
    /// The machine's own, or the user-assigned one of this client id.
    Managed {
        metadata: Url,
        client: Option<String>,
        audience: String,
    },
}

/// What a token for this vault is asked for.
pub fn audience(vault: &Url) -> String {
    let host = vault.host_str().unwrap_or_default();
    let domain = host.split_once('.').map_or("", |(_, domain)| domain);
    let known = domain.starts_with("vault.") || domain.starts_with("managedhsm.");
    format!("https://{}", if known { domain } else { PUBLIC })
}

#[async_trait]
impl Issue for Identity {
    async fn issue(&self, wire: &Wire) -> Result<(Secret<String>, Duration), BackendError> {
        let answer = match self {
            Self::Client {
                authority,
                tenant,
                client,
                secret,
                audience,
            } => {
                let path = format!("{}/oauth2/v2.0/token", segment(tenant));
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "client_credentials")
                    .append_pair("client_id", client)
                    .append_pair("client_secret", secret.expose())
                    .append_pair("scope", &format!("{audience}/.default"))
                    .finish();
                let request = Request::post(below(authority, &path))
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                wire.send(request, form).await?
            }
            Self::Managed {
                metadata,
                client,
                audience,
            } => {
                let client = client.as_ref();
                let client = client.map(|id| format!("&client_id={}", segment(id)));
                let uri = format!(
                    "{}?api-version=2018-02-01&resource={}{}",
                    below(metadata, "metadata/identity/oauth2/token"),
                    segment(audience),
                    client.unwrap_or_default()
                );
                wire.send(Request::get(uri).header("metadata", "true"), "")
                    .await?
            }
        };
        Ok(wire.read::<Granted>(&answer)?.token())
    }
}

#[derive(Deserialize)]
struct Read {
    value: String,
}

impl KeyVault {
    /// Names have no slashes there.
    async fn ask(
        &self,
        method: Method,
        collection: &str,
        at: &str,
        body: Vec<u8>,
    ) -> Result<Answer, BackendError> {
        let name = segment(&at.replace('/', "-"));
        let uri = match collection {
            "recover" => below(
                &self.url,
                &format!("deletedsecrets/{name}/recover?{VERSION}"),
            ),
            collection => below(&self.url, &format!("{collection}/{name}?{VERSION}")),
        };
        let request = || wire::json(method.clone(), &uri);
        self.at.send(request, body).await
    }

    /// A vault keeps what is deleted for some time, and lets nobody write there meanwhile.
    async fn recover(&self, at: &str) -> Result<(), BackendError> {
        let answer = self.ask(Method::POST, "recover", at, Vec::new()).await?;
        self.at.wire().done(&answer)?;
        for _ in 0..RECOVERY_LOOKS {
            let answer = self.ask(Method::GET, "secrets", at, Vec::new()).await?;
            if answer.status() != StatusCode::NOT_FOUND {
                return self.at.wire().done(&answer);
            }
            tokio::time::sleep(RECOVERY_PAUSE).await;
        }
        Err(self.at.wire().failed("a deleted secret does not come back"))
    }
}

fn is_deleted(answer: &Answer) -> bool {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let code = body.pointer("/error/innererror/code");
    answer.status() == StatusCode::CONFLICT
        && code.and_then(Value::as_str) == Some("ObjectIsDeletedButRecoverable")
}

#[async_trait]
impl SecretBackend for KeyVault {
    fn name(&self) -> &'static str {
        self.at.wire().name()
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let answer = self.ask(Method::GET, "secrets", at, Vec::new()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let read: Read = self.at.wire().read(&answer)?;
        self.at.wire().decode(&read.value).map(Some)
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        let body = json!({"value": encode(envelope)}).to_string();
        let put = || self.ask(Method::PUT, "secrets", at, body.clone().into());
        let answer = put().await?;
        if !is_deleted(&answer) {
            return self.at.wire().done(&answer);
        }
        self.recover(at).await?;
        self.at.wire().done(&put().await?)
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        let answer = self.ask(Method::DELETE, "secrets", at, Vec::new()).await?;
        self.at.wire().gone(&answer)
    }
}
