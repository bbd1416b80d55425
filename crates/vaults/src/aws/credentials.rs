//! Keys of an AWS identity: from the settings, from where a container is told to ask, or for the token
//! of a service account (IAM roles for service accounts).

use std::path::PathBuf;
use std::time::Duration;

use caracal_model::{Clock, Secret, Timestamp};
use caracal_store::custody::BackendError;
use http::Request;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use url::Url;

use super::web_identity::WebIdentity;
use crate::token::read_file;
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
    /// A role, for the token of a web identity.
    WebIdentity(WebIdentity),
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
        !matches!(self, Self::Static(_))
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
            Self::WebIdentity(identity) => identity.assume(wire, clock).await,
        }
    }
}

/// How long keys are good that say when they end.
pub fn lasts(expiration: Option<&str>, clock: &dyn Clock) -> Duration {
    match expiration.map(Timestamp::parse_rfc3339) {
        None => LONG,
        Some(Ok(ends)) => ends.since(clock.now()),
        Some(Err(_)) => Duration::ZERO,
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
            let text = read_file(wire, path).await?;
            request = request.header(AUTHORIZATION, wire.hidden(text.expose())?);
        } else if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, wire.hidden(token.expose())?);
        }
        let answer = wire.send(request, "").await?;
        let issued: Issued = wire.read(&answer)?;
        let lasts = lasts(issued.expiration.as_deref(), clock);
        let credentials = Credentials {
            key_id: issued.access_key_id,
            secret: Secret::new(issued.secret_access_key),
            session_token: issued.token.map(Secret::new),
        };
        Ok((credentials, lasts))
    }
}
