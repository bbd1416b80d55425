//! What a policy-set version would decide, without putting it in force (spec: admin-api §8.2).

use std::sync::Arc;

use axum::extract::State;
use caracal_model::ZoneId;
use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult, SCHEMA_VERSION};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::{Body, Fields, Text};
use crate::manifest::Manifest;
use crate::policy_sets::{documents, no_set};
use crate::rego;
use crate::service::Api;
use crate::wire::{self, Answer, At, Input};

const INVALID: &str = "invalid_body";

/// `POST /v1/zones/{zone}/policy-sets/{id}/simulate`
pub async fn simulate(State(api): State<Arc<Api>>, at: At, request: Input) -> Answer {
    let mut fields = Fields::of(request.object(INVALID)?);
    let version_id = fields.required_text("version_id", Text::exact(1..=128));
    let input = fields.object("input");
    fields.end(INVALID)?;
    let sets = api.store.zone(&at.zone).policy_sets();
    sets.get(&at.id).await?.ok_or_else(|| no_set(&at.id))?;
    let version = sets.version(&at.id, &version_id).await?.ok_or_else(|| {
        let why = format!("there is no version {version_id} of this set");
        Failure::absent("version_not_found", why)
    })?;
    let manifest = Manifest::of(&version)?;
    let contract = rego::compile(documents(&api, &at.zone, &manifest).await?).await?;
    let mut warnings = input.map_or_else(Vec::new, |input| warnings(input, &at.zone));
    let would_activate = warnings.is_empty();
    let evaluated = match input {
        Some(input) => Some(evaluate(contract, input.clone()).await),
        None => None,
    };
    if let Some(Err(fault)) = &evaluated {
        warnings.push(format!("sts_simulation_failed:{fault}"));
    }
    wire::ok(json!({
        "dry_run": true,
        "would_activate": would_activate,
        "policy_set_id": at.id,
        "version_id": version.id,
        "schema_version": version.schema_version,
        "input_schema_version": SCHEMA_VERSION,
        "manifest_sha256": version.manifest_sha256,
        "policies": manifest.ids(),
        "warnings": warnings,
        "explanation": explanation(evaluated.as_ref(), &version.id, &version.manifest_sha256),
        "result": evaluated.and_then(Result::ok).as_ref().map(render),
    }))
}

fn warnings(input: &Body, zone: &ZoneId) -> Vec<String> {
    let mut warnings = Vec::new();
    let schema = input
        .get("schema_version")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !schema.is_empty() && schema != SCHEMA_VERSION {
        warnings.push(format!("input_schema_mismatch:{schema}"));
    }
    let principal = input
        .get("principal")
        .and_then(|principal| principal.get("zone_id"));
    if principal.is_some_and(|of| of.as_str() != Some(zone.as_str())) {
        warnings.push("principal_zone_mismatch".to_owned());
    }
    for part in ["resource", "action", "context"] {
        if !input.get(part).is_some_and(Value::is_object) {
            warnings.push(format!("missing_{part}"));
        }
    }
    warnings
}

async fn evaluate(contract: Arc<dyn Contract>, input: Body) -> Result<PolicyResult, PolicyFault> {
    let mut input: PolicyInput = serde_json::from_value(Value::Object(input))
        .map_err(|error| PolicyFault(format!("the input does not read: {error}")))?;
    if input.schema_version.is_empty() {
        SCHEMA_VERSION.clone_into(&mut input.schema_version);
    }
    if input.schema_version != SCHEMA_VERSION {
        return Err(PolicyFault(format!(
            "schema_version {} is not supported",
            input.schema_version
        )));
    }
    let evaluated = rego::off_the_runtime(move || contract.evaluate(&input));
    evaluated
        .await
        .map_err(|_| PolicyFault("the evaluation panicked".to_owned()))?
}

fn decision(result: &PolicyResult) -> &'static str {
    if result.allow { "allow" } else { "deny" }
}

fn explanation(
    evaluated: Option<&Result<PolicyResult, PolicyFault>>,
    version_id: &str,
    manifest: &str,
) -> Value {
    match evaluated {
        None => json!({ "evaluation": "not_executed", "reason": "no input was sent" }),
        Some(Err(fault)) => json!({ "evaluation": "failed", "reason": fault.to_string() }),
        Some(Ok(result)) => json!({
            "evaluation": "executed",
            "decision": decision(result),
            "policy_set_version_id": version_id,
            "manifest_sha256": manifest,
            "reason": result.reason().unwrap_or("the documents allow it"),
        }),
    }
}

fn render(result: &PolicyResult) -> Value {
    let determining: Vec<Value> = result
        .determining
        .iter()
        .map(|name| json!({ "policy": name }))
        .collect();
    json!({
        "decision": decision(result),
        "determining_policies": determining,
        "evaluation_status": "complete",
        "diagnostics": result.diagnostics,
    })
}
