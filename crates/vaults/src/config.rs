//! Which backend, and how it is reached. Only the settings of the chosen one are read; each mistake
//! is told at the start, by the name of the setting.

use std::path::PathBuf;
use std::sync::Arc;

use caracal_model::{Clock, Rng, Secret};
use caracal_net::egress::Fetcher;
use caracal_net::settings::{Mistakes, Strings};
use caracal_store::custody::SecretBackend;
use url::{Host, Url};

use crate::aws::{self, Container, Credentials, SecretsManager, Source};
use crate::azure::{self, KeyVault};
use crate::custom::Custom;
use crate::gcp::{self, SecretManager, ServiceAccount};
use crate::infisical::Infisical;
use crate::lasting::Lasting;
use crate::token::{Authorized, Given, Issue, Shown};
use crate::vault::Vault;
use crate::wire::Wire;

const NAMES: &str = "is one of builtin, vault, infisical, azurekeyvault, awssecretsmanager, \
    gcpsecretmanager and custom";
/// Where a machine asks who it is; http on a link of its own, as the clouds have it.
const AZURE_METADATA: &str = "http://169.254.169.254";
const GOOGLE_METADATA: &str = "http://metadata.google.internal";
const ECS_CREDENTIALS: &str = "http://169.254.170.2";
/// Hosts that AWS has containers ask without TLS.
const ECS_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];

caracal_net::settings! {
    struct ChosenSettings {
        /// Where sealed secrets are kept: `builtin` is our own database.
        backend: String = var("CARACAL_SECRET_BACKEND").or("builtin"),
        /// Takes everything back into our own database, so that another backend can be chosen.
        leaving: bool = var("CARACAL_SECRET_BACKEND_LEAVE").or("false"),
    }
}

caracal_net::settings! {
    struct VaultSettings {
        /// Address of the server.
        address: Url = var("CARACAL_VAULT_ADDR"),
        /// May read, write and delete below the mount. A file is read again when it is refused.
        token: Secret<String> = var("CARACAL_VAULT_TOKEN").secret(),
        /// Mount of a key-value engine, version 2.
        mount: String = var("CARACAL_VAULT_MOUNT").or("secret"),
        /// Namespace of the mount, if there are any.
        namespace: Option<String> = var("CARACAL_VAULT_NAMESPACE"),
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
    struct AwsSettings {
        /// The region.
        region: Option<String> = var("CARACAL_AWS_REGION"),
        /// The region, as other tools name it.
        usual_region: Option<String> = var("AWS_REGION"),
        /// Names a key.
        key_id: Option<String> = var("AWS_ACCESS_KEY_ID"),
        /// The key.
        secret: Option<Secret<String>> = var("AWS_SECRET_ACCESS_KEY").secret(),
        /// Goes with a key that ends.
        session_token: Option<Secret<String>> = var("AWS_SESSION_TOKEN").secret(),
        /// Where ECS answers with credentials.
        relative_uri: Option<String> = var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        /// Where the container's credentials are, in full.
        full_uri: Option<String> = var("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        /// Shown there.
        container_token: Option<Secret<String>> = var("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        /// Shown there, and read anew each time.
        container_token_file: Option<PathBuf> = var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        /// An endpoint of one's own, such as a private one.
        endpoint: Option<Url> = var("AWS_ENDPOINT_URL_SECRETS_MANAGER"),
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

/// The backend that the settings choose, not yet asked for anything.
#[derive(Debug)]
pub struct Chosen {
    kind: Kind,
    leaving: bool,
}

#[derive(Debug)]
enum Kind {
    Builtin,
    Vault(VaultSettings, Given),
    Infisical(InfisicalSettings, Given),
    Azure(Url, azure::Identity),
    Aws(Url, String, Source),
    Gcp(String, Option<ServiceAccount>),
    Custom(Url, Given),
}

impl Chosen {
    /// Reads `CARACAL_SECRET_BACKEND` and what the backend needs.
    pub fn load(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        let chosen = ChosenSettings::load(from, mistakes)?;
        let kind = match chosen.backend.as_str() {
            "builtin" => Some(Kind::Builtin),
            "vault" => {
                let settings = VaultSettings::load(from, mistakes)?;
                let given = given("CARACAL_VAULT_TOKEN", from, &settings.token);
                secure("CARACAL_VAULT_ADDR", &settings.address, mistakes)
                    .then_some(Kind::Vault(settings, given))
            }
            "infisical" => {
                let settings = InfisicalSettings::load(from, mistakes)?;
                let given = given("CARACAL_INFISICAL_TOKEN", from, &settings.token);
                secure("CARACAL_INFISICAL_URL", &settings.url, mistakes)
                    .then_some(Kind::Infisical(settings, given))
            }
            "azurekeyvault" => azure(AzureSettings::load(from, mistakes)?, mistakes),
            "awssecretsmanager" => aws(AwsSettings::load(from, mistakes)?, mistakes),
            "gcpsecretmanager" => gcp(GcpSettings::load(from, mistakes)?, from, mistakes),
            "custom" => {
                let settings = CustomSettings::load(from, mistakes)?;
                let given = given("CARACAL_CUSTOM_SECRETS_TOKEN", from, &settings.token);
                secure("CARACAL_CUSTOM_SECRETS_URL", &settings.url, mistakes)
                    .then_some(Kind::Custom(settings.url, given))
            }
            _ => {
                mistakes.add("CARACAL_SECRET_BACKEND", NAMES);
                None
            }
        };
        let (kind, leaving) = (kind?, chosen.leaving);
        if leaving && matches!(kind, Kind::Builtin) {
            mistakes.add(
                "CARACAL_SECRET_BACKEND_LEAVE",
                "needs CARACAL_SECRET_BACKEND to name the backend that is left",
            );
            return None;
        }
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
            Kind::Vault(settings, given) => Arc::new(Vault {
                at: authorized("vault", Box::new(given), Shown::In("x-vault-token")),
                address: settings.address,
                mount: settings.mount,
                namespace: settings.namespace,
            }),
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

fn azure(settings: AzureSettings, mistakes: &mut Mistakes) -> Option<Kind> {
    let secure = secure("CARACAL_AZURE_VAULT_URL", &settings.url, mistakes)
        & secure("AZURE_AUTHORITY_HOST", &settings.authority, mistakes);
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
    secure.then_some(Kind::Azure(settings.url, identity))
}

fn aws(settings: AwsSettings, mistakes: &mut Mistakes) -> Option<Kind> {
    let region = settings.region.clone().or(settings.usual_region.clone());
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let region = region.filter(|region| region.chars().all(legal));
    if region.is_none() {
        mistakes.add(
            "CARACAL_AWS_REGION",
            "or AWS_REGION is required, for example eu-central-1",
        );
    }
    let source = source(&settings, mistakes);
    let endpoint = match (&settings.endpoint, &region) {
        (Some(endpoint), _) => {
            secure("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint, mistakes).then(|| endpoint.clone())
        }
        (None, Some(region)) => fixed(&aws::endpoint(region)),
        (None, None) => None,
    };
    Some(Kind::Aws(endpoint?, region?, source?))
}

fn source(settings: &AwsSettings, mistakes: &mut Mistakes) -> Option<Source> {
    let copy = |secret: &Secret<String>| Secret::new(secret.expose().clone());
    match (&settings.key_id, &settings.secret) {
        (Some(key_id), Some(secret)) => {
            return Some(Source::Static(Credentials {
                key_id: key_id.clone(),
                secret: copy(secret),
                session_token: settings.session_token.as_ref().map(copy),
            }));
        }
        (None, None) => {}
        (key_id, _) => {
            let (missing, other) = match key_id {
                None => ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
                Some(_) => ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
            };
            mistakes.add(missing, format!("is required beside {other}"));
            return None;
        }
    }
    let (name, url) = match (&settings.relative_uri, &settings.full_uri) {
        (Some(path), _) => (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            format!("{ECS_CREDENTIALS}/{}", path.trim_start_matches('/')),
        ),
        (None, Some(full)) => ("AWS_CONTAINER_CREDENTIALS_FULL_URI", full.clone()),
        (None, None) => {
            mistakes.add(
                "AWS_ACCESS_KEY_ID",
                "and AWS_SECRET_ACCESS_KEY are required where no container credentials are \
                 (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI)",
            );
            return None;
        }
    };
    let Some(url) = fixed(&url) else {
        mistakes.add(name, "does not make a URL");
        return None;
    };
    let known = url.host_str().is_some_and(|host| ECS_HOSTS.contains(&host));
    (known || secure(name, &url, mistakes)).then(|| {
        Source::Container(Container {
            url,
            token: settings.container_token.as_ref().map(copy),
            token_file: settings.container_token_file.clone(),
        })
    })
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
