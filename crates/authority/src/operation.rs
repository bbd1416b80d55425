//! The operation floor: which calls may pass the Gateway at all (spec: sts §2.6, row 4). It stands
//! below policy, so that no document can open a path that nobody declared.

use caracal_model::Scopes;

use crate::facts::{Enforcement, Operation};

/// Whether a call of `method` on `path` may pass with these scopes. Method and path are compared
/// exactly, after the method was put in upper case; an enforced resource without operations lets
/// nothing pass.
pub fn permitted(
    operations: &[Operation],
    enforcement: Enforcement,
    method: &str,
    path: &str,
    scopes: &Scopes,
) -> bool {
    match enforcement {
        Enforcement::TransportUniform => true,
        Enforcement::Enforced => operations.iter().any(|declared| {
            declared.method.eq_ignore_ascii_case(method)
                && *declared.path == *path
                && scopes.contains(&declared.scope)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Vec<Operation> {
        vec![Operation {
            method: "GET".into(),
            path: "/tickets".into(),
            scope: "desk:read".into(),
        }]
    }

    #[test]
    fn only_a_declared_call_with_its_scope_passes() {
        let read = Scopes::parse("desk:read");
        let passes = |method, path, scopes| {
            permitted(&declared(), Enforcement::Enforced, method, path, scopes)
        };
        assert!(passes("GET", "/tickets", &read));
        assert!(passes("get", "/tickets", &read));
        assert!(!passes("POST", "/tickets", &read));
        assert!(!passes("GET", "/tickets/", &read));
        assert!(!passes("GET", "/Tickets", &read));
        assert!(!passes("GET", "/tickets/../tickets", &read));
        let (write, none) = (Scopes::parse("desk:write"), Scopes::default());
        assert!(!permitted(
            &declared(),
            Enforcement::Enforced,
            "GET",
            "/tickets",
            &write
        ));
        assert!(!permitted(
            &declared(),
            Enforcement::Enforced,
            "GET",
            "/tickets",
            &none
        ));
    }

    #[test]
    fn an_enforced_resource_without_operations_lets_nothing_pass() {
        let read = Scopes::parse("desk:read");
        assert!(!permitted(&[], Enforcement::Enforced, "GET", "/", &read));
        assert!(permitted(
            &[],
            Enforcement::TransportUniform,
            "GET",
            "/",
            &read
        ));
    }
}
