//! A role for the token of a web identity: what EKS gives pods whose service account names a role
//! (`AssumeRoleWithWebIdentity` of the AWS Security Token Service, version 2011-06-15).
//!
//! The request is not signed: the token is the proof. It is read from its file each time, because
//! the cluster replaces it.

use std::path::PathBuf;
use std::time::Duration;

use caracal_model::{Clock, Secret};
use caracal_store::custody::BackendError;
use http::Request;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use url::Url;

use super::credentials::{Credentials, lasts};
use crate::token::read_file;
use crate::wire::{Answer, Wire};

/// What a pod was told.
#[derive(Debug)]
pub struct WebIdentity {
    /// The Security Token Service.
    pub url: Url,
    /// The role, by its ARN.
    pub role: String,
    /// What the session is called in their logs.
    pub session: String,
    /// Holds the token.
    pub token_file: PathBuf,
}

/// Where the region answers, unless the settings say otherwise.
pub fn endpoint(region: &str) -> String {
    format!("https://sts.{region}.{}", super::domain(region))
}

#[derive(Deserialize)]
struct Assumed {
    #[serde(rename = "AssumeRoleWithWebIdentityResult")]
    result: Outcome,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome {
    credentials: Keys,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refused {
    error: Reason,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reason {
    code: String,
}

impl WebIdentity {
    pub(super) async fn assume(
        &self,
        wire: &Wire,
        clock: &dyn Clock,
    ) -> Result<(Credentials, Duration), BackendError> {
        let token = read_file(wire, &self.token_file).await?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "AssumeRoleWithWebIdentity")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", &self.role)
            .append_pair("RoleSessionName", &self.session)
            .append_pair("WebIdentityToken", token.expose())
            .finish();
        let request = Request::post(self.url.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = wire.send(request, form).await?;
        if !answer.status().is_success() {
            return Err(refused(wire, &answer));
        }
        // What the reader says may repeat what it read.
        let keys = xml::<Assumed>(&answer)
            .ok_or_else(|| wire.failed("the answer is not what it should be"))?
            .result
            .credentials;
        let lasts = lasts(Some(&keys.expiration), clock);
        let credentials = Credentials {
            key_id: keys.access_key_id,
            secret: Secret::new(keys.secret_access_key),
            session_token: Some(Secret::new(keys.session_token)),
        };
        Ok((credentials, lasts))
    }
}

fn xml<T: serde::de::DeserializeOwned>(answer: &Answer) -> Option<T> {
    let text = std::str::from_utf8(answer.body()).ok()?;
    quick_xml::de::from_str(text).ok()
}

fn refused(wire: &Wire, answer: &Answer) -> BackendError {
    let status = answer.status().as_u16();
    let plain = |code: &String| code.chars().all(|c| c.is_ascii_alphanumeric());
    let code = xml::<Refused>(answer).map(|refused| refused.error.code);
    wire.failed(match code.filter(plain) {
        Some(code) => format!("the role was refused with {status}: {code}"),
        None => format!("the role was refused with {status}"),
    })
}
