//! The ledger's own search (audit-and-streams §10): its refusals are plain text.

use super::{Case, Scene};

pub fn cases(scene: &Scene) -> Vec<Case> {
    let stack = &scene.world.stack;
    let at = |what: &str, method, path: &str, expected| {
        Case::new(
            what,
            method,
            format!("{}{path}", stack.urls.audit),
            expected,
        )
    };
    vec![
        at("no token", "GET", "/api/audit/search?zone_id=z", "401"),
        at("wrong token", "GET", "/api/audit/search?zone_id=z", "401").bearer("wrong"),
        at("no zone", "GET", "/api/audit/search", "400").bearer(stack.setting("AUDIT_ADMIN_TOKEN")),
        at(
            "zone that is none",
            "GET",
            "/api/audit/search?zone_id=a%20b",
            "400",
        )
        .bearer(stack.setting("AUDIT_ADMIN_TOKEN")),
        at("no such method", "POST", "/api/audit/search", "405"),
        at("no such route", "GET", "/nothing", "404 not_found"),
        at("no bearer", "GET", "/metrics", "401"),
    ]
}
