//! The exchange of one call (spec: sts §2.3 class Gateway, §5; gateway §9): from a gateway mandate
//! to an upstream directive.
//!
//! In one process the Gateway calls [`Sts::exchange`] with the mandate that it verified. Across
//! processes it signs an HTTP request; [`proven`] and [`verified`] establish here what the other
//! process established there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use caracal_authority::decide;
use caracal_authority::decide::{Class, ExchangeRequest, Grant, Outcome, RequestedResource};
use caracal_client::{Exchange, ExchangeRefused, GatewayExchange, GatewayGrant};
use caracal_crypto::digest::{hex_decode_array, sha256};
use caracal_crypto::es256::Jws;
use caracal_crypto::mac::GatewaySignature;
use caracal_model::limits::LEEWAY;
use caracal_model::{Mandate, Refusal, Refused, RequestId, Timestamp, TokenUse};
use caracal_net::trace::{Callee, called};
use caracal_view::{Provider, Resource, Seen, ZoneView};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::anew::{self, Basis};
use crate::authenticate::{Caller, unavailable};
use crate::credential::{self, AtHand, Obtained};
use crate::directive::{directive, wants_mandate};
use crate::events::Trail;
use crate::exchange::{CAME_TO_NOTHING, Early, denied, facts, find, record, still};
use crate::known::{Gathered, Presented};
use crate::patience::Patience;
use crate::rate::over_rate;
use crate::{EXCHANGE, Sts, late, sign};

/// Unix seconds of the signature.
pub const TIMESTAMP: &str = "x-caracal-gateway-timestamp";
/// Its nonce.
pub const NONCE: &str = "x-caracal-gateway-request";
/// The signature itself, hex.
pub const SIGNATURE: &str = "x-caracal-gateway-signature";
/// SHA-256 of a body that has yet to be read, hex.
pub const BODY_SHA256: &str = "x-caracal-gateway-body-sha256";
/// How far the clocks of Gateway and STS may be apart, in seconds.
const MAX_SKEW: i64 = 60;
/// How long a nonce is remembered: longer than a signature can be in time.
const NONCE_MEMORY: Duration = Duration::from_secs(120);

/// `evaluation_status` of what policy allows while the provider gives no credential for it.
const NO_CREDENTIAL: &str = "provider_credential_unavailable";

/// Whether a request claims to come from the Gateway: any of its headers is enough.
pub fn claims_gateway(headers: &HeaderMap) -> bool {
    [TIMESTAMP, NONCE, SIGNATURE]
        .iter()
        .any(|name| headers.contains_key(*name))
}

fn bad_signature() -> Refused {
    Refusal::GatewaySignature.because("invalid gateway exchange signature")
}

/// Whether a request carries a signature that could be checked, before its body is read.
///
/// # Errors
/// 401 `access_denied`.
pub fn has_signature(sts: &Sts, headers: &HeaderMap) -> Result<(), Refused> {
    let complete = [TIMESTAMP, NONCE, SIGNATURE]
        .iter()
        .all(|name| headers.contains_key(*name));
    if complete && sts.gateway_key.is_some() {
        Ok(())
    } else {
        Err(bad_signature())
    }
}

/// The value of a header that stands there once.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    value.to_str().ok()
}

/// The digest of the body that a request announces; `None` when it announces none.
///
/// # Errors
/// 401 `access_denied` when there is one that does not read.
pub fn announced(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Refused> {
    if !headers.contains_key(BODY_SHA256) {
        return Ok(None);
    }
    let digest = one(headers, BODY_SHA256).and_then(hex_decode_array);
    digest.map(Some).ok_or_else(bad_signature)
}

/// A body is what its request announced.
///
/// # Errors
/// 401 `access_denied`.
pub fn as_announced(announced: [u8; 32], body: &[u8]) -> Result<(), Refused> {
    // Nothing secret is compared: the caller named the digest.
    if sha256(body) == announced {
        Ok(())
    } else {
        Err(bad_signature())
    }
}

/// Proves that our Gateway (or API) signed a body of this digest, now and for the first time.
///
/// # Errors
/// 401 `access_denied`; 503 when the nonce cannot be recorded.
pub async fn proven(
    sts: &Sts,
    headers: &HeaderMap,
    method: &str,
    path: &str,
    body_sha256: [u8; 32],
) -> Result<(), Refused> {
    let one = |name| one(headers, name);
    let (Some(timestamp), Some(nonce), Some(signature), Some(key)) =
        (one(TIMESTAMP), one(NONCE), one(SIGNATURE), &sts.gateway_key)
    else {
        return Err(bad_signature());
    };
    let at: i64 = timestamp.parse().map_err(|_| bad_signature())?;
    let in_time = (sts.clock.now().unix_seconds() - at).abs() <= MAX_SKEW;
    let fits = (1..=128).contains(&nonce.len());
    let signed = GatewaySignature {
        timestamp: at,
        nonce,
        method,
        path,
        body_sha256,
    };
    if !in_time || !fits || !signed.verify(key, signature) {
        return Err(bad_signature());
    }
    let key = format!("caracal:sts:gw-nonce:{nonce}");
    match sts.bus.claim(&key, NONCE_MEMORY).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(bad_signature()),
        Err(error) => {
            tracing::warn!(%error, "denied: the nonce of an exchange cannot be recorded");
            let why = "replay state is unavailable, try again shortly";
            Err(Refusal::Unavailable.because(why).retry_after(1))
        }
    }
}

fn bad_token() -> Refused {
    Refusal::TokenInvalid.because("invalid subject_token")
}

/// Verifies a mandate that is presented as subject token.
///
/// # Errors
/// 401 `invalid_token`.
pub fn verified(
    sts: &Sts,
    token: &str,
    zone: &ZoneView,
    token_use: TokenUse,
) -> Result<Mandate, Refused> {
    verified_as(sts, token, zone, token_use).ok_or_else(bad_token)
}

/// The claims of a mandate of this zone, of this use and in time; `None` for anything else.
pub fn verified_as(
    sts: &Sts,
    token: &str,
    zone: &ZoneView,
    token_use: TokenUse,
) -> Option<Mandate> {
    let jws = Jws::parse(token).ok()?;
    jws.verify(zone.keys.verify.get(jws.kid())?).ok()?;
    let mandate: Mandate = serde_json::from_slice(jws.payload()).ok()?;
    let now = sts.clock.now();
    let ours = mandate.iss == sts.config.issuer
        && mandate.aud.contains(&sts.config.issuer)
        && mandate.zone_id == zone.id
        && mandate.token_use == token_use;
    let in_time = Timestamp::from_unix_seconds(mandate.exp) > now
        && Timestamp::from_unix_seconds(mandate.iat) <= now.plus(LEEWAY);
    (ours && in_time).then_some(mandate)
}

/// What the Gateway gets, and the resource mandate when one was asked for.
pub struct Granted {
    /// What the Gateway gets.
    pub grant: GatewayGrant,
    /// The claims of its resource mandate.
    pub mandate: Option<Mandate>,
}

#[async_trait]
impl Exchange for Sts {
    async fn exchange(&self, call: GatewayExchange<'_>) -> Result<GatewayGrant, ExchangeRefused> {
        let _exchanging = self.metrics.exchanging();
        let callee = Callee {
            service: "sts",
            route: EXCHANGE,
            ids: &self.ids,
            clock: self.clock.as_ref(),
        };
        let patience = Patience::of_gateway(self.clock.as_ref(), call.within);
        let exchanged = late::in_time(self, call.request_id, patience.whole(), async {
            let exchanged = Box::pin(exchange(self, call, false, patience)).await;
            exchanged.map_err(ExchangeRefused::from)
        });
        let status = |exchanged: &Result<_, ExchangeRefused>| {
            let refused = exchanged.as_ref().err();
            refused.map_or(StatusCode::OK, ExchangeRefused::status)
        };
        match called(callee, exchanged, status).await {
            Ok(granted) => {
                self.metrics.minted();
                Ok(granted.grant)
            }
            Err(refused) => {
                self.metrics.refused(refused.error(), refused.status());
                Err(refused)
            }
        }
    }

    async fn healthy(&self) -> bool {
        true
    }
}

/// Exchanges one verified mandate. With `always_sign` a resource mandate is signed even when the
/// upstream does not receive one: the wire form requires a token.
///
/// # Errors
/// What the caller of the Gateway is told; its evidence is written.
pub async fn exchange(
    sts: &Sts,
    call: GatewayExchange<'_>,
    always_sign: bool,
    patience: Patience,
) -> Result<Granted, Refused> {
    let mut obtained = None;
    // A credential that has to be obtained takes time in which everything may change. Once it is
    // here (or is known not to be had), the call is decided from the start.
    let mut came_to = anew::unsettled();
    for _ in 0..anew::TRIES {
        let seen = sts.views.seen(&call.mandate.zone_id);
        let caller = established(sts, call).await?;
        let deciding = decided(sts, call, &caller, seen, always_sign, obtained.take());
        match Box::pin(deciding).await {
            Ok(Passage::Granted(granted)) => return Ok(*granted),
            Ok(Passage::Wants(provider, subject)) => {
                let zone = &caller.zone.id;
                let obtaining = credential::obtain(sts, zone, &provider, &subject, patience);
                obtained = Some(obtaining.await);
                came_to = credential::unavailable();
            }
            Ok(Passage::Overtaken) => came_to = anew::unsettled(),
            Err(early) => return Err(early.settle(sts, &caller, call.request_id).await?),
        }
    }
    let caller = established(sts, call).await?;
    let early = Early::from(came_to);
    Err(early.settle(sts, &caller, call.request_id).await?)
}

/// What a decision comes to.
enum Passage {
    /// A grant, its evidence written.
    Granted(Box<Granted>),
    /// Nothing yet: the credential of this provider has to be obtained first, for this subject.
    Wants(Arc<Provider>, String),
    /// Nothing: what it was decided on changed meanwhile.
    Overtaken,
}

/// The zone and the application that the mandate names.
async fn established(sts: &Sts, call: GatewayExchange<'_>) -> Result<Caller, Refused> {
    let mandate = call.mandate;
    still(sts, &mandate.zone_id, &mandate.client_id, call.request_id).await
}

async fn decided(
    sts: &Sts,
    call: GatewayExchange<'_>,
    caller: &Caller,
    seen: Seen,
    always_sign: bool,
    obtained: Option<Obtained>,
) -> Result<Passage, Early> {
    let mandate = call.mandate;
    not_revoked(sts, mandate).await?;
    let found = find(&caller.zone, call.resource);
    let (session, delegation) = (&mandate.agent_session_id, &mandate.delegation_edge_id);
    let presented = Presented {
        record: None,
        actor: None,
        session: session.as_ref(),
        delegation: delegation.as_ref(),
    };
    let zone = &caller.zone;
    let gathered = Gathered::gather(sts, &zone.id, presented).await?;
    let basis = Basis {
        seen,
        zone,
        presented,
        gathered: &gathered,
        mandates: [Some(mandate), None],
    };
    let (at_hand, subject) = match &found {
        Some(resource) => {
            let provider = &resource.provider;
            let subject = account(sts, provider, &gathered, mandate);
            let at_hand = credential::at_hand(sts, &zone.id, provider, subject, obtained).await?;
            (at_hand, subject)
        }
        None => (AtHand::NotNeeded, &*mandate.sub),
    };
    let wants = |of: &Resource| Passage::Wants(Arc::clone(&of.provider), subject.to_owned());
    if let (AtHand::Due, Some(resource)) = (&at_hand, &found) {
        return Ok(wants(resource));
    }
    let request = ExchangeRequest {
        class: Class::Gateway {
            presented: mandate,
            method: call.method,
            path: call.path,
        },
        zone: &zone.id,
        request_id: call.request_id,
        application: &caller.application.id,
        registration_method: &caller.application.registration_method,
        scope: "",
        ttl_seconds: 0,
        session_id: None,
        agent_session_id: None,
        delegation_edge_id: None,
        actor: None,
    };
    let rate_limited = match found.as_deref() {
        Some(resource) if sts.config.charge_exchanges => over_rate(sts, caller, resource).await?,
        _ => None,
    };
    let resources = [RequestedResource {
        requested: call.resource,
        found: found.as_deref().map(|resource| &resource.facts),
        rate_limited,
        credential_fault: at_hand.fault(),
    }];
    let now = sts.clock.now();
    let since = sts.clock.ticks();
    let decision = decide(
        &request,
        &facts(sts, &gathered, &resources),
        &zone.policy,
        now,
    );
    let took = sts.clock.ticks().since(since);
    sts.metrics.stages.policy.took(took);
    let trail = Trail {
        request,
        application: &caller.application,
        session: gathered.session(session.as_ref()),
        policy: &zone.policy,
        now,
    };
    let granted = match (&decision.outcome, found.as_deref()) {
        (Outcome::Grant(grant), Some(resource)) => {
            if matches!(at_hand, AtHand::Fetch) {
                return Ok(wants(resource));
            }
            match grant_call(sts, zone, grant, resource, at_hand, always_sign) {
                Ok(granted) => granted,
                // It was allowed, and comes to nothing: so says the evidence of the resource.
                Err(refused) => {
                    let status = match refused.refusal {
                        Refusal::ProviderCredential => NO_CREDENTIAL,
                        _ => CAME_TO_NOTHING,
                    };
                    return Err(denied(sts, &trail, &decision.withheld(status, refused)).await);
                }
            }
        }
        (Outcome::Grant(_) | Outcome::Hold(_), _) => return Err(bad_token().into()),
        (Outcome::Deny(_), _) => return Err(denied(sts, &trail, &decision).await),
    };
    if !basis.stands(sts, None).await? {
        return Ok(Passage::Overtaken);
    }
    let events = trail.events(sts, &decision, granted.mandate.as_ref());
    record(sts, events).await.map_err(Early::Recorded)?;
    Ok(Passage::Granted(Box::new(granted)))
}

/// Whose account at the provider a call uses (spec: sts §6.3, §20.10): that of the mandate's
/// subject, which is the application; where the provider's config has `session_user_connection`,
/// that of the user for whom the Session was started, whose record a federation made.
fn account<'a>(
    sts: &Sts,
    provider: &Provider,
    gathered: &'a Gathered,
    mandate: &'a Mandate,
) -> &'a str {
    let by_user = provider.config.get("session_user_connection") == Some(&Value::Bool(true));
    let session = mandate.agent_session_id.as_ref().filter(|_| by_user);
    let user = session.and_then(|session| gathered.user_of(session, sts.clock.now()));
    user.unwrap_or(&mandate.sub)
}

fn grant_call(
    sts: &Sts,
    zone: &ZoneView,
    grant: &Grant,
    resource: &Resource,
    at_hand: AtHand,
    always_sign: bool,
) -> Result<Granted, Refused> {
    let directive = directive(resource, at_hand)?;
    if directive.url.is_empty() {
        return Err(Refusal::AccessDenied.because("resource upstream not configured"));
    }
    let wanted = always_sign || wants_mandate(&directive);
    let mandate = wanted.then(|| sign::mandate(sts, grant));
    let access_token = mandate
        .as_ref()
        .map(|mandate| sign::sign(sts, zone, mandate))
        .transpose()?;
    let expires_in = grant.expires_in();
    Ok(Granted {
        grant: GatewayGrant {
            directive,
            expires_in,
            access_token,
        },
        mandate,
    })
}

/// A gateway mandate has no row: it stands on its signature unless one of its anchors was revoked
/// (spec: sts §20.2).
async fn not_revoked(sts: &Sts, mandate: &Mandate) -> Result<(), Refused> {
    let revoked = sts.views.mandate_revoked(mandate).await;
    match revoked.map_err(|error| unavailable(&error))? {
        None => Ok(()),
        Some(_) => Err(Refusal::Revoked.because("session revoked")),
    }
}

/// The request id that the Gateway named in the form must be that of the request.
///
/// # Errors
/// 401 `access_denied`.
pub fn same_request(named: &str, id: &RequestId) -> Result<(), Refused> {
    if named == id.as_str() {
        Ok(())
    } else {
        Err(bad_signature())
    }
}
