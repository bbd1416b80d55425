//! Which authority record a Session is anchored to, and whether the caller may use it (spec:
//! coordinator §17.7; README decision 12).

use std::sync::Arc;

use caracal_authority::RecordFacts;
use caracal_crypto::es256::Jws;
use caracal_model::limits::LEEWAY;
use caracal_model::{ApplicationId, RecordId, SubjectType, Timestamp};
use caracal_view::{Anchors, ZoneView};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::caller::Runtime;
use crate::failure::{Code, Failure};
use crate::service::Coordinator;

/// What a request says about its anchor.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// The record.
    pub record: RecordId,
    /// Its federated session token, when one was sent.
    pub token: Option<&'a str>,
}

/// The claims of a federated session token. Whatever may not be there is kept as JSON, so that any
/// value but absence is seen.
#[derive(Deserialize)]
struct Proof {
    iss: String,
    aud: Value,
    exp: f64,
    iat: f64,
    sub: String,
    jti: String,
    zone_id: String,
    client_id: String,
    sid: String,
    root_sid: String,
    #[serde(rename = "use")]
    token_use: String,
    sub_type: String,
    #[serde(default)]
    scope: Value,
    #[serde(default)]
    target: Value,
    #[serde(default)]
    delegation_path: Value,
    #[serde(default)]
    agent_session_id: Value,
    #[serde(default)]
    delegation_edge_id: Value,
    #[serde(default)]
    source_session_id: Value,
    #[serde(default)]
    target_session_id: Value,
}

/// The record of the claim, once it is certain that it is in force and that this application may
/// anchor a Session to it.
///
/// # Errors
/// `session_not_found`, `subject_proof_application_mismatch`, `invalid_subject_proof`.
pub async fn anchor(
    coordinator: &Coordinator,
    zone: &ZoneView,
    caller: &Runtime,
    application: &ApplicationId,
    claim: &Claim<'_>,
    now: Timestamp,
) -> Result<Arc<RecordFacts>, Failure> {
    let anchors = Anchors {
        records: &[&claim.record],
        ..Anchors::default()
    };
    let revoked = coordinator.views.revoked(&anchors).await?.is_some();
    let found = coordinator.views.record(&zone.id, &claim.record).await?;
    let Some(record) = found.filter(|record| !revoked && record.is_live(now)) else {
        let detail = json!("the subject authority record is not active in this zone");
        return Err(Code::SessionNotFound.refuse().with("detail", detail));
    };
    if let Some(token) = claim.token {
        verify(
            zone,
            &coordinator.config.issuer,
            token,
            claim,
            application,
            now,
        )?;
        return Ok(record);
    }
    let is_own = match record.record_type {
        // With spawn_for the record is the caller's, not that of the application it starts for.
        SubjectType::Application => {
            record.client_id == caller.application || record.client_id == *application
        }
        SubjectType::User if coordinator.config.require_subject_proof => {
            return Err(Code::InvalidSubjectProof
                .refuse()
                .because("send the subject_token"));
        }
        SubjectType::User => record.client_id == *application,
    };
    if is_own {
        Ok(record)
    } else {
        Err(Code::SubjectProofApplicationMismatch.into())
    }
}

/// The proof: a federated session token of exactly this record.
fn verify(
    zone: &ZoneView,
    issuer: &str,
    token: &str,
    claim: &Claim<'_>,
    application: &ApplicationId,
    now: Timestamp,
) -> Result<(), Failure> {
    let proof = genuine(zone, token).ok_or(Code::InvalidSubjectProof)?;
    let for_us = proof.aud.as_str() == Some(issuer)
        || proof
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
    let in_time = seconds(proof.exp).plus(LEEWAY) > now && seconds(proof.iat) <= now.plus(LEEWAY);
    if proof.iss != issuer || !for_us || !in_time || proof.zone_id != zone.id.as_str() {
        return Err(Code::InvalidSubjectProof.into());
    }
    if proof.client_id != application.as_str() {
        return Err(Code::SubjectProofApplicationMismatch.into());
    }
    let of_record = proof.sid == claim.record.as_str() && proof.root_sid == proof.sid;
    let of_user = proof.token_use == "session" && proof.sub_type == "user";
    let named = !proof.sub.is_empty() && !proof.jti.is_empty();
    if of_record && of_user && named && is_bare(&proof) {
        Ok(())
    } else {
        Err(Code::InvalidSubjectProof.into())
    }
}

fn genuine(zone: &ZoneView, token: &str) -> Option<Proof> {
    let jws = Jws::parse(token).ok()?;
    jws.verify(zone.keys.verify.get(jws.kid())?).ok()?;
    serde_json::from_slice(jws.payload()).ok()
}

/// Whether the token grants nothing but an identity: it must not be a mandate in disguise.
fn is_bare(proof: &Proof) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    [
        &proof.scope,
        &proof.target,
        &proof.delegation_path,
        &proof.agent_session_id,
        &proof.delegation_edge_id,
        &proof.source_session_id,
        &proof.target_session_id,
    ]
    .into_iter()
    .all(empty)
}
