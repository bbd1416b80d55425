//! Applications (spec: admin-api §7.2).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::{ApplicationId, Secret};
use caracal_store::applications::{Application, NAME_INDEX};
use caracal_store::secrets::application_secret_ref;
use caracal_store::zones::Provenance;
use serde_json::{Value, json};

use crate::admission::Actor;
use crate::application_secrets as secrets;
use crate::custody;
use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::names::Namespace;
use crate::page::Page;
use crate::query::Query;
use crate::service::{Api, in_open_zone, open_zone, unless_taken};
use crate::traits;
use crate::wire::{self, Answer, At, Caller, Input};

const NAME: Text = Text::trimmed(1..=200);
/// Shortest secret that somebody may choose.
const SECRET: Text = Text::exact(32..=1024);
/// More than the rule allows, so that the rule answers with its own code.
const TRAITS: std::ops::RangeInclusive<usize> = 0..=1024;
const INVALID: &str = "invalid_application";

/// No such application.
pub fn no_application(id: &str) -> Failure {
    Failure::absent(
        "application_not_found",
        format!("there is no application {id} in this zone"),
    )
}

fn name_taken() -> Failure {
    Failure::conflict(
        "application_name_taken",
        "another application of this zone has that name; names ignore case",
    )
}

fn base(application: &Application, zone: &str) -> Value {
    let members = json!({
        "id": application.id,
        "zone_id": zone,
        "name": application.name,
        "registration_method": application.registration_method,
        "expires_at": application.expires_at.map(|at| at.iso_millis()),
    });
    wire::with_provenance(members, &application.provenance)
}

fn add(object: &mut Value, name: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}

fn render(application: &Application, zone: &str, actor: &Actor) -> Value {
    let mut object = base(application, zone);
    add(
        &mut object,
        "archived_at",
        json!(application.archived_at.map(|at| at.iso_millis())),
    );
    if actor.is_global() {
        add(&mut object, "traits", json!(application.traits));
    }
    object
}

fn render_with_secret(
    application: &Application,
    zone: &str,
    actor: &Actor,
    secret: &Secret<String>,
) -> Value {
    let mut object = base(application, zone);
    if actor.is_global() {
        add(&mut object, "traits", json!(application.traits));
    }
    add(&mut object, "client_secret", json!(secret.expose()));
    object
}

/// A key of the Control API acts with platform authority: zone tokens leave it alone.
pub fn may_touch(actor: &Actor, application: &Application) -> Result<(), Failure> {
    if actor.is_global() || !traits::is_control_key(&application.traits) {
        return Ok(());
    }
    Err(Failure::forbidden(
        "trait_forbidden",
        "control keys are changed with a global token",
    ))
}

/// `GET /v1/zones/{zone}/applications`
pub async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    RawQuery(raw): RawQuery,
) -> Answer {
    let query = Query::parse(raw.as_deref());
    let archived = query.word("status", &["active", "archived"])? == Some("archived");
    let page = Page::of_configuration(&query)?;
    let scope = api.store.zone(&at.zone).applications();
    let rows = scope.page(archived, wire::slice(&page)).await?;
    let show = |row: &Application| render(row, at.zone.as_str(), &caller.actor);
    let place = |row: &Application| (row.provenance.created_at, row.id.to_string());
    wire::ok(page.envelope(&rows, show, place))
}

/// `GET /v1/zones/{zone}/applications/{id}`
pub async fn get(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let found = api.store.zone(&at.zone).applications().get(&at.id).await?;
    let application = found.ok_or_else(|| no_application(&at.id))?;
    wire::ok(render(&application, at.zone.as_str(), &caller.actor))
}

/// `POST /v1/zones/{zone}/applications`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["name", "registration_method", "traits"]);
    let name = fields.required_text("name", NAME);
    if fields.word("registration_method", &["managed"]).is_none() {
        fields.wrong("registration_method", "must be managed");
    }
    let traits = fields
        .texts("traits", TRAITS, Text::exact(0..=4096))
        .unwrap_or_default();
    fields.end(INVALID)?;
    Namespace::Name.admit(&caller.actor, &name)?;
    traits::check(&traits, &caller.actor)?;

    let secret = secrets::generate(&api);
    let author = caller.author(&api);
    let application = Application {
        id: ApplicationId::trusted(api.ids.uuid()),
        name,
        registration_method: "managed".to_owned(),
        secret_verifier: Some(secrets::verifier_of_generated(&api, &secret)),
        traits,
        expires_at: None,
        provenance: Provenance::created(&author),
        archived_at: None,
    };
    let place = application_secret_ref(&at.zone, application.id.as_str());
    let sealed = api.seal(&place, secret.expose().as_bytes())?;
    let change = custody::Change::begin(&api, &at.zone, place, Some(sealed)).await?;
    let inserting = async {
        let mut tx = api.store.begin("create an application").await?;
        in_open_zone(&mut tx, &at.zone).await?;
        let inserted = tx.applications(&at.zone).insert(&application).await;
        inserted.map_err(unless_taken(NAME_INDEX, name_taken))?;
        change.write(&mut tx, author.at).await?;
        Ok::<_, Failure>(api.commit(tx, &at.zone).await?)
    };
    let inserted = Box::pin(inserting).await;
    change.end(inserted).await?;
    wire::created(render_with_secret(
        &application,
        at.zone.as_str(),
        &caller.actor,
        &secret,
    ))
}

/// `PATCH /v1/zones/{zone}/applications/{id}`
pub async fn patch(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["name", "client_secret", "traits"]);
    let name = fields.text("name", NAME);
    let chosen = fields.text("client_secret", SECRET).map(Secret::new);
    let traits = fields.texts("traits", TRAITS, Text::exact(0..=4096));
    fields.end(INVALID)?;
    if name.is_none() && chosen.is_none() && traits.is_none() {
        return Err(Failure::bad(
            "no_fields",
            "send at least one field to change",
        ));
    }
    if let Some(name) = &name {
        Namespace::Name.admit(&caller.actor, name)?;
    }
    if let Some(traits) = &traits {
        traits::check(traits, &caller.actor)?;
    }
    // Hashed before the transaction: it takes long, and a writer is waited for.
    let chosen = match chosen {
        Some(secret) => Some(secrets::stretch(&api, secret).await?),
        None => None,
    };

    let author = caller.author(&api);
    let change = match &chosen {
        Some((secret, _)) => secret_change(&api, &caller, &at, secret).await?,
        None => None,
    };
    let verifier = chosen.map(|(_, verifier)| verifier);
    let changing = async {
        let mut tx = api.store.begin("change an application").await?;
        let found = tx.applications(&at.zone).lock(&at.id).await?;
        let mut application = found.ok_or_else(|| no_application(&at.id))?;
        may_touch(&caller.actor, &application)?;
        application.name = name.unwrap_or(application.name);
        application.traits = traits.unwrap_or(application.traits);
        application.provenance.change(&author);
        if let Some(verifier) = verifier {
            has_secret(&application)?;
            application.secret_verifier = Some(verifier);
        }
        if let Some(change) = &change {
            change.write(&mut tx, author.at).await?;
        }
        let updated = tx.applications(&at.zone).update(&application).await;
        updated.map_err(unless_taken(NAME_INDEX, name_taken))?;
        api.commit(tx, &at.zone).await?;
        Ok::<_, Failure>(application)
    };
    let changed = Box::pin(changing).await;
    let application = custody::end(change, changed).await?;
    wire::ok(render(&application, at.zone.as_str(), &caller.actor))
}

fn has_secret(application: &Application) -> Result<(), Failure> {
    if application.secret_verifier.is_some() {
        return Ok(());
    }
    Err(Failure::bad(
        "client_secret_not_configured",
        "this application authenticates without a secret",
    ))
}

/// The change of an application's secret in custody; only managed ones have it there, and what an
/// application is never changes.
async fn secret_change<'a>(
    api: &'a Api,
    caller: &Caller,
    at: &'a At,
    secret: &Secret<String>,
) -> Result<Option<custody::Change<'a>>, Failure> {
    // Whoever may not change it, or names none, is told so before anything is staged.
    let found = api.store.zone(&at.zone).applications().get(&at.id).await?;
    let found = found.filter(|application| application.archived_at.is_none());
    let application = found.ok_or_else(|| no_application(&at.id))?;
    may_touch(&caller.actor, &application)?;
    if !application.is_managed() {
        return Ok(None);
    }
    let place = application_secret_ref(&at.zone, &at.id);
    let sealed = api.seal(&place, secret.expose().as_bytes())?;
    let change = custody::Change::begin(api, &at.zone, place, Some(sealed)).await?;
    Ok(Some(change))
}

/// `POST /v1/zones/{zone}/applications/{id}/rotate-secret`: the old one stops working at once.
pub async fn rotate_secret(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let secret = secrets::generate(&api);
    let change = secret_change(&api, &caller, &at, &secret).await?;
    let rotating = async {
        let mut tx = api.store.begin("rotate a client secret").await?;
        let found = tx.applications(&at.zone).lock(&at.id).await?;
        let mut application = found.ok_or_else(|| no_application(&at.id))?;
        may_touch(&caller.actor, &application)?;
        application.secret_verifier = Some(secrets::verifier_of_generated(&api, &secret));
        application.provenance.change(&author);
        tx.applications(&at.zone).update(&application).await?;
        if let Some(change) = &change {
            change.write(&mut tx, author.at).await?;
        }
        api.commit(tx, &at.zone).await?;
        Ok::<_, Failure>(application)
    };
    let rotated = Box::pin(rotating).await;
    let application = custody::end(change, rotated).await?;
    wire::ok(render_with_secret(
        &application,
        at.zone.as_str(),
        &caller.actor,
        &secret,
    ))
}

/// `DELETE /v1/zones/{zone}/applications/{id}`: archives it and forgets its secret.
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let place = application_secret_ref(&at.zone, &at.id);
    let change = custody::Change::begin(&api, &at.zone, place, None).await?;
    let archiving = async {
        let mut tx = api.store.begin("archive an application").await?;
        let found = tx.applications(&at.zone).lock(&at.id).await?;
        let application = found.ok_or_else(|| no_application(&at.id))?;
        may_touch(&caller.actor, &application)?;
        tx.applications(&at.zone).archive(&at.id, &author).await?;
        change.write(&mut tx, author.at).await?;
        Ok::<_, Failure>(api.commit(tx, &at.zone).await?)
    };
    let archived = Box::pin(archiving).await;
    change.end(archived).await?;
    wire::no_content()
}

/// `POST /v1/zones/{zone}/applications/dcr`: registration of applications by themselves.
pub async fn register(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["name", "expires_in"]);
    let name = fields.required_text("name", NAME);
    let fits = |seconds: &Value| seconds.as_u64().is_some_and(|s| (1..=3600).contains(&s));
    if fields
        .get("expires_in")
        .is_some_and(|seconds| !fits(seconds))
    {
        fields.wrong("expires_in", "must be a whole number from 1 to 3600");
    }
    fields.end(INVALID)?;
    Namespace::Name.admit(&caller.actor, &name)?;
    let zone = api.store.zones().get(&at.zone).await?;
    let zone = zone.ok_or_else(|| crate::service::no_zone(&at.zone))?;
    if zone.dcr_enabled {
        return Err(Failure::no_route());
    }
    Err(Failure::forbidden(
        "dcr_disabled",
        "dynamic registration is disabled in this zone; create a managed application",
    ))
}
