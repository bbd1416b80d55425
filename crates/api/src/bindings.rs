//! What a workload's environment variables are bound to (spec: admin-api §7.3).

use std::collections::BTreeSet;

use caracal_store::workloads::Binding;
use serde_json::json;

use crate::failure::Failure;
use crate::fields::{Fields, Text};

/// Most bindings of one workload.
const MOST: usize = 64;
/// Variables through which a value becomes code in the launched command, or in the libraries that
/// it loads. `caracal run` refuses them as well.
const DANGEROUS: [&str; 6] = [
    "NODE_OPTIONS",
    "BUN_OPTIONS",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "DYLD_INSERT_LIBRARIES",
    "DYLD_LIBRARY_PATH",
];

/// Reads `bindings` in their stored form; what is wrong with single fields is reported by `fields`.
pub fn read(fields: &mut Fields<'_>) -> Option<Vec<Binding>> {
    fields.objects("bindings", 0..=MOST, |item| {
        item.only(&["env", "resource", "scopes", "optional", "on_failure"]);
        let optional = item.flag("optional").unwrap_or_default();
        let on_failure = item.word("on_failure", &["warn", "error"]);
        Binding {
            env: item.required_text("env", Text::exact(1..=200)),
            resource: item.required_text("resource", Text::exact(1..=500)),
            scopes: item
                .texts("scopes", 0..=32, Text::exact(1..=200))
                .unwrap_or_default(),
            optional,
            // Without a required one no command starts, whatever it says here.
            on_failure: optional.then(|| on_failure.unwrap_or("error").to_owned()),
        }
    })
}

/// Checks names against the rules and against each other.
///
/// # Errors
/// 400 with the code of the first rule that is broken, and the name.
pub fn check(bindings: &[Binding]) -> Result<(), Failure> {
    let refused = |code, env: &str, why: String| {
        Err(Failure::bad(code, why).with("details", json!({ "env": env })))
    };
    let mut seen = BTreeSet::new();
    for Binding { env, .. } in bindings {
        if !is_name(env) {
            let why = format!("`{env}` must be a letter or `_`, then letters, digits or `_`");
            return refused("invalid_credential_env", env, why);
        }
        if DANGEROUS.iter().any(|name| env.eq_ignore_ascii_case(name)) {
            let why = format!("`{env}` would let a credential run code; choose another name");
            return refused("invalid_credential_env", env, why);
        }
        if !seen.insert(env) {
            let why = format!("`{env}` is bound twice; each variable holds one credential");
            return refused("duplicate_credential_env", env, why);
        }
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
