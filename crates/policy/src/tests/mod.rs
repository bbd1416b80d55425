//! Tests of the crate as a whole.

mod bundles;
mod bytecode;
mod decisions;
mod differential;
mod documents;
mod explanations;

use std::sync::Arc;

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};

use crate::bundle::compile;
use crate::reference;

/// A data document with this body.
pub fn document(body: &str) -> String {
    format!("# caracal:data-document\npackage caracal.authz\nimport rego.v1\n{body}\n")
}

/// Documents with these bodies, with ids.
pub fn documents(bodies: &[&str]) -> Vec<(String, String)> {
    let numbered = bodies.iter().enumerate();
    numbered
        .map(|(at, body)| (format!("pv-{at}"), document(body)))
        .collect()
}

pub fn native(bodies: &[&str]) -> Arc<dyn Contract> {
    compile(&documents(bodies)).unwrap()
}

/// The same documents, answered by the Rego text whether or not they need it.
pub fn rego(bodies: &[&str]) -> Arc<dyn Contract> {
    reference::interpreter(&documents(bodies)).unwrap()
}

/// Asks both, and insists that they agree; what a fault says may differ.
pub fn both(bodies: &[&str], input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
    let fast = native(bodies).evaluate(input);
    let slow = rego(bodies).evaluate(input);
    match (&fast, &slow) {
        (Err(_), Err(_)) => {}
        _ => assert_eq!(fast, slow, "native and Rego disagree about {bodies:?}"),
    }
    fast
}
