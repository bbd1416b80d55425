//! Each zone: whether it is there, has something to allow, a policy that allows it, and evidence
//! that can be read.

use serde_json::Value;

use crate::audit::items;
use crate::web::Call;

use super::Patient;
use super::report::{Checks, Section};

const AT: Section = Section::Zones;
/// Zones that are looked at when none was named.
const MOST: usize = 50;

/// Looks at the zone that was named, or at all of them; answers with their ids.
pub async fn examine(patient: &Patient, wanted: Option<&str>, checks: &mut Checks) -> Vec<String> {
    let zones = match wanted {
        Some(zone) => vec![zone.to_owned()],
        None => match all(patient).await {
            Ok(zones) => zones,
            Err(error) => {
                checks.fail(AT, "zones", format!("{error:#}"));
                return Vec::new();
            }
        },
    };
    if zones.is_empty() {
        checks
            .warn(AT, "zones", "there is none")
            .advise("POST /v1/zones, or `caracal demo --keep`");
    }
    if zones.len() > MOST {
        let more = zones.len() - MOST;
        checks
            .warn(AT, "zones", format!("{more} more were not looked at"))
            .advise("name one with --zone");
    }
    for zone in zones.iter().take(MOST) {
        if let Err(error) = one(patient, zone, checks).await {
            checks
                .fail(AT, format!("zone {zone}"), format!("{error:#}"))
                .advise("does it exist, and may this token read it?");
        }
    }
    zones
}

async fn get(patient: &Patient, path: &str) -> anyhow::Result<Value> {
    let call = Call::get(format!("{}{path}", patient.urls.api));
    let call = match &patient.admin {
        Some(token) => call.bearer(token.expose())?,
        None => call,
    };
    patient.web.json(call).await
}

async fn all(patient: &Patient) -> anyhow::Result<Vec<String>> {
    let mut zones = Vec::new();
    let mut path = "/v1/zones?limit=100".to_owned();
    loop {
        let page = get(patient, &path).await?;
        zones.extend(items(&page).filter_map(|zone| Some(zone.get("id")?.as_str()?.to_owned())));
        let Some(next) = page.get("next_cursor").and_then(Value::as_str) else {
            return Ok(zones);
        };
        path = format!("/v1/zones?limit=100&cursor={}", encoded(next));
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

async fn one(patient: &Patient, zone: &str, checks: &mut Checks) -> anyhow::Result<()> {
    let base = format!("/v1/zones/{}", encoded(zone));
    let found = get(patient, &base).await?;
    let name = found.get("name").and_then(Value::as_str).unwrap_or(zone);
    let check = |what: &str| format!("{name}: {what}");

    let resources = get(patient, &format!("{base}/resources?limit=1")).await?;
    if items(&resources).next().is_some() {
        checks.ok(AT, check("resources"), "there are");
    } else {
        checks
            .warn(AT, check("resources"), "none: nothing can be asked for")
            .advise(format!("POST {base}/resources"));
    }

    let sets = get(patient, &format!("{base}/policy-sets?limit=100")).await?;
    let is_active = |set: &Value| set.get("active_version_id").is_some_and(Value::is_string);
    if items(&sets).any(is_active) {
        checks.ok(AT, check("policy"), "in force");
    } else {
        checks
            .warn(
                AT,
                check("policy"),
                "none is in force: everything is denied",
            )
            .advise("make a policy set, and activate a version; see docs/policy.md");
    }

    get(patient, &format!("{base}/audit?limit=1")).await?;
    checks.ok(AT, check("evidence"), "can be read");
    Ok(())
}
