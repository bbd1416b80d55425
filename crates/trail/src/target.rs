//! What a request is about, as its path says: the zone, and the innermost collection.

use caracal_model::ZoneId;
use caracal_model::id::is_id;
use percent_encoding::percent_decode_str;

/// How a service names things in its paths.
#[derive(Debug)]
pub struct Rules {
    /// Only requests below are attended.
    pub prefix: &'static str,
    /// Before the id of a zone.
    pub zones: &'static str,
    /// What has entities.
    pub collections: &'static [&'static str],
    /// The one route whose GET changes something.
    pub callback: Option<&'static str>,
    /// Whether refusals of strangers are counted.
    pub counts_strangers: bool,
    /// Whether a creation is recorded with the id of what it made.
    pub names_creations: bool,
    /// Whether clients of this service read `message` too.
    pub tells_message: bool,
}

/// Names after an entity that are no verbs: something is made there.
const PARTS: [&str; 2] = ["versions", "dcr"];
/// The verb that replaces a secret.
const ROTATE: &str = "rotate-secret";

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The zone of the path.
    pub zone: Option<ZoneId>,
    /// The innermost collection.
    pub entity_type: Option<String>,
    /// Which of it; none for the collection itself.
    pub entity_id: Option<String>,
    /// What is done to it, other than what methods say.
    verb: Option<String>,
}

impl Target {
    /// Reads a path, with the pattern of its route where there is one: the pattern tells ids from
    /// names.
    pub fn of(rules: &Rules, pattern: Option<&str>, path: &str) -> Self {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let after = path.strip_prefix(rules.zones);
        let zone = after
            .and_then(|rest| rest.split('/').next())
            .map(decoded)
            .filter(|zone| is_id(zone))
            .map(ZoneId::trusted);
        let mut target = Self {
            zone,
            ..Self::default()
        };
        let names: Vec<&str> = path.split('/').collect();
        let placeholders: Vec<&str> = pattern.unwrap_or_default().split('/').collect();
        let is_id_at = |at: usize| match pattern {
            Some(_) => placeholders
                .get(at)
                .is_some_and(|part| part.starts_with('{')),
            None => at
                .checked_sub(1)
                .and_then(|before| names.get(before))
                .is_some_and(|name| rules.collections.contains(name) || *name == "zones"),
        };
        for (at, name) in names.iter().enumerate() {
            if is_id_at(at) {
                continue;
            }
            if rules.collections.contains(name) {
                target.entity_type = Some((*name).to_owned());
                let id = names.get(at + 1).filter(|_| is_id_at(at + 1));
                target.entity_id = id.map(|id| decoded(id)).filter(|id| is_id(id));
                target.verb = None;
            } else if target.entity_type.is_some() {
                target.verb = Some((*name).to_owned());
            }
        }
        target
    }

    /// Whether something is made here that has no id yet.
    pub fn is_collection(&self) -> bool {
        self.entity_type.is_some() && self.entity_id.is_none() && !self.has_verb()
    }

    fn has_verb(&self) -> bool {
        self.verb
            .as_deref()
            .is_some_and(|verb| !PARTS.contains(&verb))
    }

    /// Whether it replaces a secret.
    pub fn rotates(&self) -> bool {
        self.verb.as_deref() == Some(ROTATE)
    }

    /// `change_kind`.
    pub fn change_kind(&self, method: &str, only_secrets: bool) -> &'static str {
        match method {
            "DELETE" => "delete",
            _ if self.rotates() => "secret_rotation",
            _ if self.has_verb() => "action",
            "POST" => "create",
            _ if only_secrets => "secret_rotation",
            _ => "update",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const RULES: Rules = Rules {
        prefix: "/v1/",
        zones: "/v1/zones/",
        collections: &[
            "zones",
            "applications",
            "policies",
            "subjects",
            "provider-connections",
        ],
        callback: None,
        counts_strangers: true,
        names_creations: true,
        tells_message: false,
    };

    #[test]
    fn a_path_names_a_zone_an_entity_and_what_is_done() {
        let mut table = String::new();
        for (method, pattern, path) in [
            ("POST", Some("/v1/zones"), "/v1/zones"),
            ("PATCH", Some("/v1/zones/{zone}"), "/v1/zones/z%31"),
            (
                "POST",
                Some("/v1/zones/{zone}/applications"),
                "/v1/zones/z1/applications",
            ),
            (
                "POST",
                Some("/v1/zones/{zone}/applications/dcr"),
                "/v1/zones/z1/applications/dcr",
            ),
            (
                "DELETE",
                Some("/v1/zones/{zone}/applications/{id}"),
                "/v1/zones/z1/applications/a1",
            ),
            (
                "POST",
                Some("/v1/zones/{zone}/applications/{id}/rotate-secret"),
                "/v1/zones/z1/applications/a1/rotate-secret",
            ),
            (
                "POST",
                Some("/v1/zones/{zone}/policies/{id}/versions"),
                "/v1/zones/z1/policies/p1/versions",
            ),
            (
                "POST",
                Some("/v1/policies/validate"),
                "/v1/policies/validate",
            ),
            (
                "POST",
                Some("/v1/zones/{zone}/subjects/revoke"),
                "/v1/zones/z1/subjects/revoke",
            ),
            (
                "POST",
                Some("/v1/zones/{zone}/provider-connections/oauth/authorize"),
                "/v1/zones/z1/provider-connections/oauth/authorize",
            ),
            ("PUT", Some("/v1/mint-rate-limit"), "/v1/mint-rate-limit"),
            ("GET", None, "/v1/zones/z1/policies/p1/nonsense"),
            ("GET", None, "/v1/zones/a%2Fb/policies"),
        ] {
            let target = Target::of(&RULES, pattern, path);
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            let zone = target.zone.as_ref().map(ToString::to_string);
            let _ = writeln!(
                table,
                "{method} {path}: {} {} {} {}",
                text(&zone),
                text(&target.entity_type),
                text(&target.entity_id),
                target.change_kind(method, false)
            );
        }
        insta::assert_snapshot!(table, @r"
        POST /v1/zones: - zones - create
        PATCH /v1/zones/z%31: z1 zones z1 update
        POST /v1/zones/z1/applications: z1 applications - create
        POST /v1/zones/z1/applications/dcr: z1 applications - create
        DELETE /v1/zones/z1/applications/a1: z1 applications a1 delete
        POST /v1/zones/z1/applications/a1/rotate-secret: z1 applications a1 secret_rotation
        POST /v1/zones/z1/policies/p1/versions: z1 policies p1 create
        POST /v1/policies/validate: - policies - action
        POST /v1/zones/z1/subjects/revoke: z1 subjects - action
        POST /v1/zones/z1/provider-connections/oauth/authorize: z1 provider-connections - action
        PUT /v1/mint-rate-limit: - - - update
        GET /v1/zones/z1/policies/p1/nonsense: z1 policies p1 action
        GET /v1/zones/a%2Fb/policies: - policies - update
        ");
    }
}
