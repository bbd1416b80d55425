//! How Vault is told who asks: a token from the settings, the AppRole method, or the Kubernetes method.
//!
//! **Forces.** Tokens end. One that ends unnoticed closes every upstream at once; a login for every
//! request would use up a secret id that is good for a few logins.
//!
//! **Choice.** A token that can be renewed is renewed when half of its life is over, the next time
//! that the backend is asked for anything. One that can not be renewed any longer is replaced by
//! another login, where there is a login. A token file is left to the sidecar that writes it.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use caracal_model::Secret;
use caracal_store::custody::BackendError;
use http::{Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use url::Url;

use crate::lasting::EARLY;
use crate::token::{Given, Issue, read_file};
use crate::wire::{self, Answer, Wire, below};

/// A renewed token that ends sooner than this is replaced, where there is a login.
const TOO_SHORT: Duration = Duration::from_secs(120);

/// What proves who asks.
#[derive(Debug)]
pub enum By {
    /// A token from the settings.
    Token(Given),
    /// A role's id and a secret of it.
    AppRole {
        mount: String,
        role_id: String,
        secret_id: Given,
    },
    /// The token of the pod's service account.
    Kubernetes {
        mount: String,
        role: String,
        token_file: PathBuf,
    },
}

/// Gets tokens, and renews them.
#[derive(Debug)]
pub struct Login {
    address: Url,
    namespace: Option<String>,
    by: By,
    /// The token that can be renewed, if the last one can.
    last: Mutex<Option<Secret<String>>>,
}

/// What a login, and a renewal, answers with.
#[derive(Deserialize)]
struct Granted {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

/// What a token says of itself; a `ttl` of 0 never ends.
#[derive(Deserialize)]
struct LookedUp {
    data: Standing,
}

#[derive(Deserialize)]
struct Standing {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

/// A token, how long it is used before it is renewed or replaced, and whether it can be renewed.
type Token = (Secret<String>, Duration, bool);

impl Login {
    /// At this server.
    pub fn new(address: Url, namespace: Option<String>, by: By) -> Self {
        Self {
            address,
            namespace,
            by,
            last: Mutex::default(),
        }
    }

    async fn ask(
        &self,
        wire: &Wire,
        method: Method,
        path: &str,
        token: Option<&Secret<String>>,
        body: &Value,
    ) -> Result<Answer, BackendError> {
        let uri = below(&self.address, &format!("v1/auth/{path}"));
        let mut request = Request::builder().method(method.clone()).uri(uri);
        if let Some(namespace) = &self.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(token) = token {
            request = request.header("x-vault-token", wire.hidden(token.expose())?);
        }
        if method == Method::GET {
            return wire.send(request, "").await;
        }
        let request = request.header("content-type", "application/json");
        wire.send(request, body.to_string()).await
    }

    /// How long a token is used after it was renewed; `None` when it cannot be renewed any longer.
    async fn renewed(
        &self,
        wire: &Wire,
        token: &Secret<String>,
    ) -> Result<Option<Duration>, BackendError> {
        let (path, nothing) = ("token/renew-self", json!({}));
        let answer = self.ask(wire, Method::POST, path, Some(token), &nothing);
        let answer = answer.await?;
        if answer.status().is_client_error() {
            return Ok(None);
        }
        let life = Duration::from_secs(wire.read::<Granted>(&answer)?.auth.lease_duration);
        let spent = life < TOO_SHORT && !matches!(self.by, By::Token(_));
        Ok((!spent).then(|| until_renewal(life)))
    }

    async fn log_in(&self, wire: &Wire, mount: &str, proof: &Value) -> Result<Token, BackendError> {
        let path = format!("{}/login", wire::path(mount.trim_matches('/')));
        let answer = self.ask(wire, Method::POST, &path, None, proof).await?;
        let auth = wire.read::<Granted>(&answer)?.auth;
        let life = Duration::from_secs(auth.lease_duration);
        let used = if auth.renewable {
            until_renewal(life)
        } else {
            life
        };
        Ok((Secret::new(auth.client_token), used, auth.renewable))
    }

    /// A token from the settings. One that may not ask about itself is used as it is.
    async fn given(&self, wire: &Wire, given: &Given) -> Result<Token, BackendError> {
        let (token, long) = given.issue(wire).await?;
        if given.renews() {
            return Ok((token, long, false));
        }
        let path = "token/lookup-self";
        let answer = self.ask(wire, Method::GET, path, Some(&token), &Value::Null);
        let answer = answer.await?;
        if answer.status().is_client_error() {
            return Ok((token, long, false));
        }
        let standing = wire.read::<LookedUp>(&answer)?.data;
        if standing.ttl == 0 {
            return Ok((token, long, false));
        }
        let renewed = match standing.renewable {
            true => self.renewed(wire, &token).await?,
            false => None,
        };
        Ok(match renewed {
            Some(used) => (token, used, true),
            None => (token, Duration::from_secs(standing.ttl), false),
        })
    }

    async fn fresh(&self, wire: &Wire) -> Result<Token, BackendError> {
        match &self.by {
            By::Token(given) => self.given(wire, given).await,
            By::AppRole {
                mount,
                role_id,
                secret_id,
            } => {
                let (secret, _) = secret_id.issue(wire).await?;
                let proof = json!({"role_id": role_id, "secret_id": secret.expose()});
                self.log_in(wire, mount, &proof).await
            }
            By::Kubernetes {
                mount,
                role,
                token_file,
            } => {
                let jwt = read_file(wire, token_file).await?;
                let proof = json!({"role": role, "jwt": jwt.expose()});
                self.log_in(wire, mount, &proof).await
            }
        }
    }
}

fn until_renewal(life: Duration) -> Duration {
    (life / 2).saturating_add(EARLY)
}

#[async_trait]
impl Issue for Login {
    async fn issue(&self, wire: &Wire) -> Result<(Secret<String>, Duration), BackendError> {
        let copy = |token: &Secret<String>| Secret::new(token.expose().clone());
        let mut last = self.last.lock().await;
        if let Some(token) = last.as_ref() {
            // Without an answer the token stays, to be renewed by the next one who asks.
            if let Some(used) = self.renewed(wire, token).await? {
                return Ok((copy(token), used));
            }
            *last = None;
        }
        let (token, used, renewable) = self.fresh(wire).await?;
        *last = renewable.then(|| copy(&token));
        Ok((token, used))
    }

    fn renews(&self) -> bool {
        match &self.by {
            By::Token(given) => given.renews(),
            By::AppRole { .. } | By::Kubernetes { .. } => true,
        }
    }
}
