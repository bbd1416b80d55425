//! What the demo's steps are made of: the calls to the four services.

use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_model::Secret;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cli::Api;
use crate::home::Urls;
use crate::web::{Answer, Call, Web, text};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Looks before an activated policy counts as lost: a minute.
const POLICY_LOOKS: u32 = 1200;
const PATIENCE: Duration = Duration::from_secs(30);
/// How long evidence may take to reach the ledger.
const EVIDENCE_WITHIN: Duration = Duration::from_secs(10);

/// The deployment that the demo plays on.
pub struct Stage {
    web: Web,
    urls: Urls,
    admin: Secret<String>,
}

/// What the operator made.
pub struct Zone {
    pub id: String,
    pub resource: &'static str,
    application: String,
    secret: Secret<String>,
    lifecycle: Secret<String>,
}

/// The helper's Session, and the Delegation onto it.
pub struct Helper {
    pub edge: String,
    session: String,
}

impl Stage {
    pub fn open(api: &Api) -> anyhow::Result<Self> {
        let (environment, home) = api.data.open()?;
        let mut urls = crate::status::urls(&environment, &home);
        if let Some(given) = &api.api_url {
            urls.api = given.trim_end_matches('/').to_owned();
        }
        Ok(Self {
            web: Web::new(),
            urls,
            admin: crate::audit::admin_token(api, &environment, &home)?,
        })
    }

    async fn admin(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let call =
            Call::new(method, format!("{}{path}", self.urls.api)).bearer(self.admin.expose())?;
        self.web.json(body.iter().fold(call, Call::json)).await
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.admin(Method::POST, path, Some(body)).await
    }

    /// Makes the zone, with a policy that grants the agent `desk:read` only.
    pub async fn build(&self, upstream: &str) -> anyhow::Result<Zone> {
        let zone = text(
            &self
                .post("/v1/zones", json!({ "name": "caracal demo" }))
                .await?,
            "id",
        )?;
        let at = format!("/v1/zones/{zone}");
        let application = json!({ "name": "desk-agent", "registration_method": "managed" });
        let application = self
            .post(&format!("{at}/applications"), application)
            .await?;
        let (id, secret) = (
            text(&application, "id")?,
            text(&application, "client_secret")?,
        );
        let provider = json!({ "name": "none", "identifier": "provider://demo", "kind": "none" });
        let provider = self.post(&format!("{at}/providers"), provider).await?;
        let resource = "resource://desk";
        self.post(
            &format!("{at}/resources"),
            json!({
                "name": "Help desk",
                "identifier": resource,
                "scopes": ["desk:read", "desk:write"],
                "upstream_url": upstream,
                "credential_provider_id": text(&provider, "id")?,
                "operations": [
                    { "method": "GET", "path": "/tickets", "scope": "desk:read" },
                    { "method": "POST", "path": "/tickets", "scope": "desk:write" },
                ],
            }),
        )
        .await?;
        self.activate(&at, &grants(&id, resource)).await?;
        let secret = Secret::new(secret);
        let answer = self
            .exchange(&[
                ("zone_id", &zone),
                ("application_id", &id),
                ("client_secret", secret.expose()),
                ("scope", "agent:lifecycle"),
                ("resource", resource),
            ])
            .await?;
        let lifecycle = Secret::new(text(
            &super::expect(&answer, StatusCode::OK)?,
            "access_token",
        )?);
        Ok(Zone {
            id: zone,
            resource,
            application: id,
            secret,
            lifecycle,
        })
    }

    async fn activate(&self, at: &str, content: &str) -> anyhow::Result<()> {
        let policy = json!({ "name": "application-grants", "content": content });
        let policy = self.post(&format!("{at}/policies"), policy).await?;
        let set = json!({ "name": "application-grant-policy" });
        let set = text(&self.post(&format!("{at}/policy-sets"), set).await?, "id")?;
        let set = format!("{at}/policy-sets/{set}");
        let manifest =
            json!({ "manifest": [{ "policy_version_id": text(&policy, "version_id")? }] });
        let version = self.post(&format!("{set}/versions"), manifest).await?;
        let version = json!({ "version_id": text(&version, "version_id")? });
        let activated = self.post(&format!("{set}/activate"), version).await?;
        let status = text(&activated, "status_url")?;
        for _ in 0..POLICY_LOOKS {
            let now = self.admin(Method::GET, &status, None).await?;
            match text(&now, "propagation_status")?.as_str() {
                "loaded" => return Ok(()),
                "failed" => bail!("the policy could not be loaded: {now}"),
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        bail!(
            "the policy was activated but is not loaded after a minute; see `caracal status --ready`"
        )
    }

    /// Starts two Sessions and delegates both scopes from the first to the second.
    pub async fn delegate(&self, zone: &Zone) -> anyhow::Result<Helper> {
        let source = self.start_session(zone).await?;
        let session = self.start_session(zone).await?;
        let edge = self
            .coordinator(
                zone,
                Method::POST,
                "/delegations",
                Some(json!({
                    "issuer_application_id": zone.application,
                    "source_session_id": source,
                    "target_session_id": session,
                    "receiver_application_id": zone.application,
                    "scopes": ["desk:read", "desk:write"],
                    "constraints": { "resources": [zone.resource] },
                    "ttl_seconds": 900,
                })),
            )
            .await?;
        Ok(Helper {
            edge: text(&edge, "delegation_edge_id")?,
            session,
        })
    }

    async fn start_session(&self, zone: &Zone) -> anyhow::Result<String> {
        let body = json!({
            "application_id": zone.application,
            "labels": [zone.application],
            "ttl_seconds": 1020,
        });
        let started = self
            .coordinator(zone, Method::POST, "/agents", Some(body))
            .await?;
        text(&started, "agent_session_id")
    }

    async fn coordinator(
        &self,
        zone: &Zone,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let url = format!("{}/zones/{}{path}", self.urls.coordinator, zone.id);
        let call = Call::new(method, url).bearer(zone.lifecycle.expose())?;
        self.web.json(body.iter().fold(call, Call::json)).await
    }

    async fn exchange(&self, fields: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let grant = (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        );
        let fields: Vec<_> = std::iter::once(grant)
            .chain(fields.iter().copied())
            .collect();
        let call =
            Call::new(Method::POST, format!("{}/oauth/2/token", self.urls.sts)).form(&fields);
        self.web
            .send(call, PATIENCE)
            .await
            .context("the STS does not answer")
    }

    /// Asks the STS for a mandate, good for one call.
    pub async fn mint(&self, zone: &Zone, helper: &Helper, scope: &str) -> anyhow::Result<Answer> {
        self.exchange(&[
            ("zone_id", &zone.id),
            ("application_id", &zone.application),
            ("client_secret", zone.secret.expose()),
            ("scope", scope),
            ("resource", zone.resource),
            ("agent_session_id", &helper.session),
            ("delegation_edge_id", &helper.edge),
        ])
        .await
    }

    /// Reads the tickets through the Gateway.
    pub async fn call(&self, zone: &Zone, mandate: &str) -> anyhow::Result<Answer> {
        let call = Call::get(format!("{}/tickets", self.urls.gateway))
            .bearer(mandate)?
            .header("x-caracal-resource", zone.resource)?;
        self.web
            .send(call, PATIENCE)
            .await
            .context("the Gateway does not answer")
    }

    pub async fn revoke(&self, zone: &Zone, helper: &Helper) -> anyhow::Result<()> {
        let path = format!("/delegations/{}/revoke", helper.edge);
        self.coordinator(zone, Method::PATCH, &path, None)
            .await
            .map(drop)
    }

    /// What the ledger knows of a request, once it has arrived there.
    pub async fn explanation(&self, zone: &Zone, request: &str) -> anyhow::Result<Value> {
        let url = format!(
            "{}/v1/zones/{}/audit/by-request/{request}/explain",
            self.urls.api, zone.id
        );
        let arrived = async {
            loop {
                let call = Call::get(&url).bearer(self.admin.expose())?;
                let answer = self
                    .web
                    .send(call, PATIENCE)
                    .await
                    .context("the API does not answer")?;
                if answer.status != StatusCode::NOT_FOUND {
                    return super::expect(&answer, StatusCode::OK);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(EVIDENCE_WITHIN, arrived)
            .await
            .context("the evidence did not arrive within 10 s; see `caracal status --ready`")?
    }

    pub async fn remove(&self, zone: &Zone) -> anyhow::Result<()> {
        self.admin(Method::DELETE, &format!("/v1/zones/{}", zone.id), None)
            .await
            .map(drop)
    }
}

fn grants(application: &str, resource: &str) -> String {
    let ids = json!({ application: application });
    let grants = json!({
        resource: { "application": application, "roles": { application: ["desk:read"] } },
    });
    format!(
        "# caracal:data-document\npackage caracal.authz\nimport rego.v1\napp_ids := {ids}\ngrants := {grants}\n"
    )
}
