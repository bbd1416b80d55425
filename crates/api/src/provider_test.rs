//! Asking a provider's endpoints on behalf of whoever configures it: a test of its token endpoint,
//! and discovery (spec: admin-api §7.5). Only a code that matches `^[a-z_]{1,64}$` is read from what
//! a stranger answers, so nothing of it comes back to the caller.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use bytes::Bytes;
use caracal_model::{Secret, Timestamp, ZoneId};
use caracal_net::egress::{Bounds, FetchError};
use caracal_oauth::{Client, Grant, ServiceGrant, TokenError, error_code};
use http::header::ACCEPT;
use http::{Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use url::Url;

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::provider_config::{Config, Kind};
use crate::service::{Api, open_zone};
use crate::wire::{self, Answer, At, Input};

const BOUNDS: Bounds = Bounds {
    within: Duration::from_secs(15),
    bytes: 64 * 1024,
};
/// Good for nothing, and of the form of the real ones.
const PLACEHOLDER: &str = "caracal-connectivity-test-0123456789-0123456789";

/// What a test has seen.
pub struct Seen {
    status: &'static str,
    detail: String,
    at: Timestamp,
}

impl Seen {
    /// Whether the endpoint answered as it should.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }

    /// As it is answered.
    pub fn render(&self) -> Value {
        json!({
            "status": self.status,
            "detail": self.detail,
            "checked_at": self.at.iso_millis(),
        })
    }
}

/// Tests a configuration.
///
/// # Errors
/// `provider_check_unsupported`, `provider_test_rate_limited`.
pub async fn probe(api: &Api, zone: &ZoneId, kind: Kind, config: &Config) -> Result<Seen, Failure> {
    if !kind.is_oauth() {
        return Err(Failure::bad(
            "provider_check_unsupported",
            "only OAuth kinds can be tested; leave check out",
        ));
    }
    limited(
        api.limits.provider_tests.count(zone.as_str()),
        "provider_test_rate_limited",
    )?;
    let now = api.clock.now();
    let (status, detail) = Box::pin(ask(api, kind, config, now)).await;
    let at = now;
    Ok(Seen { status, detail, at })
}

/// As [`probe`], for a provider that is created only if the test passes.
///
/// # Errors
/// 422 `provider_check_failed` as well.
pub async fn or_refuse(
    api: &Api,
    zone: &ZoneId,
    kind: Kind,
    config: &Config,
) -> Result<(), Failure> {
    let seen = probe(api, zone, kind, config).await?;
    if seen.is_ok() {
        return Ok(());
    }
    let why = format!("the test of the provider failed: {}", seen.detail);
    let details = json!({ "check": seen.render() });
    Err(Failure::unprocessable("provider_check_failed", why).with("details", details))
}

fn limited(counted: Result<(), u32>, error: &'static str) -> Result<(), Failure> {
    counted.map_err(|seconds| {
        let why = "at most 10 a minute in one zone; wait as long as Retry-After says";
        Failure::new(StatusCode::TOO_MANY_REQUESTS, error, why).retry_after(seconds)
    })
}

async fn ask(api: &Api, kind: Kind, config: &Config, now: Timestamp) -> (&'static str, String) {
    let secret = Secret::new(serde_json::to_vec(&config.secrets).unwrap_or_default());
    let public = Value::Object(config.public.clone());
    let client = match Client::read(&public, Some(secret.expose())) {
        Ok(client) => client,
        Err(error) => return ("config_error", error.to_string()),
    };
    let placeholder = Secret::new(PLACEHOLDER.to_owned());
    let grant = match kind {
        Kind::AuthorizationCode => Grant::Code {
            code: &placeholder,
            verifier: &placeholder,
        },
        _ => Grant::Service,
    };
    let rng = api.rng.as_ref();
    match client.probe(&api.fetch, grant, now, rng, BOUNDS).await {
        Ok(response) => judge(kind, client.service_grant(), &response),
        Err(error @ (TokenError::Config(_) | TokenError::NotAllowed)) => {
            ("config_error", error.to_string())
        }
        Err(TokenError::Fetch(error @ (FetchError::Blocked | FetchError::NotHttps))) => {
            ("config_error", error.to_string())
        }
        Err(error) => ("unreachable", error.to_string()),
    }
}

fn judge(kind: Kind, grant: ServiceGrant, response: &Response<Bytes>) -> (&'static str, String) {
    let status = response.status();
    let code = error_code(response.body());
    let said = match &code {
        Some(code) => format!("the token endpoint answered {} ({code})", status.as_u16()),
        None => format!("the token endpoint answered {}", status.as_u16()),
    };
    let by_code = kind == Kind::AuthorizationCode;
    let verdict = match code.as_deref() {
        Some("invalid_grant" | "bad_verification_code") if by_code => "ok",
        Some("invalid_grant") if grant == ServiceGrant::JwtBearer => "auth_failed",
        Some("invalid_client" | "unauthorized_client" | "incorrect_client_credentials") => {
            "auth_failed"
        }
        Some("invalid_scope" | "invalid_target") => "config_error",
        _ if status == StatusCode::UNAUTHORIZED => "auth_failed",
        _ if status == StatusCode::OK && !by_code && holds_token(response.body()) => "ok",
        _ => "endpoint_error",
    };
    (verdict, said)
}

fn holds_token(body: &[u8]) -> bool {
    let answer: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    answer.is_some_and(|answer| answer.get("access_token").is_some_and(Value::is_string))
}

/// `POST /v1/zones/{zone}/providers/discovery`
pub async fn discover(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    const INVALID: &str = "invalid_issuer";
    open_zone(&api, &at.zone).await?;
    let body = input.object(INVALID)?;
    let mut fields = Fields::of(body);
    let issuer = fields.required_text("issuer", Text::trimmed(1..=2048));
    fields.end(INVALID)?;
    let url = issuer_url(&issuer).ok_or_else(|| {
        let why = "issuer must be an https URL without credentials, query and fragment";
        Failure::bad(INVALID, why)
    })?;
    limited(
        api.limits.discoveries.count(at.zone.as_str()),
        "provider_discovery_rate_limited",
    )?;
    for place in places(&url) {
        if let Some(document) = document(&api, &place).await
            && let Some(found) = described(&document, &issuer)
        {
            return wire::ok(found);
        }
    }
    Err(Failure::unprocessable(
        "provider_discovery_failed",
        "the issuer publishes no usable metadata; enter the endpoints by hand",
    ))
}

fn issuer_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let plain = url.scheme() == "https"
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    plain.then_some(url)
}

fn places(issuer: &Url) -> [String; 2] {
    let origin = issuer.origin().ascii_serialization();
    let path = issuer.path().trim_end_matches('/');
    [
        format!("{origin}{path}/.well-known/openid-configuration"),
        format!("{origin}/.well-known/oauth-authorization-server{path}"),
    ]
}

async fn document(api: &Api, place: &str) -> Option<Map<String, Value>> {
    let request = Request::get(place)
        .header(ACCEPT, "application/json")
        .body(Bytes::new());
    let response = Box::pin(api.fetch.fetch(request.ok()?, BOUNDS)).await;
    let response = response
        .inspect_err(|error| tracing::info!(%error, "discovery: no answer"))
        .ok()?;
    let found = (response.status() == StatusCode::OK).then_some(response)?;
    serde_json::from_slice(found.body()).ok()
}

fn described(document: &Map<String, Value>, issuer: &str) -> Option<Value> {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let https = |name: &str| text(name).filter(|text| issuer_like(text));
    let same = text("issuer")?.trim_end_matches('/') == issuer.trim_end_matches('/');
    let token_endpoint = https("token_endpoint").filter(|_| same)?;
    let mut found = Map::new();
    found.insert("issuer".to_owned(), json!(text("issuer")?));
    found.insert("token_endpoint".to_owned(), json!(token_endpoint));
    for name in ["authorization_endpoint", "revocation_endpoint"] {
        if let Some(endpoint) = https(name) {
            found.insert(name.to_owned(), json!(endpoint));
        }
    }
    for name in ["scopes_supported", "token_endpoint_auth_methods_supported"] {
        if let Some(list) = document.get(name).and_then(Value::as_array) {
            let words = list.iter().filter_map(Value::as_str);
            let words: Vec<_> = words.filter(|word| word.len() <= 200).take(64).collect();
            found.insert(name.to_owned(), json!(words));
        }
    }
    Some(Value::Object(found))
}

fn issuer_like(text: &str) -> bool {
    text.len() <= 2048 && Url::parse(text).is_ok_and(|url| url.scheme() == "https")
}
