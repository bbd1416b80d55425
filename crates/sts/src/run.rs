//! What a launcher (`caracal run`) asks for (spec: sts §12): what its command is to be given, and
//! then one credential after the other.
//!
//! **Forces.** A launcher proves itself with an id and a secret, and gets credentials that cannot be
//! taken back. So a secret that was rotated, or a workload that was deleted, must stop working at
//! once; and an answer must not tell whether an id exists, not even by the time that it takes.
//!
//! **Choice.** A launch is rare, so the workload is read from the store for each request and nothing
//! is remembered of it: there is no memory that could be behind. An id that does not exist costs
//! what a wrong secret costs: the same reads, one count, and a slow comparison where this deployment
//! has a workload whose secret takes one, which are those that were imported. Everything else
//! (resources, providers, policy) comes from the zone's view, as for any exchange.
//!
//! **Rejected.** Workloads in the zone's view: every change of one would reload the zone for all.
//! An Argon2id comparison for every id that does not exist, as the reference has it: our secrets are
//! random, so where none was imported a slow hash protects nothing and lets strangers exhaust us.

mod credential;
mod form;
mod launcher;
mod record;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use caracal_model::{Refusal, Refused, RequestId};
use caracal_net::Problem;
use http::header::CACHE_CONTROL;
use serde_json::{Value, json};

use crate::http::form_of;
use crate::patience::Patience;
use crate::{Sts, anew, late};
use form::RunRequest;
use launcher::{Launcher, launcher};
use record::Attempt;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/run/manifest`
    Manifest,
    /// `/v1/run/credential`
    Credential,
}

impl Endpoint {
    const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Credential => "credential",
        }
    }

    /// What its requests are counted under.
    fn rate_key(self, who: &str) -> String {
        match self {
            Self::Manifest => format!("rl:run-manifest:{who}:fetch"),
            Self::Credential => format!("rl:run-credential:{who}:mint"),
        }
    }
}

/// `POST /v1/run/manifest`
pub async fn manifest(
    State(sts): State<Arc<Sts>>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Response {
    let answer = in_time(&sts, Endpoint::Manifest, &request_id, request).await;
    respond(&sts, Endpoint::Manifest, answer)
}

/// `POST /v1/run/credential`
pub async fn credential(
    State(sts): State<Arc<Sts>>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Response {
    let answer = in_time(&sts, Endpoint::Credential, &request_id, request).await;
    respond(&sts, Endpoint::Credential, answer)
}

/// Credentials are not for caches.
fn respond(sts: &Sts, endpoint: Endpoint, answer: Result<Value, Problem>) -> Response {
    match answer {
        Ok(body) => {
            sts.metrics.launched(endpoint.name(), "");
            ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Err(problem) => {
            sts.metrics.launched(endpoint.name(), problem.error());
            problem.into_response()
        }
    }
}

async fn in_time(
    sts: &Sts,
    endpoint: Endpoint,
    request_id: &RequestId,
    request: Request,
) -> Result<Value, Problem> {
    let patience = Patience::of_client(sts.clock.as_ref());
    let answering = Box::pin(answer(sts, endpoint, request_id, patience, request));
    late::in_time(sts, request_id, patience.whole(), answering).await
}

async fn answer(
    sts: &Sts,
    endpoint: Endpoint,
    request_id: &RequestId,
    patience: Patience,
    request: Request,
) -> Result<Value, Problem> {
    let (head, body) = form_of(request, "launches are asked for by POST").await?;
    let request = RunRequest::parse(endpoint, &head.headers, &body)?;
    let mut launcher = launcher(sts, endpoint, &request, request_id).await?;
    for _ in 0..anew::TRIES {
        let attempt = Attempt {
            sts,
            workload: &launcher.workload,
            launch_id: request.launch_id.as_deref(),
            request_id,
        };
        if endpoint == Endpoint::Manifest {
            return Ok(listed(&launcher, attempt).await?);
        }
        let released = credential::release(&launcher, &request, attempt, patience).await?;
        if let Some(released) = released {
            return Ok(released);
        }
        launcher = launcher::again(attempt).await?;
    }
    let attempt = Attempt {
        sts,
        workload: &launcher.workload,
        launch_id: request.launch_id.as_deref(),
        request_id,
    };
    let refused = attempt.refuse_launch("exchange_denied", anew::unsettled());
    Err(refused.await.into())
}

/// What the command is to be given.
async fn listed(launcher: &Launcher, attempt: Attempt<'_>) -> Result<Value, Refused> {
    let workload = &launcher.workload;
    if workload.bindings.is_empty() {
        let refused = Refusal::NotFound
            .because("the workload has no bindings: give it some with PUT …/workloads/{id}");
        return Err(attempt.refuse_launch("complete", refused).await);
    }
    attempt.allow_launch().await?;
    Ok(json!({
        "zone_id": workload.zone,
        "workload_id": workload.id,
        "bindings": workload.bindings,
    }))
}
