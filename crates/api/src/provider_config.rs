//! What a provider's `config_json` may hold, by kind. Public keys are stored as read back; secret
//! keys go to custody and never come back (spec: admin-api §7.5).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::fields::Body;

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
}

/// Every kind that the contract names; those that [`Kind::parse`] does not know come later.
pub const KINDS: [&str; 7] = [
    "none",
    "caracal_mandate",
    "api_key",
    "bearer_token",
    "http_basic",
    "oauth2_authorization_code",
    "oauth2_client_credentials",
];

const RESERVED_HEADERS: [&str; 20] = [
    "baggage",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-real-ip",
    "x-request-id",
];
const RESERVED_HEADER_PREFIXES: [&str; 3] = ["x-caracal-", "x-forwarded-", "proxy-"];

const MOST_HOSTS: usize = 64;

impl Kind {
    /// The kind of that name.
    ///
    /// # Errors
    /// `invalid_provider_config` for a kind that is not available yet.
    pub fn parse(name: &str) -> Result<Self, Failure> {
        match name {
            "none" => Ok(Self::None),
            "caracal_mandate" => Ok(Self::CaracalMandate),
            "api_key" => Ok(Self::ApiKey),
            "bearer_token" => Ok(Self::BearerToken),
            other => Err(invalid(format!("kind {other} is not available yet"))),
        }
    }

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::CaracalMandate => "caracal_mandate",
            Self::ApiKey => "api_key",
            Self::BearerToken => "bearer_token",
        }
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
        }
    }

    const fn secret_key(self) -> Option<&'static str> {
        match self {
            Self::None | Self::CaracalMandate => None,
            Self::ApiKey => Some("api_key"),
            Self::BearerToken => Some("bearer_token"),
        }
    }
}

/// A checked configuration.
pub struct Config {
    /// What is stored and read back.
    pub public: Map<String, Value>,
    /// What goes to custody; empty when none was sent.
    pub secrets: BTreeMap<&'static str, String>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("public", &self.public)
            .field("secrets", &self.secrets.keys())
            .finish()
    }
}

/// Whether the secret of the kind must be sent along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretIs {
    /// It must.
    Required,
    /// One is in custody already.
    Stored,
}

fn invalid(description: String) -> Failure {
    Failure::bad("invalid_provider_config", description)
}

/// Checks a configuration of this kind.
///
/// # Errors
/// `invalid_provider_config`, with the name of the field.
pub fn check(kind: Kind, config: &Body, secret: SecretIs) -> Result<Config, Failure> {
    let legal = |key: &str| kind.public_keys().contains(&key) || kind.secret_key() == Some(key);
    if let Some(key) = config.keys().find(|key| !legal(key)) {
        return Err(invalid(format!(
            "{key} is not a field of kind {}",
            kind.name()
        )));
    }
    let read = Reader(config);
    let mut public = Map::new();
    match kind {
        Kind::None | Kind::CaracalMandate => {}
        Kind::ApiKey => api_key(&read, &mut public)?,
        Kind::BearerToken => {
            read.put(&mut public, "auth_header", header_name)?;
            read.put(&mut public, "auth_scheme", auth_scheme)?;
        }
    }
    read.hosts(&mut public)?;
    for flag in ["forward_caracal_identity", "allow_runtime_injection"] {
        read.flag(&mut public, flag)?;
    }
    let secrets = read.secret(kind, &public, secret)?;
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

/// A rule for a text: what it must be, when it is not.
type Rule = fn(&str) -> Option<&'static str>;

fn header_name(name: &str) -> Option<&'static str> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(token) {
        return Some("must be the name of an HTTP header");
    }
    let lower = name.to_ascii_lowercase();
    let reserved = RESERVED_HEADERS.contains(&lower.as_str())
        || RESERVED_HEADER_PREFIXES
            .iter()
            .any(|prefix| lower.starts_with(prefix));
    reserved.then_some("is a reserved header; choose another")
}

fn query_name(name: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
    let fits = (1..=128).contains(&name.len()) && name.bytes().all(legal);
    (!fits).then_some("must be letters, digits, `.`, `_`, `~` or `-`")
}

fn auth_scheme(name: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let fits = name.len() <= 64
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && name.bytes().all(legal);
    (!fits).then_some("must be a letter, then letters, digits or `-`")
}

fn is_host(host: &str) -> bool {
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (1..=253).contains(&host.len())
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && end(host.bytes().next())
        && end(host.bytes().last())
        && !host.contains("..")
}

struct Reader<'c>(&'c Body);

impl Reader<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("{name} must be a string"))),
        }
    }

    fn put(&self, to: &mut Map<String, Value>, name: &str, rule: Rule) -> Result<bool, Failure> {
        let Some(text) = self.text(name)?.map(str::trim) else {
            return Ok(false);
        };
        if let Some(must) = rule(text) {
            return Err(invalid(format!("{name} {must}")));
        }
        to.insert(name.to_owned(), json!(text));
        Ok(true)
    }

    fn flag(&self, to: &mut Map<String, Value>, name: &str) -> Result<(), Failure> {
        match self.value(name) {
            None => {}
            Some(Value::Bool(on)) => {
                to.insert(name.to_owned(), json!(on));
            }
            Some(_) => return Err(invalid(format!("{name} must be true or false"))),
        }
        Ok(())
    }

    fn hosts(&self, to: &mut Map<String, Value>) -> Result<(), Failure> {
        let name = "allowed_token_hosts";
        let wrong = || {
            invalid(format!(
                "{name} must be a list of at most {MOST_HOSTS} host names"
            ))
        };
        let Some(value) = self.value(name) else {
            return Ok(());
        };
        let list = value
            .as_array()
            .filter(|list| list.len() <= MOST_HOSTS)
            .ok_or_else(wrong)?;
        let mut hosts: Vec<String> = Vec::with_capacity(list.len());
        for item in list {
            let host = item.as_str().ok_or_else(wrong)?.trim().to_ascii_lowercase();
            if !is_host(&host) {
                return Err(wrong());
            }
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        to.insert(name.to_owned(), json!(hosts));
        Ok(())
    }

    fn secret(
        &self,
        kind: Kind,
        public: &Map<String, Value>,
        needed: SecretIs,
    ) -> Result<BTreeMap<&'static str, String>, Failure> {
        let mut secrets = BTreeMap::new();
        let Some(name) = kind.secret_key() else {
            return Ok(secrets);
        };
        let Some(text) = self.text(name)?.map(str::trim) else {
            return match needed {
                SecretIs::Stored => Ok(secrets),
                SecretIs::Required => Err(invalid(format!("{name} is required"))),
            };
        };
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(invalid(format!(
                "{name} must be one line of text and not empty"
            )));
        }
        let default = (kind == Kind::BearerToken).then_some("Bearer");
        let scheme = public
            .get("auth_scheme")
            .and_then(Value::as_str)
            .or(default);
        if scheme.is_some_and(|scheme| starts_with_scheme(text, scheme)) {
            return Err(invalid(format!(
                "{name} must not start with its scheme: it is added on use"
            )));
        }
        secrets.insert(name, text.to_owned());
        Ok(secrets)
    }
}

fn starts_with_scheme(text: &str, scheme: &str) -> bool {
    text.split_once(' ')
        .is_some_and(|(first, _)| first.eq_ignore_ascii_case(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: &str, config: &Value, secret: SecretIs) -> String {
        let config = config.as_object().unwrap();
        match Kind::parse(kind).and_then(|kind| check(kind, config, secret)) {
            Ok(config) => format!("{} + {:?}", json!(config.public), config.secrets.keys()),
            Err(failure) => format!("{}: {}", failure.error, failure.description),
        }
    }

    #[test]
    fn every_rule_names_its_field() {
        use SecretIs::{Required, Stored};
        let mut table = String::new();
        for (kind, config, secret) in [
            ("none", json!({}), Required),
            ("none", json!({"api_key": "k"}), Required),
            ("http_basic", json!({}), Required),
            (
                "api_key",
                json!({"header_name": "X-Key", "api_key": " k "}),
                Required,
            ),
            ("api_key", json!({"header_name": "X-Key"}), Required),
            ("api_key", json!({"header_name": "X-Key"}), Stored),
            ("api_key", json!({"api_key": "k"}), Required),
            (
                "api_key",
                json!({"header_name": "X-Caracal-Resource", "api_key": "k"}),
                Required,
            ),
            (
                "api_key",
                json!({"header_name": "Host", "api_key": "k"}),
                Required,
            ),
            (
                "api_key",
                json!({"header_name": "a b", "api_key": "k"}),
                Required,
            ),
            (
                "api_key",
                json!({"header_name": "X-Key", "auth_scheme": "Key", "api_key": "key abc"}),
                Required,
            ),
            (
                "api_key",
                json!({"auth_location": "query", "query_param_name": "key", "api_key": "k"}),
                Required,
            ),
            (
                "api_key",
                json!({"auth_location": "query", "query_param_name": "a b", "api_key": "k"}),
                Required,
            ),
            (
                "api_key",
                json!({"auth_location": "query", "query_param_name": "key", "auth_scheme": "K", "api_key": "k"}),
                Required,
            ),
            (
                "api_key",
                json!({"auth_location": "cookie", "api_key": "k"}),
                Required,
            ),
            (
                "bearer_token",
                json!({"bearer_token": "t", "allowed_token_hosts": ["API.example"], "forward_caracal_identity": true}),
                Required,
            ),
            (
                "bearer_token",
                json!({"bearer_token": "Bearer t"}),
                Required,
            ),
            ("bearer_token", json!({"bearer_token": "a\nb"}), Required),
            ("bearer_token", json!({"bearer_token": "  "}), Required),
            ("bearer_token", json!({"bearer_token": 7}), Required),
            (
                "bearer_token",
                json!({"bearer_token": "t", "auth_scheme": "9"}),
                Required,
            ),
            (
                "bearer_token",
                json!({"bearer_token": "t", "allowed_token_hosts": ["a..b"]}),
                Required,
            ),
            (
                "bearer_token",
                json!({"bearer_token": "t", "allow_runtime_injection": "yes"}),
                Required,
            ),
            (
                "bearer_token",
                json!({"bearer_token": "t", "query_param_name": "q"}),
                Required,
            ),
        ] {
            table.push_str(&format!(
                "{kind:<12} {config}\n    {}\n",
                answer(kind, &config, secret)
            ));
        }
        insta::assert_snapshot!(table, @r#"
        none         {}
            {} + []
        none         {"api_key":"k"}
            invalid_provider_config: api_key is not a field of kind none
        http_basic   {}
            invalid_provider_config: kind http_basic is not available yet
        api_key      {"api_key":" k ","header_name":"X-Key"}
            {"auth_location":"header","header_name":"X-Key"} + ["api_key"]
        api_key      {"header_name":"X-Key"}
            invalid_provider_config: api_key is required
        api_key      {"header_name":"X-Key"}
            {"auth_location":"header","header_name":"X-Key"} + []
        api_key      {"api_key":"k"}
            invalid_provider_config: header_name is required with auth_location header
        api_key      {"api_key":"k","header_name":"X-Caracal-Resource"}
            invalid_provider_config: header_name is a reserved header; choose another
        api_key      {"api_key":"k","header_name":"Host"}
            invalid_provider_config: header_name is a reserved header; choose another
        api_key      {"api_key":"k","header_name":"a b"}
            invalid_provider_config: header_name must be the name of an HTTP header
        api_key      {"api_key":"key abc","auth_scheme":"Key","header_name":"X-Key"}
            invalid_provider_config: api_key must not start with its scheme: it is added on use
        api_key      {"api_key":"k","auth_location":"query","query_param_name":"key"}
            {"auth_location":"query","query_param_name":"key"} + ["api_key"]
        api_key      {"api_key":"k","auth_location":"query","query_param_name":"a b"}
            invalid_provider_config: query_param_name must be letters, digits, `.`, `_`, `~` or `-`
        api_key      {"api_key":"k","auth_location":"query","auth_scheme":"K","query_param_name":"key"}
            invalid_provider_config: auth_scheme does not go with auth_location query
        api_key      {"api_key":"k","auth_location":"cookie"}
            invalid_provider_config: auth_location must be header or query
        bearer_token {"allowed_token_hosts":["API.example"],"bearer_token":"t","forward_caracal_identity":true}
            {"allowed_token_hosts":["api.example"],"forward_caracal_identity":true} + ["bearer_token"]
        bearer_token {"bearer_token":"Bearer t"}
            invalid_provider_config: bearer_token must not start with its scheme: it is added on use
        bearer_token {"bearer_token":"a\nb"}
            invalid_provider_config: bearer_token must be one line of text and not empty
        bearer_token {"bearer_token":"  "}
            invalid_provider_config: bearer_token must be one line of text and not empty
        bearer_token {"bearer_token":7}
            invalid_provider_config: bearer_token must be a string
        bearer_token {"auth_scheme":"9","bearer_token":"t"}
            invalid_provider_config: auth_scheme must be a letter, then letters, digits or `-`
        bearer_token {"allowed_token_hosts":["a..b"],"bearer_token":"t"}
            invalid_provider_config: allowed_token_hosts must be a list of at most 64 host names
        bearer_token {"allow_runtime_injection":"yes","bearer_token":"t"}
            invalid_provider_config: allow_runtime_injection must be true or false
        bearer_token {"bearer_token":"t","query_param_name":"q"}
            invalid_provider_config: query_param_name is not a field of kind bearer_token
        "#);
    }
}
