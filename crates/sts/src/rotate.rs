//! `POST /internal/zones/{zone}/signing-key/rotate` (spec: sts §16, §20.7).
//!
//! Published verifiers hold a key set for up to ten minutes and do not fetch again when they meet
//! an unknown `kid`. So the next key is published first and signs a quarter of an hour later;
//! `?emergency=true` lets it sign at once, for when the current one is known to have leaked.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use caracal_crypto::es256::SigningKey;
use caracal_model::{Change, Kid, Outgoing, Refusal, Refused, Timestamp, Topic, ZoneId};
use caracal_net::{Problem, bearer};
use caracal_store::StoreError;
use caracal_store::zones::NewZoneKey;
use caracal_view::{ViewError, ZONE_KEY_AAD};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;

use crate::Sts;
use crate::authenticate::unavailable;

/// How long a key is published before it signs.
const PUBLISHED_FIRST: Duration = Duration::from_secs(15 * 60);

pub async fn rotate(
    State(sts): State<Arc<Sts>>,
    Path(zone): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(token) = &sts.config.admin_token else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found"));
    };
    if !bearer::is(&headers, token) {
        let challenge = HeaderValue::from_static("Bearer realm=\"caracal-sts\"");
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "access_denied")
            .because("STS_ADMIN_TOKEN is required as bearer")
            .header(WWW_AUTHENTICATE, challenge));
    }
    let unknown = || Refusal::NotFound.because("the zone does not exist");
    let zone = ZoneId::parse(&zone).map_err(|_| unknown())?;
    sts.views.zone(&zone).await.map_err(|error| match error {
        ViewError::UnknownZone => unknown(),
        error => unavailable(&error),
    })?;
    let emergency = query.is_some_and(|query| {
        form_urlencoded::parse(query.as_bytes()).any(|(k, v)| k == "emergency" && v == "true")
    });
    let now = sts.clock.now();
    let signs_from = if emergency {
        now
    } else {
        now.plus(PUBLISHED_FIRST)
    };
    let kid = add_key(&sts, &zone, now, signs_from).await?;
    sts.announce.announce().await;
    let body = json!({
        "rotated": true, "zone_id": zone, "kid": kid, "signs_from": signs_from.iso_millis(),
    });
    Ok(Json(body).into_response())
}

async fn add_key(
    sts: &Sts,
    zone: &ZoneId,
    now: Timestamp,
    signs_from: Timestamp,
) -> Result<Kid, Refused> {
    let kid = Kid::trusted(sts.ids.uuid());
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%zone, %error, "a signing key could not be made");
        Refusal::Internal.because("a signing key could not be made")
    };
    let key = SigningKey::generate(kid.clone()).map_err(|error| failed(&error))?;
    let sealed = sts
        .keyring
        .seal(sts.rng.as_ref(), ZONE_KEY_AAD, key.pkcs8().expose())
        .map_err(|error| failed(&error))?;
    let row = NewZoneKey {
        kid: &kid,
        x: &key.public().x,
        y: &key.public().y,
        sealed_private: &sealed,
        signs_from,
    };
    let store = async {
        let mut tx = sts.store.begin("rotating a signing key").await?;
        tx.zones().insert_key(zone, &row, now).await?;
        tx.change(&Change::Zone(zone.clone()));
        tx.announce(Outgoing::new(Topic::KeysInvalidate, zone, []));
        tx.commit().await
    };
    store.await.map_err(|error: StoreError| {
        tracing::warn!(%zone, %error, "a signing key could not be stored");
        Refusal::Unavailable.because("the key could not be stored, try again shortly")
    })?;
    Ok(kid)
}
