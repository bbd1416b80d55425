//! Admin tokens (spec: admin-api §11, platform settings and admin tokens).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_crypto::verifier::generate_secret;
use caracal_model::ZoneId;
use caracal_store::admin_tokens::AdminToken;
use serde_json::{Value, json};

use crate::admission::Capability;
use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::page::Page;
use crate::query::Query;
use crate::service::{Api, in_open_zone};
use crate::wire::{self, Answer, At, Caller, Input};

const INVALID: &str = "invalid_admin_token_request";

/// Only a global token of an operator's own manages tokens.
fn may_manage(caller: &Caller) -> Result<(), Failure> {
    if !caller.actor.is_global() {
        return Err(Failure::forbidden(
            "admin_token_management_requires_global",
            "admin tokens are managed with a global token",
        ));
    }
    if caller.actor.is_derived() {
        return Err(Failure::forbidden(
            "admin_token_management_forbidden_for_derived_token",
            "admin tokens are not managed with a token of the console",
        ));
    }
    Ok(())
}

fn render(token: &AdminToken) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "scope": token.scope,
        "capability": token.capability,
        "zone_id": token.zone_id,
        "created_by": token.created_by,
        "created_at": token.created_at.iso_millis(),
        "last_used_at": token.last_used_at.map(|at| at.iso_millis()),
        "revoked_at": token.revoked_at.map(|at| at.iso_millis()),
    })
}

/// `GET /v1/admin-tokens`
pub async fn list(State(api): State<Arc<Api>>, caller: Caller, RawQuery(raw): RawQuery) -> Answer {
    may_manage(&caller)?;
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let rows = api.store.admin_tokens().page(wire::slice(&page)).await?;
    wire::ok(page.envelope(&rows, render, |row| (row.created_at, row.id.clone())))
}

/// `POST /v1/admin-tokens`: the token itself is in this answer only.
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, input: Input) -> Answer {
    may_manage(&caller)?;
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["name", "scope", "zone_id", "capability"]);
    let name = fields.required_text("name", Text::trimmed(1..=120));
    let scope = fields.word("scope", &["global", "zone"]);
    if fields.get("scope").is_none() {
        fields.wrong("scope", "is required");
    }
    let zone = fields.text("zone_id", Text::exact(1..=128));
    let zone = match zone.as_deref().map(ZoneId::parse).transpose() {
        Ok(zone) => zone,
        Err(_) => {
            fields.wrong("zone_id", "must be the id of a zone");
            None
        }
    };
    let capability = fields
        .word("capability", &Capability::NAMES)
        .unwrap_or("write");
    fields.end(INVALID)?;
    match (scope, &zone) {
        (Some("zone"), None) => {
            return Err(Failure::bad(
                "zone_id_required",
                "a zone token needs its zone_id",
            ));
        }
        (Some("global"), Some(_)) => {
            let why = "a global token has no zone_id; leave it out or say scope: zone";
            return Err(Failure::bad("zone_id_not_allowed_for_global", why));
        }
        _ => {}
    }

    let secret = generate_secret(api.rng.as_ref(), "cat_");
    let token = AdminToken {
        id: api.ids.uuid(),
        name,
        scope: scope.unwrap_or_default().to_owned(),
        capability: capability.to_owned(),
        zone_id: zone,
        created_by: caller.actor.name(),
        created_at: api.clock.now(),
        last_used_at: None,
        revoked_at: None,
    };
    let mut tx = api.store.begin("create an admin token").await?;
    if let Some(zone) = &token.zone_id {
        in_open_zone(&mut tx, zone).await?;
    }
    tx.admin_tokens()
        .insert(&token, &api.tokens.verifier(secret.expose()))
        .await?;
    tx.commit().await?;
    wire::created(json!({
        "id": token.id,
        "name": token.name,
        "scope": token.scope,
        "capability": token.capability,
        "zone_id": token.zone_id,
        "created_by": token.created_by,
        "created_at": token.created_at.iso_millis(),
        "token": secret.expose(),
    }))
}

/// `DELETE /v1/admin-tokens/{id}`
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    may_manage(&caller)?;
    let mut tx = api.store.begin("revoke an admin token").await?;
    if !tx.admin_tokens().revoke(&at.id, api.clock.now()).await? {
        let why = format!("there is no live admin token {}", at.id);
        return Err(Failure::absent("admin_token_not_found", why));
    }
    tx.commit().await?;
    api.tokens.forget();
    wire::no_content()
}
