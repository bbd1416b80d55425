//! A record in the making: what is known of a request before its answer.

use std::sync::{Arc, OnceLock};

use caracal_ledger::AdminRecord;
use caracal_model::{Timestamp, ZoneId};
use caracal_store::Intention;
use caracal_store::admin_audit::{Intent, deployment};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::chainer::Trail;
use crate::target::{Rules, Target};

/// Names of a body under which secrets stand.
const SECRETS: [&str; 10] = [
    "client_secret",
    "secret",
    "password",
    "token",
    "private_key",
    "api_key",
    "assertion",
    "bearer_token",
    "access_token",
    "refresh_token",
];
/// How deep the names of a body are told.
const DEPTH: usize = 3;
/// How many names are told.
const NAMES: usize = 64;
/// Longest name that is told, in characters.
const LONGEST_NAME: usize = 128;

/// Who sends a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// The token or the subject.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// What it may do.
    pub scope: Option<String>,
    /// The only zone that it sees; none for every zone.
    pub zone: Option<ZoneId>,
    /// The account of the console that it acts for.
    pub operator: Option<String>,
}

/// Something that a request did beside what its path says, with a record of its own.
#[derive(Clone, Debug)]
pub struct Deed {
    /// In words.
    pub action: String,
    /// The collection that is concerned.
    pub entity_type: &'static str,
    /// Which of it.
    pub entity_id: String,
    /// What else is to be known; never a secret.
    pub details: Map<String, Value>,
}

/// The names of a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fields {
    names: Vec<String>,
    secret: bool,
}

/// A record in the making.
pub struct Draft {
    trail: Trail,
    pub(crate) rules: &'static Rules,
    id: String,
    request_id: String,
    pub(crate) method: String,
    path: String,
    pub(crate) target: Target,
    at: Timestamp,
    is_callback: bool,
    actor: OnceLock<Actor>,
    fields: OnceLock<Fields>,
    deeds: Mutex<Vec<(String, Deed)>>,
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Draft({} {})", self.method, self.path)
    }
}

/// What stands in `payload_json`, in this order.
#[derive(Serialize)]
struct Payload<'p> {
    rls_mode: &'static str,
    rls_zone_guc: &'p str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<&'p str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change_kind: Option<&'static str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    changed_fields: &'p [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    secret_rotated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'static str>,
    #[serde(flatten)]
    details: &'p Map<String, Value>,
}

/// How a request ended, as far as its record is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End<'e> {
    /// It was answered.
    Answered {
        status: u16,
        /// The id of what was made.
        made: Option<&'e str>,
    },
    /// Nobody knows: the change is committed and the answer is not given yet.
    Unknown,
}

impl Draft {
    /// Of a request with this method and path; `pattern` is that of its route.
    pub(crate) fn new(
        trail: &Trail,
        rules: &'static Rules,
        method: &str,
        path: &str,
        pattern: Option<&str>,
        request_id: String,
    ) -> Self {
        Self {
            id: trail.new_id(),
            request_id,
            method: method.to_owned(),
            path: path.to_owned(),
            target: Target::of(rules, pattern, path),
            at: trail.now(),
            is_callback: method == "GET" && pattern.is_some() && pattern == rules.callback,
            actor: OnceLock::new(),
            fields: OnceLock::new(),
            deeds: Mutex::default(),
            rules,
            trail: trail.clone(),
        }
    }

    /// The caller is known. Only the first word counts.
    pub fn by(&self, actor: Actor) {
        let _ = self.actor.set(actor);
    }

    /// The caller, once known.
    pub(crate) fn actor(&self) -> Option<&Actor> {
        self.actor.get()
    }

    /// What the body names. Values are not kept.
    pub fn says(&self, body: &Value) {
        let mut fields = Fields::default();
        collect(body, "", 1, &mut fields);
        fields.names.sort_unstable();
        fields.names.dedup();
        fields.names.truncate(NAMES);
        let _ = self.fields.set(fields);
    }

    /// The transaction that commits next does this too.
    pub fn does(&self, deed: Deed) {
        self.deeds.lock().push((self.trail.new_id(), deed));
    }

    /// Whether success is recorded.
    pub(crate) fn changes(&self) -> bool {
        self.is_callback || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH" | "DELETE")
    }

    /// The record, and those of the deeds when there are any to be told.
    pub(crate) fn records(&self, end: End<'_>, with_deeds: bool) -> Vec<AdminRecord> {
        let mut records = vec![self.record(end)];
        if with_deeds {
            let deeds = self.deeds.lock();
            records.extend(deeds.iter().map(|(id, deed)| self.record_of(id, deed, end)));
        }
        records
    }

    fn record(&self, end: End<'_>) -> AdminRecord {
        let none = Map::new();
        let fields = self.fields.get();
        let names = fields
            .map(|fields| fields.names.as_slice())
            .unwrap_or_default();
        let secret = fields.is_some_and(|fields| fields.secret) || self.target.rotates();
        let kind = self
            .target
            .change_kind(&self.method, names.is_empty() && secret);
        let succeeded = end.status(self) < 400;
        let is_empty = kind == "update" && names.is_empty() && !secret;
        let tells = succeeded && self.method != "GET" && !is_empty;
        let mut payload = self.payload(&none);
        payload.answer = matches!(end, End::Unknown).then_some("unknown");
        if tells {
            payload.change_kind = Some(kind);
            payload.changed_fields = names;
            payload.secret_rotated = secret;
        }
        let mut record = self.frame(&self.id, end, &payload);
        record.action = format!("{} {}", self.method, self.path);
        record.entity_type.clone_from(&self.target.entity_type);
        record.entity_id.clone_from(&self.target.entity_id);
        if let End::Answered {
            made: Some(made), ..
        } = end
            && self.target.is_collection()
        {
            if self.rules.names_creations {
                record.entity_id = Some(made.to_owned());
            }
            if self.target.zone.is_none() && record.entity_type.as_deref() == Some("zones") {
                record.zone_id = Some(ZoneId::trusted(made));
            }
        }
        record
    }

    fn record_of(&self, id: &str, deed: &Deed, end: End<'_>) -> AdminRecord {
        let mut payload = self.payload(&deed.details);
        payload.answer = matches!(end, End::Unknown).then_some("unknown");
        let mut record = self.frame(id, end, &payload);
        record.action.clone_from(&deed.action);
        record.entity_type = Some(deed.entity_type.to_owned());
        record.entity_id = Some(deed.entity_id.clone());
        record
    }

    fn payload<'p>(&'p self, details: &'p Map<String, Value>) -> Payload<'p> {
        let actor = self.actor.get();
        let own = actor.and_then(|actor| actor.zone.as_ref());
        Payload {
            rls_mode: own.map_or("control_plane_wildcard", |_| "zone_scoped"),
            rls_zone_guc: own.map_or("*", ZoneId::as_str),
            operator: actor.and_then(|actor| actor.operator.as_deref()),
            change_kind: None,
            changed_fields: &[],
            secret_rotated: false,
            answer: None,
            details,
        }
    }

    fn frame(&self, id: &str, end: End<'_>, payload: &Payload<'_>) -> AdminRecord {
        let actor = self.actor.get().cloned().unwrap_or_default();
        AdminRecord {
            id: id.to_owned(),
            request_id: self.request_id.clone(),
            actor_id: actor.id,
            actor_name: actor.name,
            actor_scope: actor.scope,
            action: String::new(),
            method: self.method.clone(),
            path: self.path.clone(),
            // Whoever may see one zone writes into that one, whatever path it tries.
            zone_id: actor.zone.or_else(|| self.target.zone.clone()),
            entity_type: None,
            entity_id: None,
            status_code: end.status(self),
            payload: serde_json::to_string(payload).ok(),
            occurred_at: Timestamp::from_unix_micros(self.at.unix_millis() * 1_000),
        }
    }
}

impl End<'_> {
    fn status(self, draft: &Draft) -> u16 {
        match self {
            Self::Answered { status, .. } => status,
            Self::Unknown if draft.method == "DELETE" => 204,
            Self::Unknown if draft.method == "POST" && draft.target.is_collection() => 201,
            Self::Unknown => 200,
        }
    }
}

impl Intention for Draft {
    fn intents(&self) -> Vec<Intent> {
        // What admission itself commits is not the change, and the caller is not known yet.
        let knows_whom = self.actor.get().is_some() || self.is_callback;
        if !(self.changes() && knows_whom) {
            return Vec::new();
        }
        self.records(End::Unknown, true)
            .iter()
            .map(|record| self.trail.intent(record))
            .collect()
    }
}

impl Draft {
    /// Itself, as what rides along.
    pub(crate) fn intention(self: &Arc<Self>) -> Arc<dyn Intention> {
        Arc::<Self>::clone(self)
    }
}

/// The zone whose chain a record joins.
pub(crate) fn chain_of(record: &AdminRecord) -> ZoneId {
    record.zone_id.clone().unwrap_or_else(deployment)
}

fn collect(value: &Value, path: &str, depth: usize, fields: &mut Fields) {
    let Some(members) = value.as_object() else {
        return;
    };
    for (name, value) in members {
        if SECRETS.contains(&name.as_str()) {
            fields.secret = true;
            continue;
        }
        let name: String = name.chars().take(LONGEST_NAME).collect();
        let path = if path.is_empty() {
            name
        } else {
            format!("{path}.{name}")
        };
        let inner = value.as_object().is_some_and(|members| !members.is_empty());
        if inner && depth < DEPTH {
            collect(value, &path, depth + 1, fields);
            continue;
        }
        fields.names.push(path);
        if inner {
            // Deeper names are not told, but a secret among them is.
            let mut below = Fields::default();
            collect(value, "", DEPTH, &mut below);
            fields.secret |= below.secret;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(body: &Value) -> Fields {
        let mut fields = Fields::default();
        collect(body, "", 1, &mut fields);
        fields.names.sort_unstable();
        fields
    }

    #[test]
    fn names_are_told_three_deep_and_secrets_never() {
        let body = json!({
            "name": "n",
            "client_secret": "s",
            "config": {"a": 1, "b": {"c": {"d": {"token": "t"}}, "e": []}, "f": {}},
            "tags": [{"password": "not looked into"}],
        });
        let told = fields(&body);
        assert_eq!(
            told.names,
            [
                "config.a",
                "config.b.c",
                "config.b.e",
                "config.f",
                "name",
                "tags"
            ]
        );
        assert!(told.secret);
        assert!(!fields(&json!({"tags": [{"password": "p"}]})).secret);
        assert!(fields(&json!({"a": {"b": {"c": {"api_key": 1}}}})).secret);
        assert_eq!(fields(&json!([1])), Fields::default());
    }
}
