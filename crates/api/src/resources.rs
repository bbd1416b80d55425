//! Resources (spec: admin-api §7.4). What clients reconcile is returned exactly as it was sent.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::scope::LIFECYCLE;
use caracal_model::{ProviderId, ResourceId, ZoneId};
use caracal_store::Tx;
use caracal_store::providers::IDENTIFIER_INDEX as PROVIDER_INDEX;
use caracal_store::resources::{IDENTIFIER_INDEX, Resource};
use caracal_store::zones::{Author, Provenance};
use serde_json::{Value, json};
use url::Url;

use crate::failure::Failure;
use crate::fields::{Body, Fields, Text};
use crate::names::{self, Namespace};
use crate::operations::{self, Operation};
use crate::page::Page;
use crate::providers::{identifier_taken as provider_taken, no_provider};
use crate::query::Query;
use crate::service::{Api, no_zone, open_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};

const NAME: Text = Text::trimmed(1..=200);
const IDENTIFIER: Text = Text::trimmed(1..=512);
const SCOPE: Text = Text::exact(1..=200);
const INVALID: &str = "invalid_resource";

fn no_resource(id: &str) -> Failure {
    Failure::absent(
        "resource_not_found",
        format!("there is no resource {id} in this zone"),
    )
}

fn identifier_taken() -> Failure {
    Failure::conflict(
        "resource_identifier_conflict",
        "another resource of this zone has that identifier",
    )
}

fn protected() -> Failure {
    Failure::conflict(
        "protected_resource",
        "the control resource is kept by the platform",
    )
}

fn render(resource: &Resource, zone: &str) -> Value {
    let members = json!({
        "id": resource.id,
        "zone_id": zone,
        "name": resource.name,
        "identifier": resource.identifier,
        "upstream_url": resource.upstream_url,
        "scopes": resource.scopes,
        "credential_provider_id": resource.credential_provider_id,
        "operations": resource.operations,
        "operation_enforcement": resource.operation_enforcement,
        "archived_at": resource.archived_at.map(|at| at.iso_millis()),
    });
    wire::with_provenance(members, &resource.provenance)
}

impl Api {
    fn is_control(&self, identifier: &str) -> bool {
        identifier == self.config.control_audience
    }

    /// The identifier that this caller does not get to see.
    fn hidden_from(&self, caller: &Caller) -> Option<&str> {
        (!caller.actor.is_global()).then_some(self.config.control_audience.as_str())
    }

    fn check_identifier(&self, caller: &Caller, identifier: &str) -> Result<(), Failure> {
        if !self.is_control(identifier) {
            let uri = Url::parse(identifier).ok();
            let is_plain = |uri: Url| {
                uri.scheme() != "provider" && uri.username().is_empty() && uri.password().is_none()
            };
            if !uri.is_some_and(is_plain) {
                return Err(Failure::bad(
                    "invalid_resource_identifier",
                    "an identifier is an absolute URI such as resource://crm, without user info",
                ));
            }
        }
        Namespace::Resource.admit(&caller.actor, identifier)?;
        if self.is_control(identifier) && !caller.actor.is_global() {
            return Err(protected());
        }
        Ok(())
    }
}

/// `GET /v1/zones/{zone}/resources`
pub async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    RawQuery(raw): RawQuery,
) -> Answer {
    let query = Query::parse(raw.as_deref());
    let archived = query.word("status", &["active", "archived"])? == Some("archived");
    let page = Page::of_configuration(&query)?;
    let scope = api.store.zone(&at.zone).resources();
    let rows = scope
        .page(archived, wire::slice(&page), api.hidden_from(&caller))
        .await?;
    let show = |row: &Resource| render(row, at.zone.as_str());
    let place = |row: &Resource| (row.provenance.created_at, row.id.to_string());
    wire::ok(page.envelope(&rows, show, place))
}

/// `GET /v1/zones/{zone}/resources/{id}`
pub async fn get(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    wire::ok(render(
        &visible(&api, &caller, &at).await?,
        at.zone.as_str(),
    ))
}

async fn visible(api: &Api, caller: &Caller, at: &At) -> Result<Resource, Failure> {
    let found = api.store.zone(&at.zone).resources().get(&at.id).await?;
    let hidden = api.hidden_from(caller);
    let found = found.filter(|resource| Some(resource.identifier.as_str()) != hidden);
    found.ok_or_else(|| no_resource(&at.id))
}

struct Wish {
    name: Option<String>,
    identifier: Option<String>,
    scopes: Option<Vec<String>>,
    /// `Some(None)` is `null`, which only a change can mean.
    upstream_url: Option<Option<String>>,
    provider: Option<Option<String>>,
    operations: Option<Vec<Operation>>,
    enforcement: Option<&'static str>,
    check: bool,
}

impl Wish {
    fn read(body: &Body, creates: bool) -> Result<Self, Failure> {
        let mut fields = Fields::of(body);
        let upstream_url = fields.text("upstream_url", Text::exact(1..=2048));
        if upstream_url.as_ref().is_some_and(|url| !is_http(url)) {
            fields.wrong("upstream_url", "must be an http or https URL");
        }
        let provider = fields.text("credential_provider_id", Text::exact(1..=128));
        let nullable = |fields: &Fields<'_>, name, value: Option<String>| match value {
            Some(value) => Some(Some(value)),
            None => fields.is_null(name).then_some(None),
        };
        let wish = Self {
            name: fields.text_or_blank("name", NAME),
            identifier: fields.text_or_blank("identifier", IDENTIFIER),
            scopes: fields.texts("scopes", 1..=64, SCOPE),
            upstream_url: nullable(&fields, "upstream_url", upstream_url),
            provider: nullable(&fields, "credential_provider_id", provider),
            operations: operations::read(&mut fields),
            enforcement: fields.word("operation_enforcement", &["enforced", "transport_uniform"]),
            check: fields.flag("check").unwrap_or(false),
        };
        if creates && fields.get("scopes").is_none() {
            fields.wrong("scopes", "is required");
        }
        if creates && wish.name.is_none() && wish.identifier.is_none() {
            fields.wrong("name", "or identifier is required");
        }
        fields.end(INVALID)?;
        Ok(wish)
    }

    /// The scopes that are stored: the platform's own is derived, never declared.
    fn declared(scopes: Vec<String>) -> Vec<String> {
        scopes
            .into_iter()
            .filter(|scope| scope != LIFECYCLE)
            .collect()
    }
}

fn is_http(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// `POST /v1/zones/{zone}/resources`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let wish = Wish::read(input.object(INVALID)?, true)?;
    let author = caller.author(&api);
    let mut tx = api.store.begin("create a resource").await?;
    // Holds the zone, so that nobody else's resource slips past the quota.
    tx.zones()
        .lock(&at.zone)
        .await?
        .ok_or_else(|| no_zone(&at.zone))?;
    let identifier = match wish.identifier {
        Some(identifier) => identifier,
        None => generated(&api, &mut tx, &at.zone, wish.name.as_deref()).await?,
    };
    api.check_identifier(&caller, &identifier)?;
    let upstream_url = wish.upstream_url.flatten();
    let provider = provider_of(
        &api,
        &mut tx,
        &at.zone,
        &identifier,
        wish.provider.flatten(),
        &author,
    )
    .await?;
    needs_upstream(&api, &identifier, upstream_url.as_deref())?;
    let scopes = Wish::declared(wish.scopes.unwrap_or_default());
    let operations = wish.operations.unwrap_or_default();
    operations::check(&operations, &scopes)?;
    within_quota(&api, &mut tx, &at.zone).await?;
    if wish.check {
        return Err(verification_unsupported());
    }
    let resource = Resource {
        id: ResourceId::trusted(api.ids.uuid()),
        name: wish.name.unwrap_or_else(|| identifier.clone()),
        identifier,
        upstream_url,
        credential_provider_id: provider,
        scopes,
        operations: json!(operations),
        operation_enforcement: wish.enforcement.unwrap_or("enforced").to_owned(),
        provenance: Provenance::created(&author),
        archived_at: None,
    };
    let inserted = tx.resources(&at.zone).insert(&resource).await;
    inserted.map_err(unless_taken(IDENTIFIER_INDEX, identifier_taken))?;
    api.commit(tx, &at.zone).await?;
    wire::created(render(&resource, at.zone.as_str()))
}

async fn generated(
    api: &Api,
    tx: &mut Tx,
    zone: &ZoneId,
    name: Option<&str>,
) -> Result<String, Failure> {
    let name = name.unwrap_or_default();
    let base = match name.starts_with("resource://") {
        true => name.to_owned(),
        false => format!("resource://{}", names::slug(name, "resource")),
    };
    let taken = tx.resources(zone).identifiers_like(&base).await?;
    let random = api.ids.uuid();
    let free = names::candidates(&base, &random).find(|candidate| !taken.contains(candidate));
    free.ok_or_else(identifier_taken)
}

/// The provider of a resource: the one that was named, or for the control resource one that
/// authenticates nothing.
async fn provider_of(
    api: &Api,
    tx: &mut Tx,
    zone: &ZoneId,
    identifier: &str,
    named: Option<String>,
    author: &Author,
) -> Result<ProviderId, Failure> {
    match named {
        Some(id) if tx.providers(zone).is_active(&id).await? => Ok(ProviderId::trusted(id)),
        Some(id) => Err(no_provider(&id)),
        None if api.is_control(identifier) => {
            let none = tx.providers(zone).none(author).await;
            none.map_err(unless_taken(PROVIDER_INDEX, provider_taken))
        }
        None => Err(Failure::bad(
            "credential_provider_required",
            "name the provider that authenticates calls; kind none is one too",
        )),
    }
}

fn needs_upstream(api: &Api, identifier: &str, upstream: Option<&str>) -> Result<(), Failure> {
    if upstream.is_some() || api.is_control(identifier) {
        return Ok(());
    }
    Err(Failure::bad(
        "upstream_url_required",
        "name the URL that the Gateway sends the calls of this resource to",
    ))
}

async fn within_quota(api: &Api, tx: &mut Tx, zone: &ZoneId) -> Result<(), Failure> {
    let most = api.config.max_resources_per_zone;
    if most == 0 || tx.resources(zone).active().await? < most {
        return Ok(());
    }
    let why = format!("a zone has at most {most} resources; archive some");
    Err(Failure::conflict("resource_quota_exceeded", why))
}

/// `PATCH /v1/zones/{zone}/resources/{id}`
pub async fn patch(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let wish = Wish::read(input.object(INVALID)?, false)?;
    let author = caller.author(&api);
    let mut tx = api.store.begin("change a resource").await?;
    let found = tx.resources(&at.zone).lock(&at.id).await?;
    let hidden = api.hidden_from(&caller);
    let found = found.filter(|resource| Some(resource.identifier.as_str()) != hidden);
    let mut resource = found.ok_or_else(|| no_resource(&at.id))?;
    Namespace::Resource.admit(&caller.actor, &resource.identifier)?;

    if let Some(identifier) = wish.identifier {
        api.check_identifier(&caller, &identifier)?;
        resource.identifier = identifier;
    }
    if let Some(named) = wish.provider {
        let of = &resource.identifier;
        resource.credential_provider_id =
            provider_of(&api, &mut tx, &at.zone, of, named, &author).await?;
    }
    resource.name = wish.name.unwrap_or(resource.name);
    resource.upstream_url = wish.upstream_url.unwrap_or(resource.upstream_url);
    needs_upstream(&api, &resource.identifier, resource.upstream_url.as_deref())?;
    resource.scopes = wish.scopes.map_or(resource.scopes, Wish::declared);
    let operations = match wish.operations {
        Some(operations) => operations,
        None => stored_operations(&resource)?,
    };
    operations::check(&operations, &resource.scopes)?;
    resource.operations = json!(operations);
    if let Some(enforcement) = wish.enforcement {
        enforcement.clone_into(&mut resource.operation_enforcement);
    }
    resource.provenance.change(&author);
    let updated = tx.resources(&at.zone).update(&resource).await;
    updated.map_err(unless_taken(IDENTIFIER_INDEX, identifier_taken))?;
    api.commit(tx, &at.zone).await?;
    wire::ok(render(&resource, at.zone.as_str()))
}

fn stored_operations(resource: &Resource) -> Result<Vec<Operation>, Failure> {
    serde_json::from_value(resource.operations.clone()).map_err(|error| {
        tracing::error!(%error, resource = %resource.id, "stored operations do not read");
        Failure::internal()
    })
}

/// `DELETE /v1/zones/{zone}/resources/{id}`
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let mut tx = api.store.begin("archive a resource").await?;
    let found = tx.resources(&at.zone).lock(&at.id).await?;
    let resource = found.ok_or_else(|| no_resource(&at.id))?;
    if api.is_control(&resource.identifier) {
        return Err(protected());
    }
    Namespace::Resource.admit(&caller.actor, &resource.identifier)?;
    tx.resources(&at.zone).archive(&at.id, &author).await?;
    api.commit(tx, &at.zone).await?;
    wire::no_content()
}

fn verification_unsupported() -> Failure {
    Failure::bad(
        "resource_verification_unsupported",
        "only resources of a caracal_mandate provider can be verified; leave check out",
    )
}

/// `POST /v1/zones/{zone}/resources/{id}/test`: no provider kind that exists can be verified.
pub async fn test(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    visible(&api, &caller, &at).await?;
    Err(verification_unsupported())
}
