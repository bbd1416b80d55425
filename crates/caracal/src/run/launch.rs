//! The conversation with the STS before a command starts (sts specification §12).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Clock, Ids, Secret, Timestamp, id::is_id};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::environment::{Credential, check_name};
use super::identity::Launcher;
use crate::term;
use crate::web::{Answer, Call, Web};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the STS holds one question about an approval, in seconds.
const POLL: u64 = 25;
/// How long an approval is waited for when nobody says how long it is open, and at least.
const UNKNOWN: Duration = Duration::from_secs(300);
const AT_LEAST: Duration = Duration::from_secs(5);
/// Between two questions when the STS does not answer, or answers sooner than it should.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
struct Manifest {
    bindings: Vec<Binding>,
}

#[derive(Debug, Deserialize)]
struct Binding {
    env: String,
    resource: String,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    on_failure: Option<String>,
}

impl Binding {
    /// Whether the command starts without it.
    fn may_fail(&self) -> bool {
        self.optional && self.on_failure.as_deref() == Some("warn")
    }
}

#[derive(Deserialize)]
struct Released {
    credential: String,
    #[serde(default)]
    expires_at: Option<i64>,
}

struct Sts<'a> {
    launcher: &'a Launcher,
    web: Web,
    launch_id: String,
    clock: Arc<dyn Clock>,
}

/// Everything that the command is to be given.
pub async fn credentials(launcher: &Launcher) -> anyhow::Result<Vec<Credential>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let web = if launcher.sts_url.starts_with("https:") {
        Web::with_tls(launcher.extra_ca.as_deref(), clock.clone())?
    } else {
        Web::new()
    };
    let sts = Sts {
        launcher,
        web,
        launch_id: Ids::new(clock.clone(), Arc::new(OsRng)).uuid(),
        clock,
    };
    let bindings = sts.manifest().await?;
    let mut credentials = Vec::with_capacity(bindings.len());
    for binding in &bindings {
        match sts.credential(binding).await {
            Ok(credential) => credentials.push(credential),
            Err(error) if binding.may_fail() => {
                eprintln!(
                    "caracal: {} stays unset: {}",
                    binding.env,
                    crate::exit::masked(&format!("{error:#}"))
                );
            }
            Err(error) => {
                let what = format!("{} ({}) cannot be had", binding.env, binding.resource);
                return Err(error.context(what));
            }
        }
    }
    Ok(credentials)
}

impl Sts<'_> {
    async fn post(&self, path: &str, more: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let mut fields = vec![
            ("workload_id", self.launcher.workload_id.as_str()),
            ("secret", self.launcher.secret.expose().as_str()),
        ];
        fields.extend_from_slice(more);
        let url = format!("{}{path}", self.launcher.sts_url);
        let call = Call::new(http::Method::POST, url)
            .header("x-caracal-launch-id", &self.launch_id)?
            .form(&fields);
        let asked = self.web.send(call, PATIENCE);
        let asked = term::patiently("waiting for the STS", asked).await;
        asked.with_context(|| {
            let url = &self.launcher.sts_url;
            format!("no answer from the STS at {url}. Is that its URL, and does it run?")
        })
    }

    async fn manifest(&self) -> anyhow::Result<Vec<Binding>> {
        let answer = self.post("/v1/run/manifest", &[]).await?;
        if !answer.status.is_success() {
            return Err(refused(&answer));
        }
        let manifest: Manifest = serde_json::from_slice(&answer.body).map_err(|_| {
            anyhow!("the manifest is not understood. Is that URL the one of an STS?")
        })?;
        if manifest.bindings.is_empty() {
            bail!("the workload has no bindings");
        }
        let mut seen = BTreeSet::new();
        for Binding { env, .. } in &manifest.bindings {
            check_name(env).map_err(|why| anyhow!("{why}; change the workload's bindings"))?;
            if !seen.insert(env) {
                bail!("`{env}` is bound twice; change the workload's bindings");
            }
        }
        Ok(manifest.bindings)
    }

    async fn credential(&self, binding: &Binding) -> anyhow::Result<Credential> {
        let path = "/v1/run/credential";
        let mut answer = self.post(path, &[("env", &binding.env)]).await?;
        if let Some(hold) = Hold::of(&answer) {
            self.wait(&hold, binding).await?;
            let again = [("env", &*binding.env), ("approval_id", &*hold.id)];
            answer = self.post(path, &again).await?;
        }
        if !answer.status.is_success() {
            return Err(refused(&answer));
        }
        let released: Released = serde_json::from_slice(&answer.body)
            .map_err(|_| anyhow!("the answer holds no credential"))?;
        if released.credential.contains('\0') {
            bail!("the credential holds a NUL byte, which no variable can hold");
        }
        Ok(Credential {
            env: binding.env.clone(),
            value: Secret::new(released.credential),
            expires_at: released.expires_at,
        })
    }

    /// Waits until somebody has decided, whatever it is; what it was shows when it is used.
    async fn wait(&self, hold: &Hold, binding: &Binding) -> anyhow::Result<()> {
        eprintln!("{}", hold.line(binding));
        let until = hold.expires_at.as_deref().unwrap_or("it is decided");
        term::progress(&format!(
            "… {} waits for a human to approve, until {until}",
            binding.env
        ));
        let (began, patience) = (self.clock.ticks(), hold.patience(self.clock.now()));
        loop {
            let left = patience.saturating_sub(self.clock.ticks().since(began));
            if left.is_zero() {
                bail!("nobody approved {} in time ({until})", hold.id);
            }
            let wait = left.as_secs().clamp(1, POLL);
            let url = format!(
                "{}/approvals/{}?wait={wait}",
                self.launcher.sts_url, hold.id
            );
            let within = Duration::from_secs(wait) + PATIENCE;
            match self.web.send(Call::get(&url), within).await {
                Ok(answer) if answer.status == StatusCode::OK => {
                    let state = answer.value().unwrap_or(Value::Null);
                    if state.get("state").and_then(Value::as_str) != Some("pending") {
                        return Ok(());
                    }
                }
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                    bail!("the approval {} does not exist any more", hold.id)
                }
                // An STS that restarts, or limits: the hold is still open.
                Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// A human has to approve first.
#[derive(Debug)]
struct Hold {
    id: String,
    binding: Option<String>,
    expires_at: Option<String>,
}

impl Hold {
    fn of(answer: &Answer) -> Option<Self> {
        let body = answer.value().ok()?;
        let text = |name: &str| body.get(name)?.as_str().map(str::to_owned);
        if text("error")? != "interaction_required" {
            return None;
        }
        Some(Self {
            id: text("approval_id").filter(|id| is_id(id))?,
            binding: text("binding"),
            expires_at: text("approval_expires_at"),
        })
    }

    /// What programs read that watch launches.
    fn line(&self, binding: &Binding) -> Value {
        json!({
            "resource": binding.resource,
            "approval_id": self.id,
            "binding": self.binding,
            "expires_at": self.expires_at,
            "reason": "approval_required",
        })
    }

    /// For how long it is worth waiting.
    fn patience(&self, now: Timestamp) -> Duration {
        let at = self.expires_at.as_deref().map(Timestamp::parse_utc);
        match at {
            Some(Ok(at)) => at.since(now).max(AT_LEAST),
            _ => UNKNOWN,
        }
    }
}

/// What an operator can do about a refusal.
fn refused(answer: &Answer) -> anyhow::Error {
    let next = match answer.status {
        StatusCode::UNAUTHORIZED if answer.code() == "access_denied" => {
            ". Check CARACAL_WORKLOAD_ID and its secret; POST …/workloads/ID/rotate-secret makes a new one"
        }
        StatusCode::FORBIDDEN => {
            ". Evidence of the request says why; see the zone's policy and provider"
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ". Try again shortly",
        _ => "",
    };
    let id = answer.request_id().unwrap_or("unknown");
    let status = answer.status.as_u16();
    anyhow!("{status} {} (request {id}){next}", answer.said())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(expires_at: Option<&str>) -> Hold {
        Hold {
            id: "5c0e".to_owned(),
            binding: Some("ab".to_owned()),
            expires_at: expires_at.map(str::to_owned),
        }
    }

    #[test]
    fn an_approval_is_waited_for_as_long_as_it_is_open() {
        let now = Timestamp::parse_utc("2026-07-01T10:00:00Z").unwrap();
        for (expires_at, seconds) in [
            (Some("2026-07-01T10:10:00Z"), 600),
            (Some("2026-07-01T10:00:01Z"), 5),
            (Some("2026-07-01T09:00:00Z"), 5),
            (Some("soon"), 300),
            (None, 300),
        ] {
            assert_eq!(
                hold(expires_at).patience(now).as_secs(),
                seconds,
                "{expires_at:?}"
            );
        }
    }

    #[test]
    fn a_failure_is_forgiven_only_where_the_binding_says_so() {
        let binding = |text: &str| serde_json::from_str::<Binding>(text).unwrap();
        let start = r#""env":"A","resource":"r""#;
        assert!(!binding(&format!("{{{start}}}")).may_fail());
        assert!(!binding(&format!(r#"{{{start},"on_failure":"warn"}}"#)).may_fail());
        assert!(!binding(&format!(r#"{{{start},"optional":true}}"#)).may_fail());
        assert!(
            !binding(&format!(
                r#"{{{start},"optional":true,"on_failure":"error"}}"#
            ))
            .may_fail()
        );
        assert!(
            binding(&format!(
                r#"{{{start},"optional":true,"on_failure":"warn"}}"#
            ))
            .may_fail()
        );
    }
}
