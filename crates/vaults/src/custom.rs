//! Any service that keeps bytes by reference (spec: admin-api §14).

use async_trait::async_trait;
use caracal_store::custody::{BackendError, SecretBackend};
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use url::Url;

use crate::token::Authorized;
use crate::wire::{self, Answer, below};

/// `{URL}/secrets/{ref}`: the envelope as it is, 404 when there is none.
#[derive(Debug)]
pub struct Custom {
    pub(crate) at: Authorized,
    pub(crate) url: Url,
}

impl Custom {
    async fn ask(&self, method: Method, at: &str, body: Vec<u8>) -> Result<Answer, BackendError> {
        let uri = below(&self.url, &format!("secrets/{}", wire::path(at)));
        let request = || {
            Request::builder()
                .method(method.clone())
                .uri(&uri)
                .header(CONTENT_TYPE, "application/octet-stream")
        };
        self.at.send(request, body).await
    }
}

#[async_trait]
impl SecretBackend for Custom {
    fn name(&self) -> &'static str {
        self.at.wire().name()
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let answer = self.ask(Method::GET, at, Vec::new()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.at.wire().done(&answer)?;
        Ok(Some(answer.into_body().to_vec()))
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        let answer = self.ask(Method::PUT, at, envelope.to_vec()).await?;
        self.at.wire().done(&answer)
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        let answer = self.ask(Method::DELETE, at, Vec::new()).await?;
        self.at.wire().gone(&answer)
    }
}
