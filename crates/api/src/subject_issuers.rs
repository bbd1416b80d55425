//! Issuers whose ID tokens a zone trusts (spec: admin-api §7.8). An archived one is gone for new
//! federations at once; what it vouched for before lives until it expires or its subject is cut off.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_store::subject_issuers::{ISSUER_INDEX, SubjectIssuer};
use caracal_store::zones::Provenance;
use serde_json::{Value, json};
use url::Url;

use crate::failure::Failure;
use crate::fields::{Body, Fields, Text};
use crate::page::Page;
use crate::query::Query;
use crate::service::{Api, no_zone, open_zone, unless_taken};
use crate::wire::{self, Answer, At, Caller, Input};

const ADDRESS: Text = Text::exact(1..=2048);
const AUDIENCE: Text = Text::exact(1..=512);
const INVALID: &str = "invalid_subject_issuer";
/// Most issuers that a zone trusts at a time.
const MOST: u64 = 20;

fn no_issuer(id: &str) -> Failure {
    Failure::absent(
        "subject_issuer_not_found",
        format!("there is no subject issuer {id} in this zone"),
    )
}

fn render(issuer: &SubjectIssuer, zone: &str) -> Value {
    let members = json!({
        "id": issuer.id,
        "zone_id": zone,
        "issuer": issuer.issuer,
        "jwks_url": issuer.jwks_url,
        "audience": issuer.audience,
        "archived_at": issuer.archived_at.map(|at| at.iso_millis()),
    });
    wire::with_provenance(members, &issuer.provenance)
}

/// Whether this is an https URL that says nothing but where: it is compared and fetched as it
/// stands, so what could hide in it is refused.
fn is_plain_https(text: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '?' | '#' | '\\');
    let Ok(url) = Url::parse(text) else {
        return false;
    };
    text.starts_with("https://")
        && !text.chars().any(odd)
        && url.host_str().is_some_and(|host| !host.is_empty())
}

struct Wish {
    issuer: Option<String>,
    jwks_url: Option<String>,
    audience: Option<String>,
}

impl Wish {
    fn read(body: &Body, creates: bool) -> Result<Self, Failure> {
        let mut fields = Fields::of(body);
        let address = |fields: &mut Fields<'_>, name: &str| {
            let text = fields.text(name, ADDRESS);
            if text.as_deref().is_some_and(|text| !is_plain_https(text)) {
                fields.wrong(name, "must be an https URL without user, query or fragment");
            }
            text
        };
        let wish = Self {
            issuer: if creates {
                address(&mut fields, "issuer")
            } else {
                None
            },
            jwks_url: address(&mut fields, "jwks_url"),
            audience: fields.text("audience", AUDIENCE),
        };
        if creates {
            for name in ["issuer", "jwks_url", "audience"] {
                if fields.get(name).is_none() {
                    fields.wrong(name, "is required");
                }
            }
        } else if fields.get("issuer").is_some() {
            fields.wrong(
                "issuer",
                "cannot change; archive this issuer and add another",
            );
        }
        fields.end(INVALID)?;
        Ok(wish)
    }
}

/// `GET /v1/zones/{zone}/subject-issuers`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let issuers = api.store.zone(&at.zone).subject_issuers();
    let rows = issuers.page(wire::slice(&page)).await?;
    let show = |row: &SubjectIssuer| render(row, at.zone.as_str());
    let place = |row: &SubjectIssuer| (row.provenance.created_at, row.id.clone());
    wire::ok(page.envelope(&rows, show, place))
}

/// `GET /v1/zones/{zone}/subject-issuers/{id}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    let issuers = api.store.zone(&at.zone).subject_issuers();
    let issuer = issuers.get(&at.id).await?;
    let issuer = issuer.ok_or_else(|| no_issuer(&at.id))?;
    wire::ok(render(&issuer, at.zone.as_str()))
}

/// `POST /v1/zones/{zone}/subject-issuers`
pub async fn create(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let wish = Wish::read(input.object(INVALID)?, true)?;
    let issuer = SubjectIssuer {
        id: api.ids.uuid(),
        issuer: wish.issuer.unwrap_or_default(),
        jwks_url: wish.jwks_url.unwrap_or_default(),
        audience: wish.audience.unwrap_or_default(),
        provenance: Provenance::created(&caller.author(&api)),
        archived_at: None,
    };
    let mut tx = api.store.begin("trust an issuer").await?;
    // Whoever holds the zone counts alone, so two at once cannot both be the twentieth.
    let zone = tx.zones().lock(&at.zone).await?;
    zone.ok_or_else(|| no_zone(&at.zone))?;
    if tx.subject_issuers(&at.zone).active().await? >= MOST {
        return Err(Failure::conflict(
            "subject_issuer_limit_reached",
            format!("a zone trusts at most {MOST} issuers; archive one first"),
        ));
    }
    let inserted = tx.subject_issuers(&at.zone).insert(&issuer).await;
    inserted.map_err(unless_taken(ISSUER_INDEX, || {
        Failure::conflict(
            "subject_issuer_exists",
            "the zone trusts this issuer already",
        )
    }))?;
    api.commit(tx, &at.zone).await?;
    wire::created(render(&issuer, at.zone.as_str()))
}

/// `PATCH /v1/zones/{zone}/subject-issuers/{id}`: where its keys are and whom its tokens are for.
/// Without a field it changes nothing, and succeeds.
pub async fn patch(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let wish = Wish::read(input.object(INVALID)?, false)?;
    let author = caller.author(&api);
    let mut tx = api.store.begin("change a trusted issuer").await?;
    let found = tx.subject_issuers(&at.zone).lock(&at.id).await?;
    let mut issuer = found.ok_or_else(|| no_issuer(&at.id))?;
    if wish.jwks_url.is_none() && wish.audience.is_none() {
        return wire::ok(render(&issuer, at.zone.as_str()));
    }
    issuer.jwks_url = wish.jwks_url.unwrap_or(issuer.jwks_url);
    issuer.audience = wish.audience.unwrap_or(issuer.audience);
    issuer.provenance.change(&author);
    tx.subject_issuers(&at.zone).update(&issuer).await?;
    api.commit(tx, &at.zone).await?;
    wire::ok(render(&issuer, at.zone.as_str()))
}

/// `DELETE /v1/zones/{zone}/subject-issuers/{id}`: archives it.
pub async fn delete(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    let author = caller.author(&api);
    let mut tx = api.store.begin("archive a trusted issuer").await?;
    if !tx
        .subject_issuers(&at.zone)
        .archive(&at.id, &author)
        .await?
    {
        return Err(no_issuer(&at.id));
    }
    api.commit(tx, &at.zone).await?;
    wire::no_content()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_an_https_url_that_hides_nothing() {
        for good in [
            "https://idp.example",
            "https://idp.example/realms/a",
            "https://idp.example:8443/keys.json",
        ] {
            assert!(is_plain_https(good), "{good}");
        }
        for bad in [
            "",
            "idp.example",
            "http://idp.example",
            "HTTPS://idp.example",
            "https://",
            "https://user@idp.example",
            "https://idp.example?a=b",
            "https://idp.example/#a",
            "https://idp.example/a b",
            "https:\\\\idp.example",
            " https://idp.example",
        ] {
            assert!(!is_plain_https(bad), "{bad}");
        }
    }
}
