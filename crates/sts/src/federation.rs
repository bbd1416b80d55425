//! Federation: a user's ID token for a session mandate that says who the user is, and nothing else
//! (spec: sts §7).
//!
//! [`federate`] is the order. No policy is asked and no mint is charged: nothing is granted yet.
//! The record is committed and the evidence durable before the answer leaves.

use caracal_authority::decide::Grant;
use caracal_authority::{FederatedSubject, Federation};
use caracal_crypto::TokenError;
use caracal_crypto::foreign::ForeignJws;
use caracal_ledger::Event;
use caracal_model::limits::LEEWAY;
use caracal_model::{EventId, Mandate, Refusal, Refused, RequestId, Timestamp};
use caracal_view::{IssuerRow, Seen};
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};

use crate::authenticate::{Caller, in_zone, invalid as unknown_caller, unavailable};
use crate::events::EXCHANGE;
use crate::exchange::{Issued, keep_record, record};
use crate::form::TokenRequest;
use crate::patience::Patience;
use crate::{Sts, actor, sign};

/// What decides, in evidence.
const RULE: &str = "caracal-subject-federation";

/// Why there is no mandate, as evidence tells it.
enum Failed {
    /// The request may not be made like that.
    Rejected(Refused),
    /// The ID token proves nothing here.
    Invalid(Refused),
    /// An outage, or our fault.
    Ours(Refused),
}

impl Failed {
    fn parts(self) -> (&'static str, Refused) {
        match self {
            Self::Rejected(refused) => ("subject_federation_rejected", refused),
            Self::Invalid(refused) => ("subject_federation_invalid", refused),
            Self::Ours(refused) => ("exchange_denied", refused),
        }
    }
}

/// Exchanges an ID token.
///
/// # Errors
/// What the caller is told; its evidence is written.
pub async fn federate(
    sts: &Sts,
    form: &TokenRequest,
    token: &str,
    caller: &Caller,
    seen: Seen,
    request_id: &RequestId,
    patience: Patience,
) -> Result<Issued, Refused> {
    let mut trail = Trail {
        sts,
        caller,
        seen,
        request_id,
        patience,
        issuer: None,
    };
    match decided(sts, form, token, caller, &mut trail).await {
        Ok(issued) => {
            record(sts, vec![trail.allowed(&issued.mandate)]).await?;
            Ok(issued)
        }
        Err(failed) => {
            let (status, refused) = failed.parts();
            record(sts, vec![trail.denied(status, &refused)]).await?;
            Err(refused)
        }
    }
}

async fn decided<'c>(
    sts: &Sts,
    form: &TokenRequest,
    token: &str,
    caller: &'c Caller,
    trail: &mut Trail<'c>,
) -> Result<Issued, Failed> {
    let federation = Federation {
        zone: &caller.zone.id,
        application: &caller.application.id,
        ttl_seconds: form.ttl_seconds.unwrap_or(0),
        max_grant_ttl_seconds: sts.config.max_grant_ttl,
    };
    nothing_else(form).map_err(Failed::Rejected)?;
    federation.check_ttl().map_err(Failed::Rejected)?;

    let (claims, issuer) = proven(sts, token, caller, trail).await?;
    let now = sts.clock.now();
    claims.check(issuer, now).map_err(invalid)?;
    let subject = FederatedSubject::parse(&claims.sub).map_err(|why| invalid(why.to_string()))?;
    let grant = federation.grant(subject, now).map_err(Failed::Rejected)?;
    let issued = issue(sts, caller, trail.request_id, &grant, issuer, now);
    let issued = issued.await.map_err(Failed::Ours)?;
    still_stands(trail, issuer, &issued.mandate).await?;
    Ok(issued)
}

/// What a federation was decided on is looked at once more before its token leaves (see
/// [`anew`](crate::anew)): the application, the issuer, and whether the user was cut off.
async fn still_stands(
    trail: &Trail<'_>,
    issuer: &IssuerRow,
    mandate: &Mandate,
) -> Result<(), Failed> {
    let (sts, caller) = (trail.sts, trail.caller);
    #[cfg(test)]
    sts.interlude.pass().await;
    if sts.views.stands_since(&caller.zone.id, trail.seen) {
        return Ok(());
    }
    let now = in_zone(sts, &caller.zone.id, &caller.application.id).await;
    let now = now.map_err(Failed::Ours)?;
    let now = now.ok_or_else(|| Failed::Rejected(unknown_caller()))?;
    let issuers = &now.zone.subject_issuers;
    if !issuers
        .get(&issuer.issuer)
        .is_some_and(|now| **now == *issuer)
    {
        return Err(invalid("its issuer is not trusted in this zone any more"));
    }
    let revoked = sts.views.mandate_revoked(mandate).await;
    match revoked.map_err(|error| Failed::Ours(unavailable(&error)))? {
        None => Ok(()),
        Some(_) => {
            let why = "what was issued to this user up to now has been revoked";
            Err(Failed::Rejected(Refusal::AccessDenied.because(why)))
        }
    }
}

/// A federation names no authority: what the published product would ignore it refuses.
fn nothing_else(form: &TokenRequest) -> Result<(), Refused> {
    let sent = [
        ("resource", !form.resources.is_empty()),
        ("scope", !form.scope.is_empty()),
        ("session_id", form.session_id.is_some()),
        ("agent_session_id", form.agent_session_id.is_some()),
        ("delegation_edge_id", form.delegation_edge_id.is_some()),
        ("approval_id", form.approval_id.is_some()),
    ];
    if form.actor.is_some() {
        return Err(actor::unsupported());
    }
    match sent.iter().find(|(_, is_sent)| *is_sent) {
        None => Ok(()),
        Some((name, _)) => {
            let why = format!("{name} does not go with an id_token: leave it out");
            Err(Refusal::BadRequest.because(why))
        }
    }
}

fn invalid(why: impl std::fmt::Display) -> Failed {
    Failed::Invalid(Refusal::TokenInvalid.because(format!("invalid subject_token: {why}")))
}

fn unusable(error: TokenError) -> Failed {
    invalid(match error {
        TokenError::Algorithm => {
            "it must be a JWT signed with RS256, RS384, RS512, ES256, ES384 or ES512"
        }
        TokenError::NoKid => "its header names no key (kid)",
        TokenError::WrongKey => "its issuer publishes no such key",
        TokenError::Signature => "its signature is wrong",
        TokenError::TooLong => "it is longer than 32 KiB",
        TokenError::Malformed => "it is not a signed JWT",
    })
}

/// The claims of a token that a trusted issuer signed.
async fn proven<'c>(
    sts: &Sts,
    token: &str,
    caller: &'c Caller,
    trail: &mut Trail<'c>,
) -> Result<(Claims, &'c IssuerRow), Failed> {
    let jws = ForeignJws::parse(token).map_err(unusable)?;
    let claims = Claims::read(jws.payload());
    let claims = claims.ok_or_else(|| invalid("its claims must hold iss, sub, aud and exp"))?;
    let issuer = caller.zone.subject_issuers.get(&claims.iss);
    let issuer = issuer
        .map(AsRef::as_ref)
        .ok_or_else(|| invalid("its issuer is not trusted in this zone"))?;
    trail.issuer = Some(issuer);
    let within = trail.patience.left(sts.clock.as_ref());
    let keys = sts.issuers.with(issuer, jws.kid(), within).await;
    let keys = keys.map_err(Failed::Ours)?;
    let keys = keys.ok_or_else(|| unusable(TokenError::WrongKey))?;
    jws.verify(&keys).map_err(unusable)?;
    Ok((claims, issuer))
}

/// What is read of an ID token.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: Number,
    iat: Option<Number>,
    nbf: Option<Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn holds(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

impl Claims {
    fn read(json: &[u8]) -> Option<Self> {
        // Derived readers also take an array of the values, which is no set of claims.
        let object = json.trim_ascii_start().first() == Some(&b'{');
        object.then(|| serde_json::from_slice(json).ok()).flatten()
    }

    /// For whom, and when. Times may have fractions (RFC 7519 section 2).
    fn check(&self, issuer: &IssuerRow, now: Timestamp) -> Result<(), &'static str> {
        let at = |number: &Number| number.as_f64().and_then(seconds);
        let expires = at(&self.exp).ok_or("its exp is no time")?;
        let begins = [&self.iat, &self.nbf].into_iter().flatten();
        if !self.aud.holds(&issuer.audience) {
            return Err("it is meant for another audience");
        }
        if expires.plus(LEEWAY) <= now {
            return Err("it has expired");
        }
        for begin in begins {
            if at(begin).ok_or("its iat or nbf is no time")? > now.plus(LEEWAY) {
                return Err("it is not valid yet");
            }
        }
        Ok(())
    }
}

/// A time of a token; `None` for what no clock will ever show.
fn seconds(at: f64) -> Option<Timestamp> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "within the bounds, which fit, and fractions do not matter"
    )]
    let whole = at as i64;
    (0.0..=1e11)
        .contains(&at)
        .then(|| Timestamp::from_unix_seconds(whole))
}

async fn issue(
    sts: &Sts,
    caller: &Caller,
    request_id: &RequestId,
    grant: &Grant,
    issuer: &IssuerRow,
    now: Timestamp,
) -> Result<Issued, Refused> {
    let mandate = sign::mandate(sts, grant);
    let token = sign::sign(sts, &caller.zone, &mandate)?;
    keep_record(sts, request_id, &mandate, Some(&issuer.issuer), now).await?;
    Ok(Issued { token, mandate })
}

/// One federation, and its evidence. It names the issuer and never the user.
struct Trail<'a> {
    sts: &'a Sts,
    caller: &'a Caller,
    /// What memory was like before the caller was read.
    seen: Seen,
    request_id: &'a RequestId,
    patience: Patience,
    issuer: Option<&'a IssuerRow>,
}

impl Trail<'_> {
    fn allowed(&self, issued: &Mandate) -> Event {
        let mut metadata = self.metadata();
        metadata.insert("issued_record_id".to_owned(), issued.sid.as_str().into());
        metadata.insert("issued_jti".to_owned(), issued.jti.as_str().into());
        metadata.insert("issued_use".to_owned(), json!(issued.token_use));
        self.event("allow", "complete")
            .determined_by(&[RULE.to_owned()])
            .metadata(metadata)
    }

    fn denied(&self, status: &'static str, refused: &Refused) -> Event {
        let mut metadata = self.metadata();
        metadata.insert("reason".to_owned(), refused.description.to_string().into());
        self.event("deny", status).metadata(metadata)
    }

    fn event(&self, decision: &'static str, status: &'static str) -> Event {
        let (sts, zone) = (self.sts, self.caller.zone.id.clone());
        let id = EventId::trusted(sts.ids.uuid());
        let request = self.request_id.as_str();
        Event::new(
            id,
            zone,
            EXCHANGE,
            request,
            decision,
            status,
            sts.clock.now(),
        )
    }

    fn metadata(&self) -> Map<String, Value> {
        let application = &self.caller.application;
        let mut metadata = Map::new();
        let mut put = |name: &str, value: Value| {
            metadata.insert(name.to_owned(), value);
        };
        put("application_id", application.id.as_str().into());
        put("application_name", (*application.name).into());
        let method = &*application.registration_method;
        put("application_registration_method", method.into());
        put("requested_scopes", json!([]));
        for name in ["session_id", "agent_session_id", "delegation_edge_id"] {
            put(name, "".into());
        }
        put("subject_kind", "user".into());
        if let Some(issuer) = self.issuer {
            put("federated_user_issuer", issuer.issuer.as_str().into());
        }
        metadata
    }
}
