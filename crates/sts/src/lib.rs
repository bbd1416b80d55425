//! The STS: turns proven identity into scoped, short-lived authority (RFC 8693 token exchange).
//!
//! [`router`] serves it over HTTP; [`Sts`] itself is an [`caracal_client::Exchange`], so that a
//! Gateway in the same process asks it by a function call.

mod actor;
mod anew;
mod approval;
mod authenticate;
mod catalogue;
mod config;
mod control;
pub mod credential;
mod directive;
mod events;
mod exchange;
mod federation;
pub mod form;
mod gateway;
mod guesses;
mod http;
mod internal;
mod issuers;
mod jwks;
mod known;
mod late;
mod leases;
mod lockout;
mod metrics;
mod patience;
mod poll;
mod rate;
mod registry;
mod rotate;
mod run;
mod secrets;
mod sign;

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use caracal_bus::Bus;
use caracal_crypto::envelope::Keyring;
use caracal_crypto::mac::HmacKey;
use caracal_evidence::EvidenceLog;
use caracal_model::{Clock, Ids, Rng};
use caracal_net::egress::Fetcher;
use caracal_net::health::Budget;
use caracal_net::metrics::{Access, Registry};
use caracal_net::{Pattern, RequestIds, Tasks, health, request_id};
use caracal_store::Store;
use caracal_view::{Announce, Views};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub use catalogue::CATALOGUE;
pub use config::Config;

#[cfg(test)]
mod tests;

/// Keys the verifiers of generated client secrets (README decision 22).
pub const CLIENT_SECRETS: &str = "caracal/client-secrets";
/// Where tokens are asked for.
const EXCHANGE: &str = "/oauth/2/token";
/// What all checks of `/ready` may take together.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// What the STS works with; `main` hands it over.
pub struct Deps {
    /// The system of record.
    pub store: Store,
    /// Claims and counters.
    pub bus: Bus,
    /// What the hot path reads; made with the keyring, so that it can sign.
    pub views: Views,
    /// Tells the replicas of a committed change.
    pub announce: Arc<dyn Announce>,
    /// Where decisions are recorded before they are told.
    pub evidence: EvidenceLog,
    /// Opens zone keys and derives the pepper of client secrets.
    pub keyring: Arc<Keyring>,
    /// Asks token endpoints and issuers.
    pub fetch: Fetcher,
    /// Authenticates the Gateway's exchanges; without it none can be made over HTTP.
    pub gateway_key: Option<HmacKey>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
    /// Ids above the boot floor.
    pub ids: Arc<Ids>,
    /// Owns what goes on when nobody waits for it any more.
    pub tasks: Tasks,
}

/// The service.
pub struct Sts {
    /// Itself, for what outlasts a request.
    me: Weak<Self>,
    config: Config,
    store: Store,
    bus: Bus,
    views: Views,
    announce: Arc<dyn Announce>,
    evidence: EvidenceLog,
    keyring: Arc<Keyring>,
    fetch: Fetcher,
    gateway_key: Option<HmacKey>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    ids: Arc<Ids>,
    tasks: Tasks,
    secrets: secrets::Secrets,
    service_tokens: credential::ServiceTokens,
    issuers: issuers::IssuerKeys,
    lockout: lockout::Lockout,
    waiters: approval::Waiters,
    guesses: guesses::Guesses,
    rate: rate::MintRate,
    #[cfg(test)]
    interlude: anew::Interlude,
    metrics: metrics::Metrics,
    registry: Registry,
}

impl Sts {
    /// The service with these settings.
    pub fn new(config: Config, deps: Deps) -> Arc<Self> {
        let keys = Arc::new(deps.fetch.clone());
        Self::with_keys(config, deps, keys)
    }

    /// The service, taking the keys of trusted issuers from there.
    fn with_keys(config: Config, deps: Deps, keys: Arc<dyn issuers::KeySource>) -> Arc<Self> {
        let issuer_clock = Arc::clone(&deps.clock);
        let registry = Registry::new(&CATALOGUE, Arc::clone(&deps.clock));
        let pepper = deps.keyring.derive(CLIENT_SECRETS);
        let previous = deps.keyring.derive_previous(CLIENT_SECRETS);
        let clock = Arc::clone(&deps.clock);
        let concurrency = config.secret_verify_concurrency;
        let rng = deps.rng.as_ref();
        let secrets = secrets::Secrets::new(pepper, previous, concurrency, clock, rng);
        let observed = metrics::Observed {
            evidence: &deps.evidence,
            store: &deps.store,
            bus: &deps.bus,
            views: &deps.views,
            clock: &deps.clock,
            policy_poll: Duration::from_secs(config.policy_poll_seconds),
        };
        let metrics = metrics::Metrics::new(&registry, &observed);
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            store: deps.store,
            bus: deps.bus,
            views: deps.views,
            announce: deps.announce,
            evidence: deps.evidence,
            keyring: deps.keyring,
            fetch: deps.fetch,
            gateway_key: deps.gateway_key,
            clock: deps.clock,
            rng: deps.rng,
            ids: deps.ids,
            tasks: deps.tasks,
            secrets,
            service_tokens: credential::ServiceTokens::default(),
            issuers: issuers::IssuerKeys::new(keys, issuer_clock),
            lockout: lockout::Lockout::default(),
            waiters: approval::Waiters::default(),
            guesses: guesses::guesses(),
            rate: rate::MintRate::at_most(config.mint_rate),
            #[cfg(test)]
            interlude: anew::Interlude::default(),
            metrics,
            registry,
            config,
        })
    }

    /// The first reason why no traffic should come here (spec: operations §5).
    async fn readiness(&self) -> Result<(), &'static str> {
        let budget = Budget::of(READY_WITHIN, self.clock.as_ref());
        budget
            .ask("postgres_unreachable", self.store.ping())
            .await?;
        budget.ask("redis_unreachable", self.bus.ping()).await?;
        if self.evidence.lost() {
            return Err("audit_evidence_lost");
        }
        let evidence = self.evidence.clone();
        let writable = async {
            let looked = tokio::task::spawn_blocking(move || evidence.is_writable()).await;
            looked.unwrap_or(false).then_some(()).ok_or(())
        };
        budget.ask("audit_replay_unavailable", writable).await?;
        if !self.views.lease_holds() {
            return Err("stream_consumers_not_ready");
        }
        Ok(())
    }
}

/// Starts the loops of the STS under `tasks`. Once `draining`, nobody is kept waiting.
pub fn tasks(sts: &Arc<Sts>, tasks: &Tasks, draining: &CancellationToken) {
    approval::measure(sts);
    let listener = approval::listen(Arc::clone(sts), draining.clone(), tasks.stop());
    tasks.spawn("approvals listener", listener);
    tasks.spawn(
        "approvals sweep",
        approval::sweep(Arc::clone(sts), tasks.stop()),
    );
    tasks.spawn(
        "sts guesses",
        guesses::settle(Arc::clone(sts), tasks.stop()),
    );
    tasks.spawn("policy poll", poll::follow(Arc::clone(sts), tasks.stop()));
    tasks.spawn("sts mint rate", rate::follow(Arc::clone(sts), tasks.stop()));
}

/// Every route of the STS.
pub fn router(sts: Arc<Sts>, metrics_open: bool) -> Router {
    let access = Access {
        bearer: sts
            .config
            .metrics_bearer
            .as_ref()
            .map(|b| caracal_model::Secret::new(b.expose().clone())),
        open: metrics_open,
        json_refusal: false,
    };
    let metrics = sts.registry.routes(access);
    let ids = RequestIds::new(Pattern::VisibleAscii, Arc::clone(&sts.ids)).measured(&sts.registry);
    let router = Router::new()
        .route(EXCHANGE, any(http::token))
        .route("/v1/run/manifest", any(run::manifest))
        .route("/v1/run/credential", any(run::credential))
        .route("/.well-known/jwks.json", get(jwks::jwks))
        .route("/approvals/{id}", get(approval::http::read))
        .route("/approvals/{id}/decision", post(approval::http::decide))
        .route(
            "/internal/zones/{zone}/signing-key/rotate",
            post(rotate::rotate),
        )
        .route("/internal/policy/simulate", post(internal::simulate))
        .route("/internal/policy/status/{zone}", get(internal::status))
        .route("/internal/zones/{zone}/signing-key", get(rotate::list))
        .route("/health", get(health::alive))
        .route("/ready", get(ready))
        .with_state(sts)
        .merge(metrics);
    request_id::finish(router, ids)
}

async fn ready(State(sts): State<Arc<Sts>>) -> Response {
    let answer = match sts.readiness().await {
        Ok(()) => Json(json!({"ok": true, "ready": true})).into_response(),
        Err(reason) => health::unready(reason),
    };
    sts.registry.readiness().tell(answer)
}
