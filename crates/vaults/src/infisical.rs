//! Infisical: the raw secrets of one folder of one environment.

use async_trait::async_trait;
use caracal_store::custody::{BackendError, SecretBackend};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::token::Authorized;
use crate::wire::{self, Answer, below, encode, segment};

/// One folder.
#[derive(Debug)]
pub struct Infisical {
    pub(crate) at: Authorized,
    pub(crate) url: Url,
    pub(crate) project: String,
    pub(crate) environment: String,
    pub(crate) path: String,
}

#[derive(Deserialize)]
struct Read {
    secret: Kept,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    secret_value: String,
}

impl Infisical {
    /// Names have no slashes there.
    fn uri(&self, at: &str) -> String {
        let name = segment(&at.replace('/', "."));
        below(&self.url, &format!("api/v3/secrets/raw/{name}"))
    }

    async fn change(
        &self,
        method: Method,
        at: &str,
        value: Option<&str>,
    ) -> Result<Answer, BackendError> {
        let uri = self.uri(at);
        let mut body = json!({
            "workspaceId": self.project,
            "environment": self.environment,
            "secretPath": self.path,
            "type": "shared",
        });
        if let (Some(value), Some(members)) = (value, body.as_object_mut()) {
            members.insert("secretValue".to_owned(), Value::from(value));
        }
        let request = || wire::json(method.clone(), &uri);
        self.at.send(request, body.to_string().into()).await
    }
}

#[async_trait]
impl SecretBackend for Infisical {
    fn name(&self) -> &'static str {
        self.at.wire().name()
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let uri = format!(
            "{}?workspaceId={}&environment={}&secretPath={}",
            self.uri(at),
            segment(&self.project),
            segment(&self.environment),
            segment(&self.path)
        );
        let request = || wire::json(Method::GET, &uri);
        let answer = self.at.send(request, Vec::new()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let read: Read = self.at.wire().read(&answer)?;
        self.at.wire().decode(&read.secret.secret_value).map(Some)
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        let value = encode(envelope);
        let changed = self.change(Method::PATCH, at, Some(&value)).await?;
        if changed.status() != StatusCode::NOT_FOUND {
            return self.at.wire().done(&changed);
        }
        let made = self.change(Method::POST, at, Some(&value)).await?;
        self.at.wire().done(&made)
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        let answer = self.change(Method::DELETE, at, None).await?;
        self.at.wire().gone(&answer)
    }
}
