//! Policies and their versions (spec: admin-api §8.1).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_crypto::digest::sha256_hex;
use caracal_model::policy::SCHEMA_VERSION;
use caracal_store::policies::{NAME_INDEX, Policy, PolicyVersion};
use caracal_store::zones::{Author, Provenance};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::names::Namespace;
use crate::page::Page;
use crate::query::Query;
use crate::rego;
use crate::service::{Api, in_open_zone, open_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};

const INVALID: &str = "invalid_body";
const NAME: Text = Text::trimmed(1..=200);
const DESCRIPTION: Text = Text::exact(0..=4096);
/// Past the rule of the validator, so that the rule answers with its own code.
const CONTENT: Text = Text::exact(0..=usize::MAX);
/// Versions that are shown at a time.
const VERSIONS: u32 = 100;

fn no_policy(id: &str) -> Failure {
    Failure::absent(
        "policy_not_found",
        format!("there is no policy {id} in this zone"),
    )
}

fn render(policy: &Policy, zone: &str) -> Value {
    let members = json!({
        "id": policy.id,
        "zone_id": zone,
        "name": policy.name,
        "description": policy.description,
    });
    wire::with_provenance(members, &policy.provenance)
}

/// A new version, as the requests that make one answer.
fn render_new(version: &PolicyVersion) -> Value {
    json!({
        "id": version.id,
        "policy_id": version.policy_id,
        "version": version.version,
        "content_sha256": version.content_sha256,
        "schema_version": version.schema_version,
        "created_at": version.created_at.iso_millis(),
    })
}

fn render_version(version: &PolicyVersion) -> Value {
    json!({
        "id": version.id,
        "policy_id": version.policy_id,
        "version": version.version,
        "content": version.content,
        "content_sha256": version.content_sha256,
        "schema_version": version.schema_version,
        "created_by": version.created_by,
        "created_at": version.created_at.iso_millis(),
        "archived_at": null,
        "created_via_operator": version.created_via_operator,
    })
}

/// `POST /v1/policies/validate`
pub async fn validate(input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    let content = fields.required_text("content", CONTENT);
    fields.end(INVALID)?;
    let preview = rego::validate_whole(content).await;
    let preview = preview.map_err(|why| why.with("valid", json!(false)))?;
    wire::ok(preview)
}

/// `GET /v1/policy-templates`
pub async fn templates() -> Answer {
    wire::ok(rego::templates())
}

/// `GET /v1/zones/{zone}/policies`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let rows = api
        .store
        .zone(&at.zone)
        .policies()
        .page(wire::slice(&page))
        .await?;
    let show = |row: &Policy| render(row, at.zone.as_str());
    wire::ok(page.envelope(&rows, show, |row| {
        (row.provenance.created_at, row.id.clone())
    }))
}

/// `GET /v1/zones/{zone}/policies/{id}?limit&cursor`: with its newest versions, and where the older
/// ones go on. Each may be long and nothing limits how many there are.
pub async fn get(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let limit = query.limit(VERSIONS, VERSIONS)?;
    let below = match query.text("cursor", 20)? {
        None => i64::MAX,
        Some(text) => text.parse().map_err(|_| {
            Failure::bad(
                "invalid_cursor",
                "cursor must be a next_cursor of this policy",
            )
        })?,
    };
    let policies = api.store.zone(&at.zone).policies();
    let policy = policies
        .get(&at.id)
        .await?
        .ok_or_else(|| no_policy(&at.id))?;
    let versions = policies.versions(&at.id, below, limit).await?;
    let full = u32::try_from(versions.len()).is_ok_and(|count| count >= limit);
    // The first has the number 1: nothing is older.
    let last = versions.last().filter(|last| full && last.version > 1);
    let next = last.map(|last| last.version.to_string());
    let mut object = render(&policy, at.zone.as_str());
    if let Some(members) = object.as_object_mut() {
        let versions: Vec<Value> = versions.iter().map(render_version).collect();
        members.insert("versions".to_owned(), json!(versions));
        members.insert("next_cursor".to_owned(), json!(next));
    }
    wire::ok(object)
}

fn new_version(
    api: &Api,
    policy: &str,
    number: i64,
    content: String,
    author: &Author,
) -> PolicyVersion {
    PolicyVersion {
        id: api.ids.uuid(),
        policy_id: policy.to_owned(),
        version: number,
        content_sha256: sha256_hex(content.as_bytes()),
        content,
        schema_version: SCHEMA_VERSION.to_owned(),
        created_by: Some(author.name.clone()),
        created_via_operator: author.via_operator,
        created_at: author.at,
    }
}

/// `POST /v1/zones/{zone}/policies`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let mut fields = Fields::of(input.object(INVALID)?);
    let name = fields.required_text("name", NAME);
    let description = fields.text("description", DESCRIPTION);
    let content = fields.required_text("content", CONTENT);
    fields.end(INVALID)?;
    Namespace::Name.admit(&caller.actor, &name)?;
    rego::validate_whole(content.clone()).await?;

    let author = caller.author(&api);
    let policy = Policy {
        id: api.ids.uuid(),
        name,
        description,
        provenance: Provenance::created(&author),
    };
    let version = new_version(&api, &policy.id, 1, content, &author);
    let mut tx = api.store.begin("create a policy").await?;
    in_open_zone(&mut tx, &at.zone).await?;
    let inserted = tx.policies(&at.zone).insert(&policy).await;
    inserted.map_err(unless_taken(NAME_INDEX, || {
        Failure::conflict(
            "policy_name_conflict",
            "another policy of this zone has that name",
        )
    }))?;
    tx.policies(&at.zone).insert_version(&version).await?;
    tx.commit().await?;
    wire::created(json!({
        "id": policy.id,
        "version_id": version.id,
        "zone_id": at.zone,
        "name": policy.name,
        "description": policy.description,
        "version": render_new(&version),
    }))
}

/// `POST /v1/zones/{zone}/policies/{id}/versions`
pub async fn add_version(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    input: Input,
) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    let content = fields.required_text("content", CONTENT);
    fields.end(INVALID)?;
    rego::validate_whole(content.clone()).await?;

    let author = caller.author(&api);
    let mut tx = api.store.begin("add a policy version").await?;
    let mut policies = tx.policies(&at.zone);
    let policy = policies
        .lock(&at.id)
        .await?
        .ok_or_else(|| no_policy(&at.id))?;
    Namespace::Name.admit(&caller.actor, &policy.name)?;
    let number = policies.last_version(&at.id).await? + 1;
    let version = new_version(&api, &at.id, number, content, &author);
    policies.insert_version(&version).await?;
    policies.touch(&at.id, &author).await?;
    tx.commit().await?;
    let mut object = render_new(&version);
    if let Some(members) = object.as_object_mut() {
        members.insert("version_id".to_owned(), json!(version.id));
    }
    wire::created(object)
}

/// `DELETE /v1/zones/{zone}/policies/{id}`: its versions stay in force where they are.
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let mut tx = api.store.begin("archive a policy").await?;
    let mut policies = tx.policies(&at.zone);
    let policy = policies
        .lock(&at.id)
        .await?
        .ok_or_else(|| no_policy(&at.id))?;
    Namespace::Name.admit(&caller.actor, &policy.name)?;
    policies.archive(&at.id, &author).await?;
    tx.commit().await?;
    wire::no_content()
}
