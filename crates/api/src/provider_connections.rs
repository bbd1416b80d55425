//! Accounts of subjects at OAuth providers, and the flow that connects them (spec: admin-api §7.6).
//!
//! **Forces.** The browser comes back without a token of ours, with a code that a stranger may have
//! planted. **Choice.** The state is random, good for one callback, and says what was asked for;
//! the PKCE verifier behind it is known to nobody but us, so that a code which was issued for
//! another request does not redeem. Both wait on the bus for ten minutes, sealed.

mod page;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use caracal_crypto::digest::{b64url_encode, hex_decode, hex_encode};
use caracal_model::{ProviderId, Secret, Timestamp, ZoneId};
use caracal_oauth::{Client, Grant, TokenAnswer, TokenError};
use caracal_store::connections::{
    ACCESS_TOKEN_AAD, Connection, Filter, REFRESH_TOKEN_AAD, SHARED_SUBJECT, SealedTokens,
};
use caracal_store::providers::Provider;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::page::Page;
use crate::providers::{no_provider, secrets_of};
use crate::query::Query;
use crate::service::{Api, in_open_zone, open_zone};
use crate::wire::{self, Answer, At, Input};

const KIND: &str = "oauth2_authorization_code";
const STATE_LIVES: Duration = Duration::from_secs(600);
const STATE_AAD: &str = "caracal/providerConnections/oauthState";
const SUBJECT: Text = Text::trimmed(1..=512);
const TOKEN: Text = Text::exact(1..=16_384);
const STATUSES: [&str; 3] = ["active", "revoked", "expired"];

/// A connection as the API shows it: never its tokens.
pub fn render(row: &Connection, zone: &ZoneId) -> Value {
    json!({
        "id": row.id,
        "zone_id": zone,
        "subject_id": row.subject_id,
        "provider_id": row.provider_id,
        "status": row.status,
        "expires_at": row.expires_at.map(Timestamp::iso_millis),
        "refreshed_at": row.refreshed_at.map(Timestamp::iso_millis),
        "renewable": row.refresh_token.is_some(),
        "created_at": row.created_at.iso_millis(),
        "updated_at": row.updated_at.iso_millis(),
    })
}

/// `GET /v1/zones/{zone}/provider-connections`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let (provider, subject) = (
        query.text("provider_id", 128)?,
        query.text("subject_id", 512)?,
    );
    let filter = Filter {
        provider,
        subject,
        status: query.word("status", &STATUSES)?,
    };
    let page = Page::of_configuration(&query)?;
    let connections = api.store.zone(&at.zone).connections();
    let rows = connections.page(filter, wire::slice(&page)).await?;
    let show = |row: &Connection| render(row, &at.zone);
    let place = |row: &Connection| (row.created_at, row.id.clone());
    wire::ok(page.envelope(&rows, show, place))
}

/// The provider that is to be connected to.
async fn connectable(api: &Api, zone: &ZoneId, id: &str) -> Result<Provider, Failure> {
    let found = api.store.zone(zone).providers().get(id).await?;
    let found = found.ok_or_else(|| no_provider(id))?;
    if found.kind == KIND {
        return Ok(found);
    }
    Err(Failure::bad(
        "provider_connection_unsupported",
        "only providers of kind oauth2_authorization_code have connections",
    ))
}

/// Us, at that provider.
async fn client(api: &Api, zone: &ZoneId, provider: &Provider) -> Result<Client, Failure> {
    let secrets = secrets_of(api, zone, provider.id.as_str()).await?;
    let secret = Secret::new(serde_json::to_vec(&secrets).unwrap_or_default());
    let config = Value::Object(provider.config.clone());
    Client::read(&config, Some(secret.expose()))
        .map_err(|error| Failure::bad("invalid_provider_config", error.to_string()))
}

/// Tokens of an account, in the open.
struct Tokens {
    access: Secret<String>,
    refresh: Option<Secret<String>>,
    expires_at: Option<Timestamp>,
}

async fn connect(
    api: &Api,
    zone: &ZoneId,
    provider: &ProviderId,
    subject: &str,
    tokens: &Tokens,
) -> Result<Connection, Failure> {
    let access = api.seal(ACCESS_TOKEN_AAD, tokens.access.expose().as_bytes())?;
    let refresh = tokens.refresh.as_ref();
    let refresh = refresh
        .map(|token| api.seal(REFRESH_TOKEN_AAD, token.expose().as_bytes()))
        .transpose()?;
    let sealed = SealedTokens {
        access: &access,
        refresh: refresh.as_deref(),
        expires_at: tokens.expires_at,
    };
    let mut tx = api.store.begin("connect an account").await?;
    in_open_zone(&mut tx, zone).await?;
    if !tx.providers(zone).is_active(provider.as_str()).await? {
        return Err(no_provider(provider.as_str()));
    }
    let (id, now) = (api.ids.uuid(), api.clock.now());
    let row = tx
        .connections(zone)
        .put(&id, provider, subject, sealed, now)
        .await?;
    api.commit_own(tx).await?;
    Ok(row)
}

/// `POST /v1/zones/{zone}/provider-connections`: tokens that were obtained elsewhere.
pub async fn create(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    const INVALID: &str = "invalid_provider_connection";
    open_zone(&api, &at.zone).await?;
    let body = input.object(INVALID)?;
    let mut fields = Fields::of(body);
    let provider = fields.required_text("provider_id", Text::exact(1..=128));
    let access = Secret::new(fields.required_text("access_token", TOKEN));
    let refresh = fields.text("refresh_token", TOKEN).map(Secret::new);
    let subject = fields.text("subject_id", SUBJECT);
    let expires_at = fields.text("expires_at", Text::trimmed(1..=64));
    let expires_at = expires_at.and_then(|text| match Timestamp::parse_rfc3339(&text) {
        Ok(at) => Some(at),
        Err(_) => {
            fields.wrong("expires_at", "must be a time such as 2026-01-01T00:00:00Z");
            None
        }
    });
    for (name, token) in [
        ("access_token", Some(&access)),
        ("refresh_token", refresh.as_ref()),
    ] {
        if token.is_some_and(|token| !token.expose().bytes().all(|b| b.is_ascii_graphic())) {
            fields.wrong(name, "must be one word of visible characters");
        }
    }
    fields.end(INVALID)?;
    let provider = connectable(&api, &at.zone, &provider).await?;
    let tokens = Tokens {
        access,
        refresh,
        expires_at,
    };
    let subject = subject.as_deref().unwrap_or(SHARED_SUBJECT);
    let row = connect(&api, &at.zone, &provider.id, subject, &tokens).await?;
    wire::created(render(&row, &at.zone))
}

/// What waits for the browser to come back.
#[derive(Serialize, Deserialize)]
struct Waiting {
    zone_id: String,
    subject_id: String,
    provider_id: String,
    code_verifier: String,
}

fn board(state: &str) -> String {
    format!("api:provider_oauth_state:{state}")
}

fn random(api: &Api) -> String {
    let mut bytes = [0u8; 32];
    api.rng.fill(&mut bytes);
    b64url_encode(&bytes)
}

/// The bus is out: nothing can be remembered or recalled.
fn bus_out(error: &caracal_bus::BusError) -> Failure {
    tracing::warn!(%error, "the state of a connect flow cannot be kept");
    Failure::unavailable(
        "service_unavailable",
        "the connect flow cannot be kept or recalled; try again",
    )
}

/// `POST /v1/zones/{zone}/provider-connections/oauth/authorize`: where to send the browser.
pub async fn authorize(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    const INVALID: &str = "invalid_provider_oauth_authorize";
    open_zone(&api, &at.zone).await?;
    let mut fields = Fields::of(input.object(INVALID)?);
    let provider = fields.required_text("provider_id", Text::exact(1..=128));
    let subject = fields.text("subject_id", SUBJECT);
    fields.end(INVALID)?;
    let provider = connectable(&api, &at.zone, &provider).await?;
    let client = client(&api, &at.zone, &provider).await?;
    let (state, verifier) = (random(&api), Secret::new(random(&api)));
    let url = client
        .authorization_url(&state, verifier.expose())
        .map_err(|error| {
            Failure::bad("provider_authorization_endpoint_invalid", error.to_string())
        })?;
    let waiting = Waiting {
        zone_id: at.zone.to_string(),
        subject_id: subject.unwrap_or_else(|| SHARED_SUBJECT.to_owned()),
        provider_id: provider.id.to_string(),
        code_verifier: verifier.expose().clone(),
    };
    let plain = Secret::new(serde_json::to_vec(&waiting).unwrap_or_default());
    let sealed = hex_encode(&api.seal(STATE_AAD, plain.expose())?);
    let board = board(&state);
    let kept = api.bus.post(&board, "waiting", &sealed, STATE_LIVES);
    kept.await.map_err(|error| bus_out(&error))?;
    let expires_at = api.clock.now().plus(STATE_LIVES);
    wire::ok(json!({
        "authorization_url": url,
        "state": state,
        "expires_at": expires_at.iso_millis(),
    }))
}

/// `GET /v1/zones/{zone}/provider-connections/oauth/callback`: the browser comes back.
pub async fn callback(
    State(api): State<Arc<Api>>,
    at: At,
    headers: HeaderMap,
    RawQuery(raw): RawQuery,
) -> Response {
    let query = Query::parse(raw.as_deref());
    let connected = Box::pin(come_back(&api, &at, &query)).await;
    let answer = connected.map(|row| render(&row, &at.zone));
    if page::is_wanted(&headers) {
        return page::page(&answer);
    }
    match answer.and_then(wire::created) {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn come_back(api: &Api, at: &At, query: &Query<'_>) -> Result<Connection, Failure> {
    let invalid = |why: &'static str| Failure::bad("invalid_oauth_callback", why);
    let state = query.text("state", 256).ok().flatten();
    let state = state
        .filter(|state| state.len() >= 32 && state.bytes().all(|b| b.is_ascii_graphic()))
        .ok_or_else(|| invalid("state must be that of an authorization_url"))?;
    let code = query.text("code", 4096);
    let code = code.map_err(|_| invalid("code is sent once and has at most 4096 characters"))?;
    let denied = query.text("error", 256);
    let denied = denied.map_err(|_| invalid("error is sent once"))?.is_some();
    let waiting = recall(api, at, state).await?;
    if denied {
        return Err(Failure::bad(
            "provider_oauth_denied",
            "the provider did not let the account be connected",
        ));
    }
    let code = code.filter(|code| !code.is_empty()).ok_or_else(|| {
        Failure::bad(
            "authorization_code_required",
            "the provider sent the browser back without a code",
        )
    })?;
    let provider = connectable(api, &at.zone, &waiting.provider_id).await?;
    let client = client(api, &at.zone, &provider).await?;
    let (code, verifier) = (
        Secret::new(code.to_owned()),
        Secret::new(waiting.code_verifier),
    );
    let grant = Grant::Code {
        code: &code,
        verifier: &verifier,
    };
    let now = api.clock.now();
    let answer = Box::pin(client.ask(&api.fetch, grant, now, api.rng.as_ref())).await;
    let answer = answer.map_err(|error| refused(&provider, &error))?;
    let tokens = received(answer, now);
    connect(api, &at.zone, &provider.id, &waiting.subject_id, &tokens).await
}

/// The flow behind a state, for the first who asks.
async fn recall(api: &Api, at: &At, state: &str) -> Result<Waiting, Failure> {
    let expired = || {
        let why = "the connect flow has ended or was completed already; start it again";
        Failure::bad("oauth_state_expired", why)
    };
    let invalid = || Failure::bad("oauth_state_invalid", "the state was not made here");
    let posted = api.bus.posts(&board(state)).await;
    let posted = posted.map_err(|error| bus_out(&error))?;
    let (_, sealed) = posted.into_iter().next().ok_or_else(expired)?;
    let claim = format!("api:provider_oauth_state_used:{state}");
    let first = api.bus.claim(&claim, STATE_LIVES).await;
    if !first.map_err(|error| bus_out(&error))? {
        return Err(expired());
    }
    let sealed = hex_decode(&sealed).map_err(|_| invalid())?;
    let opened = api
        .keyring
        .open(STATE_AAD, &sealed)
        .map_err(|_| invalid())?;
    let waiting: Waiting = serde_json::from_slice(opened.expose()).map_err(|_| invalid())?;
    if waiting.zone_id != at.zone.as_str() {
        let why = "the connect flow was started in another zone";
        return Err(Failure::bad("oauth_state_mismatch", why));
    }
    Ok(waiting)
}

fn refused(provider: &Provider, error: &TokenError) -> Failure {
    tracing::warn!(%error, provider = %provider.id, "an account cannot be connected");
    let gateway = |code, why: String| Failure::new(StatusCode::BAD_GATEWAY, code, why);
    match error {
        TokenError::Config(why) => Failure::bad("invalid_provider_config", *why),
        TokenError::NotAllowed => {
            Failure::bad("provider_token_endpoint_not_allowed", error.to_string())
        }
        TokenError::TokenType => gateway("provider_token_type_unsupported", error.to_string()),
        TokenError::Malformed => gateway("provider_token_response_invalid", error.to_string()),
        TokenError::Fetch(_) | TokenError::Refused { .. } => {
            gateway("provider_token_exchange_failed", error.to_string())
        }
    }
}

fn received(answer: TokenAnswer, now: Timestamp) -> Tokens {
    // Longer than a year is not told apart from a year: the STS caps it anyway.
    let lives = |seconds: u64| now.plus(Duration::from_secs(seconds.min(366 * 24 * 3600)));
    Tokens {
        access: answer.access_token,
        refresh: answer.refresh_token,
        expires_at: answer.expires_in.map(lives),
    }
}

/// `POST /v1/zones/{zone}/provider-connections/revoke`: here first, then at the provider as well as
/// it can be.
pub async fn revoke(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    const INVALID: &str = "invalid_provider_connection_revoke";
    let mut fields = Fields::of(input.object(INVALID)?);
    let provider = fields.required_text("provider_id", Text::exact(1..=128));
    let subject = fields.text("subject_id", SUBJECT);
    fields.end(INVALID)?;
    let subject = subject.as_deref().unwrap_or(SHARED_SUBJECT);
    let provider = ProviderId::trusted(provider);
    let mut tx = api.store.begin("revoke a connection").await?;
    let now = api.clock.now();
    let revoked = tx
        .connections(&at.zone)
        .revoke(&provider, subject, now)
        .await?;
    let row = revoked.ok_or_else(|| {
        Failure::absent(
            "provider_connection_not_found",
            "the subject has no active connection to this provider",
        )
    })?;
    api.commit_own(tx).await?;
    let upstream = Box::pin(revoke_upstream(&api, &at.zone, &row)).await;
    let mut body = render(&row, &at.zone);
    if let Some(body) = body.as_object_mut() {
        body.insert("upstream_revocation".to_owned(), json!(upstream));
    }
    wire::ok(body)
}

async fn revoke_upstream(api: &Api, zone: &ZoneId, row: &Connection) -> &'static str {
    let Ok(provider) = connectable(api, zone, row.provider_id.as_str()).await else {
        return "failed";
    };
    if !provider.config.contains_key("revocation_endpoint") {
        return "unsupported";
    }
    let Ok(client) = client(api, zone, &provider).await else {
        return "failed";
    };
    let (aad, sealed, hint) = match &row.refresh_token {
        Some(sealed) => (REFRESH_TOKEN_AAD, sealed, "refresh_token"),
        None => (ACCESS_TOKEN_AAD, &row.access_token, "access_token"),
    };
    let opened = api.keyring.open(aad, sealed);
    let token = opened
        .ok()
        .and_then(|token| String::from_utf8(token.expose().clone()).ok());
    let Some(token) = token.map(Secret::new) else {
        return "failed";
    };
    let (now, rng) = (api.clock.now(), api.rng.as_ref());
    match client.revoke(&api.fetch, &token, hint, now, rng).await {
        Ok(Some(())) => "revoked",
        Ok(None) => "unsupported",
        Err(error) => {
            tracing::warn!(%error, provider = %provider.id, "not revoked upstream");
            "failed"
        }
    }
}
