//! Putting a policy-set version in force, and whether it has arrived (spec: admin-api §8.2).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::{Outgoing, Topic};
use caracal_store::policy_sets::News;
use caracal_view::ReplicaStatus;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::manifest::Manifest;
use crate::policy_sets::{documents, no_set};
use crate::query::Query;
use crate::rego;
use crate::service::{Api, no_zone};
use crate::wire::{self, Answer, At, Caller, Input};

const INVALID: &str = "invalid_body";
const ID: Text = Text::exact(1..=128);

fn no_version(id: &str) -> Failure {
    Failure::absent(
        "version_not_found",
        format!("there is no version {id} of this set"),
    )
}

/// `POST /v1/zones/{zone}/policy-sets/{id}/activate`: an older version is a rollback.
pub async fn activate(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    let version_id = fields.required_text("version_id", ID);
    fields.end(INVALID)?;
    let sets = api.store.zone(&at.zone).policy_sets();
    sets.get(&at.id).await?.ok_or_else(|| no_set(&at.id))?;
    let version = sets.version(&at.id, &version_id).await?;
    let version = version.ok_or_else(|| no_version(&version_id))?;
    let documents = documents(&api, &at.zone, &Manifest::of(&version)?).await?;
    rego::compile(documents).await?;

    let author = caller.author(&api);
    let mut tx = api.store.begin("activate a policy set version").await?;
    // One zone, one set in force: activations of a zone come one after another.
    tx.zones()
        .lock(&at.zone)
        .await?
        .ok_or_else(|| no_zone(&at.zone))?;
    let mut sets = tx.policy_sets(&at.zone);
    if !sets.lock(&at.id).await? {
        return Err(no_set(&at.id));
    }
    sets.bind(&at.id, &version_id, author.at).await?;
    sets.touch(&at.id, &author).await?;
    let fields = [
        ("policy_set_id", Some(at.id.clone())),
        ("policy_set_version_id", Some(version_id.clone())),
    ];
    tx.announce(Outgoing::new(Topic::PolicyInvalidate, &at.zone, fields));
    api.commit(tx, &at.zone).await?;
    let news = api
        .store
        .outbox()
        .latest(&at.zone, Topic::PolicyInvalidate)
        .await?;
    let outbox_id = news.map(|entry| entry.id).unwrap_or_default();
    let (zone, set) = (&at.zone, &at.id);
    wire::accepted(json!({
        "activated": true,
        "version_id": version_id,
        "outbox_id": outbox_id,
        "status_url": format!(
            "/v1/zones/{zone}/policy-sets/{set}/activation-status\
             ?version_id={version_id}&outbox_id={outbox_id}"
        ),
    }))
}

/// `GET /v1/zones/{zone}/policy-sets/{id}/activation-status`
pub async fn status(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let (version_id, outbox_id) = asked(raw.as_deref())?;
    let sets = api.store.zone(&at.zone).policy_sets();
    let set = sets.get(&at.id).await?.ok_or_else(|| {
        let why = format!("there is no policy set {} in this zone", at.id);
        Failure::absent("policy_set_binding_not_found", why)
    })?;
    // Published clients may leave out either: then the active version and its latest news are meant.
    let version_id = version_id
        .or_else(|| set.active_version_id.clone())
        .ok_or_else(|| {
            let why = "this set has no active version; name one by version_id";
            Failure::absent("active_policy_set_version_not_found", why)
        })?;
    let outbox_id = match outbox_id {
        Some(id) => id,
        None => {
            let outbox = api.store.outbox();
            let latest = outbox.latest(&at.zone, Topic::PolicyInvalidate).await?;
            latest.map(|entry| entry.id).unwrap_or_default()
        }
    };
    let version = sets.version(&at.id, &version_id).await?.ok_or_else(|| {
        let why = format!("there is no version {version_id} of this set");
        Failure::absent("active_policy_set_version_not_found", why)
    })?;
    let active = set.active_version_id.as_deref() == Some(version.id.as_str());
    let news = sets.news(&outbox_id).await?;
    let outbox = outbox_state(news.as_ref(), &at, &version_id);
    let (sts, sts_state) = sts(&api, &at, &version_id).await;
    wire::ok(json!({
        "zone_id": at.zone,
        "policy_set_id": at.id,
        "version_id": version_id,
        "active": active,
        "active_version_id": set.active_version_id,
        "manifest_sha256": version.manifest_sha256,
        "propagation_status": propagation(active, outbox, sts_state),
        "outbox": {
            "id": outbox_id,
            "state": outbox,
            "attempts": news.as_ref().map(|news| news.attempts),
            "last_error": news.as_ref().and_then(|news| news.last_error.clone()),
            "dispatched_at": news.as_ref().and_then(|news| news.dispatched_at).map(|at| at.iso_millis()),
        },
        "sts": sts,
    }))
}

/// The query of a status; what is wrong with it is reported like a body, as clients expect.
fn asked(raw: Option<&str>) -> Result<(Option<String>, Option<String>), Failure> {
    let query = Query::parse(raw);
    let mut body = Map::new();
    for name in ["version_id", "outbox_id"] {
        match query.text(name, 128) {
            Ok(None) => None,
            Ok(Some(value)) => body.insert(name.to_owned(), json!(value)),
            Err(_) => body.insert(name.to_owned(), json!("")),
        };
    }
    let mut fields = Fields::of(&body);
    let asked = (fields.text("version_id", ID), fields.text("outbox_id", ID));
    fields.end(INVALID)?;
    Ok(asked)
}

fn outbox_state(news: Option<&News>, at: &At, version_id: &str) -> &'static str {
    let Some(news) = news else {
        return "missing";
    };
    let is_this = news.zone == at.zone.as_str()
        && news.topic == Topic::PolicyInvalidate.name()
        && news.version_id.as_deref() == Some(version_id);
    match news {
        _ if !is_this => "mismatch",
        News {
            dispatched_at: Some(_),
            ..
        } => "dispatched",
        News { is_dead: true, .. } => "dead",
        _ => "pending",
    }
}

/// What this process has loaded; it follows the same feed as every STS. It is in force once every
/// replica that answers from memory has applied its announcement.
async fn sts(api: &Api, at: &At, version_id: &str) -> (Value, &'static str) {
    let view = match api.views.zone(&at.zone).await {
        Ok(view) => view,
        Err(error) => {
            let state = "unreachable";
            return (
                json!({ "state": state, "detail": error.to_string() }),
                state,
            );
        }
    };
    let loaded = view.policy.version_id.as_deref();
    let mut replicas = Vec::new();
    let state = match &view.policy_fault {
        Some(_) => "failed",
        None if loaded == Some(version_id) => {
            replicas = api.replicas(&at.zone).await;
            in_force(&replicas)
        }
        None => "not_loaded",
    };
    // The time since the policy was last known to be current, not since it was compiled.
    let age = api.views.lag().map(|lag| lag.as_secs());
    let members = [
        ("state", Some(json!(state))),
        ("loaded", Some(json!(loaded.is_some()))),
        ("zone_id", Some(json!(at.zone))),
        ("policy_set_version_id", loaded.map(|id| json!(id))),
        (
            "manifest_sha256",
            Some(json!(&*view.policy.manifest_sha256)),
        ),
        ("loaded_at", Some(json!(view.read_at.iso_seconds()))),
        ("age_seconds", age.map(|age| json!(age))),
        ("replicas", (!replicas.is_empty()).then(|| json!(replicas))),
        ("detail", view.policy_fault.as_ref().map(|why| json!(why))),
    ];
    let sts = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    (Value::Object(sts.collect()), state)
}

/// Nobody listed means that it could not be proved, which is no proof.
fn in_force(replicas: &[ReplicaStatus]) -> &'static str {
    if !replicas.is_empty() && replicas.iter().all(|replica| replica.applied) {
        "loaded"
    } else {
        "not_loaded"
    }
}

/// Scripts poll until `loaded` or `failed`. A row that was pruned was dispatched long before.
fn propagation(active: bool, outbox: &str, sts: &str) -> &'static str {
    match (active, outbox, sts) {
        (false, _, _) => "waiting_for_activation",
        (_, "dead" | "mismatch", _) => "failed",
        (_, "dispatched" | "missing", "loaded") => "loaded",
        (_, "dispatched", "failed") => "failed",
        (_, "dispatched", _) => "waiting_for_sts",
        _ => "waiting_for_outbox",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_in_force_only_when_every_replica_says_so() {
        let replicas = |applied: &[bool]| -> Vec<ReplicaStatus> {
            let status = |applied: &bool| ReplicaStatus {
                replica: "r".into(),
                applied: *applied,
            };
            applied.iter().map(status).collect()
        };
        for (applied, expected) in [
            (&[][..], "not_loaded"),
            (&[true][..], "loaded"),
            (&[true, false][..], "not_loaded"),
            (&[true, true][..], "loaded"),
        ] {
            assert_eq!(in_force(&replicas(applied)), expected, "{applied:?}");
        }
    }

    #[test]
    fn propagation_ends_in_loaded_or_failed() {
        for (active, outbox, sts, expected) in [
            (false, "dispatched", "loaded", "waiting_for_activation"),
            (true, "dead", "loaded", "failed"),
            (true, "mismatch", "loaded", "failed"),
            (true, "pending", "loaded", "waiting_for_outbox"),
            (true, "dispatched", "loaded", "loaded"),
            (true, "missing", "loaded", "loaded"),
            (true, "missing", "not_loaded", "waiting_for_outbox"),
            (true, "dispatched", "not_loaded", "waiting_for_sts"),
            (true, "dispatched", "unreachable", "waiting_for_sts"),
            (true, "dispatched", "failed", "failed"),
        ] {
            assert_eq!(
                propagation(active, outbox, sts),
                expected,
                "{active} {outbox} {sts}"
            );
        }
    }
}
