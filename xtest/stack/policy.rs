//! Policy sets of a zone.

use serde_json::json;

use crate::{Stack, eventually};

/// Puts a policy set of one document with this body into force.
///
/// # Panics
/// When the deployment refuses, or does not load it in time.
pub async fn put_in_force(stack: &Stack, zone: &str, body: &str) {
    let set = policy_set(stack, zone, body).await;
    set.activate(stack).await;
    eventually("the policy set is loaded", async || {
        stack
            .read(&set.status())
            .await
            .expect(200)
            .text("propagation_status")
            == "loaded"
    })
    .await;
}

/// A version of a policy set, to be activated.
pub struct PolicySet {
    path: String,
    version: String,
}

impl PolicySet {
    /// Puts it in force; answers before everybody knows.
    ///
    /// # Panics
    /// When the deployment refuses.
    pub async fn activate(&self, stack: &Stack) {
        let body = json!({"version_id": self.version});
        stack
            .post(&format!("{}/activate", self.path), &body)
            .await
            .expect(202);
    }

    /// The id of the set.
    pub fn id(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The id of the version.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn status(&self) -> String {
        format!(
            "{}/activation-status?version_id={}",
            self.path, self.version
        )
    }
}

/// A policy set of one document with this body.
///
/// # Panics
/// When the deployment refuses.
pub async fn policy_set(stack: &Stack, zone: &str, body: &str) -> PolicySet {
    let z = format!("/v1/zones/{zone}");
    let document =
        format!("# caracal:data-document\npackage caracal.authz\nimport rego.v1\n{body}\n");
    let unique = stack.unique("policy");
    let body = json!({"name": unique, "content": document});
    let version = stack
        .post(&format!("{z}/policies"), &body)
        .await
        .expect(201)
        .text("version_id");
    let set = stack
        .post(&format!("{z}/policy-sets"), &json!({"name": unique}))
        .await
        .expect(201);
    let path = format!("{z}/policy-sets/{}", set.text("id"));
    let body = json!({"manifest": [{"policy_version_id": version}]});
    let version = stack
        .post(&format!("{path}/versions"), &body)
        .await
        .expect(201)
        .text("version_id");
    PolicySet { path, version }
}
