//! Numbers of the whole deployment (spec: admin-api §11).

use std::sync::Arc;

use axum::extract::State;
use caracal_store::platform_settings::{MINT_RATE, PlatformSetting};
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
    let author = caller.author(&api);
    let setting = PlatformSetting {
        value: limit,
        updated_by: author.name,
        updated_at: author.at,
    };
    let mut tx = api.store.begin("set the mint rate").await?;
    tx.put_platform_setting(MINT_RATE, &setting).await?;
    tx.commit().await?;
    wire::ok(render(Some(&setting), ceiling))
}
