//! Workloads: launcher identities (spec: admin-api §7.3). They hold no authority of their own; the
//! STS asks policy for every credential that a launch takes.
//!
//! Nothing in memory follows a workload (the STS reads it anew for every launch), so a change needs
//! no news: it counts from its commit.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::{Secret, WorkloadId};
use caracal_store::secrets::workload_secret_ref;
use caracal_store::workloads::{NAME_INDEX, Workload};
use caracal_store::zones::Provenance;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::page::Page;
use crate::query::Query;
use crate::service::{Api, in_open_zone, open_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};
use crate::{bindings, custody};

const NAME: Text = Text::trimmed(1..=200);
const INVALID: &str = "invalid_workload";

fn no_workload(id: &str) -> Failure {
    let why = format!("there is no workload {id} in this zone");
    Failure::absent("workload_not_found", why)
}

fn name_taken() -> Failure {
    Failure::conflict(
        "workload_name_taken",
        "another workload of this zone has that name; names ignore case",
    )
}

fn render(workload: &Workload) -> Value {
    let members = json!({
        "id": workload.id,
        "zone_id": workload.zone,
        "name": workload.name,
        "bindings": workload.bindings,
    });
    wire::with_provenance(members, &workload.provenance)
}

fn render_with_secret(workload: &Workload, secret: &Secret<String>) -> Value {
    let mut object = render(workload);
    if let Some(members) = object.as_object_mut() {
        members.insert("secret".to_owned(), json!(secret.expose()));
    }
    object
}

/// `GET /v1/zones/{zone}/workloads`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let scope = api.store.zone(&at.zone).workloads();
    let rows = scope.page(wire::slice(&page)).await?;
    let place = |row: &Workload| (row.provenance.created_at, row.id.to_string());
    wire::ok(page.envelope(&rows, render, place))
}

/// `GET /v1/zones/{zone}/workloads/{id}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    wire::ok(render(&existing(&api, &at).await?))
}

async fn existing(api: &Api, at: &At) -> Result<Workload, Failure> {
    let found = api.store.zone(&at.zone).workloads().get(&at.id).await?;
    found.ok_or_else(|| no_workload(&at.id))
}

/// `POST /v1/zones/{zone}/workloads`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["name"]);
    let name = fields.required_text("name", NAME);
    fields.end(INVALID)?;

    let secret = custody::generate(&api, "ws_");
    let author = caller.author(&api);
    let workload = Workload {
        id: WorkloadId::trusted(api.ids.uuid()),
        zone: at.zone.clone(),
        name,
        secret_verifier: Some(custody::verifier_of_generated(&api, &secret)),
        bindings: Vec::new(),
        provenance: Provenance::created(&author),
    };
    let place = workload_secret_ref(&at.zone, workload.id.as_str());
    let sealed = api.seal(&place, secret.expose().as_bytes())?;
    let change = custody::Change::begin(&api, &at.zone, place, Some(sealed)).await?;
    let inserting = async {
        let mut tx = api.store.begin("create a workload").await?;
        in_open_zone(&mut tx, &at.zone).await?;
        let inserted = tx.workloads(&at.zone).insert(&workload).await;
        inserted.map_err(unless_taken(NAME_INDEX, name_taken))?;
        change.write(&mut tx, author.at).await?;
        Ok::<_, Failure>(tx.commit().await?)
    };
    let inserted = Box::pin(inserting).await;
    change.end(inserted).await?;
    wire::created(render_with_secret(&workload, &secret))
}

/// `PUT /v1/zones/{zone}/workloads/{id}`: what is not sent stays.
pub async fn put(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["name", "bindings"]);
    let name = fields.text("name", NAME);
    let bound = bindings::read(&mut fields);
    fields.end(INVALID)?;
    if name.is_none() && bound.is_none() {
        let why = "send at least one field to change";
        return Err(Failure::bad("no_fields", why));
    }
    bindings::check(bound.as_deref().unwrap_or_default())?;

    let author = caller.author(&api);
    let mut tx = api.store.begin("change a workload").await?;
    let found = tx.workloads(&at.zone).lock(&at.id).await?;
    let mut workload = found.ok_or_else(|| no_workload(&at.id))?;
    workload.name = name.unwrap_or(workload.name);
    workload.bindings = bound.unwrap_or(workload.bindings);
    workload.provenance.change(&author);
    let updated = tx.workloads(&at.zone).update(&workload).await;
    updated.map_err(unless_taken(NAME_INDEX, name_taken))?;
    tx.commit().await?;
    wire::ok(render(&workload))
}

/// `POST /v1/zones/{zone}/workloads/{id}/rotate-secret`: the old one stops working at once.
pub async fn rotate_secret(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    // Before anything is staged for what does not exist.
    existing(&api, &at).await?;
    let secret = custody::generate(&api, "ws_");
    let place = workload_secret_ref(&at.zone, &at.id);
    let sealed = api.seal(&place, secret.expose().as_bytes())?;
    let change = custody::Change::begin(&api, &at.zone, place, Some(sealed)).await?;
    let rotating = async {
        let mut tx = api.store.begin("rotate a workload's secret").await?;
        let found = tx.workloads(&at.zone).lock(&at.id).await?;
        let mut workload = found.ok_or_else(|| no_workload(&at.id))?;
        workload.secret_verifier = Some(custody::verifier_of_generated(&api, &secret));
        workload.provenance.change(&author);
        tx.workloads(&at.zone).update(&workload).await?;
        change.write(&mut tx, author.at).await?;
        tx.commit().await?;
        Ok::<_, Failure>(workload)
    };
    let rotated = Box::pin(rotating).await;
    let workload = change.end(rotated).await?;
    wire::ok(render_with_secret(&workload, &secret))
}

/// `GET /v1/zones/{zone}/workloads/{id}/secret`: on record before it is answered.
pub async fn reveal(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    caller.actor.may_reveal(api.config.console_may_reveal)?;
    let workload = existing(&api, &at).await?;
    let place = workload_secret_ref(&at.zone, &at.id);
    let secret = custody::open(&api, &at.zone, &place, "workload_secret_not_stored").await?;
    let of = [
        ("workload_id", json!(workload.id)),
        ("workload_name", json!(workload.name)),
    ];
    custody::record_reveal(&api, &caller, &at.zone, "workload_secret", of).await?;
    wire::ok(json!({ "secret": secret.expose() }))
}

/// `DELETE /v1/zones/{zone}/workloads/{id}`: for good, and its secret with it.
pub async fn delete(State(api): State<Arc<Api>>, at: At) -> Answer {
    let place = workload_secret_ref(&at.zone, &at.id);
    let change = custody::Change::begin(&api, &at.zone, place, None).await?;
    let deleting = async {
        let mut tx = api.store.begin("delete a workload").await?;
        if !tx.workloads(&at.zone).delete(&at.id).await? {
            return Err(no_workload(&at.id));
        }
        change.write(&mut tx, api.clock.now()).await?;
        Ok::<_, Failure>(tx.commit().await?)
    };
    let deleted = Box::pin(deleting).await;
    change.end(deleted).await?;
    wire::no_content()
}
