//! Zones (spec: admin-api §7.1).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_crypto::es256::SigningKey;
use caracal_model::{Kid, Outgoing, Topic, ZoneId};
use caracal_store::Tx;
use caracal_store::zones::{NewZoneKey, Provenance, Zone};
use caracal_trail::Deed;
use caracal_view::ZONE_KEY_AAD;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::names::{self, Namespace};
use crate::page::Page;
use crate::query::Query;
use crate::service::{Api, no_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};

const NAME: Text = Text::trimmed(1..=120);
const SLUG: Text = Text::exact(1..=120);

const SLUG_INDEX: &str = "zones_slug";

fn render(zone: &Zone) -> Value {
    let members = json!({
        "id": zone.id,
        "name": zone.name,
        "slug": zone.slug,
        "dcr_enabled": zone.dcr_enabled,
        "operator_coauthor_badge": zone.operator_coauthor_badge,
        "operator_governed": zone.operator_governed,
        "actor_tokens": zone.actor_tokens,
    });
    wire::with_provenance(members, &zone.provenance)
}

/// `GET /v1/zones`
pub async fn list(State(api): State<Arc<Api>>, caller: Caller, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let rows = api
        .store
        .zones()
        .page(wire::slice(&page), caller.actor.account())
        .await?;
    let place = |zone: &Zone| (zone.provenance.created_at, zone.id.to_string());
    wire::ok(page.envelope(&rows, render, place))
}

/// `GET /v1/zones/{zone}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    let zone = api
        .store
        .zones()
        .get(&at.zone)
        .await?
        .ok_or_else(|| no_zone(&at.zone))?;
    wire::ok(render(&zone))
}

/// `GET /v1/zones/{zone}/dcr-status`
pub async fn dcr_status(State(api): State<Arc<Api>>, at: At) -> Answer {
    let zone = api
        .store
        .zones()
        .get(&at.zone)
        .await?
        .ok_or_else(|| no_zone(&at.zone))?;
    let applications = api.store.zone(&at.zone).applications();
    let live = applications.live_dynamic(api.clock.now()).await?;
    wire::ok(json!({
        "id": zone.id,
        "dcr_enabled": zone.dcr_enabled,
        "live_dcr_applications": live,
    }))
}

struct Wish {
    name: Option<String>,
    slug: Option<String>,
    dcr_enabled: Option<bool>,
}

impl Wish {
    fn read(fields: &mut Fields<'_>) -> Self {
        let slug = fields.text("slug", SLUG);
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if slug.as_ref().is_some_and(|slug| !slug.bytes().all(legal)) {
            fields.wrong("slug", "must be lower-case letters, digits and `-`");
        }
        Self {
            name: fields.text("name", NAME),
            slug,
            dcr_enabled: fields.flag("dcr_enabled"),
        }
    }

    fn admit(&self, caller: &Caller) -> Result<(), Failure> {
        let admit = |namespace: Namespace, value: &Option<String>| match value {
            Some(value) => namespace.admit(&caller.actor, value),
            None => Ok(()),
        };
        admit(Namespace::Name, &self.name)?;
        admit(Namespace::Slug, &self.slug)
    }
}

fn slug_taken() -> Failure {
    Failure::conflict("zone_slug_conflict", "the slug is taken; choose another")
}

/// `POST /v1/zones`: the zone and its first signing key, so that its key set is served at once.
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, input: Input) -> Answer {
    let body = input.object("invalid_zone")?;
    let mut fields = Fields::of(body);
    fields.only(&["name", "slug", "dcr_enabled"]);
    let wish = Wish::read(&mut fields);
    if fields.get("name").is_none() {
        fields.wrong("name", "is required");
    }
    fields.end("invalid_zone")?;
    wish.admit(&caller)?;

    let author = caller.author(&api);
    let name = wish.name.unwrap_or_default();
    let mut tx = api.store.begin("create a zone").await?;
    let slug = match wish.slug {
        Some(slug) => slug,
        None => free_slug(&mut tx, &names::slug(&name, "zone"), &api.ids.uuid()).await?,
    };
    Namespace::Slug.admit(&caller.actor, &slug)?;
    let zone = Zone {
        id: ZoneId::trusted(api.ids.uuid()),
        name,
        slug,
        dcr_enabled: wish.dcr_enabled.unwrap_or(false),
        owner_account_id: caller.actor.account().map(str::to_owned),
        operator_coauthor_badge: true,
        operator_governed: false,
        actor_tokens: false,
        provenance: Provenance::created(&author),
    };
    tx.zones()
        .insert(&zone)
        .await
        .map_err(unless_taken(SLUG_INDEX, slug_taken))?;
    add_signing_key(&api, &mut tx, &zone.id).await?;
    api.commit(tx, &zone.id).await?;
    wire::created(render(&zone))
}

async fn free_slug(tx: &mut Tx, base: &str, random: &str) -> Result<String, Failure> {
    let taken = tx.zones().slugs_like(base).await?;
    let free = names::candidates(base, random).find(|slug| !taken.contains(slug));
    free.ok_or_else(slug_taken)
}

async fn add_signing_key(api: &Api, tx: &mut Tx, zone: &ZoneId) -> Result<(), Failure> {
    let kid = Kid::trusted(api.ids.uuid());
    let key = SigningKey::generate(kid.clone()).map_err(|error| {
        tracing::error!(%error, "no signing key");
        Failure::internal()
    })?;
    let sealed = api.seal(ZONE_KEY_AAD, key.pkcs8().expose())?;
    let now = api.clock.now();
    let public = key.public();
    let row = NewZoneKey {
        kid: &kid,
        x: &public.x,
        y: &public.y,
        sealed_private: &sealed,
        signs_from: now,
    };
    tx.zones().insert_key(zone, &row, now).await?;
    tx.announce(Outgoing::new(Topic::KeysInvalidate, zone, []));
    Ok(())
}

/// `PATCH /v1/zones/{zone}`
pub async fn patch(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let body = input.object("invalid_zone")?;
    let mut fields = Fields::of(body);
    fields.only(&[
        "name",
        "slug",
        "dcr_enabled",
        "dcr_shutdown",
        "operator_coauthor_badge",
        "operator_governed",
        "actor_tokens",
    ]);
    let wish = Wish::read(&mut fields);
    let shutdown = fields.word("dcr_shutdown", &["keep_live", "revoke_live"]);
    let badge = fields.flag("operator_coauthor_badge");
    let governed = fields.flag("operator_governed");
    let actors = fields.flag("actor_tokens");
    fields.end("invalid_zone")?;
    if body.values().all(Value::is_null) {
        return Err(Failure::bad(
            "no_fields",
            "send at least one field to change",
        ));
    }
    if shutdown.is_some() && wish.dcr_enabled != Some(false) {
        return Err(Failure::bad(
            "dcr_shutdown_not_applicable",
            "dcr_shutdown goes with dcr_enabled: false",
        ));
    }
    wish.admit(&caller)?;

    let author = caller.author(&api);
    let mut tx = api.store.begin("change a zone").await?;
    let mut zone = tx
        .zones()
        .lock(&at.zone)
        .await?
        .ok_or_else(|| no_zone(&at.zone))?;
    if wish.dcr_enabled == Some(false) {
        let live = tx.applications(&at.zone).live_dynamic(author.at).await?;
        may_shut_down(live, shutdown)?;
    }
    if let Some(mode) = shutdown {
        caller.draft.does(Deed {
            action: format!("DCR shutdown {mode}"),
            entity_type: "zones",
            entity_id: at.zone.to_string(),
            details: Map::new(),
        });
    }
    zone.name = wish.name.unwrap_or(zone.name);
    zone.slug = wish.slug.unwrap_or(zone.slug);
    zone.dcr_enabled = wish.dcr_enabled.unwrap_or(zone.dcr_enabled);
    zone.operator_coauthor_badge = badge.unwrap_or(zone.operator_coauthor_badge);
    zone.operator_governed = governed.unwrap_or(zone.operator_governed);
    zone.actor_tokens = actors.unwrap_or(zone.actor_tokens);
    zone.provenance.change(&author);
    tx.zones()
        .update(&zone)
        .await
        .map_err(unless_taken(SLUG_INDEX, slug_taken))?;
    api.commit(tx, &at.zone).await?;
    api.zones.forget(&at.zone);
    wire::ok(render(&zone))
}

fn may_shut_down(live: u64, shutdown: Option<&str>) -> Result<(), Failure> {
    match shutdown {
        _ if live == 0 => Ok(()),
        Some("keep_live") => Ok(()),
        Some(_) => Err(Failure::unavailable(
            "dcr_shutdown_unavailable",
            "live dynamic applications cannot be revoked together; archive them one by one",
        )),
        None => Err(Failure::conflict(
            "dcr_shutdown_required",
            "dynamic applications are live; say dcr_shutdown: keep_live or revoke_live",
        )
        .with("details", json!({ "live_dcr_applications": live }))),
    }
}

/// `DELETE /v1/zones/{zone}`: archives the zone and revokes its tokens.
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let mut tx = api.store.begin("archive a zone").await?;
    if !tx.zones().archive(&at.zone, &author).await? {
        return Err(no_zone(&at.zone));
    }
    tx.admin_tokens().revoke_zone(&at.zone, author.at).await?;
    api.commit(tx, &at.zone).await?;
    api.tokens.forget();
    api.zones.forget(&at.zone);
    wire::no_content()
}
