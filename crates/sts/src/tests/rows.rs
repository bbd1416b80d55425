//! Every row of the check tables of the STS by its number: status, code, body, header and evidence.
//!
//! Here: §2.1 ([`message`]), §2.4 ([`client`]), §2.5 and §2.7 ([`pipeline`]), §2.6 ([`resource`]), §3
//! ([`mandate`]), §5 ([`gateway`]), §6.1 ([`directive`]), §6.3 ([`account`]), §9 ([`delegation`]), §11.2
//! and §11.4 ([`approval`]). Elsewhere, checked in the same
//! way: §7 in `federation`, §8 in `control`, §11.3 and §11.5 in `approvals`, §12 in `run::tests`, §4 and
//! §16 in `keys` and `wire`. The kernel's part of §2.5 to §2.9 is a table of its own in the crate
//! `authority`.

mod account;
mod approval;
mod client;
mod delegation;
mod directive;
mod gateway;
mod mandate;
mod message;
mod pipeline;
mod resource;

use std::sync::atomic::{AtomicU32, Ordering};

use caracal_crypto::digest::sha256;
use caracal_store::Param;

use super::gated::Gated;
use super::scene::{Scene, lifecycle};
use super::told::{is_token, is_whole, on_record};
use super::*;
use crate::form::GRANT_TYPE;

const PATH: &str = "/oauth/2/token";
const FORM: &str = "application/x-www-form-urlencoded";

/// What a row answers.
#[derive(Clone, Copy)]
struct Told {
    status: u16,
    error: &'static str,
    /// What its description holds.
    why: &'static str,
    /// `decision status`, in order.
    evidence: &'static [&'static str],
}

const fn told(status: u16, error: &'static str, why: &'static str) -> Told {
    Told {
        status,
        error,
        why,
        evidence: &[],
    }
}

impl Told {
    const fn on_record(self, evidence: &'static [&'static str]) -> Self {
        Self { evidence, ..self }
    }
}

/// A refusal of the request as a whole.
const fn refused(status: u16, error: &'static str, why: &'static str) -> Told {
    told(status, error, why).on_record(&["deny exchange_denied"])
}

/// Where rows are asked, and what was recorded since the last one.
trait Asked {
    fn sts(&self) -> &TestSts;

    async fn news(&self) -> Vec<Value>;
}

impl Asked for Scene {
    fn sts(&self) -> &TestSts {
        &self.sts
    }

    async fn news(&self) -> Vec<Value> {
        self.evidence().await
    }
}

impl Asked for Gated {
    fn sts(&self) -> &TestSts {
        &self.sts
    }

    async fn news(&self) -> Vec<Value> {
        Self::news(self).await
    }
}

/// A refusal, as the row has it.
async fn check(
    at: &impl Asked,
    row: &str,
    request: Request<Body>,
    expected: Told,
) -> http::HeaderMap {
    at.news().await;
    let (status, headers, body) = at.sts().send(request).await;
    let code = body["error"].as_str().unwrap_or("none");
    assert_eq!(
        (status.as_u16(), code),
        (expected.status, expected.error),
        "{row}: {body}"
    );
    let why = body["error_description"].as_str().unwrap_or_default();
    assert!(why.contains(expected.why), "{row}: {why}");
    is_whole(row, status, &headers, &body);
    let events = at.news().await;
    assert_eq!(
        on_record(row, &headers, &events),
        expected.evidence,
        "{row}"
    );
    headers
}

/// A token, as the row has it; the answer.
async fn granted(at: &impl Asked, row: &str, request: Request<Body>, evidence: &[&str]) -> Value {
    at.news().await;
    let (status, headers, body) = at.sts().send(request).await;
    assert_eq!(status, 200, "{row}: {body}");
    is_whole(row, status, &headers, &body);
    is_token(row, &headers, &body);
    let events = at.news().await;
    assert_eq!(on_record(row, &headers, &events), evidence, "{row}");
    body
}

fn with_id(id: &str, mut request: Request<Body>) -> Request<Body> {
    request
        .headers_mut()
        .insert("x-request-id", id.parse().unwrap());
    request
}

/// Signed by the Gateway's key over whatever body this is.
fn signed(body: &str, nonce: &str, id: &str) -> Request<Body> {
    signed_at(SystemClock::new().now().unix_seconds(), body, nonce, id)
}

/// The same at another time.
fn signed_at(at: i64, body: &str, nonce: &str, id: &str) -> Request<Body> {
    let (method, path) = ("POST", PATH);
    let signature = GatewaySignature {
        timestamp: at,
        nonce,
        method,
        path,
        body_sha256: sha256(body.as_bytes()),
    };
    let signature = signature.sign(&HmacKey::from_hex(KEY).unwrap());
    let mut request = with_id(id, post(PATH, FORM, body.to_owned()));
    let headers = request.headers_mut();
    headers.insert(crate::gateway::TIMESTAMP, at.to_string().parse().unwrap());
    headers.insert(crate::gateway::NONCE, nonce.parse().unwrap());
    headers.insert(crate::gateway::SIGNATURE, signature.parse().unwrap());
    request
}

/// A mint of the agent of nobody under `e2`; a field that is named again replaces its value, and an
/// empty one leaves it out.
fn mint(more: &[(&str, &str)]) -> Request<Body> {
    exchange(&fields(more))
}

fn fields<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = caller("z1", "app-z1", "cs_of_z1");
    fields.extend([
        ("resource", "resource://desk"),
        ("scope", "desk:read"),
        ("agent_session_id", "s4"),
        ("delegation_edge_id", "e2"),
    ]);
    fields.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    fields.extend(more.iter().filter(|(_, value)| !value.is_empty()));
    fields
}

/// The Gateway's exchange of a call with this mandate.
fn called(token: &str, more: &[(&str, &str)]) -> Request<Body> {
    let id = nonce();
    let mut fields = vec![
        ("grant_type", GRANT_TYPE),
        ("zone_id", "z1"),
        ("application_id", "app-z1"),
        ("subject_token", token),
        ("subject_token_type", crate::form::ACCESS_TOKEN_TYPE),
        ("resource", "resource://desk"),
        ("request_method", "GET"),
        ("request_path", "/tickets"),
        ("gateway_request_id", &id),
    ];
    fields.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    fields.extend(more.iter().filter(|(_, value)| !value.is_empty()));
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    signed(&form.finish(), &id, &id)
}

/// Text that is new each time.
fn nonce() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("call-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Changes the zone by hand, and tells everybody.
async fn alter(gated: &Gated, statement: &'static str, params: &[Param<'_>]) {
    let mut tx = gated.store.begin("a row").await.unwrap();
    let sql = caracal_store::testing::raw(statement);
    tx.execute(&sql, params).await.unwrap();
    tx.change(&caracal_model::Change::Zone(ZoneId::trusted("z1")));
    tx.commit().await.unwrap();
    gated.sts.sts.announce.announce().await;
}
