//! Authentication (spec: coordinator §4), in the order of its checks.
//!
//! **Forces.** Verifying a signature is the dearest thing that a request costs, and a lifecycle
//! token is sent with every call for a quarter of an hour. What may change in that time - its
//! application, its authority record, a revocation - must be seen at once all the same.
//!
//! **Choice.** That a token is genuine is remembered by its digest, together with the key that
//! proved it; everything that can change is checked for every request.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use caracal_crypto::digest::sha256;
use caracal_crypto::es256::Jws;
use caracal_model::id::uuid7_millis;
use caracal_model::limits::{LEEWAY, MAX_BEARER_BYTES};
use caracal_model::secret::constant_time_eq;
use caracal_model::{Actor, ApplicationId, RecordId, Scopes, Timestamp, ZoneId};
use caracal_view::{Anchors, IssuedTo, ViewError, ZoneView};
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use crate::caller::{Caller, Runtime};
use crate::failure::{Code, Failure};
use crate::limit::Holder;
use crate::service::Coordinator;

/// Tokens that are remembered as genuine.
const KEPT: usize = 8_192;

/// What we read of a lifecycle token. Optional is what other issuers of custom tokens leave out.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    aud: Value,
    exp: Option<f64>,
    iat: Option<f64>,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    zone_id: String,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    scope: String,
    #[serde(default, rename = "use")]
    token_use: String,
    sid: Option<String>,
    root_sid: Option<String>,
    #[serde(default)]
    jti: String,
    act: Option<Box<Actor>>,
}

impl Claims {
    /// Who acts with it, and who acted before.
    fn actors(&self) -> impl Iterator<Item = &Actor> {
        self.act.iter().flat_map(|actor| actor.chain())
    }

    /// Its subject and its actors, and when it was issued: what kills their mandates kills it.
    fn issued_to<'a>(&'a self, zone: &'a ZoneId) -> Vec<IssuedTo<'a>> {
        let at_ms = uuid7_millis(&self.jti).and_then(|ms| i64::try_from(ms).ok());
        let Some(at_ms) = at_ms else {
            return Vec::new();
        };
        let subjects = std::iter::once(&self.sub).chain(self.actors().map(|actor| &actor.sub));
        subjects
            .map(|subject| IssuedTo {
                zone,
                subject,
                at_ms,
            })
            .collect()
    }
}

/// A token whose signature was verified with this key.
#[derive(Debug)]
struct Genuine {
    claims: Claims,
    kid: String,
}

/// Tokens that were verified before, by digest.
#[derive(Debug, Default)]
pub struct Proven(Mutex<HashMap<[u8; 32], Arc<Genuine>>>);

impl Proven {
    fn get(&self, digest: &[u8; 32]) -> Option<Arc<Genuine>> {
        self.0.lock().get(digest).cloned()
    }

    fn keep(&self, digest: [u8; 32], genuine: Arc<Genuine>) {
        let mut kept = self.0.lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(digest, genuine);
    }
}

/// Who sends a request with these headers. `operator_route` is whether the operator token is good
/// for the route; on others it is a token like any other, and not a valid one.
///
/// # Errors
/// The refusals of §4, or `rate_limited`.
pub async fn authenticate(
    coordinator: &Coordinator,
    headers: &HeaderMap,
    address: IpAddr,
    operator_route: bool,
    path_zone: Option<&ZoneId>,
) -> Result<Caller, Failure> {
    let outside = Holder::Address(address);
    let Some(token) = bearer(headers) else {
        coordinator.rate.charge(outside)?;
        return Err(Code::MissingToken.into());
    };
    if operator_route && is_operator(coordinator, token) {
        coordinator.rate.charge(Holder::Operator)?;
        return Ok(Caller::Operator);
    }
    let digest = sha256(token.as_bytes());
    let known = coordinator.proven.get(&digest);
    if known.is_none() {
        // Charged before the signature is looked at, given back when it was worth it.
        coordinator.rate.charge(outside.clone())?;
    }
    let judged = async {
        let (zone, genuine) = prove(coordinator, token, known.as_ref()).await?;
        if known.is_none() {
            coordinator.rate.refund(&outside);
            coordinator.proven.keep(digest, genuine.clone());
        }
        accept(coordinator, &zone, &genuine.claims, path_zone).await
    };
    let runtime = match judged.await {
        // Genuine, and good for nothing any more: whoever goes on with it is a stranger.
        Err(refused) if known.is_some() && refused.status() == StatusCode::UNAUTHORIZED => {
            coordinator.rate.charge(outside)?;
            return Err(refused);
        }
        judged => judged?,
    };
    coordinator.rate.charge(Holder::Application(
        runtime.zone.clone(),
        runtime.application.clone(),
    ))?;
    Ok(Caller::Runtime(runtime))
}

/// The token of `Authorization: Bearer <token>`; the prefix is compared exactly.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let token = value.to_str().ok()?.strip_prefix("Bearer ")?;
    (1..=MAX_BEARER_BYTES)
        .contains(&token.len())
        .then_some(token)
}

/// Whether this is the operator token, compared in constant time.
pub fn is_operator(coordinator: &Coordinator, token: &str) -> bool {
    coordinator
        .config
        .operator_token
        .as_ref()
        .is_some_and(|expected| constant_time_eq(expected.expose().as_bytes(), token.as_bytes()))
}

/// Whether the headers carry the operator token.
///
/// # Errors
/// `missing_token` without any token, `operator_token_required` with another.
pub fn require_operator(coordinator: &Coordinator, headers: &HeaderMap) -> Result<(), Failure> {
    match bearer(headers) {
        None => Err(Code::MissingToken.into()),
        Some(token) if is_operator(coordinator, token) => Ok(()),
        Some(_) => Err(Code::OperatorTokenRequired.into()),
    }
}

/// Signature, issuer, audience and times.
async fn prove(
    coordinator: &Coordinator,
    token: &str,
    known: Option<&Arc<Genuine>>,
) -> Result<(Arc<ZoneView>, Arc<Genuine>), Failure> {
    let genuine = match known {
        Some(genuine) => genuine.clone(),
        None => {
            let jws = Jws::parse(token).map_err(|_| Code::InvalidToken)?;
            let claims = serde_json::from_slice(jws.payload()).map_err(|_| Code::InvalidToken)?;
            Arc::new(Genuine {
                claims,
                kid: jws.kid().to_owned(),
            })
        }
    };
    let zone = ZoneId::parse(&genuine.claims.zone_id).map_err(|_| Code::InvalidToken)?;
    let zone = zone_view(coordinator, &zone).await?;
    // The key may have been withdrawn since the token was proven.
    let key = zone
        .keys
        .verify
        .get(genuine.kid.as_str())
        .ok_or(Code::InvalidToken)?;
    if known.is_none() {
        let jws = Jws::parse(token).map_err(|_| Code::InvalidToken)?;
        jws.verify(key).map_err(|_| Code::InvalidToken)?;
    }
    check_registered(
        &genuine.claims,
        &coordinator.config.issuer,
        coordinator.clock.now(),
    )?;
    Ok((zone, genuine))
}

/// The zone of a token: one that does not exist, or is archived, has no valid tokens.
async fn zone_view(coordinator: &Coordinator, zone: &ZoneId) -> Result<Arc<ZoneView>, Failure> {
    match coordinator.views.zone(zone).await {
        Ok(view) if view.archived => Err(Code::InvalidToken.into()),
        Ok(view) => Ok(view),
        Err(ViewError::UnknownZone) => Err(Code::InvalidToken.into()),
        Err(error) => Err(error.into()),
    }
}

fn check_registered(claims: &Claims, issuer: &str, now: Timestamp) -> Result<(), Failure> {
    let for_us = claims.aud.as_str() == Some(issuer)
        || claims
            .aud
            .as_array()
            .is_some_and(|all| all.iter().any(|aud| aud == issuer));
    let seconds = |at: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates, which is what we want"
        )]
        Timestamp::from_unix_seconds(at as i64)
    };
    let in_time = claims
        .exp
        .is_some_and(|exp| seconds(exp).plus(LEEWAY) > now)
        && claims
            .iat
            .is_none_or(|iat| seconds(iat) <= now.plus(LEEWAY));
    if claims.iss == issuer && for_us && in_time {
        Ok(())
    } else {
        Err(Code::InvalidToken.into())
    }
}

/// What the token is for, and whether those behind it are still there.
async fn accept(
    coordinator: &Coordinator,
    zone: &ZoneView,
    claims: &Claims,
    path_zone: Option<&ZoneId>,
) -> Result<Runtime, Failure> {
    if claims.token_use != "session" || claims.sub.is_empty() {
        return Err(Code::InvalidToken.into());
    }
    let scopes = Scopes::parse(&claims.scope);
    if !scopes.contains(&coordinator.config.scope) {
        return Err(Code::MissingScope.into());
    }
    if path_zone.is_some_and(|path| *path != zone.id) {
        return Err(Code::ZoneMismatch.into());
    }
    let application = ApplicationId::parse(&claims.client_id).map_err(|_| Code::InvalidToken)?;
    let now = coordinator.clock.now();
    if !is_open(zone, &application, now) {
        return Err(Code::IdentityRevoked.into());
    }
    let record = record(coordinator, zone, claims, now).await?;
    Ok(Runtime {
        zone: zone.id.clone(),
        application,
        subject: claims.sub.clone(),
        record,
        scopes,
    })
}

/// Whether the application exists and has not expired; archived ones are not in the view.
pub fn is_open(zone: &ZoneView, application: &ApplicationId, now: Timestamp) -> bool {
    zone.applications
        .get(application)
        .is_some_and(|found| found.expires_at.is_none_or(|until| until > now))
}

/// The authority record of the token, which must be in force.
async fn record(
    coordinator: &Coordinator,
    zone: &ZoneView,
    claims: &Claims,
    now: Timestamp,
) -> Result<Option<RecordId>, Failure> {
    let Some(sid) = claims.sid.as_deref().filter(|sid| !sid.is_empty()) else {
        return Ok(None);
    };
    let sid = RecordId::parse(sid).map_err(|_| Code::InvalidToken)?;
    let root = claims.root_sid.as_deref().map(RecordId::parse);
    let root = root.transpose().map_err(|_| Code::InvalidToken)?;
    let own = std::iter::once(&sid).chain(root.as_ref());
    let records: Vec<&RecordId> = own.chain(claims.actors().map(|actor| &actor.sid)).collect();
    let subjects = claims.issued_to(&zone.id);
    let anchors = Anchors {
        records: &records,
        subjects: &subjects,
        ..Anchors::default()
    };
    if coordinator.views.revoked(&anchors).await?.is_some() {
        return Err(Code::IdentityRevoked.into());
    }
    match coordinator.views.record(&zone.id, &sid).await? {
        Some(found) if found.is_live(now) => Ok(Some(sid)),
        _ => Err(Code::IdentityRevoked.into()),
    }
}
