//! A manifest: the policy versions that a set version is made of, in order (spec: admin-api §8.2).

use std::collections::HashMap;

use caracal_model::policy::SCHEMA_VERSION;
use caracal_store::policies::PolicyVersion;
use caracal_store::policy_sets::PolicySetVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::rego;

/// The ids of policy versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest(Vec<String>);

#[derive(Serialize, Deserialize)]
struct Entry {
    policy_version_id: String,
}

fn broken(description: String) -> Failure {
    Failure::unprocessable("invalid_policy_contract", description)
}

impl Manifest {
    /// Of these versions.
    pub fn new(ids: Vec<String>) -> Self {
        Self(ids)
    }

    /// As stored.
    ///
    /// # Errors
    /// When the stored text does not read.
    pub fn of(version: &PolicySetVersion) -> Result<Self, Failure> {
        let entries: Vec<Entry> =
            serde_json::from_str(&version.manifest_json).map_err(|error| {
                tracing::error!(%error, version = version.id, "stored manifest does not read");
                Failure::internal()
            })?;
        Ok(Self(
            entries
                .into_iter()
                .map(|entry| entry.policy_version_id)
                .collect(),
        ))
    }

    /// The ids, in order.
    pub fn ids(&self) -> &[String] {
        &self.0
    }

    /// As JSON.
    pub fn value(&self) -> Value {
        self.0
            .iter()
            .map(|id| json!({ "policy_version_id": id }))
            .collect()
    }

    /// The text that is stored, and its hash in hex.
    pub fn text_and_hash(&self) -> (String, String) {
        rego::manifest(&self.0)
    }

    /// The documents among `found`, in the order of the manifest.
    ///
    /// # Errors
    /// 422 `invalid_policy_contract` when one is missing, repeated or not a data document.
    pub fn documents(&self, found: Vec<PolicyVersion>) -> Result<Vec<PolicyVersion>, Failure> {
        let mut by_id: HashMap<String, PolicyVersion> = found
            .into_iter()
            .map(|version| (version.id.clone(), version))
            .collect();
        let mut documents = Vec::with_capacity(self.0.len());
        for (at, id) in self.0.iter().enumerate() {
            if self.0.iter().take(at).any(|earlier| earlier == id) {
                return Err(broken(format!("policy version {id} is listed twice")));
            }
            let version = by_id
                .remove(id)
                .ok_or_else(|| broken(format!("there is no policy version {id} in this zone")))?;
            if version.schema_version != SCHEMA_VERSION {
                let (has, needs) = (&version.schema_version, SCHEMA_VERSION);
                return Err(broken(format!(
                    "policy version {id} has schema {has}, not {needs}"
                )));
            }
            rego::validate(&version.content).map_err(|mut why| {
                let issue = why.extra.remove("details").unwrap_or_default();
                broken(format!("policy version {id}: {}", why.description)).with("details", issue)
            })?;
            documents.push(version);
        }
        if documents.is_empty() {
            return Err(broken(
                "a manifest has at least one policy version".to_owned(),
            ));
        }
        Ok(documents)
    }
}
