//! The upstream's credential, placed as the directive says (spec: gateway §10).

use caracal_client::{AuthLocation, AuthMode, Directive};
use caracal_model::Secret;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::headers::{self, X_CARACAL_IDENTITY};

/// Headers that a credential may not take the place of: they frame the message, name the caller or
/// carry the trace.
const RESERVED: [&str; 18] = [
    "baggage",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
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
const RESERVED_PREFIXES: [&str; 3] = ["x-caracal-", "x-forwarded-", "proxy-"];

/// The directive cannot be carried out. Says nothing of values: one of them is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The header is no header name, or reserved.
    #[error("the credential header is not usable")]
    Header,
    /// The value does not fit into a header.
    #[error("the credential is not a header value")]
    Value,
    /// The credential, or the parameter that carries it, is missing.
    #[error("the directive lacks its credential")]
    Missing,
    /// The mode is not one that this version knows.
    #[error("the auth mode is not known")]
    Mode,
}

/// Places the credential in the headers. Answers the query parameter, when it goes there instead.
///
/// # Errors
/// [`CredentialError`].
pub fn place<'d>(
    headers: &mut HeaderMap,
    directive: &'d Directive,
    access_token: Option<&Secret<String>>,
) -> Result<Option<(&'d str, &'d str)>, CredentialError> {
    let header = header_name(&directive.auth_header)?;
    headers.remove(AUTHORIZATION);
    // A caller that spells it otherwise would bring a credential of its own.
    headers::remove_spelled(headers, &header);
    if directive.auth_mode == AuthMode::None {
        return Ok(None);
    }
    if directive.auth_mode == AuthMode::CaracalJwt {
        let scheme = match directive.auth_scheme.as_str() {
            "" => "Bearer",
            scheme => scheme,
        };
        let token = access_token.ok_or(CredentialError::Missing)?;
        headers.insert(header, value(scheme, token)?);
        return Ok(None);
    }
    let token = directive
        .provider_token
        .as_ref()
        .ok_or(CredentialError::Missing);
    let in_query = match directive.auth_mode {
        AuthMode::ProviderApikey => directive.auth_location == AuthLocation::Query,
        AuthMode::ProviderOauth => false,
        _ => return Err(CredentialError::Mode),
    };
    if directive.forward_caracal_identity {
        let identity = access_token.ok_or(CredentialError::Missing)?;
        headers.insert(X_CARACAL_IDENTITY, value("", identity)?);
    }
    if !in_query {
        headers.insert(header, value(&directive.auth_scheme, token?)?);
        return Ok(None);
    }
    if directive.query_param_name.is_empty() {
        return Err(CredentialError::Missing);
    }
    Ok(Some((&directive.query_param_name, token?.expose())))
}

fn header_name(text: &str) -> Result<HeaderName, CredentialError> {
    if text.is_empty() {
        return Ok(AUTHORIZATION);
    }
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| CredentialError::Header)?;
    // As an upstream may read it.
    let read = name.as_str().replace('_', "-");
    let reserved = RESERVED.contains(&&*read)
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| read.starts_with(prefix));
    if reserved {
        Err(CredentialError::Header)
    } else {
        Ok(name)
    }
}

fn value(scheme: &str, token: &Secret<String>) -> Result<HeaderValue, CredentialError> {
    let value = if scheme.is_empty() {
        HeaderValue::from_str(token.expose())
    } else {
        // The copy is wiped: the header keeps its own.
        let text = Secret::new(format!("{scheme} {}", token.expose()));
        HeaderValue::from_str(text.expose())
    };
    let mut value = value.map_err(|_| CredentialError::Value)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// What the upstream receives of the caller's and the provider's credentials.
    fn placed(directive: &str) -> String {
        let directive: Directive = serde_json::from_str(directive).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer inbound"));
        headers.insert("x-api-key", HeaderValue::from_static("inbound"));
        let mandate = Secret::new("mandate".to_owned());
        let outcome = place(&mut headers, &directive, Some(&mandate));
        let mut seen = match outcome {
            Ok(None) => String::new(),
            Ok(Some((name, value))) => format!(" ?{name}={value}"),
            Err(error) => return format!(" {error:?}"),
        };
        let mut pairs: Vec<_> = headers.iter().collect();
        pairs.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in pairs {
            assert!(value.is_sensitive() || name == "x-api-key", "{name}");
            write!(seen, " {name}={}", value.to_str().unwrap()).unwrap();
        }
        seen
    }

    #[test]
    fn no_spelling_of_the_credentials_header_passes() {
        let directive = r#"{"auth_mode":"provider_apikey","auth_header":"X-Api-Key",
            "provider_token":"k"}"#;
        let directive: Directive = serde_json::from_str(directive).unwrap();
        let mut headers = HeaderMap::new();
        for name in ["x-api-key", "x_api_key", "X-Api_Key", "x-api-keys"] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_static("inbound"));
        }
        place(&mut headers, &directive, None).unwrap();
        let mut seen: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        seen.sort_unstable();
        assert_eq!(seen, ["x-api-key", "x-api-keys"]);
        assert_eq!(headers["x-api-key"], "k");
    }

    #[test]
    fn each_mode_places_its_credential_and_removes_the_callers() {
        let mut table = String::new();
        for (case, directive) in [
            ("none", r#"{"auth_mode":"none"}"#),
            ("mandate", r#"{"auth_mode":"caracal_jwt"}"#),
            (
                "mandate elsewhere",
                r#"{"auth_mode":"caracal_jwt","auth_header":"X-Api-Key","auth_scheme":"Token"}"#,
            ),
            (
                "oauth",
                r#"{"auth_mode":"provider_oauth","auth_scheme":"Bearer","provider_token":"t"}"#,
            ),
            (
                "basic",
                r#"{"auth_mode":"provider_oauth","auth_scheme":"Basic","provider_token":"dTpw"}"#,
            ),
            (
                "bare",
                r#"{"auth_mode":"provider_oauth","provider_token":"t"}"#,
            ),
            (
                "key",
                r#"{"auth_mode":"provider_apikey","auth_header":"X-Api-Key","provider_token":"k"}"#,
            ),
            (
                "key in query",
                r#"{"auth_mode":"provider_apikey","auth_location":"query","query_param_name":"key","provider_token":"k"}"#,
            ),
            (
                "identity",
                r#"{"auth_mode":"provider_oauth","provider_token":"t","forward_caracal_identity":true}"#,
            ),
            (
                "identity, no provider",
                r#"{"auth_mode":"none","forward_caracal_identity":true}"#,
            ),
            (
                "no parameter",
                r#"{"auth_mode":"provider_apikey","auth_location":"query","provider_token":"k"}"#,
            ),
            ("no token", r#"{"auth_mode":"provider_oauth"}"#),
            ("later mode", r#"{"auth_mode":"mtls","provider_token":"t"}"#),
            (
                "reserved",
                r#"{"auth_mode":"provider_apikey","auth_header":"Host","provider_token":"k"}"#,
            ),
            (
                "reserved prefix",
                r#"{"auth_mode":"provider_apikey","auth_header":"Proxy-X","provider_token":"k"}"#,
            ),
            (
                "ours",
                r#"{"auth_mode":"caracal_jwt","auth_header":"X-Caracal-Token"}"#,
            ),
            (
                "no name",
                r#"{"auth_mode":"provider_apikey","auth_header":"a b","provider_token":"k"}"#,
            ),
            (
                "split",
                r#"{"auth_mode":"provider_oauth","provider_token":"t\r\nx: y"}"#,
            ),
        ] {
            writeln!(table, "{case:<22}|{}", placed(directive)).unwrap();
        }
        insta::assert_snapshot!(table, @r"
        none                  | x-api-key=inbound
        mandate               | authorization=Bearer mandate x-api-key=inbound
        mandate elsewhere     | x-api-key=Token mandate
        oauth                 | authorization=Bearer t x-api-key=inbound
        basic                 | authorization=Basic dTpw x-api-key=inbound
        bare                  | authorization=t x-api-key=inbound
        key                   | x-api-key=k
        key in query          | ?key=k x-api-key=inbound
        identity              | authorization=t x-api-key=inbound x-caracal-identity=mandate
        identity, no provider | x-api-key=inbound
        no parameter          | Missing
        no token              | Missing
        later mode            | Mode
        reserved              | Header
        reserved prefix       | Header
        ours                  | Header
        no name               | Header
        split                 | Value
        ");
    }
}
