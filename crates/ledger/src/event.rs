//! An evidence event and its text (spec: audit-and-streams §5).
//!
//! **Forces.** The bytes that a producer signed are the bytes that Audit hashes and an auditor
//! reads years later, so serializing twice must never be needed. Published producers and readers
//! fix the names of the fields; their values were never checked strictly.
//!
//! **Choice.** We write one text: fields in a fixed order, keys of metadata sorted, arrays never
//! `null`, absent fields left out, microseconds. We read what others wrote: unknown fields and any
//! JSON in the three JSON fields are accepted; no id, no zone or no time is an error.

mod metadata;
mod outline;

use std::borrow::Cow;
use std::sync::Arc;

use caracal_model::{EventId, Timestamp, ZoneId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use metadata::Metadata;
pub use outline::Outline;

/// The text is not an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Not a JSON object whose text fields are text.
    #[error("not an event: {detail}")]
    Malformed {
        /// What the reader of the JSON says; names fields and places, no values.
        detail: String,
    },
    /// A field without which an event cannot be kept.
    #[error("the event has no usable `{field}`")]
    Missing {
        /// Which.
        field: &'static str,
    },
}

/// What happened, as recorded before its effect left the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// UUIDv7; what Audit deduplicates by.
    pub id: EventId,
    /// The zone whose chain it joins.
    pub zone_id: ZoneId,
    /// From the catalogue of the specification.
    pub event_type: Cow<'static, str>,
    /// Correlates the events of one request.
    pub request_id: String,
    /// `allow`, `deny`, or a step of an approval.
    pub decision: Cow<'static, str>,
    /// No producer sets it today.
    pub policy_set_id: Option<Arc<str>>,
    /// The policy that decided.
    pub policy_set_version_id: Option<Arc<str>>,
    /// The digest of its documents.
    pub manifest_sha: Option<Arc<str>>,
    /// `complete`, or why not.
    pub evaluation_status: Cow<'static, str>,
    /// `[{"policy": name}]`.
    pub determining_policies_json: Value,
    /// Messages of the evaluation.
    pub diagnostics_json: Value,
    /// Everything else, by event type. Left out when empty.
    pub metadata_json: Metadata,
    /// When.
    pub occurred_at: Timestamp,
}

/// The text of an event as it grows. Names of fields need no escape.
struct Text(Vec<u8>);

impl Text {
    fn name(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn put<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> serde_json::Result<()> {
        self.name(name);
        serde_json::to_writer(&mut self.0, value)
    }

    fn put_some(&mut self, name: &str, value: Option<&str>) -> serde_json::Result<()> {
        value.map_or(Ok(()), |value| self.put(name, value))
    }

    fn put_array(&mut self, name: &str, value: &Value) -> serde_json::Result<()> {
        if value.is_null() {
            return self.put::<[Value; 0]>(name, &[]);
        }
        self.put(name, value)
    }
}

impl Event {
    /// An event without policies, diagnostics and metadata.
    pub fn new(
        id: EventId,
        zone_id: ZoneId,
        event_type: impl Into<Cow<'static, str>>,
        request_id: impl Into<String>,
        decision: impl Into<Cow<'static, str>>,
        evaluation_status: impl Into<Cow<'static, str>>,
        occurred_at: Timestamp,
    ) -> Self {
        Self {
            id,
            zone_id,
            event_type: event_type.into(),
            request_id: request_id.into(),
            decision: decision.into(),
            policy_set_id: None,
            policy_set_version_id: None,
            manifest_sha: None,
            evaluation_status: evaluation_status.into(),
            determining_policies_json: Value::Array(Vec::new()),
            diagnostics_json: Value::Array(Vec::new()),
            metadata_json: Metadata::default(),
            occurred_at,
        }
    }

    /// The policy that was asked: its version and the digest of its documents.
    #[must_use]
    pub fn policy(mut self, version: Option<Arc<str>>, manifest_sha: Option<Arc<str>>) -> Self {
        self.policy_set_version_id = version;
        self.manifest_sha = manifest_sha;
        self
    }

    /// The names of the policies that settled it.
    #[must_use]
    pub fn determined_by<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        let entry = |name: S| {
            let mut entry = Map::new();
            entry.insert("policy".to_owned(), Value::from(name.as_ref()));
            Value::Object(entry)
        };
        self.determining_policies_json = names.into_iter().map(entry).collect();
        self
    }

    /// What the evaluation had to say.
    #[must_use]
    pub fn diagnostics(mut self, entries: Vec<Value>) -> Self {
        self.diagnostics_json = Value::Array(entries);
        self
    }

    /// Everything else. When it is empty the field is left out.
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<Metadata>) -> Self {
        self.metadata_json = metadata.into();
        self
    }

    /// A member of the metadata, as text.
    pub fn metadata_text(&self, name: &str) -> Option<String> {
        match self.metadata_json.get(name)? {
            Value::String(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The one text of this event. U+0000 is left out everywhere: databases do not store it.
    pub fn to_wire(&self) -> String {
        let text = self.text();
        if !text.contains("\\u0000") {
            return text;
        }
        let mut without = self.clone();
        without.strip_nul();
        without.text()
    }

    fn text(&self) -> String {
        // All keys are text and no number is infinite, so this cannot fail; if it ever did, the
        // empty text is refused by everything that would keep it.
        self.write()
            .ok()
            .and_then(|text| String::from_utf8(text).ok())
            .unwrap_or_default()
    }

    fn write(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = Text(Vec::with_capacity(768 + self.metadata_json.length()));
        text.put("id", self.id.as_str())?;
        text.put("zone_id", self.zone_id.as_str())?;
        text.put("event_type", &self.event_type)?;
        text.put("request_id", &self.request_id)?;
        text.put("decision", &self.decision)?;
        text.put_some("policy_set_id", self.policy_set_id.as_deref())?;
        let version = self.policy_set_version_id.as_deref();
        text.put_some("policy_set_version_id", version)?;
        text.put_some("manifest_sha", self.manifest_sha.as_deref())?;
        text.put("evaluation_status", &self.evaluation_status)?;
        text.put_array("determining_policies_json", &self.determining_policies_json)?;
        text.put_array("diagnostics_json", &self.diagnostics_json)?;
        if !self.metadata_json.is_empty() {
            text.name("metadata_json");
            self.metadata_json.write(&mut text.0)?;
        }
        text.put("occurred_at", &self.occurred_at.iso_micros())?;
        text.0.push(b'}');
        Ok(text.0)
    }

    /// Reads an event of any producer.
    ///
    /// # Errors
    /// [`LedgerError::Malformed`] for text that is no event, [`LedgerError::Missing`] when it
    /// lacks its id, zone or time.
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        // Derived readers also take an array of the values; an event is an object.
        if !text.trim_ascii_start().starts_with('{') {
            return Err(LedgerError::Malformed {
                detail: "not an object".to_owned(),
            });
        }
        let read: Read<'_> = serde_json::from_str(text)
            .map_err(|error| LedgerError::Malformed { detail: at(&error) })?;
        let mut event = read.into_event()?;
        if text.contains("\\u0000") {
            event.strip_nul();
        }
        Ok(event)
    }

    fn strip_nul(&mut self) {
        strip(&mut self.request_id);
        for text in [
            &mut self.event_type,
            &mut self.decision,
            &mut self.evaluation_status,
        ] {
            if text.contains('\0') {
                strip(text.to_mut());
            }
        }
        for text in [
            &mut self.policy_set_id,
            &mut self.policy_set_version_id,
            &mut self.manifest_sha,
        ] {
            if let Some(found) = text.as_ref().filter(|text| text.contains('\0')) {
                *text = Some(found.replace('\0', "").into());
            }
        }
        for json in [
            &mut self.determining_policies_json,
            &mut self.diagnostics_json,
        ] {
            strip_json(json);
        }
        let mut metadata = self.metadata_json.to_value();
        strip_json(&mut metadata);
        self.metadata_json = metadata.into();
    }
}

/// Where and of which kind, without the offending value: it may be a secret.
fn at(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Data => "a field has the wrong type or stands twice",
        serde_json::error::Category::Eof => "the text ends early",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "no valid JSON",
    };
    format!("{kind}, at column {}", error.column())
}

fn strip(text: &mut String) {
    text.retain(|c| c != '\0');
}

fn strip_json(value: &mut Value) {
    match value {
        Value::String(text) => strip(text),
        Value::Array(items) => items.iter_mut().for_each(strip_json),
        Value::Object(members) => {
            if members.keys().any(|name| name.contains('\0')) {
                let renamed = std::mem::take(members);
                members.extend(renamed.into_iter().map(|(mut name, value)| {
                    strip(&mut name);
                    (name, value)
                }));
            }
            members.values_mut().for_each(strip_json);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What others may have written.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Read<'a> {
    id: Option<Cow<'a, str>>,
    zone_id: Option<Cow<'a, str>>,
    event_type: Option<String>,
    request_id: Option<String>,
    decision: Option<String>,
    policy_set_id: Option<Arc<str>>,
    policy_set_version_id: Option<Arc<str>>,
    manifest_sha: Option<Arc<str>>,
    evaluation_status: Option<String>,
    #[serde(default)]
    determining_policies_json: Value,
    #[serde(default)]
    diagnostics_json: Value,
    #[serde(default)]
    metadata_json: Value,
    occurred_at: Option<Cow<'a, str>>,
}

impl Read<'_> {
    fn into_event(self) -> Result<Event, LedgerError> {
        let missing = |field| LedgerError::Missing { field };
        let id = self
            .id
            .and_then(|id| EventId::parse(&id).ok())
            .ok_or(missing("id"))?;
        let zone_id = self.zone_id.and_then(|zone| ZoneId::parse(&zone).ok());
        let occurred_at = self
            .occurred_at
            .and_then(|at| Timestamp::parse_rfc3339(&at).ok())
            // The zero times of the languages that write events lie at or before the epoch.
            .filter(|at| at.unix_micros() > 0);
        Ok(Event {
            id,
            zone_id: zone_id.ok_or(missing("zone_id"))?,
            event_type: self.event_type.unwrap_or_default().into(),
            request_id: self.request_id.unwrap_or_default(),
            decision: self.decision.unwrap_or_default().into(),
            policy_set_id: self.policy_set_id,
            policy_set_version_id: self.policy_set_version_id,
            manifest_sha: self.manifest_sha,
            evaluation_status: self.evaluation_status.unwrap_or_default().into(),
            determining_policies_json: or_empty(self.determining_policies_json),
            diagnostics_json: or_empty(self.diagnostics_json),
            metadata_json: self.metadata_json.into(),
            occurred_at: occurred_at.ok_or(missing("occurred_at"))?,
        })
    }
}

fn or_empty(value: Value) -> Value {
    if value.is_null() {
        Value::Array(Vec::new())
    } else {
        value
    }
}

#[cfg(test)]
mod tests;
