//! Did every call leave its evidence? Counts the audit events of the run's zone, as an operator
//! would: through the management API.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::admin::Admin;

/// Allow events by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// One for each mint and one for each exchange of the Gateway.
    pub token_exchange: u64,
    /// One for each call that the Gateway forwarded.
    pub gateway_resource_request: u64,
}

/// The verdict.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Evidence {
    pub expected: Events,
    pub found: Events,
    /// Nothing is missing. More than expected is possible: a call can fail after its evidence.
    pub complete: bool,
    /// From the end of the load until the events were found.
    pub settled_seconds: f64,
}

/// Counts until the expected events can be read, and gives up after `within`.
pub async fn count(
    admin: &mut Admin,
    zone: &str,
    expected: Events,
    within: Duration,
) -> anyhow::Result<Evidence> {
    let began = Instant::now();
    loop {
        let found = page_through(admin, zone).await?;
        let complete = found.token_exchange >= expected.token_exchange
            && found.gateway_resource_request >= expected.gateway_resource_request;
        if complete || began.elapsed() > within {
            let settled_seconds = began.elapsed().as_secs_f64();
            return Ok(Evidence {
                expected,
                found,
                complete,
                settled_seconds,
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn page_through(admin: &mut Admin, zone: &str) -> anyhow::Result<Events> {
    let first = format!(
        "/v1/zones/{zone}/audit?limit=1000&decision=allow\
         &event_type=token_exchange,gateway_resource_request&fields=event_type"
    );
    let mut found = Events::default();
    let mut cursor: Option<String> = None;
    loop {
        let path = match &cursor {
            None => first.clone(),
            Some(cursor) => format!("{first}&cursor={cursor}"),
        };
        let page = admin.get(&path).await?;
        for item in page
            .get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            match item.get("event_type").and_then(Value::as_str) {
                Some("token_exchange") => found.token_exchange += 1,
                Some("gateway_resource_request") => found.gateway_resource_request += 1,
                _ => {}
            }
        }
        match page.get("next_cursor").and_then(Value::as_str) {
            Some(next) => cursor = Some(next.to_owned()),
            None => return Ok(found),
        }
    }
}
