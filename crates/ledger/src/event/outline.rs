//! What of an event is searched by, without the rest of it in memory.

use std::fmt;

use caracal_model::{EventId, Timestamp, ZoneId};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

use super::{Event, LedgerError};

/// The members of an event that reads filter by. Absent texts are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// As in [`Event`].
    pub id: EventId,
    /// As in [`Event`].
    pub zone_id: ZoneId,
    /// As in [`Event`].
    pub event_type: String,
    /// As in [`Event`].
    pub request_id: String,
    /// As in [`Event`].
    pub decision: String,
    /// As in [`Event`].
    pub evaluation_status: String,
    /// As in [`Event`].
    pub occurred_at: Timestamp,
    /// Metadata `application_id`, when it is a text.
    pub application_id: Option<String>,
    /// Metadata `agent_session_id`, when it is a text.
    pub agent_session_id: Option<String>,
    /// Metadata `session_id`, when it is a text.
    pub authority_record_id: Option<String>,
    /// The texts in metadata `agent_labels`.
    pub labels: Vec<String>,
}

impl Outline {
    /// Reads an event of any producer, and takes and refuses exactly what [`Event::parse`] does.
    ///
    /// # Errors
    /// As [`Event::parse`].
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        let quick = if text.contains("\\u0000") || !text.starts_with('{') {
            None
        } else {
            serde_json::from_str(text).ok().and_then(Brief::outline)
        };
        // What is out of the ordinary, the full reader judges.
        quick.map_or_else(|| Event::parse(text).map(|event| Self::of(&event)), Ok)
    }

    fn of(event: &Event) -> Self {
        let metadata = |name| event.metadata_text(name);
        let labels = event.metadata_json.get("agent_labels");
        Self {
            id: event.id.clone(),
            zone_id: event.zone_id.clone(),
            event_type: event.event_type.to_string(),
            request_id: event.request_id.clone(),
            decision: event.decision.to_string(),
            evaluation_status: event.evaluation_status.to_string(),
            occurred_at: event.occurred_at,
            application_id: metadata("application_id"),
            agent_session_id: metadata("agent_session_id"),
            authority_record_id: metadata("session_id"),
            labels: labels.as_ref().map(texts).unwrap_or_default(),
        }
    }
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// An event whose texts are as they stand in the JSON.
#[derive(Deserialize)]
struct Brief<'a> {
    id: Option<&'a str>,
    zone_id: Option<&'a str>,
    event_type: Option<&'a str>,
    request_id: Option<&'a str>,
    decision: Option<&'a str>,
    #[serde(rename = "policy_set_id")]
    _policy_set_id: Option<&'a str>,
    #[serde(rename = "policy_set_version_id")]
    _policy_set_version_id: Option<&'a str>,
    #[serde(rename = "manifest_sha")]
    _manifest_sha: Option<&'a str>,
    evaluation_status: Option<&'a str>,
    #[serde(default, rename = "determining_policies_json")]
    _determining_policies_json: Passed,
    #[serde(default, rename = "diagnostics_json")]
    _diagnostics_json: Passed,
    #[serde(default)]
    metadata_json: Metadata,
    occurred_at: Option<&'a str>,
}

impl Brief<'_> {
    fn outline(self) -> Option<Outline> {
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let occurred_at = Timestamp::parse_rfc3339(self.occurred_at?).ok()?;
        (occurred_at.unix_micros() > 0).then_some(())?;
        Some(Outline {
            id: EventId::parse(self.id?).ok()?,
            zone_id: ZoneId::parse(self.zone_id?).ok()?,
            event_type: text(self.event_type),
            request_id: text(self.request_id),
            decision: text(self.decision),
            evaluation_status: text(self.evaluation_status),
            occurred_at,
            application_id: self.metadata_json.application_id,
            agent_session_id: self.metadata_json.agent_session_id,
            authority_record_id: self.metadata_json.session_id,
            labels: self.metadata_json.labels,
        })
    }
}

/// Any JSON, read as strictly as a [`Value`] is and then dropped.
#[derive(Clone, Copy, Default)]
struct Passed;

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Passed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Passed, E> {
                Ok(Passed)
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Passed, E> {
                Ok(Passed)
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Passed, E> {
                Ok(Passed)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Passed, E> {
                Ok(Passed)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Passed, E> {
                Ok(Passed)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Passed, E> {
                Ok(Passed)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Passed, A::Error> {
                while items.next_element::<Passed>()?.is_some() {}
                Ok(Passed)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Passed, A::Error> {
                while members.next_entry::<Passed, Passed>()?.is_some() {}
                Ok(Passed)
            }
        }
        input.deserialize_any(Any)
    }
}

/// What is searched by of the metadata, which may be any JSON.
#[derive(Default)]
struct Metadata {
    application_id: Option<String>,
    agent_session_id: Option<String>,
    session_id: Option<String>,
    labels: Vec<String>,
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Metadata, E> {
                Ok(Metadata::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Metadata, A::Error> {
                let mut found = Metadata::default();
                while let Some(name) = members.next_key::<Name>()? {
                    // As in a map, the last one of a name counts.
                    match name {
                        Name::Application => found.application_id = text(members.next_value()?),
                        Name::AgentSession => found.agent_session_id = text(members.next_value()?),
                        Name::Session => found.session_id = text(members.next_value()?),
                        Name::Labels => found.labels = texts(&members.next_value()?),
                        Name::Other => {
                            members.next_value::<Passed>()?;
                        }
                    }
                }
                Ok(found)
            }
        }
        input.deserialize_any(Members)
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Name {
    #[serde(rename = "application_id")]
    Application,
    #[serde(rename = "agent_session_id")]
    AgentSession,
    #[serde(rename = "session_id")]
    Session,
    #[serde(rename = "agent_labels")]
    Labels,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn full(text: &str) -> Result<Outline, LedgerError> {
        Event::parse(text).map(|event| Outline::of(&event))
    }

    #[test]
    fn it_takes_and_refuses_what_the_full_reader_does() {
        let with = |more: &str| {
            format!(r#"{{"id":"e","zone_id":"z","occurred_at":"2026-05-21T12:00:00Z"{more}}}"#)
        };
        let deep = format!(
            r#","metadata_json":{}1{}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        for text in [
            with(""),
            with(r#","metadata_json":null"#),
            with(r#","metadata_json":[1,{"application_id":"a"}]"#),
            with(r#","metadata_json":"text""#),
            with(r#","metadata_json":{"application_id":"a","application_id":7}"#),
            with(r#","metadata_json":{"application_id":"a\u0000b","session_id":""}"#),
            with(r#","metadata_json":{"application\u005fid":"a","agent_labels":["x",1,"","y"]}"#),
            with(r#","metadata_json":{"session_id":"\ud800"}"#),
            with(r#","metadata_json":{"n":1e999}"#),
            with(r#","diagnostics_json":[1e999]"#),
            with(r#","diagnostics_json":{"a":"\ud800"}"#),
            with(r#","diagnostics_json":{"a":"\n"},"x":[1.5,-1,true,null]"#),
            with(r#","decision":"al\u006cow""#),
            with(r#","decision":7"#),
            with(r#","event_type":"a","event_type":"b""#),
            with(r#","policy_set_id":{}"#),
            with(&deep),
            with(",") + "}",
            "[]".to_owned(),
            r#"["e"]"#.to_owned(),
            String::new(),
            r#" {"id":"e","zone_id":"z","occurred_at":"2026-05-21T12:00:00Z"}"#.to_owned(),
            r#"{"id":"e","zone_id":"z","occurred_at":"1970-01-01T00:00:00Z"}"#.to_owned(),
            r#"{"id":"","zone_id":"z","occurred_at":"2026-05-21T12:00:00Z"}"#.to_owned(),
        ] {
            assert_eq!(Outline::parse(&text), full(&text), "{text}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            let name = prop_oneof![
                Just("application_id".to_owned()),
                Just("agent_session_id".to_owned()),
                Just("session_id".to_owned()),
                Just("agent_labels".to_owned()),
                any::<String>(),
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(name, inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_says_what_the_full_reader_says(
            metadata in json(), diagnostics in json(), kind in any::<String>(), id in json(),
            given in any::<bool>()
        ) {
            let id = if given { json!("evt-1") } else { id };
            let text = json!({
                "id": id, "zone_id": "z", "occurred_at": "2026-05-21T12:00:00.5Z", "event_type": kind,
                "diagnostics_json": diagnostics, "metadata_json": metadata, "more": diagnostics,
            }).to_string();
            prop_assert_eq!(Outline::parse(&text), full(&text));
        }
    }
}
