//! Which backend, and how it is reached. Only the settings of the chosen one are read; each mistake
//! is told at the start, by the name of the setting.

mod aws;
mod vault;

use std::path::PathBuf;
use std::sync::Arc;

use caracal_model::{Clock, Rng, Secret};
use caracal_net::egress::Fetcher;
use caracal_net::settings::{Described, Mistakes, Strings};
use caracal_store::custody::SecretBackend;
use url::{Host, Url};

use crate::aws::{SecretsManager, Source};
use crate::azure::{self, KeyVault};
use crate::custom::Custom;
use crate::gcp::{self, SecretManager, ServiceAccount};
use crate::infisical::Infisical;
use crate::lasting::Lasting;
use crate::token::{Authorized, Given, Issue, Shown};
use crate::vault::{Login, Vault};
use crate::wire::Wire;

const NAMES: [&str; 7] = [
    "builtin",
    "vault",
    "infisical",
    "azurekeyvault",
    "awssecretsmanager",
    "gcpsecretmanager",
    "custom",
];
/// Where a machine asks who it is; http on a link of its own, as the clouds have it.
const AZURE_METADATA: &str = "http://169.254.169.254";
const GOOGLE_METADATA: &str = "http://metadata.google.internal";

caracal_net::settings! {
    struct ChosenSettings {
        /// Where sealed secrets are kept: `builtin` is our own database.
        backend: String = var("CARACAL_SECRET_BACKEND").or("builtin").one_of(&NAMES),
        /// Takes everything back into our own database, so that another backend can be chosen.
        leaving: bool = var("CARACAL_SECRET_BACKEND_LEAVE").or("false"),
    }
}

caracal_net::settings! {
    struct InfisicalSettings {
        /// Of a machine identity. A file is read again when it is refused.
        token: Secret<String> = var("CARACAL_INFISICAL_TOKEN").secret(),
        /// Id of the project.
        project: String = var("CARACAL_INFISICAL_PROJECT_ID"),
        /// Address of the server.
        url: Url = var("CARACAL_INFISICAL_URL").or("https://app.infisical.com"),
        /// Slug of the environment.
        environment: String = var("CARACAL_INFISICAL_ENV").or("prod"),
        /// Folder.
        path: String = var("CARACAL_INFISICAL_PATH").or("/"),
    }
}

caracal_net::settings! {
    struct AzureSettings {
        /// Address of the vault.
        url: Url = var("CARACAL_AZURE_VAULT_URL"),
        /// Tenant of the application; without one, the machine's own identity is used.
        tenant: Option<String> = var("CARACAL_AZURE_TENANT_ID"),
        /// The application, or the user-assigned identity.
        client: Option<String> = var("CARACAL_AZURE_CLIENT_ID"),
        /// The application's secret.
        secret: Option<Secret<String>> = var("CARACAL_AZURE_CLIENT_SECRET").secret(),
        /// Where tokens are issued; sovereign clouds have their own.
        authority: Url = var("AZURE_AUTHORITY_HOST").or("https://login.microsoftonline.com"),
    }
}

caracal_net::settings! {
    struct GcpSettings {
        /// Id of the project; without it, that of the key file.
        project: Option<String> = var("CARACAL_GCP_PROJECT"),
        /// Key file of a service account; without one, the machine's own is used.
        file: Option<PathBuf> = var("CARACAL_GCP_CREDENTIALS_FILE"),
        /// The key file, as other tools name it.
        usual_file: Option<PathBuf> = var("GOOGLE_APPLICATION_CREDENTIALS"),
    }
}

caracal_net::settings! {
    struct CustomSettings {
        /// Address of the service; references are below `secrets/`.
        url: Url = var("CARACAL_CUSTOM_SECRETS_URL"),
        /// Shown as a bearer. A file is read again when it is refused.
        token: Secret<String> = var("CARACAL_CUSTOM_SECRETS_TOKEN").secret(),
    }
}

/// Every setting, under the backend that reads it; those of the choice itself are under none.
#[must_use]
pub fn describe() -> Vec<(Option<&'static str>, Vec<Described>)> {
    vec![
        (None, ChosenSettings::describe()),
        (Some("vault"), vault::describe()),
        (Some("infisical"), InfisicalSettings::describe()),
        (Some("azurekeyvault"), AzureSettings::describe()),
        (Some("awssecretsmanager"), aws::describe()),
        (Some("gcpsecretmanager"), GcpSettings::describe()),
        (Some("custom"), CustomSettings::describe()),
    ]
}

/// The backend that the settings choose, not yet asked for anything.
#[derive(Debug)]
pub struct Chosen {
    kind: Kind,
    leaving: bool,
}

#[derive(Debug)]
enum Kind {
    Builtin,
    Vault(vault::Reached),
    Infisical(InfisicalSettings, Given),
    Azure(Url, azure::Identity),
    Aws(Url, String, Source),
    Gcp(String, Option<ServiceAccount>),
    Custom(Url, Given),
}

impl Kind {
    /// Reads what the backend of this name needs.
    fn read(backend: &str, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        match backend {
            "builtin" => Some(Self::Builtin),
            "vault" => vault::read(from, mistakes).map(Self::Vault),
            "infisical" => {
                let settings = InfisicalSettings::load_by(from, mistakes, |set, mistakes| {
                    secure("CARACAL_INFISICAL_URL", &set.url, mistakes);
                })?;
                let given = given("CARACAL_INFISICAL_TOKEN", from, &settings.token);
                Some(Self::Infisical(settings, given))
            }
            "azurekeyvault" => azure(from, mistakes),
            "awssecretsmanager" => aws::read(from, mistakes),
            "gcpsecretmanager" => gcp(GcpSettings::load(from, mistakes)?, from, mistakes),
            "custom" => {
                let settings = CustomSettings::load_by(from, mistakes, |set, mistakes| {
                    secure("CARACAL_CUSTOM_SECRETS_URL", &set.url, mistakes);
                })?;
                let given = given("CARACAL_CUSTOM_SECRETS_TOKEN", from, &settings.token);
                Some(Self::Custom(settings.url, given))
            }
            // No other name gets past its declaration.
            _ => None,
        }
    }
}

impl Chosen {
    /// Reads `CARACAL_SECRET_BACKEND` and what the backend needs.
    pub fn load(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        let mut kind = None;
        let chosen = ChosenSettings::load_by(from, mistakes, |chosen, mistakes| {
            kind = Kind::read(&chosen.backend, from, mistakes);
            let none_named = chosen.backend == "builtin";
            if chosen.leaving && none_named && !mistakes.tell_of("CARACAL_SECRET_BACKEND") {
                mistakes.add(
                    "CARACAL_SECRET_BACKEND_LEAVE",
                    "needs CARACAL_SECRET_BACKEND to name the backend that is left",
                );
            }
        });
        let (kind, leaving) = (kind?, chosen?.leaving);
        Some(Self { kind, leaving })
    }

    /// Whether the backend is to be left (`CARACAL_SECRET_BACKEND_LEAVE`).
    pub const fn leaves(&self) -> bool {
        self.leaving
    }

    /// The backend; none when our own database is it. Nothing is sent yet.
    pub fn open(
        self,
        fetch: Fetcher,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Option<Arc<dyn SecretBackend>> {
        let wire = |name| Wire::new(name, fetch.clone());
        let authorized = |name, issuer: Box<dyn Issue>, shown| {
            Authorized::new(wire(name), issuer, shown, clock.clone())
        };
        Some(match self.kind {
            Kind::Builtin => return None,
            Kind::Vault(at) => {
                let login = Login::new(at.address.clone(), at.namespace.clone(), at.by);
                Arc::new(Vault {
                    at: authorized("vault", Box::new(login), Shown::In("x-vault-token")),
                    address: at.address,
                    mount: at.mount,
                    namespace: at.namespace,
                })
            }
            Kind::Infisical(settings, given) => Arc::new(Infisical {
                at: authorized("infisical", Box::new(given), Shown::Bearer),
                url: settings.url,
                project: settings.project,
                environment: settings.environment,
                path: settings.path,
            }),
            Kind::Azure(url, identity) => Arc::new(KeyVault {
                at: authorized("azurekeyvault", Box::new(identity), Shown::Bearer),
                url,
            }),
            Kind::Aws(endpoint, region, source) => Arc::new(SecretsManager {
                wire: wire("awssecretsmanager"),
                endpoint,
                region,
                source,
                credentials: Lasting::new(clock.clone()),
                clock: clock.clone(),
                rng,
            }),
            Kind::Gcp(project, account) => {
                let identity = match account {
                    Some(account) => gcp::Identity::Key {
                        account,
                        clock: clock.clone(),
                    },
                    None => gcp::Identity::Metadata(fixed(GOOGLE_METADATA)?),
                };
                Arc::new(SecretManager {
                    at: authorized("gcpsecretmanager", Box::new(identity), Shown::Bearer),
                    endpoint: fixed("https://secretmanager.googleapis.com")?,
                    project,
                })
            }
            Kind::Custom(url, given) => Arc::new(Custom {
                at: authorized("custom", Box::new(given), Shown::Bearer),
                url,
            }),
        })
    }
}

/// A URL of ours.
fn fixed(text: &str) -> Option<Url> {
    Url::parse(text).ok()
}

/// The file itself, where a file was named: its content may be replaced.
fn given(name: &str, from: &dyn Strings, token: &Secret<String>) -> Given {
    let set = |name: &str| from.get(name).filter(|text| !text.trim().is_empty());
    match (set(name), set(&format!("{name}_FILE"))) {
        (None, Some(file)) => Given::File(PathBuf::from(file)),
        _ => Given::Text(Secret::new(token.expose().clone())),
    }
}

/// https, or this machine.
fn secure(name: &str, url: &Url, mistakes: &mut Mistakes) -> bool {
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    let secure = url.scheme() == "https" || here;
    if !secure {
        mistakes.add(name, "must be https, unless it is on this machine");
    }
    secure
}

fn azure(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Kind> {
    let settings = AzureSettings::load_by(from, mistakes, |set, mistakes| {
        secure("CARACAL_AZURE_VAULT_URL", &set.url, mistakes);
        secure("AZURE_AUTHORITY_HOST", &set.authority, mistakes);
    })?;
    let audience = azure::audience(&settings.url);
    let identity = match (settings.tenant, settings.client, settings.secret) {
        (Some(tenant), Some(client), Some(secret)) => azure::Identity::Client {
            authority: settings.authority,
            tenant,
            client,
            secret,
            audience,
        },
        (None, client, None) => azure::Identity::Managed {
            metadata: fixed(AZURE_METADATA)?,
            client,
            audience,
        },
        (tenant, client, _) => {
            let missing = [
                ("CARACAL_AZURE_TENANT_ID", tenant.is_none()),
                ("CARACAL_AZURE_CLIENT_ID", client.is_none()),
            ];
            let missing = missing.iter().find(|(_, missing)| *missing);
            mistakes.add(
                missing.map_or("CARACAL_AZURE_CLIENT_SECRET", |(name, _)| name),
                "is required beside the others of tenant, client id and client secret; without \
                 tenant and secret, the machine's own identity is used",
            );
            return None;
        }
    };
    Some(Kind::Azure(settings.url, identity))
}

fn gcp(settings: GcpSettings, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Kind> {
    let (name, file) = match (settings.file, settings.usual_file) {
        (Some(file), _) => ("CARACAL_GCP_CREDENTIALS_FILE", Some(file)),
        (None, file) => ("GOOGLE_APPLICATION_CREDENTIALS", file),
    };
    let account = match file {
        None => None,
        Some(path) => {
            let read = from.file(&path.to_string_lossy());
            let text = read.map_err(|error| error.to_string());
            let account = text.and_then(|text| ServiceAccount::parse(&text));
            match account {
                Ok(account) => Some(account),
                Err(why) => {
                    mistakes.add(name, format!("{}: {why}", path.display()));
                    return None;
                }
            }
        }
    };
    if let Some(account) = &account
        && !secure(name, &account.token_uri, mistakes)
    {
        return None;
    }
    let of_file = account.as_ref().and_then(|account| account.project.clone());
    let project = settings.project.or(of_file);
    if project.is_none() {
        mistakes.add("CARACAL_GCP_PROJECT", "is required, for example my-project");
    }
    Some(Kind::Gcp(project?, account))
}
