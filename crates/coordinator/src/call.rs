//! One call of a route below `/zones/{zone}`: authenticated, its path checked, its body read.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, MatchedPath, RawPathParams, Request};
use bytes::Bytes;
use caracal_model::id::is_id;
use caracal_model::{DelegationId, SessionId, ZoneId};
use caracal_net::Peer;
use caracal_trail::Draft;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

use crate::auth::authenticate;
use crate::caller::{Caller, Runtime};
use crate::failure::{Code, Failure};
use crate::fields::Body;
use crate::query::Query;
use crate::service::Coordinator;

/// The routes that take the operator token (spec: coordinator §4).
const OPERATOR_ROUTES: [(Method, &str); 15] = [
    (Method::GET, "/zones/{zone}/agents"),
    (Method::GET, "/zones/{zone}/agents/{id}"),
    (Method::GET, "/zones/{zone}/agents/{id}/children"),
    (Method::GET, "/zones/{zone}/agents/{id}/effective-authority"),
    (Method::PATCH, "/zones/{zone}/agents/{id}/suspend"),
    (Method::PATCH, "/zones/{zone}/agents/{id}/resume"),
    (Method::DELETE, "/zones/{zone}/agents/{id}"),
    (Method::GET, "/zones/{zone}/delegations/active"),
    (Method::GET, "/zones/{zone}/delegations/inbound/{id}"),
    (Method::GET, "/zones/{zone}/delegations/outbound/{id}"),
    (Method::GET, "/zones/{zone}/delegations/inbound/{id}/{edge}"),
    (Method::GET, "/zones/{zone}/delegations/{id}/traverse"),
    (Method::GET, "/zones/{zone}/delegations/{id}/impact"),
    (Method::PATCH, "/zones/{zone}/delegations/{id}/revoke"),
    (Method::POST, "/zones/{zone}/outbox/{id}/requeue"),
];

/// One call.
#[derive(Debug)]
pub struct Call {
    /// Who sends it.
    pub caller: Caller,
    /// The zone of its path.
    pub zone: ZoneId,
    /// The ids of its path after the zone.
    ids: Vec<String>,
    /// Its query.
    pub query: Query,
    /// Its headers.
    pub headers: HeaderMap,
    body: Bytes,
}

impl FromRequest<Coordinator> for Call {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &Coordinator) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let path = RawPathParams::from_request_parts(&mut parts, state).await;
        let path: Option<Vec<String>> = path
            .ok()
            .map(|params| params.iter().map(|(_, id)| id.to_owned()).collect());
        let zone = path
            .as_ref()
            .and_then(|ids| ZoneId::parse(ids.first()?).ok());
        let route = parts
            .extensions
            .get::<MatchedPath>()
            .map(MatchedPath::as_str);
        let operator = route.is_some_and(|route| {
            OPERATOR_ROUTES
                .iter()
                .any(|(method, path)| *method == parts.method && *path == route)
        });
        let from = address(state, &parts.headers, parts.extensions.get::<Peer>());
        let caller = authenticate(state, &parts.headers, from, operator, zone.as_ref()).await?;
        let draft = parts.extensions.get::<Arc<Draft>>();
        if let Some(draft) = draft {
            draft.by(caller.as_recorded());
        }
        let (Some(zone), Some(mut ids)) = (zone, path) else {
            return Err(Code::InvalidParams.into());
        };
        ids.remove(0);
        if !ids.iter().all(|id| is_id(id)) {
            return Err(Code::InvalidParams.into());
        }
        let limit = state.config.body_limit;
        // Within half the time of the request, so that a slow body is told that it is one.
        let within = state.config.request_timeout / 2;
        let body = caracal_net::body::read(body, limit, within)
            .await
            .map_err(|problem| framing(problem.status()))?;
        if let (Some(draft), Ok(said)) = (draft, serde_json::from_slice(&body)) {
            draft.says(&said);
        }
        let query = Query::parse(parts.uri.query());
        Ok(Self {
            caller,
            zone,
            ids,
            query,
            headers: parts.headers,
            body,
        })
    }
}

fn framing(status: StatusCode) -> Failure {
    let description = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "the body is larger than this service accepts",
        StatusCode::REQUEST_TIMEOUT => "the body did not arrive in time",
        _ => "the body broke off",
    };
    Failure::framing(status, description)
}

/// Where a request comes from: the connection, or what a trusted proxy says of it. The last
/// address is the one that the proxy added itself.
pub fn address(coordinator: &Coordinator, headers: &HeaderMap, peer: Option<&Peer>) -> IpAddr {
    let forwarded = || {
        let value = headers
            .get_all("x-forwarded-for")
            .iter()
            .next_back()?
            .to_str()
            .ok()?;
        value.rsplit(',').next()?.trim().parse().ok()
    };
    let direct = || peer.map(|peer| peer.address.ip());
    let trusted = coordinator.config.trust_proxy.then(forwarded).flatten();
    trusted
        .or_else(direct)
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

impl Call {
    /// The Session of the path.
    pub fn session(&self) -> SessionId {
        SessionId::trusted(self.ids.first().map(String::as_str).unwrap_or_default())
    }

    /// The Delegation of the path, its last id.
    pub fn delegation(&self) -> DelegationId {
        DelegationId::trusted(self.last())
    }

    /// The last id of the path.
    pub fn last(&self) -> &str {
        self.ids.last().map(String::as_str).unwrap_or_default()
    }

    /// The application that calls.
    ///
    /// # Errors
    /// `invalid_token` for the operator: the route is not for it.
    pub fn runtime(&self) -> Result<&Runtime, Failure> {
        match &self.caller {
            Caller::Runtime(runtime) => Ok(runtime),
            Caller::Operator => Err(Code::InvalidToken.into()),
        }
    }

    /// The JSON object of the body; no body is an empty object, with or without a content type.
    ///
    /// # Errors
    /// 415 for another content type, 400 for what is not JSON, `invalid_body` for what is not an
    /// object.
    pub fn body(&self) -> Result<Body, Failure> {
        if self.body.is_empty() {
            return Ok(Body::new());
        }
        let kind = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(is_json) {
            let description = "send the body as application/json";
            return Err(Failure::framing(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                description,
            ));
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(body)) => Ok(body),
            Ok(_) => Err(Code::InvalidBody
                .refuse()
                .because("the body must be a JSON object")),
            Err(_) => Err(Failure::framing(
                StatusCode::BAD_REQUEST,
                "the body is not valid JSON",
            )),
        }
    }
}

/// Whether a content type is JSON, whatever its parameters.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}
