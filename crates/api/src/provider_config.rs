//! What a provider's `config_json` may hold, by kind. Public keys are stored as read back; secret
//! keys go to custody and never come back (spec: admin-api §7.5).

mod oauth;
mod reader;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::fields::Body;
use reader::{Reader, auth_scheme, header_name, query_name, starts_with_scheme, username};

/// How a provider authenticates its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all.
    None,
    /// With the resource mandate itself, which the upstream verifies.
    CaracalMandate,
    /// With a key in a header or in the query.
    ApiKey,
    /// With a bearer token.
    BearerToken,
    /// With a name and a password.
    HttpBasic,
    /// With the token of the subject's account, or of one account for all.
    AuthorizationCode,
    /// With a token of the service.
    ClientCredentials,
}

/// Every kind that the contract names.
pub const KINDS: [&str; 7] = [
    "none",
    "caracal_mandate",
    "api_key",
    "bearer_token",
    "http_basic",
    "oauth2_authorization_code",
    "oauth2_client_credentials",
];

impl Kind {
    /// The kind of that name.
    ///
    /// # Errors
    /// `invalid_provider_config`.
    pub fn parse(name: &str) -> Result<Self, Failure> {
        Ok(match name {
            "none" => Self::None,
            "caracal_mandate" => Self::CaracalMandate,
            "api_key" => Self::ApiKey,
            "bearer_token" => Self::BearerToken,
            "http_basic" => Self::HttpBasic,
            "oauth2_authorization_code" => Self::AuthorizationCode,
            "oauth2_client_credentials" => Self::ClientCredentials,
            other => return Err(invalid(format!("there is no kind {other}"))),
        })
    }

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::CaracalMandate => "caracal_mandate",
            Self::ApiKey => "api_key",
            Self::BearerToken => "bearer_token",
            Self::HttpBasic => "http_basic",
            Self::AuthorizationCode => "oauth2_authorization_code",
            Self::ClientCredentials => "oauth2_client_credentials",
        }
    }

    /// Whether it has a token endpoint, which can be tested.
    pub const fn is_oauth(self) -> bool {
        matches!(self, Self::AuthorizationCode | Self::ClientCredentials)
    }

    const fn public_keys(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::CaracalMandate => &[],
            Self::ApiKey => &[
                "auth_location",
                "header_name",
                "query_param_name",
                "allowed_token_hosts",
                "auth_scheme",
                "forward_caracal_identity",
                "allow_runtime_injection",
            ],
            Self::BearerToken => &[
                "allowed_token_hosts",
                "auth_header",
                "auth_scheme",
                "forward_caracal_identity",
                "allow_runtime_injection",
            ],
            Self::HttpBasic => &[
                "username",
                "allowed_token_hosts",
                "forward_caracal_identity",
            ],
            Self::AuthorizationCode => &oauth::AUTHORIZATION_CODE_KEYS,
            Self::ClientCredentials => &oauth::CLIENT_CREDENTIALS_KEYS,
        }
    }

    const fn secret_keys(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::CaracalMandate => &[],
            Self::ApiKey => &["api_key"],
            Self::BearerToken => &["bearer_token"],
            Self::HttpBasic => &["password"],
            Self::AuthorizationCode => &["client_secret"],
            Self::ClientCredentials => &["client_secret", "private_key"],
        }
    }
}

/// Secrets by the name of their key.
pub type Secrets = BTreeMap<String, String>;

/// A checked configuration.
pub struct Config {
    /// What is stored and read back.
    pub public: Map<String, Value>,
    /// What goes to custody; empty when none was sent.
    pub secrets: Secrets,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("public", &self.public)
            .field("secrets", &self.secrets.keys())
            .finish()
    }
}

fn invalid(description: String) -> Failure {
    Failure::bad("invalid_provider_config", description)
}

/// Checks a configuration of this kind. `stored` is what custody holds already: it stands when no
/// secret is sent, and is replaced as a whole when one is.
///
/// # Errors
/// `invalid_provider_config`, with the name of the field.
pub fn check(kind: Kind, config: &Body, stored: &Secrets) -> Result<Config, Failure> {
    let legal = |key: &str| kind.public_keys().contains(&key) || kind.secret_keys().contains(&key);
    if let Some(key) = config.keys().find(|key| !legal(key)) {
        return Err(invalid(format!(
            "{key} is not a field of kind {}",
            kind.name()
        )));
    }
    let read = Reader(config);
    let mut public = Map::new();
    let mut secrets = Secrets::new();
    for name in kind.secret_keys() {
        if let Some(secret) = read.secret(name)? {
            secrets.insert((*name).to_owned(), secret);
        }
    }
    let held = if secrets.is_empty() { stored } else { &secrets };
    match kind {
        Kind::None | Kind::CaracalMandate => {}
        Kind::ApiKey => {
            api_key(&read, &mut public)?;
            without_scheme(held, "api_key", public.get("auth_scheme"), None)?;
        }
        Kind::BearerToken => {
            read.put(&mut public, "auth_header", header_name)?;
            read.put(&mut public, "auth_scheme", auth_scheme)?;
            let scheme = public.get("auth_scheme");
            without_scheme(held, "bearer_token", scheme, Some("Bearer"))?;
        }
        Kind::HttpBasic => {
            read.need(&mut public, "username", username)?;
            required(held, "password")?;
        }
        Kind::AuthorizationCode => oauth::authorization_code(&read, held, &mut public)?,
        Kind::ClientCredentials => oauth::client_credentials(&read, held, &mut public)?,
    }
    read.hosts(&mut public)?;
    for flag in [
        "forward_caracal_identity",
        "allow_runtime_injection",
        "session_user_connection",
    ] {
        read.flag(&mut public, flag)?;
    }
    if kind.is_oauth() {
        oauth::default_hosts(&mut public);
        oauth::revocation(&public)?;
    }
    Ok(Config { public, secrets })
}

fn api_key(read: &Reader<'_>, public: &mut Map<String, Value>) -> Result<(), Failure> {
    let location = read.text("auth_location")?.unwrap_or("header");
    public.insert("auth_location".into(), json!(location));
    let (needed, misplaced): (_, &[&str]) = match location {
        "header" => ("header_name", &["query_param_name"]),
        "query" => ("query_param_name", &["header_name", "auth_scheme"]),
        _ => return Err(invalid("auth_location must be header or query".to_owned())),
    };
    for name in misplaced {
        if read.text(name)?.is_some() {
            return Err(invalid(format!(
                "{name} does not go with auth_location {location}"
            )));
        }
    }
    let rule = if needed == "header_name" {
        header_name
    } else {
        query_name
    };
    if !read.put(public, needed, rule)? {
        return Err(invalid(format!(
            "{needed} is required with auth_location {location}"
        )));
    }
    read.put(public, "auth_scheme", auth_scheme)?;
    Ok(())
}

fn required<'h>(held: &'h Secrets, name: &str) -> Result<&'h str, Failure> {
    let secret = held.get(name);
    secret
        .map(String::as_str)
        .ok_or_else(|| invalid(format!("{name} is required")))
}

fn without_scheme(
    held: &Secrets,
    name: &str,
    scheme: Option<&Value>,
    default: Option<&str>,
) -> Result<(), Failure> {
    let secret = required(held, name)?;
    let scheme = scheme.and_then(Value::as_str).or(default);
    if scheme.is_some_and(|scheme| starts_with_scheme(secret, scheme)) {
        return Err(invalid(format!(
            "{name} must not start with its scheme: it is added on use"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
