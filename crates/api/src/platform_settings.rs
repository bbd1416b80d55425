//! Numbers of the whole deployment (spec: admin-api §11).

use std::sync::Arc;

use axum::extract::State;
use caracal_store::platform_settings::{AUDIT_RETENTION, MINT_RATE, PlatformSetting};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::Fields;
use crate::service::Api;
use crate::wire::{self, Answer, Caller, Input};

fn render(setting: Option<&PlatformSetting>, ceiling: u32) -> Value {
    let limit = setting.map_or(ceiling, |setting| setting.value.min(ceiling));
    json!({
        "limit_per_minute": limit,
        "max_per_minute": ceiling,
        "updated_by": setting.map(|setting| &setting.updated_by),
        "updated_at": setting.map(|setting| setting.updated_at.iso_millis()),
    })
}

/// `GET /v1/mint-rate-limit`
pub async fn mint_rate(State(api): State<Arc<Api>>, _: Caller) -> Answer {
    let setting = api.store.platform_setting(MINT_RATE).await?;
    wire::ok(render(setting.as_ref(), api.config.mint_rate))
}

/// `PUT /v1/mint-rate-limit`: every STS reads it within seconds.
pub async fn set_mint_rate(State(api): State<Arc<Api>>, caller: Caller, input: Input) -> Answer {
    const INVALID: &str = "invalid_rate_limit";
    let ceiling = api.config.mint_rate;
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["limit_per_minute"]);
    let limit = fields.required_count("limit_per_minute");
    fields.end(INVALID)?;
    let above = || {
        let why = format!("the ceiling of this deployment is {ceiling} a minute");
        Failure::bad("rate_limit_above_ceiling", why).with("max_per_minute", ceiling.into())
    };
    let limit = u32::try_from(limit).map_err(|_| above())?;
    if limit > ceiling {
        return Err(above());
    }
    let setting = set(&api, &caller, MINT_RATE, limit).await?;
    wire::ok(render(Some(&setting), ceiling))
}

fn retention(setting: Option<&PlatformSetting>, ceiling: u32) -> Value {
    let days = setting.map_or(ceiling, |setting| setting.value.min(ceiling));
    json!({
        "retention_days": days,
        "max_days": ceiling,
        "updated_by": setting.map(|setting| &setting.updated_by),
        "updated_at": setting.map(|setting| setting.updated_at.iso_millis()),
    })
}

/// `GET /v1/audit-retention`
pub async fn audit_retention(State(api): State<Arc<Api>>, _: Caller) -> Answer {
    let setting = api.store.platform_setting(AUDIT_RETENTION).await?;
    wire::ok(retention(setting.as_ref(), api.config.retention_days))
}

/// `PUT /v1/audit-retention`: Audit reads it before it drops anything.
pub async fn set_audit_retention(
    State(api): State<Arc<Api>>,
    caller: Caller,
    input: Input,
) -> Answer {
    const INVALID: &str = "invalid_body";
    let ceiling = api.config.retention_days;
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["retention_days"]);
    let days = fields.required_count("retention_days");
    fields.end(INVALID)?;
    let days = u32::try_from(days)
        .ok()
        .filter(|days| *days <= ceiling)
        .ok_or_else(|| {
            let why = format!("this deployment keeps evidence for {ceiling} days at most");
            Failure::bad("retention_above_limit", why).with("max_days", ceiling.into())
        })?;
    let setting = set(&api, &caller, AUDIT_RETENTION, days).await?;
    wire::ok(retention(Some(&setting), ceiling))
}

async fn set(
    api: &Api,
    caller: &Caller,
    name: &str,
    value: u32,
) -> Result<PlatformSetting, Failure> {
    let author = caller.author(api);
    let setting = PlatformSetting {
        value,
        updated_by: author.name,
        updated_at: author.at,
    };
    let mut tx = api.store.begin("set a number of the deployment").await?;
    tx.put_platform_setting(name, &setting).await?;
    tx.commit().await?;
    Ok(setting)
}
