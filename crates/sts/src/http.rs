//! `POST /oauth/2/token` over HTTP (spec: sts §2.1, §2.8): what concerns the message, in the order
//! of the specification, and the form of the answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use caracal_client::{Directive, GatewayExchange};
use caracal_crypto::digest::sha256;
use caracal_model::{Mandate, Refusal, Refused, RequestId, Secret, TokenUse, ZoneId};
use caracal_net::{Peer, Problem, body};
use caracal_view::ViewError;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method};
use serde::Serialize;

use crate::authenticate::{invalid, unavailable};
use crate::events::refused_early;
use crate::exchange::{Issued, client_exchange, record};
use crate::form::{ACCESS_TOKEN_TYPE, MAX_BODY, TokenRequest};
use crate::gateway::{claims_gateway, exchange, proven, same_request, verified};
use crate::patience::Patience;
use crate::{Sts, actor, late};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The success answer.
#[derive(Serialize)]
struct TokenResponse<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    scope: &'a str,
    issued_token_type: &'static str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    target_resources: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    upstreams: Option<BTreeMap<&'a str, &'a Directive>>,
}

/// Any method: the wrong ones are told which is right.
pub async fn token(
    State(sts): State<Arc<Sts>>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Response {
    let _exchanging = sts.metrics.exchanging();
    let clock = sts.clock.as_ref();
    let patience = if claims_gateway(request.headers()) {
        Patience::told(clock, request.headers())
    } else {
        Patience::of_client(clock)
    };
    let answering = Box::pin(answer(&sts, &request_id, patience, request));
    match late::in_time(&sts, &request_id, patience.whole(), answering).await {
        Ok(response) => {
            sts.metrics.minted();
            response
        }
        Err(problem) => {
            sts.metrics.refused(problem.error(), problem.status());
            problem.into_response()
        }
    }
}

async fn answer(
    sts: &Sts,
    request_id: &RequestId,
    patience: Patience,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = form_of(request, "tokens are exchanged by POST").await?;
    if claims_gateway(&parts.headers) {
        let path = parts.uri.path();
        let method = parts.method.as_str();
        proven(sts, &parts.headers, method, path, sha256(&body)).await?;
        return from_gateway(sts, request_id, patience, &body).await;
    }
    let request = TokenRequest::parse(&body)?;
    let issued = client_exchange(sts, &request, source(&parts), request_id, patience).await?;
    Ok(issued_answer(&issued))
}

/// The head and the body of a form that was posted (spec: sts §2.1 rows 0 to 4).
///
/// # Errors
/// 400, 405 with `only_post`, 413, 415.
pub async fn form_of(request: Request, only_post: &'static str) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    check_message(&parts, only_post)?;
    let body = body::read(body, MAX_BODY, BODY_TIMEOUT).await?;
    Ok((parts, body))
}

fn check_message(parts: &Parts, only_post: &'static str) -> Result<(), Problem> {
    if parts.method != Method::POST {
        let refused = Refusal::MethodNotAllowed.because(only_post);
        return Err(Problem::from(refused).header(ALLOW, HeaderValue::from_static("POST")));
    }
    if parts.uri.query().is_some() {
        let why = "query string must be empty: send every field in the form";
        return Err(Refusal::BadRequest.because(why).into());
    }
    let media = parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = media
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let why = "content type must be application/x-www-form-urlencoded";
        return Err(Refusal::UnsupportedMediaType.because(why).into());
    }
    Ok(())
}

fn source(parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get::<Peer>();
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.address.ip())
}

fn issued_answer(issued: &Issued) -> Response {
    respond(&TokenResponse {
        access_token: issued.token.expose(),
        token_type: "Bearer",
        expires_in: issued.mandate.exp - issued.mandate.iat,
        scope: &issued.mandate.scope,
        issued_token_type: ACCESS_TOKEN_TYPE,
        target_resources: &issued.mandate.target,
        upstreams: None,
    })
}

/// Tokens are not for caches (RFC 6749 section 5.1).
fn respond(answer: &TokenResponse<'_>) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

async fn from_gateway(
    sts: &Sts,
    request_id: &RequestId,
    patience: Patience,
    body: &Bytes,
) -> Result<Response, Problem> {
    let form = TokenRequest::parse(body)?;
    same_request(&form.gateway_request_id, request_id)?;
    if form.actor.is_some() {
        return Err(actor::unsupported().into());
    }
    let (token, resource) = gateway_fields(&form)?;
    let zone = ZoneId::parse(&form.zone_id).map_err(|_| invalid())?;
    let zone = sts.views.zone(&zone).await.map_err(|error| match error {
        ViewError::UnknownZone => invalid(),
        error => unavailable(&error),
    })?;
    let mandate = verified(sts, token.expose(), &zone, TokenUse::Gateway)?;
    if let Err(refused) = same_authority(&form, &mandate) {
        let (zone, client) = (zone.id.clone(), &mandate.client_id);
        let status = "exchange_denied";
        let event = refused_early(sts, zone, client, request_id, &refused, status);
        record(sts, vec![event]).await?;
        return Err(refused.into());
    }
    let call = GatewayExchange {
        token: token.expose(),
        mandate: &mandate,
        resource,
        method: &form.request_method,
        path: &form.request_path,
        request_id,
        within: patience.whole(),
    };
    let granted = exchange(sts, call, true, patience).await?;
    let grant = granted.grant;
    let access_token = grant.access_token.as_ref().map(Secret::expose);
    let target = granted
        .mandate
        .map(|mandate| mandate.target)
        .unwrap_or_default();
    Ok(respond(&TokenResponse {
        access_token: access_token.map_or("", |token| token),
        token_type: "Bearer",
        expires_in: grant.expires_in,
        scope: &mandate.scope,
        issued_token_type: ACCESS_TOKEN_TYPE,
        target_resources: &target,
        upstreams: Some(BTreeMap::from([(resource, &grant.directive)])),
    }))
}

/// What a form says of the authority must be what its mandate says (spec: sts §2.5 step 4).
fn same_authority(form: &TokenRequest, mandate: &Mandate) -> Result<(), Refused> {
    if mandate.client_id.as_str() != form.application_id {
        let why = "the mandate belongs to another application";
        return Err(Refusal::AccessDenied.because(why));
    }
    let session = mandate.agent_session_id.as_ref().map(AsRef::as_ref);
    let edge = mandate.delegation_edge_id.as_ref().map(AsRef::as_ref);
    let said = [
        ("session_id", &form.session_id, Some(mandate.sid.as_str())),
        ("agent_session_id", &form.agent_session_id, session),
        ("delegation_edge_id", &form.delegation_edge_id, edge),
    ];
    let differs = |form: &Option<String>, claim| form.is_some() && form.as_deref() != claim;
    match said.iter().find(|(_, form, claim)| differs(form, *claim)) {
        None => Ok(()),
        Some((name, ..)) => {
            let why = format!("{name} does not match subject_token");
            Err(Refusal::AccessDenied.because(why))
        }
    }
}

fn gateway_fields(form: &TokenRequest) -> Result<(&Secret<String>, &str), Refused> {
    let subject = form.subject.as_ref().ok_or_else(|| {
        Refusal::BadRequest.because("an exchange of the Gateway needs a subject_token")
    })?;
    let [resource] = form.resources.as_slice() else {
        return Err(Refusal::BadRequest.because("an exchange of the Gateway names one resource"));
    };
    Ok((&subject.token, resource))
}
