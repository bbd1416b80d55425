//! A zone as the hot path sees it: one immutable snapshot, everything parsed once.

mod keys;
mod policy;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use caracal_authority::{Enforcement, ResourceFacts};
use caracal_crypto::digest::sha256_of;
use caracal_crypto::{Keyring, SecretVerifier};
use caracal_model::policy::ActivePolicy;
use caracal_model::{ApplicationId, ProviderId, ResourceId, Timestamp, ZoneId};
use caracal_store::secrets::{Kept, provider_secret_ref};
pub use caracal_store::zone_snapshot::IssuerRow;
use caracal_store::zone_snapshot::{AppRow, ProviderRow, ResourceRow, ZoneSnapshot};
use serde_json::Value;

pub use self::keys::{KEPT_AFTER, KeyTimes, ZONE_KEY_AAD, ZoneKeys};
pub use self::policy::NO_ACTIVE_POLICY_SET;
use crate::secrets::ProviderSecret;

/// One state of a zone.
#[derive(Debug)]
pub struct ZoneView {
    /// Its id.
    pub id: ZoneId,
    /// Whether it is archived: nothing is granted in it.
    pub archived: bool,
    /// Whether applications may register themselves.
    pub dcr_enabled: bool,
    /// Whether its applications may say with an `actor_token` who acts.
    pub actor_tokens: bool,
    /// The issuers whose ID tokens it trusts, by `iss`.
    pub subject_issuers: HashMap<String, Arc<IssuerRow>>,
    /// Its applications.
    pub applications: HashMap<ApplicationId, Arc<Application>>,
    /// Its resources.
    pub resources: Resources,
    /// Its policy; when there is none, or none that can be used, it denies.
    pub policy: ActivePolicy,
    /// Why the bound policy is not the one in force, when it is not.
    pub policy_fault: Option<String>,
    /// Its keys.
    pub keys: ZoneKeys,
    /// When it was read.
    pub read_at: Timestamp,
}

/// An application.
#[derive(Debug)]
pub struct Application {
    /// Its id.
    pub id: ApplicationId,
    /// Its name.
    pub name: Arc<str>,
    /// `managed` or `dcr`.
    pub registration_method: Arc<str>,
    /// What its secret is checked against; without one it cannot authenticate.
    pub verifier: Option<SecretVerifier>,
    /// Its traits.
    pub traits: Vec<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// A resource and who authenticates calls to it.
#[derive(Debug)]
pub struct Resource {
    /// What decisions need.
    pub facts: ResourceFacts,
    /// Its name.
    pub name: Arc<str>,
    /// Its provider.
    pub provider: Arc<Provider>,
}

/// A credential provider.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// Its identifier.
    pub identifier: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Its configuration without secrets.
    pub config: Value,
    /// Names this state of kind, configuration and secret: what was obtained with another is not
    /// used.
    pub fingerprint: [u8; 32],
    /// The secret part.
    pub secret: ProviderSecret,
}

/// The resources of a zone.
#[derive(Debug, Default)]
pub struct Resources {
    by_identifier: HashMap<Arc<str>, Arc<Resource>>,
    by_id: HashMap<ResourceId, Arc<Resource>>,
    orphans: HashSet<Arc<str>>,
}

impl Resources {
    /// The resource of this URI.
    pub fn by_identifier(&self, identifier: &str) -> Option<&Arc<Resource>> {
        self.by_identifier.get(identifier)
    }

    /// The resource of this row id.
    pub fn by_id(&self, id: &ResourceId) -> Option<&Arc<Resource>> {
        self.by_id.get(id)
    }

    /// Whether there is a resource of this URI that nothing can be done with, because its provider
    /// is gone.
    pub fn is_orphan(&self, identifier: &str) -> bool {
        self.orphans.contains(identifier)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_id.values()
    }
}

impl ZoneView {
    /// Builds the view. Slow (it opens envelopes, parses keys and compiles policy): not for a
    /// thread of the runtime.
    ///
    /// A part that cannot be used is left out and logged, which denies whatever needs it; the rest
    /// of the zone goes on.
    pub(crate) fn build(
        snapshot: ZoneSnapshot,
        keyring: Option<&Keyring>,
        secrets: &dyn Fn(&ZoneId, &str, &Kept) -> ProviderSecret,
        previous: Option<&Self>,
        now: Timestamp,
    ) -> Self {
        let zone = snapshot.zone.id;
        let providers: HashMap<ProviderId, Arc<Provider>> = snapshot
            .providers
            .into_iter()
            .map(|row| (row.id.clone(), Arc::new(provider(&zone, row, secrets))))
            .collect();
        let mut resources = Resources::default();
        for row in snapshot.resources {
            if !providers.contains_key(&row.provider_id) {
                resources.orphans.insert(row.identifier.as_str().into());
            }
            if let Some(resource) = resource(&zone, row, &providers) {
                let resource = Arc::new(resource);
                let identifier = resource.facts.identifier.clone();
                resources.by_identifier.insert(identifier, resource.clone());
                resources.by_id.insert(resource.facts.id.clone(), resource);
            }
        }
        let applications = snapshot.applications.into_iter();
        let issuers = snapshot.issuers.into_iter();
        let issuers = issuers.map(|row| (row.issuer.clone(), Arc::new(row)));
        let bound = policy::bind(&zone, snapshot.policy, previous);
        Self {
            applications: applications
                .map(|row| (row.id.clone(), Arc::new(application(&zone, row))))
                .collect(),
            resources,
            policy: bound.active,
            policy_fault: bound.fault,
            keys: ZoneKeys::build(&zone, &snapshot.keys, keyring, now),
            archived: snapshot.zone.archived,
            dcr_enabled: snapshot.zone.dcr_enabled,
            actor_tokens: snapshot.zone.actor_tokens,
            subject_issuers: issuers.collect(),
            read_at: now,
            id: zone,
        }
    }
}

fn application(zone: &ZoneId, row: AppRow) -> Application {
    let verifier = row.secret_verifier.as_deref().and_then(|text| {
        SecretVerifier::parse(text)
            .inspect_err(|error| {
                tracing::error!(%zone, application = %row.id, %error, "secret verifier not usable");
            })
            .ok()
    });
    Application {
        id: row.id,
        name: row.name.into(),
        registration_method: row.registration_method.into(),
        verifier,
        traits: row.traits,
        expires_at: row.expires_at,
    }
}

fn provider(
    zone: &ZoneId,
    row: ProviderRow,
    secrets: &dyn Fn(&ZoneId, &str, &Kept) -> ProviderSecret,
) -> Provider {
    let place = provider_secret_ref(zone, row.id.as_str());
    let kept = row.secret.as_ref();
    let secret = kept.map(|kept| secrets(zone, &place, kept));
    Provider {
        fingerprint: fingerprint(&row),
        id: row.id,
        identifier: row.identifier.into(),
        kind: row.kind.into(),
        config: row.config_json,
        secret: secret.unwrap_or_default(),
    }
}

/// The envelope names the secret: whoever has no key to it sees the same state.
fn fingerprint(row: &ProviderRow) -> [u8; 32] {
    let config = row.config_json.to_string();
    let secret = row.secret.as_ref().map(Kept::sha256).unwrap_or_default();
    let parts: [&[u8]; 5] = [
        row.kind.as_bytes(),
        b"\0",
        config.as_bytes(),
        b"\0",
        secret.as_bytes(),
    ];
    sha256_of(&parts)
}

fn resource(
    zone: &ZoneId,
    row: ResourceRow,
    providers: &HashMap<ProviderId, Arc<Provider>>,
) -> Option<Resource> {
    let leave_out = |why: &str| {
        tracing::error!(%zone, resource = %row.id, why, "resource left out");
    };
    let Some(provider) = providers.get(&row.provider_id) else {
        leave_out("its provider is gone");
        return None;
    };
    let Some(enforcement) = Enforcement::parse(&row.enforcement) else {
        leave_out("its enforcement is unknown");
        return None;
    };
    let Ok(operations) = serde_json::from_value(row.operations.clone()) else {
        leave_out("its operations cannot be read");
        return None;
    };
    Some(Resource {
        facts: ResourceFacts {
            id: row.id,
            identifier: row.identifier.into(),
            scopes: row.scopes.iter().collect(),
            upstream_url: row.upstream_url.map(Into::into),
            operations,
            enforcement,
            provider: row.provider_id,
        },
        name: row.name.into(),
        provider: provider.clone(),
    })
}
