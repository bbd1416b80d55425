//! The forms of the run endpoints (spec: sts §12, §2.1 row 5).

use caracal_model::{Refusal, Refused, Secret};
use http::HeaderMap;

use super::Endpoint;
use crate::approval::uuid;
use crate::form::{once, pairs};

/// Names one launch in evidence, over all of its requests.
const LAUNCH_ID: &str = "x-caracal-launch-id";

/// A request whose shape is right. Nothing in it has been proven.
#[derive(Debug)]
pub struct RunRequest {
    /// Who launches.
    pub workload_id: String,
    /// Its secret.
    pub secret: Secret<String>,
    /// The variable whose credential is asked for; empty for a manifest.
    pub env: String,
    /// A hold that was issued before.
    pub approval_id: Option<String>,
    /// The launch that this belongs to, when it is a UUID.
    pub launch_id: Option<String>,
}

impl RunRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// 400 `invalid_token` with what to fix.
    pub fn parse(endpoint: Endpoint, headers: &HeaderMap, body: &[u8]) -> Result<Self, Refused> {
        let mut request = Self {
            workload_id: String::new(),
            secret: Secret::new(String::new()),
            env: String::new(),
            approval_id: None,
            launch_id: launch_id(headers),
        };
        let mut seen = Vec::new();
        for (name, value) in pairs(body)? {
            once(&mut seen, &name)?;
            match &*name {
                "workload_id" => request.workload_id = value,
                "secret" => request.secret = Secret::new(value),
                "env" => request.env = value,
                "approval_id" => request.approval_id = Some(value).filter(|id| !id.is_empty()),
                _ => {}
            }
        }
        let needed = [
            ("workload_id", request.workload_id.is_empty()),
            ("secret", request.secret.expose().is_empty()),
            (
                "env",
                endpoint == Endpoint::Credential && request.env.is_empty(),
            ),
        ];
        match needed.into_iter().find(|(_, missing)| *missing) {
            Some((name, _)) => Err(Refusal::BadRequest.because(format!("{name} is required"))),
            None => Ok(request),
        }
    }
}

fn launch_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(LAUNCH_ID)?.to_str().ok()?;
    uuid(text).map(|id| id.to_string())
}
