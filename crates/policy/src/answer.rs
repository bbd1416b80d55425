//! What the native and the Rego contract share: the schema of the question, the form of the answer.

use caracal_model::policy::{Context, PolicyFault, PolicyInput, PolicyResult, SCHEMA_VERSION};
use serde_json::{Value, json};

/// An empty schema version stands for the only one there is; another is an error.
pub(crate) fn check_schema(input: &PolicyInput) -> Result<(), PolicyFault> {
    match input.schema_version.as_str() {
        "" | SCHEMA_VERSION => Ok(()),
        other => Err(PolicyFault(format!("unsupported schema_version `{other}`"))),
    }
}

/// Whether a subject token was presented; claims without members are none.
pub(crate) fn has_subject(context: &Context) -> bool {
    match &context.subject_claims {
        Value::Null => false,
        Value::Object(claims) => !claims.is_empty(),
        _ => true,
    }
}

pub(crate) fn deny(reason: &str) -> PolicyResult {
    PolicyResult {
        allow: false,
        determining: Vec::new(),
        diagnostics: vec![json!({"reason": reason})],
    }
}

/// The `result` document of the contract.
pub fn to_json(result: &PolicyResult) -> Value {
    let policies: Vec<Value> = result
        .determining
        .iter()
        .map(|name| json!({"policy": name}))
        .collect();
    json!({
        "decision": if result.allow { "allow" } else { "deny" },
        "evaluation_status": "complete",
        "determining_policies": policies,
        "diagnostics": result.diagnostics,
    })
}

/// Reads the `result` document; anything that is not plainly an answer is a fault.
pub(crate) fn from_json(result: &Value) -> Result<PolicyResult, PolicyFault> {
    let unexpected = || PolicyFault("the contract gave no complete answer".to_owned());
    let member = |name: &str| result.get(name).ok_or_else(unexpected);
    if member("evaluation_status")? != "complete" {
        return Err(unexpected());
    }
    let allow = match member("decision")?.as_str() {
        Some("allow") => true,
        Some("deny") => false,
        _ => return Err(unexpected()),
    };
    let policies = member("determining_policies")?
        .as_array()
        .ok_or_else(unexpected)?;
    let name = |policy: &Value| policy.get("policy")?.as_str().map(str::to_owned);
    Ok(PolicyResult {
        allow,
        determining: policies
            .iter()
            .map(name)
            .collect::<Option<_>>()
            .ok_or_else(unexpected)?,
        diagnostics: member("diagnostics")?
            .as_array()
            .ok_or_else(unexpected)?
            .clone(),
    })
}
