//! The upstream directive of a granted resource (spec: sts §6.1).

use caracal_client::{AuthLocation, AuthMode, Directive};
use caracal_model::Refused;
use caracal_view::{Provider, Resource};
use serde_json::Value;

use crate::credential::{stored, unavailable};

/// Whether the provider's credential is at hand, before anything is decided.
pub fn credential_is_ready(provider: &Provider) -> bool {
    match &*provider.kind {
        "none" | "caracal_mandate" => true,
        "api_key" | "bearer_token" => stored(provider).is_some(),
        _ => false,
    }
}

/// Whether the upstream is to receive a resource mandate, so that one must be signed.
pub fn wants_mandate(directive: &Directive) -> bool {
    directive.auth_mode == AuthMode::CaracalJwt || directive.forward_caracal_identity
}

/// Where the Gateway forwards calls of this resource, and with which credential.
///
/// # Errors
/// 502 `http_request_failed` when the credential is not at hand or the provider not understood.
pub fn directive(resource: &Resource) -> Result<Directive, Refused> {
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
    match &*provider.kind {
        "none" => Ok(Directive {
            auth_mode: AuthMode::None,
            ..base
        }),
        "caracal_mandate" => Ok(Directive {
            auth_mode: AuthMode::CaracalJwt,
            auth_header: "Authorization".to_owned(),
            auth_scheme: "Bearer".to_owned(),
            ..base
        }),
        "api_key" => api_key(provider, base),
        "bearer_token" => bearer_token(provider, base),
        _ => Err(unavailable()),
    }
}

fn api_key(provider: &Provider, base: Directive) -> Result<Directive, Refused> {
    let config = &provider.config;
    let credential = stored(provider).ok_or_else(unavailable)?;
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
        ..placed(config, base)
    })
}

fn bearer_token(provider: &Provider, base: Directive) -> Result<Directive, Refused> {
    let config = &provider.config;
    let credential = stored(provider).ok_or_else(unavailable)?;
    let or = |name: &str, default: &str| match config.get(name).and_then(Value::as_str) {
        Some(chosen) => chosen.to_owned(),
        None => default.to_owned(),
    };
    Ok(Directive {
        auth_mode: AuthMode::ProviderOauth,
        auth_header: or("auth_header", "Authorization"),
        auth_scheme: or("auth_scheme", "Bearer"),
        provider_token: Some(credential.token),
        ..placed(config, base)
    })
}

/// What every kind with a credential of its own may configure.
fn placed(config: &Value, base: Directive) -> Directive {
    let hosts = config.get("allowed_token_hosts").and_then(Value::as_array);
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
