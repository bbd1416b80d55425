//! Policy sets and their versions (spec: admin-api §8.2). Activation is in [`crate::activation`].

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::{Outgoing, Topic, ZoneId};
use caracal_store::policies::PolicyVersion;
use caracal_store::policy_sets::{NAME_INDEX, PolicySet, PolicySetVersion};
use caracal_store::zones::Provenance;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::manifest::Manifest;
use crate::page::Page;
use crate::query::Query;
use crate::rego;
use crate::service::{Api, in_open_zone, open_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};

const INVALID: &str = "invalid_body";
const NAME: Text = Text::trimmed(1..=200);
const DESCRIPTION: Text = Text::exact(0..=4096);

/// No such set.
pub fn no_set(id: &str) -> Failure {
    Failure::absent(
        "policy_set_not_found",
        format!("there is no policy set {id} in this zone"),
    )
}

fn render(set: &PolicySet, zone: &str) -> Value {
    let members = json!({
        "id": set.id,
        "zone_id": zone,
        "name": set.name,
        "description": set.description,
    });
    wire::with_provenance(members, &set.provenance)
}

fn render_active(set: &PolicySet, zone: &str) -> Value {
    let mut object = render(set, zone);
    if let Some(members) = object.as_object_mut() {
        members.insert("active_version_id".to_owned(), json!(set.active_version_id));
    }
    object
}

fn render_version(version: &PolicySetVersion) -> Value {
    json!({
        "id": version.id,
        "policy_set_id": version.policy_set_id,
        "version": version.version,
        "manifest_sha256": version.manifest_sha256,
        "schema_version": version.schema_version,
        "created_at": version.created_at.iso_millis(),
    })
}

/// `GET /v1/zones/{zone}/policy-sets`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let rows = api
        .store
        .zone(&at.zone)
        .policy_sets()
        .page(wire::slice(&page))
        .await?;
    let show = |row: &PolicySet| render_active(row, at.zone.as_str());
    wire::ok(page.envelope(&rows, show, |row| {
        (row.provenance.created_at, row.id.clone())
    }))
}

/// `GET /v1/zones/{zone}/policy-sets/{id}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    let set = api.store.zone(&at.zone).policy_sets().get(&at.id).await?;
    wire::ok(render_active(
        &set.ok_or_else(|| no_set(&at.id))?,
        at.zone.as_str(),
    ))
}

/// `POST /v1/zones/{zone}/policy-sets`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let mut fields = Fields::of(input.object(INVALID)?);
    let name = fields.required_text("name", NAME);
    let description = fields.text("description", DESCRIPTION);
    fields.end(INVALID)?;
    let set = PolicySet {
        id: api.ids.uuid(),
        name,
        description,
        active_version_id: None,
        provenance: Provenance::created(&caller.author(&api)),
    };
    let mut tx = api.store.begin("create a policy set").await?;
    in_open_zone(&mut tx, &at.zone).await?;
    let inserted = tx.policy_sets(&at.zone).insert(&set).await;
    inserted.map_err(unless_taken(NAME_INDEX, || {
        Failure::conflict(
            "policy_set_name_conflict",
            "another set of this zone has that name",
        )
    }))?;
    tx.commit().await?;
    wire::created(render(&set, at.zone.as_str()))
}

/// `DELETE /v1/zones/{zone}/policy-sets/{id}`: the zone denies everything when it was in force.
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let mut tx = api.store.begin("archive a policy set").await?;
    let mut sets = tx.policy_sets(&at.zone);
    if !sets.archive(&at.id, &author).await? {
        return Err(no_set(&at.id));
    }
    if !sets.unbind(&at.id).await? {
        tx.commit().await?;
        return wire::no_content();
    }
    let fields = [
        ("policy_set_id", Some(at.id.clone())),
        ("policy_set_version_id", None),
    ];
    tx.announce(Outgoing::new(Topic::PolicyInvalidate, &at.zone, fields));
    api.commit(tx, &at.zone).await?;
    wire::no_content()
}

/// `POST /v1/zones/{zone}/policy-sets/{id}/versions`
pub async fn add_version(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    input: Input,
) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    let ids = fields.objects("manifest", 1..=256, |item| {
        item.required_text("policy_version_id", Text::exact(1..=128))
    });
    if fields.get("manifest").is_none() {
        fields.wrong("manifest", "is required");
    }
    fields.end(INVALID)?;
    let sets = api.store.zone(&at.zone).policy_sets();
    sets.get(&at.id).await?.ok_or_else(|| no_set(&at.id))?;
    let manifest = Manifest::new(ids.unwrap_or_default());
    let documents = documents(&api, &at.zone, &manifest).await?;
    rego::compile(documents).await?;

    let author = caller.author(&api);
    let mut tx = api.store.begin("add a policy set version").await?;
    let mut sets = tx.policy_sets(&at.zone);
    if !sets.lock(&at.id).await? {
        return Err(no_set(&at.id));
    }
    let (manifest_json, manifest_sha256) = manifest.text_and_hash();
    let version = PolicySetVersion {
        id: api.ids.uuid(),
        policy_set_id: at.id.clone(),
        version: sets.last_version(&at.id).await? + 1,
        manifest_json,
        manifest_sha256,
        schema_version: caracal_model::policy::SCHEMA_VERSION.to_owned(),
        created_by: Some(author.name.clone()),
        created_via_operator: author.via_operator,
        created_at: author.at,
    };
    sets.insert_version(&version).await?;
    sets.touch(&at.id, &author).await?;
    tx.commit().await?;
    let mut object = render_version(&version);
    if let Some(members) = object.as_object_mut() {
        members.insert("version_id".to_owned(), json!(version.id));
    }
    wire::created(object)
}

/// The documents of a manifest, in its order. Versions never change, so no transaction is needed.
///
/// # Errors
/// 422 `invalid_policy_contract`.
pub async fn documents(
    api: &Api,
    zone: &ZoneId,
    manifest: &Manifest,
) -> Result<Vec<PolicyVersion>, Failure> {
    let found = api
        .store
        .zone(zone)
        .policies()
        .versions_of(manifest.ids())
        .await?;
    manifest.documents(found)
}

/// `GET /v1/zones/{zone}/policy-sets/{id}/versions`
pub async fn versions(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let sets = api.store.zone(&at.zone).policy_sets();
    sets.get(&at.id).await?.ok_or_else(|| no_set(&at.id))?;
    let rows = sets.versions(&at.id, wire::slice(&page)).await?;
    wire::ok(page.envelope(&rows, render_version, |row| {
        (row.created_at, row.id.clone())
    }))
}

/// `GET /v1/zones/{zone}/policy-sets/{id}/versions/{version}`
pub async fn version(State(api): State<Arc<Api>>, at: At) -> Answer {
    let sets = api.store.zone(&at.zone).policy_sets();
    sets.get(&at.id).await?.ok_or_else(|| no_set(&at.id))?;
    let version = sets.version(&at.id, &at.version).await?.ok_or_else(|| {
        let why = format!("there is no version {} of this set", at.version);
        Failure::absent("policy_set_version_not_found", why)
    })?;
    let manifest = Manifest::of(&version)?;
    let mut object = render_version(&version);
    if let Some(members) = object.as_object_mut() {
        members.insert("manifest_json".to_owned(), manifest.value());
        members.insert("policies".to_owned(), json!(manifest.ids()));
        members.insert("created_by".to_owned(), json!(version.created_by));
        members.insert(
            "created_via_operator".to_owned(),
            json!(version.created_via_operator),
        );
    }
    wire::ok(object)
}
