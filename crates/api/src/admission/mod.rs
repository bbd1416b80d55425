//! Who may do what, before anything of the request but its head is read (spec: admin-api §4.3).
//!
//! [`admit`] is the order of the checks; each step takes what it needs and returns what it has
//! established. The handler behind it finds the [`Actor`] in the extensions of the request.

mod account;
mod actor;
mod limits;
mod target;
mod tokens;
mod zone_facts;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use caracal_trail::Draft;
use http::{HeaderMap, header};

#[cfg(test)]
pub use account::assertion;
pub use actor::{Actor, Capability, Scope};
pub use limits::Windows;
pub use target::Target;
pub use tokens::Tokens;
pub use zone_facts::ZoneCache;

use crate::failure::Failure;
use crate::service::Api;
use crate::wire;

/// What admission reads of a request.
#[derive(Debug)]
pub struct Head<'r> {
    ip: IpAddr,
    headers: &'r HeaderMap,
    target: Target,
    draft: Option<&'r Draft>,
}

impl<'r> Head<'r> {
    /// The head of a request.
    pub fn of(api: &Api, request: &'r Request) -> Self {
        Self {
            ip: wire::client_ip(request, api.config.trust_proxy),
            headers: request.headers(),
            target: Target::of(request.method(), request.uri().path()),
            draft: request.extensions().get::<Arc<Draft>>().map(AsRef::as_ref),
        }
    }
}

/// Lets a request through to its handler, with its actor, or refuses it.
pub async fn admit(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let head = Head::of(&api, &request);
    match Box::pin(check(&api, &head)).await {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

/// For the one route under `/v1/` that asks for no token.
pub async fn by_address(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let ip = wire::client_ip(&request, api.config.trust_proxy);
    match api.limits.v1_by_ip.count(&ip.to_string()) {
        Ok(()) => next.run(request).await,
        Err(seconds) => Failure::rate_limited(seconds).into_response(),
    }
}

/// The checks, in order; answers with who was admitted.
///
/// # Errors
/// The first refusal.
pub async fn check(api: &Api, head: &Head<'_>) -> Result<Arc<Actor>, Failure> {
    let Head { ip, headers, .. } = head;
    api.limits
        .v1_by_ip
        .count(&ip.to_string())
        .map_err(Failure::rate_limited)?;
    let actor = authenticate(api, *ip, headers).await?;
    let admitted = Box::pin(may(api, Arc::clone(&actor), head)).await;
    // Whoever is known is on record with what it was refused, too.
    if let Some(draft) = head.draft {
        draft.by(admitted.as_ref().unwrap_or(&actor).as_recorded());
    }
    admitted
}

/// What a known caller may do; answers with the caller and the account that it acts for.
async fn may(api: &Api, actor: Arc<Actor>, head: &Head<'_>) -> Result<Arc<Actor>, Failure> {
    let Head {
        headers, target, ..
    } = head;
    has_capability(&actor, target)?;
    stays_in_its_zone(&actor, target)?;
    leaves_reserved_zones_alone(api, &actor, target).await?;
    let actor = act_for_account(api, actor, target, headers).await?;
    api.limits
        .v1_by_actor
        .count(&actor.id)
        .map_err(Failure::rate_limited)?;
    Ok(actor)
}

async fn authenticate(api: &Api, ip: IpAddr, headers: &HeaderMap) -> Result<Arc<Actor>, Failure> {
    let found = match bearer(headers) {
        Some(token) => api.tokens.actor_of(api, token).await?,
        None => None,
    };
    if let Some(actor) = found {
        return Ok(actor);
    }
    api.limits
        .auth_failures
        .count(&ip.to_string())
        .map_err(Failure::rate_limited)?;
    Err(Failure::unauthenticated(
        "invalid_admin_token",
        "send a live admin token as Authorization: Bearer",
    ))
}

/// The token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    let token = value.strip_prefix("Bearer ")?.trim();
    (values.next().is_none() && (1..=4096).contains(&token.len())).then_some(token)
}

fn has_capability(actor: &Actor, target: &Target) -> Result<(), Failure> {
    match actor.capability {
        Capability::Read if !target.is_read => Err(Failure::forbidden(
            "admin_token_read_only",
            "this token can only read; use one with capability write",
        )),
        Capability::Approve if !target.is_read && !target.is_decision => Err(Failure::forbidden(
            "admin_token_approve_only",
            "this token can only read and decide approvals; use one with capability write",
        )),
        Capability::Write if target.is_decision && !actor.is_bootstrap() => {
            Err(Failure::forbidden(
                "approve_capability_required",
                "approvals are decided with a token of capability approve",
            ))
        }
        _ => Ok(()),
    }
}

fn stays_in_its_zone(actor: &Actor, target: &Target) -> Result<(), Failure> {
    let Scope::Zone(own) = &actor.scope else {
        return Ok(());
    };
    let is_own = match &target.zone {
        Some(zone) => zone == own.as_str(),
        None => target.is_for_any_zone,
    };
    if is_own {
        return Ok(());
    }
    Err(Failure::forbidden(
        "admin_token_zone_mismatch",
        "this token belongs to another zone, or the route needs a global token",
    ))
}

async fn leaves_reserved_zones_alone(
    api: &Api,
    actor: &Actor,
    target: &Target,
) -> Result<(), Failure> {
    let Some(zone) = target
        .zone
        .as_deref()
        .filter(|_| !target.is_read && !actor.is_bootstrap())
    else {
        return Ok(());
    };
    if api
        .zones
        .facts(api, zone)
        .await?
        .is_some_and(|facts| facts.reserved)
    {
        return Err(Failure::forbidden(
            "system_zone_read_only",
            "this zone is kept by the platform and can only be read",
        ));
    }
    Ok(())
}

/// A token that the console derives acts for the account that the console vouches for.
async fn act_for_account(
    api: &Api,
    actor: Arc<Actor>,
    target: &Target,
    headers: &HeaderMap,
) -> Result<Arc<Actor>, Failure> {
    if !actor.is_derived() {
        return Ok(actor);
    }
    let now = api.clock.now();
    // Where the deployment names no token, nobody can vouch for an account.
    let secret = api.config.admin_token.as_ref();
    let account = secret.and_then(|secret| account::verify(secret, headers, now));
    let account = account.ok_or_else(|| {
        Failure::unauthenticated(
            "invalid_account_assertion",
            "x-caracal-account must be a current assertion of the console",
        )
    })?;
    match &target.zone {
        Some(zone) => {
            let facts = api.zones.facts(api, zone).await?;
            let may = facts.is_some_and(|facts| {
                facts.owner.as_deref() == Some(account.as_str())
                    || (facts.reserved && target.is_read)
            });
            if !may {
                return Err(Failure::forbidden(
                    "zone_forbidden",
                    "the account does not own this zone",
                ));
            }
        }
        None if target.is_for_accounts => {}
        None => {
            return Err(Failure::forbidden(
                "account_scope_required",
                "this route is not for console accounts; use a token of your own",
            ));
        }
    }
    Ok(Arc::new(actor.for_account(account)))
}
