//! Credential providers (spec: admin-api §7.5).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::{ProviderId, ZoneId};
use caracal_store::providers::{IDENTIFIER_INDEX, Provider};
use caracal_store::secrets::provider_secret_ref;
use caracal_store::zones::Provenance;
use serde_json::{Value, json};

use crate::custody::{self, Change};
use crate::failure::Failure;
use crate::fields::{Body, Fields, Text};
use crate::names::{self, Namespace};
use crate::page::Page;
use crate::provider_config::{self as config, KINDS, Kind, Secrets};
use crate::provider_test as probe;
use crate::query::Query;
use crate::service::{Api, in_open_zone, open_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};

const NAME: Text = Text::trimmed(1..=200);
const IDENTIFIER: Text = Text::trimmed(1..=512);
const INVALID: &str = "invalid_provider";
/// How often a change is tried that others get in the way of.
const ATTEMPTS: usize = 3;

/// No such provider.
pub fn no_provider(id: &str) -> Failure {
    Failure::absent(
        "provider_not_found",
        format!("there is no provider {id} in this zone"),
    )
}

/// The identifier is in use.
pub fn identifier_taken() -> Failure {
    Failure::conflict(
        "provider_identifier_conflict",
        "another provider of this zone has that identifier",
    )
}

fn render(provider: &Provider, zone: &str) -> Value {
    let members = json!({
        "id": provider.id,
        "zone_id": zone,
        "name": provider.name,
        "identifier": provider.identifier,
        "kind": provider.kind,
        "config_json": provider.config,
        "secret_config_keys": provider.secret_config_keys,
        "connectivity_failed_at": provider.connectivity_failed_at.map(|at| at.iso_millis()),
        "archived_at": provider.archived_at.map(|at| at.iso_millis()),
    });
    wire::with_provenance(members, &provider.provenance)
}

/// `GET /v1/zones/{zone}/providers`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let archived = query.word("status", &["active", "archived"])? == Some("archived");
    let page = Page::of_configuration(&query)?;
    let rows = api
        .store
        .zone(&at.zone)
        .providers()
        .page(archived, wire::slice(&page))
        .await?;
    let show = |row: &Provider| render(row, at.zone.as_str());
    let place = |row: &Provider| (row.provenance.created_at, row.id.to_string());
    wire::ok(page.envelope(&rows, show, place))
}

/// `GET /v1/zones/{zone}/providers/{id}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    let found = api.store.zone(&at.zone).providers().get(&at.id).await?;
    wire::ok(render(
        &found.ok_or_else(|| no_provider(&at.id))?,
        at.zone.as_str(),
    ))
}

struct Wish<'b> {
    name: Option<String>,
    identifier: Option<String>,
    kind: Option<&'static str>,
    config: Option<&'b Body>,
    check: bool,
}

impl<'b> Wish<'b> {
    fn read(body: &'b Body, creates: bool) -> Result<Self, Failure> {
        let mut fields = Fields::of(body);
        let wish = Self {
            name: fields.text_or_blank("name", NAME),
            identifier: fields.text_or_blank("identifier", IDENTIFIER),
            kind: fields.word("kind", &KINDS),
            config: fields.object("config_json"),
            check: fields.flag("check").unwrap_or(false),
        };
        if creates && fields.get("kind").is_none() {
            fields.wrong("kind", "is required");
        }
        if creates && wish.name.is_none() && wish.identifier.is_none() {
            fields.wrong("name", "or identifier is required");
        }
        fields.end(INVALID)?;
        Ok(wish)
    }
}

fn check_identifier(caller: &Caller, identifier: &str) -> Result<(), Failure> {
    let rest = identifier.strip_prefix("provider://").unwrap_or_default();
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(legal);
    if !rest.split('-').all(is_part) {
        return Err(Failure::bad(
            "invalid_provider_identifier",
            "an identifier is provider:// and words of lower-case letters and digits joined by `-`",
        ));
    }
    Namespace::Provider.admit(&caller.actor, identifier)
}

/// `POST /v1/zones/{zone}/providers`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let wish = Wish::read(input.object(INVALID)?, true)?;
    let generated = || {
        format!(
            "provider://{}",
            names::slug(wish.name.as_deref().unwrap_or_default(), "provider")
        )
    };
    let identifier = wish.identifier.clone().unwrap_or_else(generated);
    check_identifier(&caller, &identifier)?;
    let kind = Kind::parse(wish.kind.unwrap_or_default())?;
    let empty = Body::new();
    let config = config::check(kind, wish.config.unwrap_or(&empty), &Secrets::new())?;
    if wish.check {
        probe::or_refuse(&api, &at.zone, kind, &config).await?;
    }

    let author = caller.author(&api);
    let provider = Provider {
        id: ProviderId::trusted(api.ids.uuid()),
        name: wish.name.clone().unwrap_or_else(|| identifier.clone()),
        identifier,
        kind: kind.name().to_owned(),
        config: config.public,
        secret_config_keys: config.secrets.keys().cloned().collect(),
        // Nobody has seen it work yet.
        connectivity_failed_at: (kind.is_oauth() && !wish.check).then_some(author.at),
        provenance: Provenance::created(&author),
        archived_at: None,
    };
    let change = change(&api, &at.zone, &provider.id, &config.secrets).await?;
    let inserting = async {
        let mut tx = api.store.begin("create a provider").await?;
        in_open_zone(&mut tx, &at.zone).await?;
        let inserted = tx.providers(&at.zone).insert(&provider).await;
        inserted.map_err(unless_taken(IDENTIFIER_INDEX, identifier_taken))?;
        change.write(&mut tx, author.at).await?;
        Ok::<_, Failure>(api.commit(tx, &at.zone).await?)
    };
    let inserted = Box::pin(inserting).await;
    change.end(inserted).await?;
    wire::created(render(&provider, at.zone.as_str()))
}

/// The change that puts these secrets into custody, or forgets what is there when there are none.
async fn change<'a>(
    api: &'a Api,
    zone: &'a ZoneId,
    id: &ProviderId,
    secrets: &Secrets,
) -> Result<Change<'a>, Failure> {
    let place = provider_secret_ref(zone, id.as_str());
    if secrets.is_empty() {
        return Change::begin(api, zone, place, None).await;
    }
    // A map of texts always serializes.
    let plain = caracal_model::Secret::new(serde_json::to_vec(secrets).unwrap_or_default());
    let sealed = api.seal(&place, plain.expose())?;
    Change::begin(api, zone, place, Some(sealed)).await
}

/// `PATCH /v1/zones/{zone}/providers/{id}`: a new kind replaces everything; without one the public
/// part is replaced, and the secrets only when at least one is sent.
pub async fn patch(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let wish = Wish::read(input.object(INVALID)?, false)?;
    if wish.kind.is_some() && wish.config.is_none() {
        return Err(Failure::bad(
            "provider_config_required",
            "a new kind needs its whole config_json, secrets included",
        ));
    }
    if wish.name.is_none() && wish.identifier.is_none() && wish.config.is_none() {
        return Err(Failure::bad(
            "no_fields",
            "send at least one field to change",
        ));
    }
    if let Some(identifier) = &wish.identifier {
        check_identifier(&caller, identifier)?;
    }

    for _ in 0..ATTEMPTS {
        if let Some(provider) = Box::pin(attempt(&api, &caller, &at, &wish)).await? {
            return wire::ok(render(&provider, at.zone.as_str()));
        }
    }
    Err(Failure::conflict(
        "provider_changed",
        "the provider was changed by others meanwhile, again and again; try again",
    ))
}

/// Changes the provider as it is now. Secrets may have to be read and staged outside, which no
/// transaction can wait for; none when somebody else has changed the provider meanwhile.
async fn attempt(
    api: &Api,
    caller: &Caller,
    at: &At,
    wish: &Wish<'_>,
) -> Result<Option<Provider>, Failure> {
    let author = caller.author(api);
    let found = api.store.zone(&at.zone).providers().get(&at.id).await?;
    let found = found.filter(|provider| provider.archived_at.is_none());
    let before = found.ok_or_else(|| no_provider(&at.id))?;
    Namespace::Provider.admit(&caller.actor, &before.identifier)?;
    let mut provider = before.clone();
    let secrets = changed(api, at, wish, &mut provider).await?;
    provider.provenance.change(&author);
    let change = match &secrets {
        Some(secrets) => Some(change(api, &at.zone, &provider.id, secrets).await?),
        None => None,
    };
    let updating = async {
        let mut tx = api.store.begin("change a provider").await?;
        let found = tx.providers(&at.zone).lock(&at.id).await?;
        if found.ok_or_else(|| no_provider(&at.id))? != before {
            return Ok(None);
        }
        if let Some(change) = &change {
            change.write(&mut tx, author.at).await?;
        }
        let updated = tx.providers(&at.zone).update(&provider).await;
        updated.map_err(unless_taken(IDENTIFIER_INDEX, identifier_taken))?;
        api.commit(tx, &at.zone).await?;
        Ok::<_, Failure>(Some(provider))
    };
    let updated = Box::pin(updating).await;
    match (change, updated) {
        // Nothing was committed: what was staged is to be undone.
        (Some(change), Ok(None)) => {
            change.undo().await;
            Ok(None)
        }
        (change, updated) => custody::end(change, updated).await,
    }
}

/// Applies a wish to a provider; answers with the secrets that custody is to have, if they change.
async fn changed(
    api: &Api,
    at: &At,
    wish: &Wish<'_>,
    provider: &mut Provider,
) -> Result<Option<Secrets>, Failure> {
    if let Some(name) = &wish.name {
        provider.name.clone_from(name);
    }
    if let Some(identifier) = &wish.identifier {
        provider.identifier.clone_from(identifier);
    }
    let Some(sent) = wish.config else {
        return Ok(None);
    };
    let kind = Kind::parse(wish.kind.unwrap_or(&provider.kind))?;
    let keeps = wish.kind.is_none() && !provider.secret_config_keys.is_empty();
    let stored = if keeps {
        secrets_of(api, &at.zone, &at.id).await?
    } else {
        Secrets::new()
    };
    let config = config::check(kind, sent, &stored)?;
    provider.kind = kind.name().to_owned();
    provider.config = config.public;
    if keeps && config.secrets.is_empty() {
        return Ok(None);
    }
    provider.secret_config_keys = config.secrets.keys().cloned().collect();
    Ok(Some(config.secrets))
}

/// `DELETE /v1/zones/{zone}/providers/{id}`: archives it and forgets its secrets.
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let place = provider_secret_ref(&at.zone, &at.id);
    let change = Change::begin(&api, &at.zone, place, None).await?;
    let archiving = async {
        let mut tx = api.store.begin("archive a provider").await?;
        let found = tx.providers(&at.zone).lock(&at.id).await?;
        let provider = found.ok_or_else(|| no_provider(&at.id))?;
        Namespace::Provider.admit(&caller.actor, &provider.identifier)?;
        tx.providers(&at.zone).archive(&at.id, &author).await?;
        let mut connections = tx.connections(&at.zone);
        connections.revoke_provider(&at.id, author.at).await?;
        change.write(&mut tx, author.at).await?;
        Ok::<_, Failure>(api.commit(tx, &at.zone).await?)
    };
    let archived = Box::pin(archiving).await;
    change.end(archived).await?;
    wire::no_content()
}

/// The secrets that custody holds of a provider.
///
/// # Errors
/// 502 `secret_backend_unavailable` when they cannot be opened.
pub async fn secrets_of(api: &Api, zone: &ZoneId, id: &str) -> Result<Secrets, Failure> {
    let place = provider_secret_ref(zone, id);
    let sealed = api.custody.read(zone, &place).await?;
    opened(api, &place, sealed.as_deref())
}

fn opened(api: &Api, place: &str, sealed: Option<&[u8]>) -> Result<Secrets, Failure> {
    let Some(sealed) = sealed else {
        return Ok(Secrets::new());
    };
    let opened = api.keyring.open(place, sealed).map_err(|error| {
        tracing::error!(%error, place, "provider secret does not open");
        custody_unavailable()
    })?;
    serde_json::from_slice(opened.expose()).map_err(|_| custody_unavailable())
}

/// 502: a stored secret cannot be had.
pub fn custody_unavailable() -> Failure {
    custody::unavailable("the stored secret of the provider cannot be read")
}

/// `POST /v1/zones/{zone}/providers/{id}/test`: asks the token endpoint for real, and notes whether
/// it answered as it should.
pub async fn test(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let found = api.store.zone(&at.zone).providers().get(&at.id).await?;
    let found = found.ok_or_else(|| no_provider(&at.id))?;
    let kind = Kind::parse(&found.kind)?;
    let config = config::Config {
        public: found.config,
        secrets: secrets_of(&api, &at.zone, &at.id).await?,
    };
    let seen = probe::probe(&api, &at.zone, kind, &config).await?;

    let author = caller.author(&api);
    let mut tx = api.store.begin("note a test of a provider").await?;
    let locked = tx.providers(&at.zone).lock(&at.id).await?;
    let mut provider = locked.ok_or_else(|| no_provider(&at.id))?;
    provider.connectivity_failed_at = (!seen.is_ok()).then_some(author.at);
    tx.providers(&at.zone).update(&provider).await?;
    tx.commit().await?;
    wire::ok(seen.render())
}
