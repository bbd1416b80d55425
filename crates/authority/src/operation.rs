//! The operation floor of the Gateway (spec: sts §2.6 row 4).

use caracal_model::Scopes;

use crate::facts::{Enforcement, ResourceFacts};

/// Whether a mandate with these scopes may call this method and path of the resource. The method
/// is compared in upper case, the path exactly.
pub fn permitted(resource: &ResourceFacts, method: &str, path: &str, scopes: &Scopes) -> bool {
    match resource.enforcement {
        Enforcement::TransportUniform => true,
        Enforcement::Enforced => resource.operations.iter().any(|operation| {
            operation.method.eq_ignore_ascii_case(method)
                && *operation.path == *path
                && scopes.contains(&operation.scope)
        }),
    }
}
