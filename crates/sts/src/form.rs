//! The form of `POST /oauth/2/token` (spec: sts §2.1 rows 2 to 12, §2.2).
//!
//! Everything about the shape of a request is settled here, before anything is looked up: what
//! comes out is typed, and no later step meets raw text.

use std::borrow::Cow;

use caracal_model::{Refusal, Refused, Scopes, Secret};

/// The only grant type.
pub const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// A Caracal mandate as subject token, and what every answer carries.
pub const ACCESS_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
/// A user's ID token as subject token.
pub const ID_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";
/// Longest body, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// More resources than this in one request is a mistake, not a wish.
const MAX_RESOURCES: usize = 64;

/// What the subject token claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectTokenType {
    /// `…:access_token`
    AccessToken,
    /// `…:id_token`
    IdToken,
}

/// A subject token and its type; both or neither.
#[derive(Debug)]
pub struct SubjectToken {
    /// The token.
    pub token: Secret<String>,
    /// Its type.
    pub kind: SubjectTokenType,
}

/// An actor token and what it is said to be.
#[derive(Debug)]
pub struct ActorToken {
    /// The token.
    pub token: Secret<String>,
    /// `actor_token_type`, as sent.
    pub kind: Option<String>,
}

/// A token request whose shape is right. Nothing in it has been proven.
#[derive(Debug, Default)]
pub struct TokenRequest {
    /// Zone; empty only for a Control key.
    pub zone_id: String,
    /// Caller.
    pub application_id: String,
    /// The caller's secret.
    pub client_secret: Option<Secret<String>>,
    /// Trimmed, distinct, in byte order.
    pub resources: Vec<String>,
    /// As sent: it goes into the token and the answer verbatim.
    pub scope: String,
    /// The same, as a set.
    pub scopes: Scopes,
    /// What authority is exchanged.
    pub subject: Option<SubjectToken>,
    /// Who acts; only some zones take one.
    pub actor: Option<ActorToken>,
    /// Authority record.
    pub session_id: Option<String>,
    /// Governed Session.
    pub agent_session_id: Option<String>,
    /// Delegation.
    pub delegation_edge_id: Option<String>,
    /// A hold that was issued before.
    pub approval_id: Option<String>,
    /// Requested lifetime in seconds; `None` asks for the default.
    pub ttl_seconds: Option<i64>,
    /// Gateway only.
    pub request_method: String,
    /// Gateway only.
    pub request_path: String,
    /// Gateway only; must equal the request id.
    pub gateway_request_id: String,
}

fn bad(why: impl Into<Cow<'static, str>>) -> Refused {
    Refusal::BadRequest.because(why)
}

impl TokenRequest {
    /// Parses the body of a token request.
    ///
    /// # Errors
    /// 400 `invalid_token` with what to fix.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        let mut request = Self::default();
        let mut seen = Vec::with_capacity(16);
        let (mut grant_type, mut subject_token, mut subject_type) = (None, None, None);
        let (mut actor_token, mut actor_type) = (None, None);
        for (name, value) in pairs(body)? {
            if name != "resource" {
                once(&mut seen, &name)?;
            }
            match &*name {
                "grant_type" => grant_type = Some(value),
                "subject_token" => subject_token = filled(value).map(Secret::new),
                "subject_token_type" => subject_type = filled(value),
                "actor_token" if !value.is_empty() => actor_token = Some(Secret::new(value)),
                "actor_token_type" => actor_type = filled(value),
                "actor_token" | "client_assertion" | "client_assertion_type" => {
                    return Err(bad(format!("{name} is not supported: leave it out")));
                }
                "ttl_seconds" => request.ttl_seconds = ttl(&value)?,
                "resource" => request.resource(&value)?,
                "scope" => {
                    request.scopes = Scopes::parse(&value);
                    request.scope = value;
                }
                "zone_id" => request.zone_id = value,
                "application_id" => request.application_id = value,
                "client_secret" => request.client_secret = filled(value).map(Secret::new),
                "session_id" => request.session_id = filled(value),
                "agent_session_id" => request.agent_session_id = filled(value),
                "delegation_edge_id" => request.delegation_edge_id = filled(value),
                "approval_id" => request.approval_id = filled(value),
                "request_method" => request.request_method = value,
                "request_path" => request.request_path = value,
                "gateway_request_id" => request.gateway_request_id = value,
                _ => {}
            }
        }
        request.resources.sort_unstable();
        request.resources.dedup();
        if grant_type.as_deref() != Some(GRANT_TYPE) {
            return Err(bad(format!("grant_type must be {GRANT_TYPE}")));
        }
        request.subject = subject(subject_token, subject_type.as_deref())?;
        request.actor = actor_token.map(|token| ActorToken {
            token,
            kind: actor_type,
        });
        Ok(request)
    }

    fn resource(&mut self, value: &str) -> Result<(), Refused> {
        let value = value.trim();
        if value.is_empty() {
            return Err(bad("resource is empty: name a resource identifier"));
        }
        if self.resources.len() >= MAX_RESOURCES {
            return Err(bad("too many resources: at most 64 in one request"));
        }
        self.resources.push(value.to_owned());
        Ok(())
    }
}

/// Notes a field that may be sent once only.
///
/// # Errors
/// 400 `invalid_token` when it was noted before.
pub fn once(seen: &mut Vec<String>, name: &str) -> Result<(), Refused> {
    if seen.iter().any(|other| other == name) {
        return Err(bad(format!("{name} is repeated: send it once")));
    }
    seen.push(name.to_owned());
    Ok(())
}

fn filled(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn ttl(value: &str) -> Result<Option<i64>, Refused> {
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse::<i64>() {
        Err(_) => Err(bad("invalid ttl_seconds")),
        Ok(seconds) if seconds < 0 => Err(bad("ttl_seconds must be positive")),
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(seconds)),
    }
}

fn subject(
    token: Option<Secret<String>>,
    kind: Option<&str>,
) -> Result<Option<SubjectToken>, Refused> {
    let kind = match kind {
        None => None,
        Some(ACCESS_TOKEN_TYPE) => Some(SubjectTokenType::AccessToken),
        Some(ID_TOKEN_TYPE) => Some(SubjectTokenType::IdToken),
        Some(_) => {
            return Err(bad(
                "subject_token_type must be an access_token or an id_token",
            ));
        }
    };
    match (token, kind) {
        (None, None) => Ok(None),
        (Some(token), Some(kind)) => Ok(Some(SubjectToken { token, kind })),
        _ => Err(bad("subject_token and subject_token_type go together")),
    }
}

/// Decodes `application/x-www-form-urlencoded`, refusing what a lenient decoder would guess at:
/// broken escapes, `;` as a separator and bytes that are not UTF-8.
///
/// # Errors
/// 400 `invalid_token` with what to fix.
pub fn pairs(body: &[u8]) -> Result<Vec<(String, String)>, Refused> {
    let text = std::str::from_utf8(body).map_err(|_| bad("the form is not UTF-8"))?;
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String, Refused> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b';' => return Err(bad("the form holds an unescaped `;`")),
            b'%' => {
                let escape = (hex(bytes.next()), hex(bytes.next()));
                let (Some(high), Some(low)) = escape else {
                    return Err(bad("the form holds a broken percent escape"));
                };
                out.push(high * 16 + low);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).map_err(|_| bad("the form is not UTF-8"))
}

fn hex(byte: Option<u8>) -> Option<u8> {
    let digit = char::from(byte?).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn form(rest: &str) -> String {
        format!("grant_type={}&{rest}", GRANT_TYPE.replace(':', "%3A"))
    }

    #[test]
    fn a_delegated_mint_is_read_as_the_clients_send_it() {
        let request = TokenRequest::parse(
            form(
                "zone_id=z1&application_id=a1&client_secret=cs_x&scope=orders%3Aread&ttl_seconds=60\
                 &resource=resource%3A%2F%2Forders&agent_session_id=s2&delegation_edge_id=e1&other=1",
            )
            .as_bytes(),
        )
        .unwrap();
        assert_eq!(request.zone_id, "z1");
        assert_eq!(request.resources, ["resource://orders"]);
        assert_eq!(request.scope, "orders:read");
        assert_eq!(request.ttl_seconds, Some(60));
        assert_eq!(request.agent_session_id.as_deref(), Some("s2"));
        assert!(request.subject.is_none());
    }

    #[test]
    fn resources_are_trimmed_distinct_and_sorted() {
        let request =
            TokenRequest::parse(form("resource=b&resource=+a+&resource=b").as_bytes()).unwrap();
        assert_eq!(request.resources, ["a", "b"]);
    }

    #[test]
    fn malformed_forms_say_what_to_fix() {
        let mut table = String::new();
        for (case, body) in [
            ("no grant type", "zone_id=z".to_owned()),
            (
                "other grant type",
                "grant_type=client_credentials".to_owned(),
            ),
            ("repeated field", form("zone_id=z&zone_id=y")),
            ("actor token, empty", form("actor_token=")),
            ("client assertion", form("client_assertion=x")),
            ("ttl in words", form("ttl_seconds=soon")),
            ("ttl as a float", form("ttl_seconds=900.0")),
            ("ttl negative", form("ttl_seconds=-1")),
            (
                "ttl beyond 64 bit",
                form("ttl_seconds=99999999999999999999"),
            ),
            ("empty resource", form("resource=+")),
            ("subject token alone", form("subject_token=x")),
            (
                "subject type alone",
                form(&format!("subject_token_type={ACCESS_TOKEN_TYPE}")),
            ),
            (
                "unknown subject type",
                form("subject_token=x&subject_token_type=saml"),
            ),
            ("broken escape", form("zone_id=%2")),
            ("semicolon", form("zone_id=a;b=c")),
            ("not UTF-8", form("zone_id=%ff")),
        ] {
            let refused = TokenRequest::parse(body.as_bytes()).unwrap_err();
            let row = refused.refusal.row();
            writeln!(
                table,
                "{case:<20} | {} {}: {}",
                row.status, row.error, refused.description
            )
            .unwrap();
        }
        insta::assert_snapshot!(table, @r"
        no grant type        | 400 invalid_token: grant_type must be urn:ietf:params:oauth:grant-type:token-exchange
        other grant type     | 400 invalid_token: grant_type must be urn:ietf:params:oauth:grant-type:token-exchange
        repeated field       | 400 invalid_token: zone_id is repeated: send it once
        actor token, empty   | 400 invalid_token: actor_token is not supported: leave it out
        client assertion     | 400 invalid_token: client_assertion is not supported: leave it out
        ttl in words         | 400 invalid_token: invalid ttl_seconds
        ttl as a float       | 400 invalid_token: invalid ttl_seconds
        ttl negative         | 400 invalid_token: ttl_seconds must be positive
        ttl beyond 64 bit    | 400 invalid_token: invalid ttl_seconds
        empty resource       | 400 invalid_token: resource is empty: name a resource identifier
        subject token alone  | 400 invalid_token: subject_token and subject_token_type go together
        subject type alone   | 400 invalid_token: subject_token and subject_token_type go together
        unknown subject type | 400 invalid_token: subject_token_type must be an access_token or an id_token
        broken escape        | 400 invalid_token: the form holds a broken percent escape
        semicolon            | 400 invalid_token: the form holds an unescaped `;`
        not UTF-8            | 400 invalid_token: the form is not UTF-8
        ");
    }

    proptest::proptest! {
        #[test]
        fn no_form_makes_the_parser_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = TokenRequest::parse(&body);
        }
    }
}
