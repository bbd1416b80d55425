//! Which policy is in force (spec: sts §10.1).
//!
//! No binding: deny all. A document that does not parse, or defines what it may not: deny all,
//! because whoever wrote it meant something that we do not know. Anything else that is wrong with
//! the bundle (a hash, a missing version, a limit) keeps the policy that was in force, and without
//! one no question is answered: `policy_eval_failed`, never an allow.

use std::sync::Arc;

use caracal_model::ZoneId;
use caracal_model::policy::{ActivePolicy, Contract, PolicyFault, PolicyInput, PolicyResult};
use caracal_policy::{DenyAll, compile_measured, manifest_sha256};
use caracal_store::zone_snapshot::PolicyBinding;

use super::ZoneView;

/// Stands for the manifest hash of a zone that denies all.
pub const NO_ACTIVE_POLICY_SET: &str = "no_active_policy_set";

pub(super) struct Bound {
    pub active: ActivePolicy,
    pub fault: Option<String>,
}

/// Why a bundle is not in force.
enum Unusable {
    /// Deny all.
    Rejected(String),
    /// Keep what was in force.
    Broken(String),
}

pub(super) fn bind(
    zone: &ZoneId,
    binding: Option<PolicyBinding>,
    previous: Option<&ZoneView>,
) -> Bound {
    let Some(binding) = binding else {
        return Bound {
            active: deny_all(),
            fault: None,
        };
    };
    if let Some(same) = previous.filter(|view| is_in_force(view, &binding)) {
        return Bound {
            active: same.policy.clone(),
            fault: None,
        };
    }
    let fault = match load(&binding) {
        Ok(active) => {
            return Bound {
                active,
                fault: None,
            };
        }
        Err(fault) => fault,
    };
    let (active, why) = match fault {
        Unusable::Rejected(why) => (deny_all(), why),
        Unusable::Broken(why) => {
            let kept = previous.map(|view| view.policy.clone());
            (kept.unwrap_or_else(|| unanswerable(&why)), why)
        }
    };
    tracing::error!(%zone, version = binding.version_id, why, "bound policy is not in force");
    Bound {
        active,
        fault: Some(why),
    }
}

/// Versions never change, so the same version with the same hash is the same policy.
fn is_in_force(view: &ZoneView, binding: &PolicyBinding) -> bool {
    view.policy_fault.is_none()
        && view.policy.version_id.as_deref() == Some(binding.version_id.as_str())
        && *view.policy.manifest_sha256 == *binding.manifest_sha256
}

fn load(binding: &PolicyBinding) -> Result<ActivePolicy, Unusable> {
    let found = binding.documents.iter().map(|(id, _)| id);
    if !found.eq(&binding.manifest) {
        return Err(Unusable::Broken(
            "a policy version of the manifest is missing".to_owned(),
        ));
    }
    if manifest_sha256(&binding.manifest) != binding.manifest_sha256 {
        return Err(Unusable::Broken(
            "the manifest hash does not fit the manifest".to_owned(),
        ));
    }
    let contract = compile_measured(&binding.documents).map_err(|error| {
        if error.is_rejection() {
            Unusable::Rejected(error.to_string())
        } else {
            Unusable::Broken(error.to_string())
        }
    })?;
    Ok(ActivePolicy {
        contract,
        version_id: Some(binding.version_id.as_str().into()),
        manifest_sha256: binding.manifest_sha256.as_str().into(),
    })
}

fn deny_all() -> ActivePolicy {
    ActivePolicy {
        contract: Arc::new(DenyAll),
        version_id: None,
        manifest_sha256: NO_ACTIVE_POLICY_SET.into(),
    }
}

/// Answers no question at all.
struct Unanswerable(String);

impl Contract for Unanswerable {
    fn evaluate(&self, _: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        Err(PolicyFault(self.0.clone()))
    }
}

fn unanswerable(why: &str) -> ActivePolicy {
    ActivePolicy {
        contract: Arc::new(Unanswerable(why.to_owned())),
        ..deny_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::ProviderSecret;
    use caracal_model::Timestamp;
    use caracal_store::secrets::Kept;
    use caracal_store::zone_snapshot::{ZoneRow, ZoneSnapshot};

    const DOCUMENT: &str = "# caracal:data-document\npackage caracal.authz\n\ngrants := {}\n";

    fn binding(version: &str, content: &str) -> PolicyBinding {
        let manifest = vec![format!("{version}-document")];
        PolicyBinding {
            set_id: "set".to_owned(),
            version_id: version.to_owned(),
            manifest_sha256: manifest_sha256(&manifest),
            documents: vec![(manifest[0].clone(), content.to_owned())],
            manifest,
        }
    }

    fn view(policy: Option<PolicyBinding>, previous: Option<&ZoneView>) -> ZoneView {
        let snapshot = ZoneSnapshot {
            zone: ZoneRow {
                id: ZoneId::trusted("z"),
                archived: false,
                dcr_enabled: false,
                actor_tokens: false,
            },
            keys: Vec::new(),
            applications: Vec::new(),
            resources: Vec::new(),
            providers: Vec::new(),
            issuers: Vec::new(),
            policy,
        };
        let none = |_: &ZoneId, _: &str, _: &Kept| ProviderSecret::None;
        ZoneView::build(snapshot, None, &none, previous, Timestamp::default())
    }

    fn answer(view: &ZoneView) -> String {
        match view.policy.contract.evaluate(&PolicyInput::default()) {
            Ok(result) if result.allow => "allow".to_owned(),
            Ok(result) => format!("deny: {}", result.reason().unwrap_or_default()),
            Err(_) => "fault".to_owned(),
        }
    }

    #[test]
    fn without_a_usable_policy_nothing_is_allowed() {
        let none = view(None, None);
        assert_eq!(answer(&none), "deny: no_active_policy_set");
        assert_eq!(none.policy_fault, None);

        let rejected = view(Some(binding("v1", "this is no document")), None);
        assert_eq!(answer(&rejected), "deny: no_active_policy_set");
        assert_eq!(&*rejected.policy.manifest_sha256, NO_ACTIVE_POLICY_SET);
        assert!(rejected.policy_fault.is_some());

        let mut broken = binding("v1", DOCUMENT);
        broken.documents.clear();
        let broken = view(Some(broken), None);
        assert_eq!(answer(&broken), "fault");
        assert!(broken.policy_fault.is_some());
    }

    #[test]
    fn a_broken_bundle_keeps_the_policy_in_force_and_a_rejected_one_does_not() {
        let first = view(Some(binding("v1", DOCUMENT)), None);
        assert_eq!(first.policy.version_id.as_deref(), Some("v1"));
        let again = view(Some(binding("v1", DOCUMENT)), Some(&first));
        assert!(
            Arc::ptr_eq(&again.policy.contract, &first.policy.contract),
            "compiled once"
        );

        let mut tampered = binding("v2", DOCUMENT);
        tampered.manifest_sha256 = manifest_sha256(&["other".to_owned()]);
        let kept = view(Some(tampered), Some(&first));
        assert_eq!(kept.policy.version_id.as_deref(), Some("v1"));
        assert!(kept.policy_fault.is_some());

        let rejected = view(Some(binding("v3", "this is no document")), Some(&kept));
        assert_eq!(rejected.policy.version_id, None);

        let mended = view(Some(binding("v2", DOCUMENT)), Some(&rejected));
        assert_eq!(mended.policy.version_id.as_deref(), Some("v2"));
        assert_eq!(mended.policy_fault, None);
    }
}
