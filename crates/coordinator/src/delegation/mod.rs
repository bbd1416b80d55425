//! Delegations (spec: coordinator §7).

pub mod create;
pub mod graph;
pub mod read;
pub mod revoke;

use caracal_model::ZoneId;
use caracal_store::delegations::EdgeRow;
use serde_json::{Value, json};

use crate::session::time;

/// An edge on the wire.
pub fn render(zone: &ZoneId, edge: &EdgeRow) -> Value {
    json!({
        "id": edge.id,
        "zone_id": zone,
        "source_session_id": edge.source_session_id,
        "target_session_id": edge.target_session_id,
        "issuer_application_id": edge.issuer_application_id,
        "receiver_application_id": edge.receiver_application_id,
        "parent_edge_id": edge.parent_edge_id,
        "resource_id": edge.resource_id,
        "scopes": edge.scopes,
        "constraints_json": edge.constraints_json,
        "status": edge.status.as_str(),
        "expires_at": edge.expires_at.iso_millis(),
        "edge_version": edge.edge_version,
        "revoked_at": time(edge.revoked_at),
        "created_at": edge.created_at.iso_millis(),
    })
}
