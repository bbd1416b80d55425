//! `GET /.well-known/jwks.json?zone_id=Z` (spec: sts §4): served from memory, with an `ETag`.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use caracal_crypto::digest::sha256_hex;
use caracal_model::{Refusal, Refused, ZoneId};
use caracal_net::Problem;
use caracal_view::{ViewError, ZoneView};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::Sts;
use crate::authenticate::unavailable;
use crate::rotate::first_key;

/// Published verifiers keep what they fetched for this long.
const CACHE: &str = "public, max-age=300, must-revalidate";

pub async fn jwks(
    State(sts): State<Arc<Sts>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = zone_of(query.as_deref().unwrap_or_default())?;
    let mut zone = look_up(&sts, &id).await?;
    if zone.archived {
        return Err(unknown().into());
    }
    if zone.keys.jwks.is_empty() && zone.keys.invalid == 0 {
        first_key(&sts, &id).await?;
        zone = look_up(&sts, &id).await?;
    }
    sts.metrics.invalid_keys(zone.keys.invalid);
    if zone.keys.jwks.is_empty() {
        return Err(unusable(&zone).into());
    }
    let body = json!({ "keys": zone.keys.jwks }).to_string();
    let digest = sha256_hex(body.as_bytes());
    let etag = format!("\"{}\"", digest.get(..32).unwrap_or(&digest));
    let known = headers
        .get(IF_NONE_MATCH)
        .is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let common = [
        (CACHE_CONTROL, CACHE.to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (ETAG, etag),
    ];
    if known {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    Ok((common, [(CONTENT_TYPE, "application/json")], body).into_response())
}

async fn look_up(sts: &Sts, zone: &ZoneId) -> Result<Arc<ZoneView>, Refused> {
    sts.views.zone(zone).await.map_err(|error| match error {
        ViewError::UnknownZone => unknown(),
        error => unavailable(&error),
    })
}

fn zone_of(query: &str) -> Result<ZoneId, Refused> {
    let mut zones = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "zone_id");
    let why = "zone_id is required, once: the zone whose keys are wanted";
    match (zones.next(), zones.next()) {
        (Some((_, zone)), None) if !zone.is_empty() => ZoneId::parse(&zone).map_err(|_| unknown()),
        _ => Err(Refusal::BadRequest.because(why)),
    }
}

/// A key that was made a moment ago arrives here with the feed; one that cannot be used stays so.
fn unusable(zone: &ZoneView) -> Refused {
    match zone.keys.invalid {
        0 => Refusal::Unavailable
            .because("the zone's first key is on its way, try again shortly")
            .retry_after(1),
        _ => Refusal::Internal.because("no key of the zone can be used"),
    }
}

fn unknown() -> Refused {
    Refusal::NotFound.because("the zone does not exist or has no keys")
}
