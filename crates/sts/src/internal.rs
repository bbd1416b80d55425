//! `/internal/policy/…` (spec: sts §16): policy asked over the wire by whoever holds the key that
//! Gateway, API and STS share. Nothing here changes anything, nor is it counted.
//!
//! **Forces.** The signature is over the whole body, and a large one takes memory and a turn. Whoever
//! may hold a turn before the signature was checked keeps all others out by sending slowly.
//!
//! **Choice.** The digest, which is what the signature covers, may be announced in a header: then the
//! caller is known before anything is read, and the body is compared with it afterwards. Without the
//! header a body is small, and takes a turn only once it is here and its signature was checked.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use caracal_crypto::digest::sha256;
use caracal_model::ZoneId;
use caracal_net::{Problem, body};
use caracal_policy::SimulationError;
use caracal_view::{ViewError, ZoneView};
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Sts;
use crate::authenticate::unavailable;
use crate::form::MAX_BODY;
use crate::gateway::{announced, as_announced, has_signature, proven};

/// Largest simulation: more than a set of 256 documents of 262,144 characters needs in JSON.
const MAX_SIMULATION: usize = 96 * 1024 * 1024;
/// How long it may take to arrive, of a caller who is known.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take of a caller who is not known yet.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Simulations at a time; each holds its body in memory.
static SIMULATIONS: Semaphore = Semaphore::const_new(2);

#[derive(Deserialize)]
struct Simulation {
    #[serde(default)]
    policy_set_id: String,
    #[serde(default)]
    version_id: String,
    #[serde(default)]
    manifest_sha256: String,
    policies: Vec<Document>,
    #[serde(default)]
    input: Value,
}

#[derive(Deserialize)]
struct Document {
    id: String,
    content: String,
}

fn malformed(why: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_request").because(why.to_string())
}

/// The body of a simulation whose caller is known, and a turn.
async fn signed_body(
    sts: &Sts,
    parts: &Parts,
    body: Body,
) -> Result<(Option<SemaphorePermit<'static>>, Bytes), Problem> {
    has_signature(sts, &parts.headers)?;
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    if let Some(digest) = announced(&parts.headers)? {
        proven(sts, &parts.headers, method, path, digest).await?;
        let turn = SIMULATIONS.acquire().await.ok();
        let body = body::read(body, MAX_SIMULATION, BODY_TIMEOUT).await?;
        as_announced(digest, &body)?;
        return Ok((turn, body));
    }
    let body = body::read(body, MAX_BODY, UNKNOWN_TIMEOUT).await?;
    proven(sts, &parts.headers, method, path, sha256(&body)).await?;
    // The semaphore is never closed.
    Ok((SIMULATIONS.acquire().await.ok(), body))
}

/// `POST /internal/policy/simulate`
///
/// # Errors
/// 401 without a valid signature, 400 for what does not read, 422 `policy_eval_failed`.
pub async fn simulate(State(sts): State<Arc<Sts>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let (turn, body) = signed_body(&sts, &parts, body).await?;
    let asked: Simulation = serde_json::from_slice(&body)
        .map_err(|error| malformed(format!("the body is not a simulation: {error}")))?;
    if asked.policies.is_empty() {
        return Err(malformed("policies must have at least one document"));
    }
    let documents: Vec<(String, String)> = asked
        .policies
        .into_iter()
        .map(|document| (document.id, document.content))
        .collect();
    let input = match asked.input {
        Value::Null => json!({}),
        input => input,
    };
    // A caller who hangs up does not end the work: the turn is over when it is.
    let work = move || {
        let _turn = turn;
        caracal_policy::simulate(&documents, &input)
    };
    let result = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(result)) => result,
        Ok(Err(SimulationError::Input(why))) => return Err(malformed(why)),
        Ok(Err(error)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(Problem::new(status, "policy_eval_failed").because(error.to_string()));
        }
        Err(error) => {
            tracing::error!(%error, "a simulation panicked");
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let why = "the documents make the policy engine fail";
            return Err(Problem::new(status, "policy_eval_failed").because(why));
        }
    };
    let answer = json!({
        "policy_set_id": asked.policy_set_id,
        "version_id": asked.version_id,
        "manifest_sha256": asked.manifest_sha256,
        "result": result,
    });
    Ok(Json(answer).into_response())
}

/// `GET /internal/policy/status/{zone}`: what this replica has in force.
///
/// # Errors
/// 401 without a valid signature; 503 when memory is not to be trusted and the store is away.
pub async fn status(State(sts): State<Arc<Sts>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    has_signature(&sts, &parts.headers)?;
    let body = body::read(body, 1024, UNKNOWN_TIMEOUT).await?;
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    proven(&sts, &parts.headers, method, path, sha256(&body)).await?;
    let id = path.rsplit('/').next().unwrap_or_default();
    let zone = ZoneId::parse(id).map_err(|_| malformed("the zone is not an id"))?;
    let view = match sts.views.zone(&zone).await {
        Ok(view) => view,
        Err(ViewError::UnknownZone) => {
            return Ok(Json(json!({"zone_id": zone, "loaded": false})).into_response());
        }
        Err(error) => return Err(unavailable(&error).into()),
    };
    Ok(Json(Value::Object(loaded(&sts, &view))).into_response())
}

fn loaded(sts: &Sts, view: &ZoneView) -> Map<String, Value> {
    // The age of a policy is the time since it was last known to be current.
    let age = sts.views.lag().map(|lag| json!(lag.as_secs()));
    let members = [
        ("zone_id", Some(json!(view.id))),
        ("loaded", Some(json!(true))),
        (
            "policy_set_version_id",
            view.policy.version_id.as_deref().map(|id| json!(id)),
        ),
        (
            "manifest_sha256",
            Some(json!(&*view.policy.manifest_sha256)),
        ),
        ("loaded_at", Some(json!(view.read_at.iso_seconds()))),
        ("age_seconds", age),
        ("fault", view.policy_fault.as_ref().map(|why| json!(why))),
    ];
    members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}
