//! What is believed of a token endpoint's answer.

use bytes::Bytes;
use caracal_model::Secret;
use caracal_net::egress::FetchError;
use http::{Response, StatusCode};
use serde::{Deserialize, Deserializer};

/// Longest token that is stored or injected: what headers of upstreams take.
const LONGEST_TOKEN: usize = 16 * 1024;

/// A token was issued.
#[derive(Debug)]
pub struct TokenAnswer {
    /// The access token.
    pub access_token: Secret<String>,
    /// A refresh token, when one was issued.
    pub refresh_token: Option<Secret<String>>,
    /// Seconds that it lives, when the provider says.
    pub expires_in: Option<u64>,
}

/// Why there is no token. Holds nothing that the provider wrote but its error code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(&'static str),
    /// The host is not in `allowed_token_hosts`.
    #[error("the host of the endpoint is not in allowed_token_hosts")]
    NotAllowed,
    /// No answer.
    #[error("no answer from the endpoint: {0}")]
    Fetch(FetchError),
    /// Another status than 200.
    #[error("the endpoint answered {status}{}", said(.code.as_deref()))]
    Refused {
        /// Which.
        status: u16,
        /// OAuth error code: letters and `_` only.
        code: Option<String>,
    },
    /// 200, but no token in it that can be used.
    #[error("the endpoint's answer holds no usable token")]
    Malformed,
    /// A kind of token that we do not know how to present.
    #[error("the endpoint issued a token that is not a bearer token")]
    TokenType,
}

fn said(code: Option<&str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

impl TokenError {
    /// Whether another attempt may find it otherwise. A time-out has used the time for that.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_transient() && *error != FetchError::TimedOut,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// Whether it speaks against the provider; the others speak against its configuration.
    pub const fn is_failure(&self) -> bool {
        !matches!(self, Self::Config(_) | Self::NotAllowed)
    }

    /// The OAuth error code.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => code.as_deref(),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Wire {
    access_token: String,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<u64>,
}

/// A number, or the digits of one in a string, as some providers send. Negative is none left.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Whole(i64),
        Fraction(f64),
        Text(String),
    }
    let whole = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(match Option::<Form>::deserialize(from)? {
        None => None,
        Some(Form::Whole(n)) => Some(whole(n)),
        Some(Form::Fraction(n)) => {
            Some(std::time::Duration::try_from_secs_f64(n).map_or(0, |d| d.as_secs()))
        }
        Some(Form::Text(text)) => text.trim().parse().ok().map(whole),
    })
}

/// Reads the answer. `any_type` when the configuration names a scheme of its own.
pub(crate) fn read(response: &Response<Bytes>, any_type: bool) -> Result<TokenAnswer, TokenError> {
    if response.status() != StatusCode::OK {
        return Err(refused(response));
    }
    let wire: Wire = serde_json::from_slice(response.body()).map_err(|_| TokenError::Malformed)?;
    let access_token = Secret::new(wire.access_token);
    let refresh_token = wire.refresh_token.filter(|token| !token.is_empty());
    let refresh_token = refresh_token.map(Secret::new);
    let kind = wire.token_type.unwrap_or_default();
    if !any_type && !kind.is_empty() && !kind.eq_ignore_ascii_case("bearer") {
        return Err(TokenError::TokenType);
    }
    let usable = |token: &Secret<String>| {
        let text = token.expose();
        (1..=LONGEST_TOKEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    if !usable(&access_token) || !refresh_token.as_ref().is_none_or(usable) {
        return Err(TokenError::Malformed);
    }
    Ok(TokenAnswer {
        access_token,
        refresh_token,
        expires_in: wire.expires_in,
    })
}

/// The status, and the OAuth error code if there is one that is safe to repeat.
pub(crate) fn refused(response: &Response<Bytes>) -> TokenError {
    TokenError::Refused {
        status: response.status().as_u16(),
        code: error_code(response.body()),
    }
}

/// `error` of an OAuth error answer, when it is one word of letters and `_`.
pub fn error_code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    let word = |text: &str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    Some(refusal.error).filter(|code| word(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn only_an_answer_with_a_usable_token_is_believed() {
        let long = "t".repeat(LONGEST_TOKEN + 1);
        let mut table = String::new();
        for (status, body, any_type) in [
            (
                200,
                r#"{"access_token":"t","token_type":"Bearer","expires_in":60}"#,
                false,
            ),
            (
                200,
                r#"{"access_token":"t","expires_in":"60","refresh_token":"r"}"#,
                false,
            ),
            (
                200,
                r#"{"access_token":"t","token_type":"BEARER","expires_in":-5}"#,
                false,
            ),
            (
                200,
                r#"{"access_token":"t","expires_in":59.9,"refresh_token":""}"#,
                false,
            ),
            (200, r#"{"access_token":"t","token_type":"DPoP"}"#, false),
            (200, r#"{"access_token":"t","token_type":"DPoP"}"#, true),
            (200, r#"{"access_token":""}"#, false),
            (200, r#"{"access_token":"a b"}"#, false),
            (200, "{\"access_token\":\"a\\r\\nX-Evil: 1\"}", false),
            (200, &format!(r#"{{"access_token":"{long}"}}"#), false),
            (200, r#"{"token":"t"}"#, false),
            (200, "access_token=t", false),
            (201, r#"{"access_token":"t"}"#, false),
            (302, "", false),
            (
                401,
                r#"{"error":"invalid_client","error_description":"no"}"#,
                false,
            ),
            (400, r#"{"error":"<b>"}"#, false),
            (500, "oops", false),
        ] {
            let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            let told = match read(&response, any_type) {
                Ok(token) => format!(
                    "{} {:?} {:?}",
                    token.access_token.expose(),
                    token.refresh_token.map(|token| token.expose().clone()),
                    token.expires_in
                ),
                Err(error) => error.to_string(),
            };
            let body: String = body.escape_debug().take(66).collect();
            let sent = format!("{status} {body}");
            writeln!(table, "{}\n    {told}", sent.trim_end()).unwrap();
        }
        insta::assert_snapshot!(table, @r#"
        200 {\"access_token\":\"t\",\"token_type\":\"Bearer\",\"expires_in\":6
            t None Some(60)
        200 {\"access_token\":\"t\",\"expires_in\":\"60\",\"refresh_token\":\"
            t Some("r") Some(60)
        200 {\"access_token\":\"t\",\"token_type\":\"BEARER\",\"expires_in\":-
            t None Some(0)
        200 {\"access_token\":\"t\",\"expires_in\":59.9,\"refresh_token\":\"\"
            t None Some(59)
        200 {\"access_token\":\"t\",\"token_type\":\"DPoP\"}
            the endpoint issued a token that is not a bearer token
        200 {\"access_token\":\"t\",\"token_type\":\"DPoP\"}
            t None None
        200 {\"access_token\":\"\"}
            the endpoint's answer holds no usable token
        200 {\"access_token\":\"a b\"}
            the endpoint's answer holds no usable token
        200 {\"access_token\":\"a\\r\\nX-Evil: 1\"}
            the endpoint's answer holds no usable token
        200 {\"access_token\":\"tttttttttttttttttttttttttttttttttttttttttttttt
            the endpoint's answer holds no usable token
        200 {\"token\":\"t\"}
            the endpoint's answer holds no usable token
        200 access_token=t
            the endpoint's answer holds no usable token
        201 {\"access_token\":\"t\"}
            the endpoint answered 201
        302
            the endpoint answered 302
        401 {\"error\":\"invalid_client\",\"error_description\":\"no\"}
            the endpoint answered 401 (invalid_client)
        400 {\"error\":\"<b>\"}
            the endpoint answered 400
        500 oops
            the endpoint answered 500
        "#);
    }
}
