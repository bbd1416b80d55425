//! The STS over its router, on each engine: what a client sees, row by row.

use std::sync::Arc;

use axum::body::Body;
use caracal_bus::Bus;
use caracal_crypto::es256::Jws;
use caracal_crypto::mac::{GatewaySignature, HmacKey};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Clock, Refusal, RequestId, Secret, ZoneId};
use caracal_net::settings::Mistakes;
use caracal_store::Store;
use caracal_view::ViewConfig;
use http::{Request, StatusCode};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::patience::Patience;
use crate::{Config, Sts};

pub use stack::*;

mod actors;
mod approval_races;
mod approvals;
mod control;
pub mod far;
mod federation;
mod gated;
mod keys;
mod limits;
mod outside;
pub mod overtaken;
mod poll;
mod registry;
mod rows;
mod scene;
mod stack;
pub mod told;
mod wire;

const ISSUER: &str = "https://sts.example";
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const KEK: &str = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";

/// How long a Gateway of these tests waits.
const WAITS: std::time::Duration = std::time::Duration::from_secs(5);

/// Asks again until it holds.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(2 * WAITS, waiting).await;
    assert!(done.is_ok(), "{what}");
}

/// Of somebody who waits as long as anybody does.
pub fn patience(sts: &Sts) -> Patience {
    Patience::of_client(sts.clock.as_ref())
}

pub(crate) fn post(path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("content-type", content_type);
    request.body(body.into()).unwrap()
}

fn exchange(fields: &[(&str, &str)]) -> Request<Body> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", crate::form::GRANT_TYPE)
        .extend_pairs(fields);
    post(
        "/oauth/2/token",
        "application/x-www-form-urlencoded",
        form.finish(),
    )
}

fn caller<'a>(zone: &'a str, app: &'a str, secret: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("zone_id", zone),
        ("application_id", app),
        ("client_secret", secret),
    ]
}
