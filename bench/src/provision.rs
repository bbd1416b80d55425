//! Makes what a governed call needs: a zone, applications, a provider of kind `none`, resources
//! with one declared operation, and an active grants document.
//!
//! The decision contract lets exactly one application own a resource, so each identity has a
//! resource of its own; all of them lead to the same upstream.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};

use crate::admin::{Admin, text};

/// The only scope of the run.
pub const SCOPE: &str = "bench:read";

/// How long an activated policy may take to be loaded everywhere.
const LOADED_WITHIN: Duration = Duration::from_secs(90);

/// One application with its secret and its resource.
#[derive(Clone, Debug)]
pub struct Application {
    pub id: String,
    pub secret: String,
    pub resource: String,
}

/// The provisioned zone.
#[derive(Clone, Debug)]
pub struct Provisioned {
    pub zone: String,
    pub applications: Vec<Application>,
    /// From activation to `loaded`.
    pub policy_loaded_in: Duration,
}

/// Provisions `count` applications whose resources lead to `upstream`.
pub async fn provision(
    admin: &mut Admin,
    count: usize,
    upstream: &str,
) -> anyhow::Result<Provisioned> {
    let created = admin
        .post("/v1/zones", &json!({ "name": "caracal-bench" }))
        .await?;
    let zone = text(&created, "id")?.to_owned();
    let at = format!("/v1/zones/{zone}");
    let provider = json!({ "name": "none", "identifier": "provider://bench", "kind": "none" });
    let provider = admin.post(&format!("{at}/providers"), &provider).await?;
    let provider = text(&provider, "id")?.to_owned();

    let mut applications = Vec::with_capacity(count);
    for n in 1..=count {
        let name = format!("bench-{n:02}");
        let application = json!({ "name": name, "registration_method": "managed" });
        let application = admin
            .post(&format!("{at}/applications"), &application)
            .await?;
        let resource = format!("resource://{name}");
        let body = json!({
            "name": name,
            "identifier": resource,
            "scopes": [SCOPE],
            "upstream_url": upstream,
            "credential_provider_id": provider,
            "operations": [{ "method": "GET", "path": "/", "scope": SCOPE }],
            "operation_enforcement": "enforced",
        });
        admin.post(&format!("{at}/resources"), &body).await?;
        applications.push(Application {
            id: text(&application, "id")?.to_owned(),
            secret: text(&application, "client_secret")?.to_owned(),
            resource,
        });
    }
    let policy_loaded_in = activate(admin, &at, &grants(&applications)).await?;
    Ok(Provisioned {
        zone,
        applications,
        policy_loaded_in,
    })
}

/// The grants document as the published reconcilers write it (clients specification §10).
fn grants(applications: &[Application]) -> String {
    // Sorted maps: the exact text is part of the contract.
    let ids: BTreeMap<&str, &str> = applications
        .iter()
        .map(|app| (app.id.as_str(), app.id.as_str()))
        .collect();
    let grants: BTreeMap<&str, Value> = applications
        .iter()
        .map(|app| {
            let role = BTreeMap::from([(app.id.as_str(), [SCOPE])]);
            (
                app.resource.as_str(),
                json!({ "application": app.id, "roles": role }),
            )
        })
        .collect();
    format!(
        "# caracal:data-document\npackage caracal.authz\nimport rego.v1\napp_ids := {}\ngrants := {}\n",
        json!(ids),
        json!(grants)
    )
}

async fn activate(admin: &mut Admin, at: &str, content: &str) -> anyhow::Result<Duration> {
    let policy = json!({ "name": "application-grants", "content": content });
    let policy = admin.post(&format!("{at}/policies"), &policy).await?;
    let set = json!({ "name": "application-grant-policy" });
    let set = admin.post(&format!("{at}/policy-sets"), &set).await?;
    let set = format!("{at}/policy-sets/{}", text(&set, "id")?);
    let manifest = json!({ "manifest": [{ "policy_version_id": text(&policy, "version_id")? }] });
    let version = admin.post(&format!("{set}/versions"), &manifest).await?;
    let version = json!({ "version_id": text(&version, "version_id")? });

    let began = Instant::now();
    let activation = admin.post(&format!("{set}/activate"), &version).await?;
    let status_url = text(&activation, "status_url")?.to_owned();
    loop {
        let status = admin.get(&status_url).await?;
        match text(&status, "propagation_status")? {
            "loaded" => return Ok(began.elapsed()),
            "failed" => bail!("the policy set could not be loaded: {status}"),
            waiting if began.elapsed() > LOADED_WITHIN => {
                bail!(
                    "the policy set is still `{waiting}` after {} s",
                    LOADED_WITHIN.as_secs()
                )
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grants_document_has_the_exact_text_of_the_reconcilers() {
        let app = |n: u8| Application {
            id: format!("app-{n}"),
            secret: String::new(),
            resource: format!("resource://r{n}"),
        };
        assert_eq!(
            grants(&[app(2), app(1)]),
            "# caracal:data-document\n\
             package caracal.authz\n\
             import rego.v1\n\
             app_ids := {\"app-1\":\"app-1\",\"app-2\":\"app-2\"}\n\
             grants := {\"resource://r1\":{\"application\":\"app-1\",\"roles\":{\"app-1\":[\"bench:read\"]}},\
             \"resource://r2\":{\"application\":\"app-2\",\"roles\":{\"app-2\":[\"bench:read\"]}}}\n"
        );
    }
}
