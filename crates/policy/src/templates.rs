//! Documents to start from (spec: admin-api §8.1). The ids are the wire's, the wording is ours.

use serde::Serialize;

/// A document to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Template {
    /// Its id.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// The document.
    pub content: &'static str,
}

/// All of them.
pub const fn templates() -> &'static [Template] {
    &[
        Template {
            id: "application-bindings",
            name: "Application bindings",
            description: "Gives each application a name that grants can use.",
            content: include_str!("templates/application_bindings.rego"),
        },
        Template {
            id: "resource-grants",
            name: "Resource grants",
            description: "Says which application owns a resource, and which scopes each role has.",
            content: include_str!("templates/resource_grants.rego"),
        },
        Template {
            id: "label-confinement",
            name: "Label confinement",
            description: "Limits Sessions whose labels start with a prefix to a few scopes.",
            content: include_str!("templates/label_confinement.rego"),
        },
        Template {
            id: "zone-restriction",
            name: "Zone restriction",
            description: "Stops everything in the zone as soon as it has an entry.",
            content: include_str!("templates/zone_restriction.rego"),
        },
    ]
}
