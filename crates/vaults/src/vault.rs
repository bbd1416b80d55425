//! HashiCorp Vault, and what speaks as it does (OpenBao): the key-value engine, version 2.

mod login;

use async_trait::async_trait;
use caracal_store::custody::{BackendError, SecretBackend};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

pub use self::login::{By, Login};
use crate::token::Authorized;
use crate::wire::{self, Answer, below, encode};

/// A mount of the key-value engine.
#[derive(Debug)]
pub struct Vault {
    pub(crate) at: Authorized,
    pub(crate) address: Url,
    pub(crate) mount: String,
    pub(crate) namespace: Option<String>,
}

#[derive(Deserialize)]
struct Read {
    data: Version,
}

#[derive(Deserialize)]
struct Version {
    data: Kept,
}

#[derive(Deserialize)]
struct Kept {
    value: String,
}

impl Vault {
    async fn ask(
        &self,
        method: Method,
        part: &str,
        at: &str,
        body: Vec<u8>,
    ) -> Result<Answer, BackendError> {
        let mount = wire::path(self.mount.trim_matches('/'));
        let uri = below(
            &self.address,
            &format!("v1/{mount}/{part}/{}", wire::path(at)),
        );
        let request = || {
            let request = wire::json(method.clone(), &uri);
            match &self.namespace {
                Some(namespace) => request.header("x-vault-namespace", namespace),
                None => request,
            }
        };
        self.at.send(request, body).await
    }
}

/// A path that does not exist has no errors; a mount that does not exist has one.
fn is_absent(answer: &Answer) -> bool {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let told = |errors: &Vec<Value>| !errors.is_empty();
    answer.status() == StatusCode::NOT_FOUND
        && body.is_object()
        && !body
            .get("errors")
            .and_then(Value::as_array)
            .is_some_and(told)
}

#[async_trait]
impl SecretBackend for Vault {
    fn name(&self) -> &'static str {
        self.at.wire().name()
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let answer = self.ask(Method::GET, "data", at, Vec::new()).await?;
        if is_absent(&answer) {
            return Ok(None);
        }
        let read: Read = self.at.wire().read(&answer)?;
        self.at.wire().decode(&read.data.data.value).map(Some)
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        let body = json!({"data": {"value": encode(envelope)}}).to_string();
        let answer = self.ask(Method::POST, "data", at, body.into()).await?;
        self.at.wire().done(&answer)?;
        // Version 1 says nothing here. It takes the path for a name, and would keep what is deleted.
        let said: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        match said.pointer("/data/version") {
            Some(Value::Number(_)) => Ok(()),
            _ => Err(self
                .at
                .wire()
                .failed("the mount is no key-value engine of version 2")),
        }
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        // All versions, and the name.
        let answer = self.ask(Method::DELETE, "metadata", at, Vec::new()).await?;
        if is_absent(&answer) {
            return Ok(());
        }
        self.at.wire().done(&answer)
    }
}
