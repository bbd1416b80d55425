//! The operations of a resource: which method and path need which scope (spec: admin-api §7.4).

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::fields::{Fields, Text};

/// Most operations of one resource.
const MOST: usize = 256;

/// One operation, as stored and returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Upper-case method.
    pub method: String,
    /// Path pattern.
    pub path: String,
    /// The scope that it needs.
    pub scope: String,
}

/// Reads `operations`; what is wrong with single fields is reported by `fields`.
pub fn read(fields: &mut Fields<'_>) -> Option<Vec<Operation>> {
    fields.objects("operations", 0..=MOST, |item| Operation {
        method: item
            .required_text("method", Text::exact(1..=16))
            .trim()
            .to_uppercase(),
        path: item
            .required_text("path", Text::exact(1..=512))
            .trim()
            .to_owned(),
        scope: item.required_text("scope", Text::exact(1..=200)),
    })
}

/// Checks operations against each other and against the scopes of their resource.
///
/// # Errors
/// 400 with the code of the first rule that is broken.
pub fn check(operations: &[Operation], scopes: &[String]) -> Result<(), Failure> {
    for (at, operation) in operations.iter().enumerate() {
        let Operation {
            method,
            path,
            scope,
        } = operation;
        if method.is_empty() || path.is_empty() {
            let why = format!("operation {at} needs a method and a path");
            return Err(Failure::bad("operation_method_and_path_required", why));
        }
        if !path.starts_with('/') {
            let why = format!("the path `{path}` must start with `/`");
            return Err(Failure::bad("operation_path_must_be_absolute", why));
        }
        if !scopes.contains(scope) {
            let why =
                format!("the scope `{scope}` of {method} {path} is not a scope of the resource");
            return Err(Failure::bad("operation_scope_not_in_resource_scopes", why));
        }
        let is_same = |other: &Operation| other.method == *method && other.path == *path;
        if operations.iter().take(at).any(is_same) {
            let why = format!("{method} {path} is listed twice");
            return Err(Failure::bad("operation_duplicate", why));
        }
    }
    Ok(())
}
