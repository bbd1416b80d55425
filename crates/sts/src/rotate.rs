//! `/internal/zones/{zone}/signing-key`: the keys of a zone, and the next one (spec: sts §16,
//! §20.7).
//!
//! Published verifiers hold a key set for up to ten minutes and do not fetch again when they meet
//! an unknown `kid`. So the next key is published first and signs a quarter of an hour later;
//! `?emergency=true` lets it sign at once, for when the current one is known to have leaked. Every
//! replica learns of it through the feed, and `caracal.keys.invalidate` tells whoever listens.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use caracal_crypto::es256::SigningKey;
use caracal_model::{Change, Kid, Outgoing, Refusal, Refused, Timestamp, Topic, ZoneId};
use caracal_net::{Problem, bearer};
use caracal_store::zones::NewZoneKey;
use caracal_store::{StoreError, Tx};
use caracal_view::{KeyTimes, ViewError, ZONE_KEY_AAD, ZoneView};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::Sts;
use crate::authenticate::unavailable;

/// How long a key is published before it signs.
const PUBLISHED_FIRST: Duration = Duration::from_secs(15 * 60);

/// `POST …/signing-key/rotate`
pub async fn rotate(
    State(sts): State<Arc<Sts>>,
    Path(zone): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let zone = admitted(&sts, &zone, &headers).await?;
    let emergency = query.is_some_and(|query| {
        form_urlencoded::parse(query.as_bytes()).any(|(k, v)| k == "emergency" && v == "true")
    });
    let now = sts.clock.now();
    let signs_from = if emergency {
        now
    } else {
        now.plus(PUBLISHED_FIRST)
    };
    let kid = add_key(&sts, &zone.id, signs_from).await?;
    tracing::info!(zone = %zone.id, %kid, emergency, "a signing key was made");
    let body = json!({
        "rotated": true, "zone_id": zone.id, "kid": kid, "signs_from": signs_from.iso_millis(),
    });
    Ok(Json(body).into_response())
}

/// `GET …/signing-key`: what is published, what signs, and what will.
pub async fn list(
    State(sts): State<Arc<Sts>>,
    Path(zone): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let zone = admitted(&sts, &zone, &headers).await?;
    let now = sts.clock.now();
    let keys: Vec<Value> = zone
        .keys
        .times
        .iter()
        .map(|key| described(&zone, key, now))
        .collect();
    Ok(Json(json!({ "zone_id": zone.id, "keys": keys })).into_response())
}

fn described(zone: &ZoneView, key: &KeyTimes, now: Timestamp) -> Value {
    let signs = zone.keys.signing.as_ref().map(|signing| signing.kid());
    let state = match key.signs_from > now {
        true => "next",
        false if signs == Some(&key.kid) => "signing",
        false => "kept",
    };
    json!({
        "kid": key.kid, "state": state, "signs_from": key.signs_from.iso_millis(),
        "published_until": key.published_until.map(Timestamp::iso_millis),
    })
}

/// The zone, for whoever holds the token of this service's operators.
async fn admitted(sts: &Sts, zone: &str, headers: &HeaderMap) -> Result<Arc<ZoneView>, Problem> {
    let Some(token) = &sts.config.admin_token else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found"));
    };
    if !bearer::is(headers, token) {
        let challenge = HeaderValue::from_static("Bearer realm=\"caracal-sts\"");
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "access_denied")
            .because("STS_ADMIN_TOKEN is required as bearer")
            .header(WWW_AUTHENTICATE, challenge));
    }
    let unknown = || Refusal::NotFound.because("the zone does not exist");
    let zone = ZoneId::parse(zone).map_err(|_| unknown())?;
    let zone = sts.views.zone(&zone).await.map_err(|error| match error {
        ViewError::UnknownZone => unknown(),
        error => unavailable(&error),
    })?;
    if zone.archived {
        return Err(unknown().into());
    }
    Ok(zone)
}

/// Makes the key that a zone starts with, unless it has one: zones that came by an import have none
/// (spec: sts §20.7).
///
/// # Errors
/// 503 when it cannot be stored.
pub async fn first_key(sts: &Sts, zone: &ZoneId) -> Result<(), Refused> {
    let key = Made::now(sts, zone)?;
    let now = sts.clock.now();
    let stored = async {
        let mut tx = sts.store.begin("making a zone's first signing key").await?;
        // Held to the end, so that two who come at once make one.
        if tx.zones().lock(zone).await?.is_none() || tx.zones().has_key(zone).await? {
            return Ok(());
        }
        key.store(tx, zone, now, now).await
    };
    told(sts, zone, stored.await).await
}

async fn add_key(sts: &Sts, zone: &ZoneId, signs_from: Timestamp) -> Result<Kid, Refused> {
    let key = Made::now(sts, zone)?;
    let kid = key.kid.clone();
    let now = sts.clock.now();
    let stored = async {
        let tx = sts.store.begin("rotating a signing key").await?;
        key.store(tx, zone, signs_from, now).await
    };
    told(sts, zone, stored.await).await?;
    Ok(kid)
}

async fn told(sts: &Sts, zone: &ZoneId, stored: Result<(), StoreError>) -> Result<(), Refused> {
    stored.map_err(|error| {
        tracing::warn!(%zone, %error, "a signing key could not be stored");
        Refusal::Unavailable.because("the key could not be stored, try again shortly")
    })?;
    sts.announce.announce().await;
    Ok(())
}

/// A key that was made and is not stored yet.
struct Made {
    kid: Kid,
    x: String,
    y: String,
    sealed: Vec<u8>,
}

impl Made {
    fn now(sts: &Sts, zone: &ZoneId) -> Result<Self, Refused> {
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
        Ok(Self {
            kid,
            x: key.public().x.to_string(),
            y: key.public().y.to_string(),
            sealed,
        })
    }

    async fn store(
        &self,
        mut tx: Tx,
        zone: &ZoneId,
        signs_from: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let row = NewZoneKey {
            kid: &self.kid,
            x: &self.x,
            y: &self.y,
            sealed_private: &self.sealed,
            signs_from,
        };
        tx.zones().insert_key(zone, &row, now).await?;
        tx.change(&Change::Zone(zone.clone()));
        tx.announce(Outgoing::new(Topic::KeysInvalidate, zone, []));
        tx.commit().await
    }
}
