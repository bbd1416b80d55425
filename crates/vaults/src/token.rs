//! The token that a backend wants to see, wherever it comes from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use caracal_model::{Clock, Secret};
use caracal_store::custody::BackendError;
use http::header::AUTHORIZATION;
use http::request::Builder;
use http::{HeaderName, StatusCode};
use serde::Deserialize;

use crate::lasting::Lasting;
use crate::wire::{Answer, Wire};

/// What a token that does not end is held for.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// Issues tokens.
#[async_trait]
pub trait Issue: std::fmt::Debug + Send + Sync {
    /// A token, and how long it is good.
    async fn issue(&self, wire: &Wire) -> Result<(Secret<String>, Duration), BackendError>;

    /// Whether asking again can answer with another token.
    fn renews(&self) -> bool {
        true
    }
}

/// A token from the settings: the text of it, or the file that a sidecar keeps it in.
#[derive(Debug)]
pub enum Given {
    /// As it is.
    Text(Secret<String>),
    /// Read anew when the backend refuses what was in it.
    File(PathBuf),
}

/// What a token file holds at this moment, without the white space around it.
///
/// # Errors
/// When it cannot be read.
pub async fn read_file(wire: &Wire, path: &Path) -> Result<Secret<String>, BackendError> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| wire.failed(format!("the token file {}: {error}", path.display())))?;
    let text = Secret::new(text);
    Ok(Secret::new(text.expose().trim().to_owned()))
}

#[async_trait]
impl Issue for Given {
    async fn issue(&self, wire: &Wire) -> Result<(Secret<String>, Duration), BackendError> {
        let token = match self {
            Self::Text(text) => Secret::new(text.expose().clone()),
            Self::File(path) => read_file(wire, path).await?,
        };
        Ok((token, LONG))
    }

    fn renews(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// A token endpoint's answer (RFC 6749 §5.1). Azure's metadata service writes the number as text.
#[derive(Deserialize)]
pub struct Granted {
    access_token: String,
    expires_in: Seconds,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

impl Granted {
    /// The token, and how long it is good.
    pub fn token(self) -> (Secret<String>, Duration) {
        let seconds = match self.expires_in {
            Seconds::Number(seconds) => seconds,
            Seconds::Text(text) => text.parse().unwrap_or(0),
        };
        (Secret::new(self.access_token), Duration::from_secs(seconds))
    }
}

/// How a token is shown.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// `Authorization: Bearer`.
    Bearer,
    /// In this header, as it is.
    In(&'static str),
}

/// A backend that wants to see a token.
#[derive(Debug)]
pub struct Authorized {
    wire: Wire,
    issuer: Box<dyn Issue>,
    shown: Shown,
    token: Lasting<Secret<String>>,
}

impl Authorized {
    /// With tokens of this issuer.
    pub fn new(wire: Wire, issuer: Box<dyn Issue>, shown: Shown, clock: Arc<dyn Clock>) -> Self {
        Self {
            wire,
            issuer,
            shown,
            token: Lasting::new(clock),
        }
    }

    /// The way to the backend, for what it answers.
    pub const fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Sends the request that `request` makes, with a token; once more with a new token when the
    /// first is refused.
    ///
    /// # Errors
    /// When there is no token, or no answer.
    pub async fn send(
        &self,
        request: impl Fn() -> Builder + Send + Sync,
        body: Vec<u8>,
    ) -> Result<Answer, BackendError> {
        let body = Bytes::from(body);
        let (answer, token) = self.once(request(), body.clone()).await?;
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        if !refused.contains(&answer.status()) || !self.issuer.renews() {
            return Ok(answer);
        }
        self.token.forget(&token).await;
        Ok(self.once(request(), body).await?.0)
    }

    async fn once(
        &self,
        request: Builder,
        body: Bytes,
    ) -> Result<(Answer, Arc<Secret<String>>), BackendError> {
        let token = self.token.get(self.issuer.issue(&self.wire)).await?;
        let (name, value) = match self.shown {
            Shown::In(name) => {
                let value = self.wire.hidden(token.expose())?;
                (HeaderName::from_static(name), value)
            }
            Shown::Bearer => {
                let text = Secret::new(format!("Bearer {}", token.expose()));
                (AUTHORIZATION, self.wire.hidden(text.expose())?)
            }
        };
        let answer = self.wire.send(request.header(name, value), body).await?;
        Ok((answer, token))
    }
}
