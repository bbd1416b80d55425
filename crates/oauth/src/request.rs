//! What is sent to a token endpoint.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use caracal_crypto::digest::{b64url_encode, sha256};
use caracal_model::{Rng, Secret, Timestamp};
use form_urlencoded::{Serializer, byte_serialize};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Request};
use serde_json::json;
use url::Url;

use crate::answer::TokenError;
use crate::client::{AuthMethod, Client, ServiceGrant};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const CLIENT_ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const CLIENT_ASSERTION_LIFE: Duration = Duration::from_secs(60);
const GRANT_ASSERTION_LIFE: Duration = Duration::from_secs(300);

/// What a token is asked for with.
#[derive(Clone, Copy, Debug)]
pub enum Grant<'a> {
    /// Ourselves: client credentials, or an assertion of ours.
    Service,
    /// A refresh token.
    Refresh(&'a Secret<String>),
    /// The code of a connect flow, and the verifier behind its challenge.
    Code {
        /// From the redirect.
        code: &'a Secret<String>,
        /// PKCE.
        verifier: &'a Secret<String>,
    },
}

impl Grant<'_> {
    /// Whether it may be sent again when nobody answered: a code is good for one request, and a
    /// refresh token that rotates is too.
    pub(crate) const fn may_repeat(self) -> bool {
        matches!(self, Self::Service)
    }
}

/// A form under way, and the headers that go with it.
struct Draft {
    form: Serializer<'static, String>,
    authorization: Option<HeaderValue>,
}

impl Draft {
    fn new() -> Self {
        Self {
            form: Serializer::new(String::with_capacity(512)),
            authorization: None,
        }
    }

    fn put(&mut self, name: &str, value: &str) {
        self.form.append_pair(name, value);
    }

    fn finish(mut self, to: &Url) -> Result<Request<Bytes>, TokenError> {
        let unusable = |_| TokenError::Config("the endpoint cannot be asked");
        let request = Request::post(to.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "caracal");
        let request = match self.authorization.take() {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        };
        let body = Bytes::from(self.form.finish());
        request.body(body).map_err(unusable)
    }
}

impl Client {
    pub(crate) fn token_request(
        &self,
        grant: Grant<'_>,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<Request<Bytes>, TokenError> {
        let config = &self.config;
        let endpoint = Url::parse(&config.token_endpoint)
            .map_err(|_| TokenError::Config("token_endpoint is no URL"))?;
        let mut draft = Draft::new();
        match grant {
            Grant::Service => self.service(&mut draft, now, rng)?,
            Grant::Refresh(token) => {
                draft.put("grant_type", "refresh_token");
                draft.put("refresh_token", token.expose());
            }
            Grant::Code { code, verifier } => {
                draft.put("grant_type", "authorization_code");
                draft.put("code", code.expose());
                draft.put("redirect_uri", &config.redirect_uri);
                draft.put("code_verifier", verifier.expose());
            }
        }
        for (name, value) in &config.token_params {
            draft.put(name, value);
        }
        self.authenticate(&mut draft, now, rng)?;
        draft.finish(&endpoint)
    }

    fn service(&self, draft: &mut Draft, now: Timestamp, rng: &dyn Rng) -> Result<(), TokenError> {
        let config = &self.config;
        let scope = config.scopes.join(" ");
        if config.grant_type == ServiceGrant::JwtBearer {
            draft.put("grant_type", JWT_BEARER);
            let assertion = self.grant_assertion(&scope, now, rng)?;
            draft.put("assertion", assertion.expose());
            return Ok(());
        }
        draft.put("grant_type", "client_credentials");
        if !scope.is_empty() {
            draft.put("scope", &scope);
        }
        for (name, value) in [
            ("audience", &config.audience),
            ("resource", &config.resource),
        ] {
            if let Some(value) = value {
                draft.put(name, value);
            }
        }
        Ok(())
    }

    /// Who we are (RFC 6749 §2.3.1, RFC 7523 §2.2).
    fn authenticate(
        &self,
        draft: &mut Draft,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<(), TokenError> {
        let id = &self.config.client_id;
        let secret = || {
            let secret = self.secret.as_ref();
            secret.ok_or(TokenError::Config("there is no client secret"))
        };
        match self.config.client_auth_method {
            AuthMethod::Basic => {
                let pair = Secret::new(format!("{}:{}", encoded(id), encoded(secret()?.expose())));
                let value = Secret::new(format!("Basic {}", STANDARD.encode(pair.expose())));
                let mut value = HeaderValue::from_str(value.expose())
                    .map_err(|_| TokenError::Config("the client secret cannot be sent"))?;
                value.set_sensitive(true);
                draft.authorization = Some(value);
            }
            AuthMethod::Post => {
                draft.put("client_id", id);
                draft.put("client_secret", secret()?.expose());
            }
            AuthMethod::None => {
                // The assertion of a grant says who we are.
                if self.config.grant_type != ServiceGrant::JwtBearer {
                    draft.put("client_id", id);
                }
            }
            AuthMethod::PrivateKeyJwt => {
                draft.put("client_id", id);
                draft.put("client_assertion_type", CLIENT_ASSERTION);
                let assertion = self.client_assertion(now, rng)?;
                draft.put("client_assertion", assertion.expose());
            }
        }
        Ok(())
    }

    fn client_assertion(
        &self,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<Secret<String>, TokenError> {
        let config = &self.config;
        let claims = json!({
            "iss": config.client_id,
            "sub": config.client_id,
            "aud": config.token_endpoint,
            "iat": now.unix_seconds(),
            "exp": now.plus(CLIENT_ASSERTION_LIFE).unix_seconds(),
            "jti": unique(rng),
        });
        self.assert(&claims)
    }

    fn grant_assertion(
        &self,
        scope: &str,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<Secret<String>, TokenError> {
        let config = &self.config;
        let or = |chosen: &Option<String>, default: &String| {
            chosen.clone().unwrap_or_else(|| default.clone())
        };
        let mut claims = json!({
            "iss": config.client_id,
            "sub": or(&config.assertion_subject, &config.client_id),
            "aud": or(&config.assertion_audience, &config.token_endpoint),
            "iat": now.unix_seconds(),
            "exp": now.plus(GRANT_ASSERTION_LIFE).unix_seconds(),
            "jti": unique(rng),
        });
        if let (false, Some(claims)) = (scope.is_empty(), claims.as_object_mut()) {
            claims.insert("scope".to_owned(), json!(scope));
        }
        self.assert(&claims)
    }

    fn assert(&self, claims: &serde_json::Value) -> Result<Secret<String>, TokenError> {
        let key = self.key.as_ref();
        let key = key.ok_or(TokenError::Config("there is no private key"))?;
        key.sign(
            self.config.key_id.as_deref(),
            self.certificate.as_ref(),
            claims,
        )
        .map_err(|_| TokenError::Config("the private key does not sign"))
    }

    pub(crate) fn revocation_request(
        &self,
        endpoint: &Url,
        token: &Secret<String>,
        hint: &str,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<Request<Bytes>, TokenError> {
        let mut draft = Draft::new();
        draft.put("token", token.expose());
        draft.put("token_type_hint", hint);
        self.authenticate(&mut draft, now, rng)?;
        draft.finish(endpoint)
    }

    /// Where the browser of whoever connects is sent: what is configured first, then what the
    /// protocol needs (spec: admin-api §7.6).
    ///
    /// # Errors
    /// [`TokenError::Config`] when the endpoint is not https.
    pub fn authorization_url(&self, state: &str, verifier: &str) -> Result<String, TokenError> {
        let config = &self.config;
        let unusable = TokenError::Config("authorization_endpoint is not https");
        let mut url = match Url::parse(&config.authorization_endpoint) {
            Ok(url) if url.scheme() == "https" && url.has_host() => url,
            _ => return Err(unusable),
        };
        let challenge = b64url_encode(&sha256(verifier.as_bytes()));
        let scope = config.scopes.join(" ");
        let mut query = url.query_pairs_mut();
        query
            .extend_pairs(&config.authorization_params)
            .append_pair("response_type", "code")
            .append_pair("client_id", &config.client_id)
            .append_pair("redirect_uri", &config.redirect_uri)
            .append_pair("state", state);
        if !scope.is_empty() {
            query.append_pair("scope", &scope);
        }
        query
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        drop(query);
        Ok(url.into())
    }
}

/// As RFC 6749 wants it within the `Authorization` header.
fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

fn unique(rng: &dyn Rng) -> String {
    let mut bytes = [0u8; 16];
    rng.fill(&mut bytes);
    b64url_encode(&bytes)
}

#[cfg(test)]
mod tests;
