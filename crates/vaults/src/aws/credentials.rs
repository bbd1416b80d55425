//! Keys of an AWS identity: from the settings, or from where a container is told to ask.

use std::path::PathBuf;
use std::time::Duration;

use caracal_model::{Clock, Secret, Timestamp};
use caracal_store::custody::BackendError;
use http::Request;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use url::Url;

use crate::wire::Wire;

/// What keys that do not end are held for.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// What a request is signed with.
#[derive(Debug)]
pub struct Credentials {
    /// Names the key.
    pub key_id: String,
    /// The key.
    pub secret: Secret<String>,
    /// Goes with a key that ends.
    pub session_token: Option<Secret<String>>,
}

/// Where they come from.
#[derive(Debug)]
pub enum Source {
    /// The settings.
    Static(Credentials),
    /// The endpoint that ECS and EKS name.
    Container(Container),
}

/// What a container was told.
#[derive(Debug)]
pub struct Container {
    /// Whom to ask.
    pub url: Url,
    /// Shown as it is.
    pub token: Option<Secret<String>>,
    /// Read each time, in the place of the token.
    pub token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    expiration: Option<String>,
}

impl Source {
    /// Whether asking again can answer with others.
    pub const fn renews(&self) -> bool {
        matches!(self, Self::Container(_))
    }

    /// Credentials, and how long they are good.
    ///
    /// # Errors
    /// When the container's endpoint has none.
    pub async fn issue(
        &self,
        wire: &Wire,
        clock: &dyn Clock,
    ) -> Result<(Credentials, Duration), BackendError> {
        match self {
            Self::Static(fixed) => {
                let copy = |secret: &Secret<String>| Secret::new(secret.expose().clone());
                let credentials = Credentials {
                    key_id: fixed.key_id.clone(),
                    secret: copy(&fixed.secret),
                    session_token: fixed.session_token.as_ref().map(copy),
                };
                Ok((credentials, LONG))
            }
            Self::Container(container) => container.ask(wire, clock).await,
        }
    }
}

impl Container {
    async fn ask(
        &self,
        wire: &Wire,
        clock: &dyn Clock,
    ) -> Result<(Credentials, Duration), BackendError> {
        let mut request = Request::get(self.url.as_str());
        if let Some(path) = &self.token_file {
            let text = tokio::fs::read_to_string(path).await.map_err(|error| {
                wire.failed(format!("the token file {}: {error}", path.display()))
            })?;
            let text = Secret::new(text);
            request = request.header(AUTHORIZATION, wire.hidden(text.expose().trim())?);
        } else if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, wire.hidden(token.expose())?);
        }
        let answer = wire.send(request, "").await?;
        let issued: Issued = wire.read(&answer)?;
        let ends = issued.expiration.as_deref().map(Timestamp::parse_rfc3339);
        let lasts = match ends {
            None => LONG,
            Some(Ok(ends)) => ends.since(clock.now()),
            Some(Err(_)) => Duration::ZERO,
        };
        let credentials = Credentials {
            key_id: issued.access_key_id,
            secret: Secret::new(issued.secret_access_key),
            session_token: issued.token.map(Secret::new),
        };
        Ok((credentials, lasts))
    }
}
