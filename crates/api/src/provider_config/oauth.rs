//! The two OAuth kinds.

use caracal_crypto::{Certificate, ClientKey};
use serde_json::{Map, Value, json};

use super::reader::{Reader, absolute, auth_scheme, header_name, https, line};
use super::{Secrets, invalid, required};
use crate::failure::Failure;

/// Public keys of `oauth2_authorization_code`.
pub const AUTHORIZATION_CODE_KEYS: [&str; 14] = [
    "authorization_endpoint",
    "token_endpoint",
    "redirect_uri",
    "client_id",
    "scopes",
    "client_auth_method",
    "revocation_endpoint",
    "allowed_token_hosts",
    "authorization_params",
    "token_params",
    "auth_header",
    "auth_scheme",
    "forward_caracal_identity",
    "session_user_connection",
];

/// Public keys of `oauth2_client_credentials`.
pub const CLIENT_CREDENTIALS_KEYS: [&str; 17] = [
    "token_endpoint",
    "client_id",
    "client_auth_method",
    "grant_type",
    "scopes",
    "audience",
    "resource",
    "assertion_subject",
    "assertion_audience",
    "key_id",
    "certificate",
    "allowed_token_hosts",
    "token_params",
    "auth_header",
    "auth_scheme",
    "forward_caracal_identity",
    "allow_runtime_injection",
];

const AUTHORIZATION_RESERVED: [&str; 7] = [
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "redirect_uri",
    "response_type",
    "scope",
    "state",
];

const TOKEN_RESERVED: [&str; 10] = [
    "client_assertion",
    "client_assertion_type",
    "client_id",
    "client_secret",
    "code",
    "code_verifier",
    "grant_type",
    "redirect_uri",
    "refresh_token",
    "scope",
];

const BASIC: &str = "client_secret_basic";
const POST: &str = "client_secret_post";
const NONE: &str = "none";
const PRIVATE_KEY_JWT: &str = "private_key_jwt";

/// What both kinds have.
fn common(read: &Reader<'_>, public: &mut Map<String, Value>) -> Result<(), Failure> {
    read.need(public, "token_endpoint", https)?;
    read.need(public, "client_id", line)?;
    read.scopes(public)?;
    read.params(public, "token_params", &TOKEN_RESERVED)?;
    read.put(public, "auth_header", header_name)?;
    read.put(public, "auth_scheme", auth_scheme)?;
    Ok(())
}

pub fn authorization_code(
    read: &Reader<'_>,
    held: &Secrets,
    public: &mut Map<String, Value>,
) -> Result<(), Failure> {
    read.need(public, "authorization_endpoint", https)?;
    common(read, public)?;
    read.need(public, "redirect_uri", absolute)?;
    read.put(public, "revocation_endpoint", https)?;
    read.params(public, "authorization_params", &AUTHORIZATION_RESERVED)?;
    let methods = [BASIC, POST, NONE];
    let method = read.word(public, "client_auth_method", &methods, BASIC)?;
    match method {
        NONE => unless(held, "client_secret", "client_auth_method none"),
        _ => required(held, "client_secret").map(|_| ()),
    }
}

pub fn client_credentials(
    read: &Reader<'_>,
    held: &Secrets,
    public: &mut Map<String, Value>,
) -> Result<(), Failure> {
    common(read, public)?;
    let grants = ["client_credentials", "jwt_bearer"];
    let grant = read.word(public, "grant_type", &grants, "client_credentials")?;
    let asserts = grant == "jwt_bearer";
    let (methods, default): (&[&str], _) = if asserts {
        (&[BASIC, POST, NONE], NONE)
    } else {
        (&[BASIC, POST, NONE, PRIVATE_KEY_JWT], BASIC)
    };
    let method = read.word(public, "client_auth_method", methods, default)?;
    let by_key = method == PRIVATE_KEY_JWT;
    for name in ["audience", "resource"] {
        if read.put(public, name, line)? && asserts {
            return Err(invalid(format!("{name} does not go with jwt_bearer")));
        }
    }
    for name in ["assertion_subject", "assertion_audience"] {
        if read.put(public, name, line)? && !asserts {
            return Err(invalid(format!("{name} goes with jwt_bearer only")));
        }
    }
    if read.put(public, "key_id", line)? && !(asserts || by_key) {
        let with = "goes with private_key_jwt or jwt_bearer only";
        return Err(invalid(format!("key_id {with}")));
    }
    match method {
        BASIC | POST => {
            required(held, "client_secret")?;
        }
        NONE => unless(held, "client_secret", "client_auth_method none")?,
        _ => unless(held, "client_secret", PRIVATE_KEY_JWT)?,
    }
    let key = match (asserts || by_key, held.get("private_key")) {
        (false, None) => None,
        (false, Some(_)) => {
            let with = "goes with private_key_jwt or jwt_bearer only";
            return Err(invalid(format!("private_key {with}")));
        }
        (true, _) => {
            let key = ClientKey::from_pem(required(held, "private_key")?);
            Some(key.map_err(|error| invalid(format!("private_key is {error}")))?)
        }
    };
    certificate(read, key.as_ref().filter(|_| by_key), public)
}

fn certificate(
    read: &Reader<'_>,
    key: Option<&ClientKey>,
    public: &mut Map<String, Value>,
) -> Result<(), Failure> {
    let Some(text) = read.text("certificate")?.map(str::trim) else {
        return Ok(());
    };
    let Some(key) = key else {
        let with = "certificate goes with private_key_jwt only".to_owned();
        return Err(invalid(with));
    };
    if text.len() > 32 * 1024 {
        return Err(invalid("certificate is too long".to_owned()));
    }
    let certificate =
        Certificate::from_pem(text).map_err(|error| invalid(format!("certificate is {error}")))?;
    if !certificate.is_of(key) {
        let why = "certificate was not issued for private_key".to_owned();
        return Err(invalid(why));
    }
    public.insert("certificate".to_owned(), json!(text));
    Ok(())
}

fn unless(held: &Secrets, name: &str, with: &str) -> Result<(), Failure> {
    if held.contains_key(name) {
        return Err(invalid(format!("{name} does not go with {with}")));
    }
    Ok(())
}

fn host_of(public: &Map<String, Value>, name: &str) -> Option<String> {
    let text = public.get(name)?.as_str()?;
    url::Url::parse(text).ok()?.host_str().map(str::to_owned)
}

/// Without a list of its own, a provider's credential goes to its token endpoint only.
pub fn default_hosts(public: &mut Map<String, Value>) {
    if !public.contains_key("allowed_token_hosts") {
        let host = host_of(public, "token_endpoint");
        public.insert("allowed_token_hosts".to_owned(), json!([host]));
    }
}

/// A token that is to be revoked is a secret too.
pub fn revocation(public: &Map<String, Value>) -> Result<(), Failure> {
    let Some(host) = host_of(public, "revocation_endpoint") else {
        return Ok(());
    };
    let hosts = public.get("allowed_token_hosts").and_then(Value::as_array);
    let is_listed = |hosts: &Vec<Value>| hosts.iter().any(|one| *one == json!(host));
    if hosts.is_some_and(is_listed) {
        return Ok(());
    }
    let why = "the host of revocation_endpoint must be in allowed_token_hosts";
    Err(invalid(why.to_owned()))
}
