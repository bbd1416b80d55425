//! Every route, and what stands around them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use caracal_net::metrics::Access;
use caracal_net::{Pattern, RequestId, RequestIds, health, request_id};
use caracal_store::origin;
use caracal_trail::Attendant;
use http::{HeaderValue, header};

use crate::admission::{self, Head};
use crate::audit::proofs;
use crate::failure::Failure;
use crate::service::Api;
use crate::{
    activation, admin_audit, admin_tokens, application_secrets, applications, approvals, audit,
    authority_records, notifications, operator, outbox, platform_settings, policies, policy_sets,
    provider_connections, provider_test, providers, replay, resources, simulate, subject_issuers,
    subjects, workloads, zones,
};

/// The routes of the service. `open_metrics` lets anybody read metrics when no bearer is set, as
/// development may.
pub fn router(api: &Arc<Api>, open_metrics: bool) -> Router {
    let registry = &api.registry;
    operator::measure(api, registry);
    api.trail.metrics().register(registry);
    api.notifications.register(registry);
    let bearer = api.config.metrics_bearer.as_ref();
    let access = Access {
        bearer: bearer.map(|bearer| caracal_model::Secret::new(bearer.expose().clone())),
        open: open_metrics,
        json_refusal: true,
    };
    let probes = Router::new()
        .route("/health", get(health::alive_json))
        .route("/ready", get(operator::ready));
    let admitted = Router::new()
        .merge(platform())
        .merge(inventory())
        .merge(identity())
        .merge(policy())
        .merge(approval())
        .merge(reads())
        .merge(sinks())
        .method_not_allowed_fallback(no_route)
        .layer(middleware::from_fn_with_state(
            Arc::clone(api),
            admission::admit,
        ));
    // Where the browser of whoever connects an account comes back to: it has no token of ours.
    let callback = Router::new().route(admin_audit::CALLBACK, get(provider_connections::callback));
    let callback = callback.method_not_allowed_fallback(no_route);
    let callback = callback.layer(middleware::from_fn_with_state(
        Arc::clone(api),
        admission::by_address,
    ));
    let router = Router::new()
        .merge(probes)
        .merge(callback)
        .merge(admitted)
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(Arc::clone(api), in_time))
        .layer(middleware::from_fn_with_state(
            Attendant::new(api.trail.clone(), &admin_audit::RULES),
            caracal_trail::attend,
        ))
        .layer(middleware::from_fn(guard_answers))
        .with_state(Arc::clone(api))
        .merge(registry.routes::<()>(access));
    let ids = RequestIds::new(Pattern::Id, Arc::clone(&api.ids)).measured(registry);
    request_id::identify(router, ids)
}

type Routes = Router<Arc<Api>>;

fn platform() -> Routes {
    Router::new()
        .route("/v1/zones", get(zones::list).post(zones::create))
        .route(
            "/v1/zones/{zone}",
            get(zones::get).patch(zones::patch).delete(zones::delete),
        )
        .route("/v1/zones/{zone}/dcr-status", get(zones::dcr_status))
        .route(
            "/v1/admin-tokens",
            get(admin_tokens::list).post(admin_tokens::create),
        )
        .route("/v1/admin-tokens/{id}", delete(admin_tokens::delete))
        .route(
            "/v1/mint-rate-limit",
            get(platform_settings::mint_rate).put(platform_settings::set_mint_rate),
        )
        .route(
            "/v1/audit-retention",
            get(platform_settings::audit_retention).put(platform_settings::set_audit_retention),
        )
        .route("/v1/audit-keys", get(audit::keys::list))
        .route("/v1/audit-keys/rotate", post(audit::keys::rotate))
        .route("/v1/policies/validate", post(policies::validate))
        .route("/v1/policy-templates", get(policies::templates))
}

fn inventory() -> Routes {
    Router::new()
        .route(
            "/v1/zones/{zone}/applications",
            get(applications::list).post(applications::create),
        )
        .route(
            "/v1/zones/{zone}/applications/dcr",
            post(applications::register),
        )
        .route(
            "/v1/zones/{zone}/applications/{id}",
            get(applications::get)
                .patch(applications::patch)
                .delete(applications::delete),
        )
        .route(
            "/v1/zones/{zone}/applications/{id}/rotate-secret",
            post(applications::rotate_secret),
        )
        .route(
            "/v1/zones/{zone}/applications/{id}/client-secret",
            get(application_secrets::reveal),
        )
        .route(
            "/v1/zones/{zone}/workloads",
            get(workloads::list).post(workloads::create),
        )
        .route(
            "/v1/zones/{zone}/workloads/{id}",
            get(workloads::get)
                .put(workloads::put)
                .delete(workloads::delete),
        )
        .route(
            "/v1/zones/{zone}/workloads/{id}/rotate-secret",
            post(workloads::rotate_secret),
        )
        .route(
            "/v1/zones/{zone}/workloads/{id}/secret",
            get(workloads::reveal),
        )
        .route(
            "/v1/zones/{zone}/providers",
            get(providers::list).post(providers::create),
        )
        .route(
            "/v1/zones/{zone}/providers/{id}",
            get(providers::get)
                .patch(providers::patch)
                .delete(providers::delete),
        )
        .route(
            "/v1/zones/{zone}/providers/{id}/test",
            post(providers::test),
        )
        .route(
            "/v1/zones/{zone}/providers/discovery",
            post(provider_test::discover),
        )
        .route(
            "/v1/zones/{zone}/provider-connections",
            get(provider_connections::list).post(provider_connections::create),
        )
        .route(
            "/v1/zones/{zone}/provider-connections/oauth/authorize",
            post(provider_connections::authorize),
        )
        .route(
            "/v1/zones/{zone}/provider-connections/revoke",
            post(provider_connections::revoke),
        )
        .route(
            "/v1/zones/{zone}/resources",
            get(resources::list).post(resources::create),
        )
        .route(
            "/v1/zones/{zone}/resources/{id}",
            get(resources::get)
                .patch(resources::patch)
                .delete(resources::delete),
        )
        .route(
            "/v1/zones/{zone}/resources/{id}/test",
            post(resources::test),
        )
}

fn identity() -> Routes {
    Router::new()
        .route(
            "/v1/zones/{zone}/subject-issuers",
            get(subject_issuers::list).post(subject_issuers::create),
        )
        .route(
            "/v1/zones/{zone}/subject-issuers/{id}",
            get(subject_issuers::get)
                .patch(subject_issuers::patch)
                .delete(subject_issuers::delete),
        )
        .route(
            "/v1/zones/{zone}/authority-records",
            get(authority_records::list),
        )
        .route("/v1/zones/{zone}/subjects", get(subjects::list))
        .route(
            "/v1/zones/{zone}/subjects/overview",
            get(subjects::overview),
        )
        .route("/v1/zones/{zone}/subjects/revoke", post(subjects::revoke))
}

fn policy() -> Routes {
    Router::new()
        .route(
            "/v1/zones/{zone}/policies",
            get(policies::list).post(policies::create),
        )
        .route(
            "/v1/zones/{zone}/policies/{id}",
            get(policies::get).delete(policies::delete),
        )
        .route(
            "/v1/zones/{zone}/policies/{id}/versions",
            post(policies::add_version),
        )
        .route(
            "/v1/zones/{zone}/policy-sets",
            get(policy_sets::list).post(policy_sets::create),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}",
            get(policy_sets::get).delete(policy_sets::delete),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}/versions",
            get(policy_sets::versions).post(policy_sets::add_version),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}/versions/{version}",
            get(policy_sets::version),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}/versions/{version}/replay",
            get(replay::replay),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}/activate",
            post(activation::activate),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}/activation-status",
            get(activation::status),
        )
        .route(
            "/v1/zones/{zone}/policy-sets/{id}/simulate",
            post(simulate::simulate),
        )
}

fn approval() -> Routes {
    Router::new()
        .route("/v1/zones/{zone}/approvals", get(approvals::list))
        .route("/v1/zones/{zone}/approvals/counts", get(approvals::counts))
        .route("/v1/zones/{zone}/approvals/{id}", get(approvals::get))
        .route(
            "/v1/zones/{zone}/approvals/{id}/approve",
            post(approvals::approve),
        )
        .route(
            "/v1/zones/{zone}/approvals/{id}/reject",
            post(approvals::reject),
        )
}

fn reads() -> Routes {
    Router::new()
        .route("/v1/zones/{zone}/outbox", get(outbox::list))
        .route(
            "/v1/zones/{zone}/outbox/{id}/requeue",
            post(outbox::requeue),
        )
        .route("/v1/zones/{zone}/audit", get(audit::list))
        .route("/v1/zones/{zone}/audit/stream", get(audit::stream))
        .route("/v1/zones/{zone}/admin-audit", get(admin_audit::list))
        .route("/v1/admin-audit", get(admin_audit::of_deployment))
        .route(
            "/v1/zones/{zone}/audit/by-request/{id}",
            get(audit::by_request),
        )
        .route(
            "/v1/zones/{zone}/audit/by-request/{id}/explain",
            get(audit::explain),
        )
        .route("/v1/audit-logs", get(proofs::logs))
        .route("/v1/audit-findings", get(proofs::findings))
        .merge(proofs_of("/v1/zones/{zone}/audit"))
        .merge(proofs_of("/v1/zones/{zone}/admin-audit"))
        .merge(proofs_of("/v1/admin-audit"))
}

/// What proves a log.
fn proofs_of(prefix: &str) -> Routes {
    let at = |rest: &str| format!("{prefix}{rest}");
    Router::new()
        .route(&at("/{id}/receipt"), get(proofs::receipt))
        .route(&at("/checkpoints"), get(proofs::list))
        .route(&at("/checkpoints/{id}"), get(proofs::at_size))
        .route(&at("/checkpoint"), get(proofs::latest))
        .route(&at("/consistency"), get(proofs::consistency))
        .route(&at("/checkpoint-key"), get(proofs::key))
        .route(&at("/tile/{level}/{*tile}"), get(proofs::tile))
        .route(&at("/ledger"), get(proofs::ledger))
}

fn sinks() -> Routes {
    Router::new()
        .route(
            "/v1/zones/{zone}/notification-sinks",
            get(notifications::list).post(notifications::create),
        )
        .route(
            "/v1/zones/{zone}/notification-sinks/{id}",
            get(notifications::get)
                .patch(notifications::patch)
                .delete(notifications::delete),
        )
        .route(
            "/v1/zones/{zone}/notification-sinks/{id}/rotate-secret",
            post(notifications::rotate_secret),
        )
        .route(
            "/v1/zones/{zone}/notification-sinks/{id}/test",
            post(notifications::test),
        )
        .route(
            "/v1/zones/{zone}/notification-sinks/{id}/replay",
            post(notifications::replay),
        )
        .route(
            "/v1/zones/{zone}/notification-sinks/{id}/deliveries",
            get(notifications::deliveries),
        )
        .route(
            "/v1/zones/{zone}/notification-sinks/{id}/deliveries/{version}/redeliver",
            post(notifications::redeliver),
        )
}

async fn no_route() -> Failure {
    Failure::no_route()
}

/// Unknown routes under `/v1/` are told apart from known ones only by those who may know.
async fn unknown(State(api): State<Arc<Api>>, request: Request) -> Response {
    if !request.uri().path().starts_with("/v1/") {
        return Failure::no_route().into_response();
    }
    let head = Head::of(&api, &request);
    match Box::pin(admission::check(&api, &head)).await {
        Ok(_) => Failure::no_route().into_response(),
        Err(failure) => failure.into_response(),
    }
}

/// A request that takes too long is given up, so that its caller learns it from us. What it had
/// committed by then stays committed.
async fn in_time(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(api.config.request_timeout, next.run(request));
    answered.await.unwrap_or_else(|_| {
        let why = "the request took too long; see whether it was done before you try again";
        Failure::unavailable("request_timeout", why).into_response()
    })
}

/// Answers of the management routes are for the caller alone; what they commit is of their request.
async fn guard_answers(request: Request, next: Next) -> Response {
    let guarded = request.uri().path().starts_with("/v1/");
    let id = request.extensions().get::<RequestId>().cloned();
    let mut response = origin::of_request(id, next.run(request)).await;
    if guarded {
        let headers = response.headers_mut();
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        headers.insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}
