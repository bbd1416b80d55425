//! What the ledger holds of what was done, told shortly.

use serde_json::Value;

/// What is recorded of a mandate.
pub const MINTED: &[&str] = &["token_exchange allow complete"];
/// What is recorded of a mint that policy denies: the resource, and that nothing was left of it.
pub const DENIED: &[&str] = &[
    "token_exchange deny complete",
    "token_exchange deny exchange_denied",
];
/// What is recorded of a call that reached its upstream.
pub const CALLED: &[&str] = &[
    "gateway_resource_request allow executed",
    "token_exchange allow complete",
];
/// What is recorded of a mandate that was used again.
pub const REPLAYED: &[&str] = &["replay_detected deny anomaly"];

/// `event decision status` of each event.
pub fn kinds(events: &[Value]) -> Vec<String> {
    events.iter().map(kind).collect()
}

/// `event decision status` of an event.
pub fn kind(event: &Value) -> String {
    let [what, decision, status] = ["event_type", "decision", "evaluation_status"]
        .map(|member| event[member].as_str().unwrap_or("?"));
    format!("{what} {decision} {status}")
}
