//! Settings of Vault, and of the ways to a token of it.

use std::path::PathBuf;

use caracal_model::Secret;
use caracal_net::settings::{Described, Mistakes, Strings};
use url::Url;

use super::{given, secure};
use crate::vault::By;

caracal_net::settings! {
    struct VaultSettings {
        /// Address of the server.
        address: Url = var("CARACAL_VAULT_ADDR"),
        /// Mount of a key-value engine, version 2.
        mount: String = var("CARACAL_VAULT_MOUNT").or("secret"),
        /// Namespace of the mount, if there are any.
        namespace: Option<String> = var("CARACAL_VAULT_NAMESPACE"),
    }
}

caracal_net::settings! {
    struct AuthSettings {
        /// How Vault is told who asks: `token`, `approle` or `kubernetes`.
        auth: String = var("CARACAL_VAULT_AUTH").or("token")
            .one_of(&["token", "approle", "kubernetes"]),
    }
}

caracal_net::settings! {
    struct TokenSettings {
        /// May read, write and delete below the mount. A file is read again when it is refused.
        token: Secret<String> = var("CARACAL_VAULT_TOKEN").secret()
            .needed("when CARACAL_VAULT_AUTH is token"),
    }
}

caracal_net::settings! {
    struct AppRoleSettings {
        /// Id of the role.
        role_id: String = var("CARACAL_VAULT_ROLE_ID")
            .needed("when CARACAL_VAULT_AUTH is approle"),
        /// A secret id of it. A file is read at each login.
        secret_id: Secret<String> = var("CARACAL_VAULT_SECRET_ID").secret()
            .needed("when CARACAL_VAULT_AUTH is approle"),
        /// Where the method is mounted.
        mount: String = var("CARACAL_VAULT_AUTH_MOUNT").or("approle"),
    }
}

caracal_net::settings! {
    struct KubernetesSettings {
        /// Name of the role.
        role: String = var("CARACAL_VAULT_ROLE")
            .needed("when CARACAL_VAULT_AUTH is kubernetes"),
        /// Holds the token of the service account.
        token_file: PathBuf = var("CARACAL_VAULT_KUBERNETES_TOKEN_FILE")
            .or("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        /// Where the method is mounted.
        mount: String = var("CARACAL_VAULT_AUTH_MOUNT").or("kubernetes"),
    }
}

/// A server, and how it is told who asks.
#[derive(Debug)]
pub struct Reached {
    pub address: Url,
    pub mount: String,
    pub namespace: Option<String>,
    pub by: By,
}

/// Every setting, of each way.
pub fn describe() -> Vec<Described> {
    [
        VaultSettings::describe(),
        AuthSettings::describe(),
        TokenSettings::describe(),
        AppRoleSettings::describe(),
        KubernetesSettings::describe(),
    ]
    .concat()
}

/// Reads all that the chosen way needs, so that every mistake is told at once.
pub fn read(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Reached> {
    let settings = VaultSettings::load_by(from, mistakes, |set, mistakes| {
        secure("CARACAL_VAULT_ADDR", &set.address, mistakes);
    });
    let by = match AuthSettings::load(from, mistakes)?.auth.as_str() {
        "token" => TokenSettings::load(from, mistakes)
            .map(|set| By::Token(given("CARACAL_VAULT_TOKEN", from, &set.token))),
        "approle" => AppRoleSettings::load(from, mistakes).map(|set| By::AppRole {
            secret_id: given("CARACAL_VAULT_SECRET_ID", from, &set.secret_id),
            mount: set.mount,
            role_id: set.role_id,
        }),
        "kubernetes" => KubernetesSettings::load(from, mistakes).map(|set| By::Kubernetes {
            mount: set.mount,
            role: set.role,
            token_file: set.token_file,
        }),
        // No other way gets past its declaration.
        _ => None,
    };
    let settings = settings?;
    Some(Reached {
        address: settings.address,
        mount: settings.mount,
        namespace: settings.namespace,
        by: by?,
    })
}
