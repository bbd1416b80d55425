//! What a request is about, as far as its method and path say (spec: admin-api §4.3, 4 to 9).

use http::Method;
use percent_encoding::percent_decode_str;

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The zone of its path, decoded but not checked.
    pub zone: Option<String>,
    /// Whether it changes nothing.
    pub is_read: bool,
    /// Whether it decides an approval.
    pub is_decision: bool,
    /// Whether it concerns no zone, and zone tokens may send it all the same.
    pub is_for_any_zone: bool,
    /// Whether it concerns no zone, and console accounts may send it.
    pub is_for_accounts: bool,
}

const VALIDATE: &str = "/v1/policies/validate";
const TEMPLATES: &str = "/v1/policy-templates";

impl Target {
    /// Reads method and path.
    pub fn of(method: &Method, path: &str) -> Self {
        let is_get = *method == Method::GET || *method == Method::HEAD;
        let is_validate = *method == Method::POST && path == VALIDATE;
        let is_templates = is_get && path == TEMPLATES;
        let segments: Vec<&str> = path.split('/').collect();
        let zone = match segments.as_slice() {
            ["", "v1", "zones", zone, ..] => Some(percent_decode_str(zone).decode_utf8_lossy()),
            _ => None,
        };
        let is_decision = *method == Method::POST
            && matches!(
                segments.as_slice(),
                ["", "v1", "zones", _, "approvals", _, "approve" | "reject"]
            );
        let is_setting = matches!(path, "/v1/audit-retention" | "/v1/mint-rate-limit")
            && (is_get || *method == Method::PUT);
        let is_zones = path == "/v1/zones" && (is_get || *method == Method::POST);
        Self {
            zone: zone.map(std::borrow::Cow::into_owned),
            is_read: is_get || is_validate,
            is_decision,
            is_for_any_zone: is_validate || is_templates,
            is_for_accounts: is_validate || is_templates || is_setting || is_zones,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_of_a_path_is_decoded() {
        for (path, zone) in [
            ("/v1/zones", None),
            ("/v1/zones/z1", Some("z1")),
            ("/v1/zones/z%31/applications", Some("z1")),
            ("/v1/zones/z1%2Fapplications", Some("z1/applications")),
            ("/v1/policies/validate", None),
        ] {
            assert_eq!(
                Target::of(&Method::GET, path).zone.as_deref(),
                zone,
                "{path}"
            );
        }
    }

    #[test]
    fn only_the_decision_routes_are_decisions() {
        for (method, path, is) in [
            (Method::POST, "/v1/zones/z/approvals/a/approve", true),
            (Method::POST, "/v1/zones/z/approvals/a/reject", true),
            (Method::PUT, "/v1/zones/z/approvals/a/reject", false),
            (Method::POST, "/v1/zones/z/approvals/a/reject/", false),
            (Method::POST, "/v1/zones/z/approvals/a", false),
        ] {
            assert_eq!(Target::of(&method, path).is_decision, is, "{method} {path}");
        }
    }
}
