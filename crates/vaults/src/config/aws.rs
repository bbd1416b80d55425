//! Settings of AWS Secrets Manager, under the names that AWS's own tools read.

use std::path::PathBuf;

use caracal_model::Secret;
use caracal_net::settings::{Described, Mistakes, Strings};
use url::Url;

use super::{Kind, fixed, secure};
use crate::aws::{self, Container, Credentials, Source, WebIdentity};

const ECS_CREDENTIALS: &str = "http://169.254.170.2";
/// Hosts that AWS has containers ask without TLS.
const ECS_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];

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
        container_token: Option<Secret<String>> = var("AWS_CONTAINER_AUTHORIZATION_TOKEN").hidden(),
        /// Shown there, and read anew each time.
        container_token_file: Option<PathBuf> = var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        /// The role of the pod's service account.
        role: Option<String> = var("AWS_ROLE_ARN"),
        /// Holds the token of the service account.
        identity_file: Option<PathBuf> = var("AWS_WEB_IDENTITY_TOKEN_FILE"),
        /// What the role's session is called.
        session: String = var("AWS_ROLE_SESSION_NAME").or("caracal"),
        /// An endpoint of one's own, such as a private one.
        endpoint: Option<Url> = var("AWS_ENDPOINT_URL_SECRETS_MANAGER"),
        /// The same of the Security Token Service, which gives roles.
        sts_endpoint: Option<Url> = var("AWS_ENDPOINT_URL_STS"),
    }
}

/// Every setting.
pub(super) fn describe() -> Vec<Described> {
    AwsSettings::describe()
}

/// Reads what AWS needs.
pub(super) fn read(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Kind> {
    let settings = AwsSettings::load(from, mistakes)?;
    let region = settings.region.clone().or(settings.usual_region.clone());
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let region = region.filter(|region| region.chars().all(legal));
    if region.is_none() {
        mistakes.add(
            "CARACAL_AWS_REGION",
            "or AWS_REGION is required, for example eu-central-1",
        );
    }
    let source = source(&settings, region.as_deref(), mistakes);
    let endpoint = match (&settings.endpoint, &region) {
        (Some(endpoint), _) => {
            secure("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint, mistakes).then(|| endpoint.clone())
        }
        (None, Some(region)) => fixed(&aws::endpoint(region)),
        (None, None) => None,
    };
    Some(Kind::Aws(endpoint?, region?, source?))
}

/// In the order of AWS's own tools.
fn source(settings: &AwsSettings, region: Option<&str>, mistakes: &mut Mistakes) -> Option<Source> {
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
    match (&settings.role, &settings.identity_file) {
        (Some(_), Some(_)) => return web_identity(settings, region, mistakes),
        (None, None) => {}
        (Some(_), None) => {
            let why = "is required beside AWS_ROLE_ARN";
            mistakes.add("AWS_WEB_IDENTITY_TOKEN_FILE", why);
            return None;
        }
        (None, Some(_)) => {
            mistakes.add(
                "AWS_ROLE_ARN",
                "is required beside AWS_WEB_IDENTITY_TOKEN_FILE",
            );
            return None;
        }
    }
    container(settings, mistakes)
}

fn web_identity(
    settings: &AwsSettings,
    region: Option<&str>,
    mistakes: &mut Mistakes,
) -> Option<Source> {
    let name = "AWS_ENDPOINT_URL_STS";
    let url = match &settings.sts_endpoint {
        Some(url) => secure(name, url, mistakes).then(|| url.clone())?,
        None => fixed(&aws::sts_endpoint(region?))?,
    };
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let session = &settings.session;
    if !(2..=64).contains(&session.len()) || !session.chars().all(is_legal) {
        let why = "is 2 to 64 letters, digits and _+=,.@-";
        mistakes.add("AWS_ROLE_SESSION_NAME", why);
        return None;
    }
    Some(Source::WebIdentity(WebIdentity {
        url,
        role: settings.role.clone()?,
        session: session.clone(),
        token_file: settings.identity_file.clone()?,
    }))
}

fn container(settings: &AwsSettings, mistakes: &mut Mistakes) -> Option<Source> {
    let copy = |secret: &Secret<String>| Secret::new(secret.expose().clone());
    let (name, url) = match (&settings.relative_uri, &settings.full_uri) {
        (Some(path), _) => (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            format!("{ECS_CREDENTIALS}/{}", path.trim_start_matches('/')),
        ),
        (None, Some(full)) => ("AWS_CONTAINER_CREDENTIALS_FULL_URI", full.clone()),
        (None, None) => {
            mistakes.add(
                "AWS_ACCESS_KEY_ID",
                "and AWS_SECRET_ACCESS_KEY are required where there is neither a role \
                 (AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE) nor container credentials \
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
