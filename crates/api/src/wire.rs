//! From a request to what handlers take, and from what they return to an answer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use caracal_model::id::is_id;
use caracal_model::{RequestId, ZoneId};
use caracal_net::{Peer, body};
use caracal_store::zones::{Author, Provenance, Slice};
use caracal_trail::{Draft, Made};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::admission::Actor;
use crate::failure::Failure;
use crate::fields::Body;
use crate::page::Page;
use crate::service::Api;

/// The address that a request came from: the peer's, or what one trusted proxy says of it.
pub fn client_ip(request: &Request, trust_proxy: bool) -> IpAddr {
    let peer = request
        .extensions()
        .get::<Peer>()
        .map(|peer| peer.address.ip());
    let forwarded = request
        .headers()
        .get_all("x-forwarded-for")
        .iter()
        .next_back()
        .filter(|_| trust_proxy)
        .and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    forwarded
        .or(peer)
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The admitted caller of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub actor: Arc<Actor>,
    /// The id of the request.
    pub request_id: RequestId,
    /// What will be recorded of it.
    pub draft: Arc<Draft>,
}

impl Caller {
    /// The caller, changing something now.
    pub fn author(&self, api: &Api) -> Author {
        self.actor.author(api.clock.now())
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let actor = parts.extensions.get::<Arc<Actor>>().cloned();
        let request_id = parts.extensions.get::<RequestId>().cloned();
        let draft = parts.extensions.get::<Arc<Draft>>().cloned();
        match (actor, request_id, draft) {
            (Some(actor), Some(request_id), Some(draft)) => Ok(Self {
                actor,
                request_id,
                draft,
            }),
            _ => Err(Failure::internal()),
        }
    }
}

/// The ids in a path, all of the id pattern.
#[derive(Clone, Debug)]
pub struct At {
    /// `{zone}`; empty on routes outside of a zone.
    pub zone: ZoneId,
    /// `{id}`.
    pub id: String,
    /// `{version}`.
    pub version: String,
}

impl<S: Send + Sync> FromRequestParts<S> for At {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let invalid = || {
            Failure::bad(
                "invalid_params",
                "an id is 1 to 128 letters, digits, `_.-:`",
            )
        };
        let Path(mut ids) = Path::<HashMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|_| invalid())?;
        if !ids.values().all(|id| is_id(id)) {
            return Err(invalid());
        }
        let mut take = |name| ids.remove(name).unwrap_or_default();
        Ok(Self {
            zone: ZoneId::trusted(take("zone")),
            id: take("id"),
            version: take("version"),
        })
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Input(Value);

impl Input {
    /// The object of the body.
    ///
    /// # Errors
    /// 400 with `error` when it is something else.
    pub fn object(&self, error: &'static str) -> Result<&Body, Failure> {
        self.0
            .as_object()
            .ok_or_else(|| Failure::bad(error, "the body must be a JSON object"))
    }
}

impl FromRequest<Arc<Api>> for Input {
    type Rejection = Response;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        // Within half the time of the request, so that a slow body is told that it is one.
        let within = api.config.request_timeout / 2;
        let bytes = body::read(body, api.config.body_limit, within).await;
        let bytes = bytes.map_err(IntoResponse::into_response)?;
        let input = Self::parse(&parts.headers, &bytes).map_err(IntoResponse::into_response)?;
        if let Some(draft) = parts.extensions.get::<Arc<Draft>>() {
            draft.says(&input.0);
        }
        Ok(input)
    }
}

impl Input {
    fn parse(headers: &HeaderMap, bytes: &[u8]) -> Result<Self, Failure> {
        if bytes.is_empty() {
            return Ok(Self(Value::Object(Map::new())));
        }
        if !is_json(headers) {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send the body as Content-Type: application/json",
            ));
        }
        let malformed = |error| format!("the body is not JSON: {error}");
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| Failure::bad("invalid_request", malformed(error)))?;
        if holds_nul(&value) {
            return Err(Failure::bad(
                "invalid_request",
                "the body must not contain U+0000",
            ));
        }
        Ok(Self(value))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Text with U+0000 cannot be stored.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

/// What a handler answers.
pub type Answer = Result<Response, Failure>;

/// 200.
pub fn ok(body: Value) -> Answer {
    Ok(Json(body).into_response())
}

/// 201.
pub fn created(body: Value) -> Answer {
    let made = body.get("id").and_then(Value::as_str);
    let made = made.map(|id| Extension(Made(id.to_owned())));
    Ok((StatusCode::CREATED, made, Json(body)).into_response())
}

/// 202.
pub fn accepted(body: Value) -> Answer {
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// 204.
pub fn no_content() -> Answer {
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The slice of a list that a page shows.
pub fn slice(page: &Page) -> Slice<'_> {
    let (before, before_id) = page.before();
    Slice {
        before,
        before_id,
        limit: page.limit,
    }
}

/// An object on the wire: its own members and who made it when.
pub fn with_provenance(mut members: Value, made: &Provenance) -> Value {
    if let Some(members) = members.as_object_mut() {
        members.extend([
            ("created_by".to_owned(), json!(made.created_by)),
            (
                "created_via_operator".to_owned(),
                json!(made.created_via_operator),
            ),
            ("updated_by".to_owned(), json!(made.updated_by)),
            (
                "updated_via_operator".to_owned(),
                json!(made.updated_via_operator),
            ),
            ("created_at".to_owned(), json!(made.created_at.iso_millis())),
            ("updated_at".to_owned(), json!(made.updated_at.iso_millis())),
        ]);
    }
    members
}
