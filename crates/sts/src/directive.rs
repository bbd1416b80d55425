//! The upstream directive of a granted resource (spec: sts §6.1).

use caracal_client::{AuthLocation, AuthMode, Directive};
use caracal_model::Refused;
use caracal_view::{Provider, Resource};
use serde_json::Value;

use crate::credential::{AtHand, Credential, unavailable};

/// Whether the upstream is to receive a resource mandate, so that one must be signed.
pub fn wants_mandate(directive: &Directive) -> bool {
    directive.auth_mode == AuthMode::CaracalJwt || directive.forward_caracal_identity
}

/// Where the Gateway forwards calls of this resource, and with which credential.
///
/// # Errors
/// 502 `http_request_failed` when the credential is not at hand or the provider not understood.
pub fn directive(resource: &Resource, at_hand: AtHand) -> Result<Directive, Refused> {
    let provider = &resource.provider;
    let base = Directive {
        url: resource
            .facts
            .upstream_url
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
        provider_id: provider.id.to_string(),
        ..Directive::default()
    };
    match (&*provider.kind, at_hand) {
        ("none", _) => Ok(Directive {
            auth_mode: AuthMode::None,
            ..base
        }),
        ("caracal_mandate", _) => Ok(Directive {
            auth_mode: AuthMode::CaracalJwt,
            auth_header: "Authorization".to_owned(),
            auth_scheme: "Bearer".to_owned(),
            ..base
        }),
        ("api_key", AtHand::Ready(key)) => api_key(provider, key, base),
        (kind, AtHand::Ready(token)) => oauth(provider, kind, token, base),
        _ => Err(unavailable()),
    }
}

fn api_key(
    provider: &Provider,
    credential: Credential,
    base: Directive,
) -> Result<Directive, Refused> {
    let config = &provider.config;
    let in_query = text(config, "auth_location") == "query";
    let (location, header, scheme, parameter) = if in_query {
        (
            AuthLocation::Query,
            String::new(),
            String::new(),
            text(config, "query_param_name"),
        )
    } else {
        let scheme = text(config, "auth_scheme");
        (
            AuthLocation::Header,
            text(config, "header_name"),
            scheme,
            String::new(),
        )
    };
    if header.is_empty() && parameter.is_empty() {
        return Err(unavailable());
    }
    Ok(Directive {
        auth_mode: AuthMode::ProviderApikey,
        auth_location: location,
        auth_header: header,
        auth_scheme: scheme,
        query_param_name: parameter,
        provider_token: Some(credential.token),
        ..placed(provider, base)
    })
}

/// Every kind whose credential goes behind a scheme, in a header.
fn oauth(
    provider: &Provider,
    kind: &str,
    credential: Credential,
    base: Directive,
) -> Result<Directive, Refused> {
    let config = &provider.config;
    let or = |name: &str, default: &str| match config.get(name).and_then(Value::as_str) {
        Some(chosen) => chosen.to_owned(),
        None => default.to_owned(),
    };
    let (header, scheme) = match kind {
        "http_basic" => ("Authorization".to_owned(), "Basic".to_owned()),
        "bearer_token" | "oauth2_client_credentials" | "oauth2_authorization_code" => (
            or("auth_header", "Authorization"),
            or("auth_scheme", "Bearer"),
        ),
        _ => return Err(unavailable()),
    };
    let expires_at = credential.expires_at.map(|at| at.unix_seconds());
    Ok(Directive {
        auth_mode: AuthMode::ProviderOauth,
        auth_header: header,
        auth_scheme: scheme,
        provider_token: Some(credential.token),
        // When a token of the service ends is nobody's business but ours (spec: sts §6.1).
        expires_at: expires_at
            .filter(|_| credential.connection.is_some())
            .unwrap_or(0),
        connection_id: credential.connection.unwrap_or_default(),
        ..placed(provider, base)
    })
}

/// What every kind with a credential of its own may configure. The hosts of the OAuth kinds are
/// those of the provider and not of the upstream: the Gateway does not compare them.
fn placed(provider: &Provider, base: Directive) -> Directive {
    let config = &provider.config;
    let hosts = config.get("allowed_token_hosts").and_then(Value::as_array);
    let hosts = hosts.filter(|_| !provider.kind.starts_with("oauth2_"));
    let hosts = hosts.into_iter().flatten().filter_map(Value::as_str);
    Directive {
        allowed_token_hosts: hosts.map(str::to_owned).collect(),
        forward_caracal_identity: config["forward_caracal_identity"] == Value::Bool(true),
        ..base
    }
}

fn text(config: &Value, name: &str) -> String {
    config
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}
