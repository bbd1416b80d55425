//! The upstream directive: where the Gateway forwards to, and with which credential (spec: sts
//! §6.1, gateway §10). It exists only between the STS and the Gateway, and holds secrets.

use caracal_model::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whose credential the upstream receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// None.
    None,
    /// The `use=resource` mandate.
    #[default]
    CaracalJwt,
    /// A token of the provider.
    ProviderOauth,
    /// An API key of the provider.
    ProviderApikey,
    /// A mode that this version does not know; never forwarded with.
    #[serde(other)]
    Unknown,
}

impl AuthMode {
    /// The wire name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::CaracalJwt => "caracal_jwt",
            Self::ProviderOauth => "provider_oauth",
            Self::ProviderApikey => "provider_apikey",
            Self::Unknown => "unknown",
        }
    }
}

/// Where an API key goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthLocation {
    /// Into a header.
    #[default]
    #[serde(alias = "")]
    Header,
    /// Into the query.
    Query,
}

impl AuthLocation {
    fn is_header(&self) -> bool {
        *self == Self::Header
    }
}

/// Where to forward, and as whom. `Debug` shows no secret.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Directive {
    /// Base URL of the upstream.
    pub url: String,
    /// Whose credential.
    pub auth_mode: AuthMode,
    /// Where the credential goes.
    #[serde(skip_serializing_if = "AuthLocation::is_header")]
    pub auth_location: AuthLocation,
    /// Header of the credential; empty is `Authorization`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_header: String,
    /// Query parameter of the credential.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub query_param_name: String,
    /// Scheme before the credential.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_scheme: String,
    /// When not empty, the only hosts that may see the credential.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_token_hosts: Vec<String>,
    /// The provider's credential.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose",
        deserialize_with = "conceal"
    )]
    pub provider_token: Option<Secret<String>>,
    /// The provider.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub provider_id: String,
    /// The subject's connection at the provider.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub connection_id: String,
    /// Whether the upstream also receives the mandate, in `X-Caracal-Identity`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forward_caracal_identity: bool,
    /// When the provider's credential ends, Unix seconds; 0 when unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub expires_at: i64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn expose<S: Serializer>(secret: &Option<Secret<String>>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => to.serialize_str(secret.expose()),
        None => to.serialize_none(),
    }
}

fn conceal<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.filter(|text| !text.is_empty()).map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_reads_as_on_the_wire_and_writes_the_same() {
        let wire = concat!(
            r#"{"url":"https://api.example/v2","auth_mode":"provider_apikey","#,
            r#""auth_header":"X-Api-Key","allowed_token_hosts":["api.example"],"#,
            r#""provider_token":"k-1","provider_id":"prov-1"}"#
        );
        let directive: Directive = serde_json::from_str(wire).unwrap();
        assert_eq!(directive.auth_mode, AuthMode::ProviderApikey);
        assert_eq!(serde_json::to_string(&directive).unwrap(), wire);
        assert!(!format!("{directive:?}").contains("k-1"));
    }

    #[test]
    fn a_mode_of_a_later_version_is_unknown_not_an_error() {
        let directive: Directive =
            serde_json::from_str(r#"{"url":"https://a","auth_mode":"mtls","auth_location":""}"#)
                .unwrap();
        assert_eq!(directive.auth_mode, AuthMode::Unknown);
        assert_eq!(directive.auth_location, AuthLocation::Header);
    }
}
