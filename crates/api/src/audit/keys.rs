//! The keys that checkpoints are signed with: which there are, and the next one.
//!
//! What is signed proves a change by itself (crate `tlog`); here is only who may cause one.

use std::sync::Arc;

use axum::extract::State;
use caracal_ledger::Vkey;
use caracal_store::audit_trees::AuditKey;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::service::Api;
use crate::wire::{self, Answer, Caller};

fn shown((key, vkey): &(AuditKey, Vkey), signs: bool) -> Value {
    json!({
        "id": key.id,
        "key": vkey.to_string(),
        "status": if signs { "signing" } else { "replaced" },
        "private_key": if key.has_private() { "kept" } else { "destroyed" },
        "created_at": key.created_at.iso_millis(),
    })
}

fn none() -> Failure {
    Failure::absent(
        "checkpoints_unavailable",
        "this deployment signs no checkpoints yet: run the role audit with SECRET_STORE_KEK",
    )
}

/// `GET /v1/audit-keys`: the newest last.
pub async fn list(State(api): State<Arc<Api>>, _: Caller) -> Answer {
    let keys = caracal_tlog::list(&api.store).await?;
    let last = keys.len();
    let items: Vec<_> = (1..)
        .zip(&keys)
        .map(|(place, key)| shown(key, place == last))
        .collect();
    wire::ok(json!({ "items": items }))
}

/// `POST /v1/audit-keys/rotate`: the new key signs from now on. For the platform's own tokens.
pub async fn rotate(State(api): State<Arc<Api>>, caller: Caller) -> Answer {
    if !caller.actor.is_global() || caller.actor.is_derived() {
        return Err(Failure::forbidden(
            "audit_keys_require_global",
            "the keys of checkpoints belong to no zone: rotate them with a global token",
        ));
    }
    let clock = api.clock.as_ref();
    let rotated = caracal_tlog::rotate(&api.store, &api.keyring, api.rng.as_ref(), clock).await?;
    let Some(rotated) = rotated else {
        let known = caracal_tlog::vkeys(&api.store).await?;
        return Err(match known.is_empty() {
            true => none(),
            false => Failure::conflict(
                "audit_key_rotated",
                "another rotation came first; look at the keys",
            ),
        });
    };
    wire::created(shown(&rotated, true))
}
