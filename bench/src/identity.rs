//! An identity: an application with a lifecycle token, a pair of Sessions and the Delegation
//! between them, as the published application transport makes it (clients specification §6).
//!
//! Its Delegation lives 900 s and a mandate cannot outlive it, so a long run renews each identity
//! before that; the old Sessions end only after calls that use them have finished.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Method};
use serde_json::{Value, json};

use crate::admin::text;
use crate::provision::{Application, Provisioned, SCOPE};
use crate::wire::{Base, Conn};

const MANDATE_SECONDS: u32 = 900;
const SESSION_SECONDS: u32 = MANDATE_SECONDS + 120;
/// Renewed at this age: well before mandates become too short for the Gateway (35 s).
const RENEW_AFTER: Duration = Duration::from_secs(780);
/// How long a replaced pair of Sessions is left alone.
const GRACE: Duration = Duration::from_secs(5);

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Everything that a worker needs for a call, prepared.
pub struct Identity {
    /// The mint's form; the same bytes each time.
    pub mint_form: Bytes,
    /// `X-Caracal-Resource`.
    pub resource: HeaderValue,
    /// A lifecycle token, for the Coordinator.
    pub bearer: HeaderValue,
    /// Where Sessions of the zone are started.
    pub sessions_at: String,
    /// Starts one; the same bytes each time.
    pub session_body: Bytes,
    made_at: Instant,
    sessions: [String; 2],
}

/// The identities of a run, exchanged while it runs.
pub struct Identities {
    slots: Vec<RwLock<Arc<Identity>>>,
    /// Lifecycle tokens minted: they leave evidence too.
    pub bootstraps: AtomicU64,
    maker: Maker,
}

/// Where identities are made.
#[derive(Clone)]
pub struct Maker {
    pub sts: Base,
    pub coordinator: Base,
    pub provisioned: Arc<Provisioned>,
}

impl Identities {
    /// Makes one identity for each application.
    pub async fn make(maker: Maker) -> anyhow::Result<Self> {
        let bootstraps = AtomicU64::new(0);
        let mut slots = Vec::new();
        for application in &maker.provisioned.applications {
            slots.push(RwLock::new(Arc::new(
                maker.make(application, &bootstraps).await?,
            )));
        }
        Ok(Self {
            slots,
            bootstraps,
            maker,
        })
    }

    /// The identity of worker `n`.
    pub fn of(&self, n: usize) -> Option<Arc<Identity>> {
        let slot = self.slots.get(n.checked_rem(self.slots.len())?)?;
        Some(Arc::clone(
            &slot.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Renews what grows old, one identity at a time, until it is dropped.
    pub async fn keep_fresh(&self) -> anyhow::Result<()> {
        loop {
            for (slot, application) in self.slots.iter().zip(&self.maker.provisioned.applications) {
                let age = slot
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .made_at
                    .elapsed();
                if age < RENEW_AFTER {
                    continue;
                }
                let fresh = Arc::new(self.maker.make(application, &self.bootstraps).await?);
                let old = std::mem::replace(
                    &mut *slot.write().unwrap_or_else(PoisonError::into_inner),
                    fresh,
                );
                tokio::time::sleep(GRACE).await;
                self.maker.end(&old).await?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Ends every Session of the run.
    pub async fn end(&self) -> anyhow::Result<()> {
        for n in 0..self.slots.len() {
            if let Some(identity) = self.of(n) {
                self.maker.end(&identity).await?;
            }
        }
        Ok(())
    }
}

impl Maker {
    async fn make(&self, app: &Application, bootstraps: &AtomicU64) -> anyhow::Result<Identity> {
        let bearer = self
            .bootstrap(app)
            .await
            .with_context(|| format!("no lifecycle token for application {}", app.id))?;
        bootstraps.fetch_add(1, Ordering::Relaxed);
        let mut coordinator = Conn::new(&self.coordinator);
        let made_at = Instant::now();
        let mut sessions = [String::new(), String::new()];
        let session_body = json!({
            "application_id": app.id,
            "ttl_seconds": SESSION_SECONDS,
            "labels": [app.id],
        });
        for session in &mut sessions {
            let started = self
                .lifecycle(&mut coordinator, &bearer, "/agents", &session_body)
                .await?;
            text(&started, "agent_session_id")?.clone_into(session);
        }
        let [source, target] = &sessions;
        let body = json!({
            "issuer_application_id": app.id,
            "source_session_id": source,
            "target_session_id": target,
            "receiver_application_id": app.id,
            "scopes": [SCOPE],
            "constraints": { "resources": [app.resource] },
            "ttl_seconds": MANDATE_SECONDS,
        });
        let edge = self
            .lifecycle(&mut coordinator, &bearer, "/delegations", &body)
            .await?;
        let mint_form = self.form(
            app,
            SCOPE,
            &[
                ("agent_session_id", target),
                ("delegation_edge_id", text(&edge, "delegation_edge_id")?),
                ("ttl_seconds", &MANDATE_SECONDS.to_string()),
            ],
        );
        let resource = HeaderValue::from_str(&app.resource)?;
        Ok(Identity {
            mint_form,
            resource,
            bearer,
            sessions_at: self.zone("/agents"),
            session_body: Bytes::from(session_body.to_string()),
            made_at,
            sessions,
        })
    }

    fn form(&self, app: &Application, scope: &str, more: &[(&str, &str)]) -> Bytes {
        let mut form = form_urlencoded::Serializer::new(String::with_capacity(640));
        form.append_pair(
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        )
        .append_pair("zone_id", &self.provisioned.zone)
        .append_pair("application_id", &app.id)
        .append_pair("client_secret", &app.secret)
        .append_pair("scope", scope)
        .append_pair("resource", &app.resource)
        .extend_pairs(more);
        Bytes::from(form.finish())
    }

    async fn bootstrap(&self, app: &Application) -> anyhow::Result<HeaderValue> {
        let mut sts = Conn::new(&self.sts);
        let target = self.sts.at("/oauth/2/token");
        let form = self.form(app, "agent:lifecycle", &[]);
        let answer = send(
            &mut sts,
            Method::POST,
            &target,
            &[(CONTENT_TYPE, FORM)],
            form,
        )
        .await?;
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {}", text(&answer, "access_token")?))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }

    async fn lifecycle(
        &self,
        coordinator: &mut Conn,
        bearer: &HeaderValue,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let target = self.zone(path);
        let headers = [(AUTHORIZATION, bearer.clone()), (CONTENT_TYPE, JSON)];
        send(
            coordinator,
            Method::POST,
            &target,
            &headers,
            Bytes::from(body.to_string()),
        )
        .await
    }

    /// A path below the zone at the Coordinator.
    fn zone(&self, path: &str) -> String {
        let zone = &self.provisioned.zone;
        self.coordinator.at(&format!("/zones/{zone}{path}"))
    }

    async fn end(&self, identity: &Identity) -> anyhow::Result<()> {
        let mut coordinator = Conn::new(&self.coordinator);
        for session in &identity.sessions {
            let target = self.zone(&format!("/agents/{session}"));
            let headers = [(AUTHORIZATION, identity.bearer.clone())];
            send(
                &mut coordinator,
                Method::DELETE,
                &target,
                &headers,
                Bytes::new(),
            )
            .await?;
        }
        Ok(())
    }
}

async fn send(
    conn: &mut Conn,
    method: Method,
    target: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: Bytes,
) -> anyhow::Result<Value> {
    for _ in 0..4 {
        let answer = match conn
            .send(method.clone(), target, headers, body.clone())
            .await
        {
            Ok(answer) => answer,
            Err(lost) => bail!(
                "{method} {target}: {} at {}",
                lost.name(),
                conn.base().authority()
            ),
        };
        if answer.status == http::StatusCode::TOO_MANY_REQUESTS {
            let wait = answer.retry_after().unwrap_or(Duration::from_secs(2));
            tokio::time::sleep(wait.clamp(Duration::from_secs(1), Duration::from_secs(60))).await;
            continue;
        }
        if !answer.status.is_success() {
            let text = String::from_utf8_lossy(&answer.body);
            bail!(
                "{method} {target}: {} {}",
                answer.status.as_u16(),
                text.trim()
            );
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        return Ok(serde_json::from_slice(&answer.body)?);
    }
    bail!("{method} {target}: rate limited; raise MAX_AGENTS_PER_ZONE or wait a minute")
}
