//! What an event says beyond its columns (spec: audit-and-streams §5).
//!
//! **Forces.** Every decision makes some twenty members, which nobody reads before they are JSON
//! text. As a tree of values they cost more than the decision.
//!
//! **Choice.** A member is written as text when it is put in; the whole is put together, in the
//! order of the names, when the event is written. Who wants a value back pays for reading it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use serde_json::{Map, Value};

/// Members by name, as JSON text; or whatever JSON another producer wrote.
#[derive(Clone, Default)]
pub struct Metadata {
    members: Vec<(Cow<'static, str>, Range<usize>)>,
    text: Vec<u8>,
    /// Of another producer: JSON that is no object.
    other: Option<Box<Value>>,
}

impl Metadata {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            members: Vec::with_capacity(24),
            text: Vec::with_capacity(2_048),
            other: None,
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.other.is_none()
    }

    /// Adds a member, or replaces the one of this name. What cannot be JSON (keys that are no text)
    /// becomes `null`; no producer has such.
    pub fn put<T: Serialize + ?Sized>(&mut self, name: impl Into<Cow<'static, str>>, value: &T) {
        let start = self.text.len();
        if serde_json::to_writer(&mut self.text, value).is_err() {
            self.text.truncate(start);
            self.text.extend_from_slice(b"null");
        }
        let (name, place) = (name.into(), start..self.text.len());
        match self.members.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = place,
            None => self.members.push((name, place)),
        }
    }

    /// Keeps the members whose names these are.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.members.retain(|(name, _)| keep(name));
    }

    /// A member, read back.
    pub fn get(&self, name: &str) -> Option<Value> {
        let (_, place) = self.members.iter().find(|(known, _)| known == name)?;
        serde_json::from_slice(self.text.get(place.clone())?).ok()
    }

    /// All of it; `null` when there is nothing.
    pub fn to_value(&self) -> Value {
        if let Some(other) = &self.other {
            return (**other).clone();
        }
        if self.members.is_empty() {
            return Value::Null;
        }
        let names = self.members.iter().map(|(name, _)| name);
        let members = names.map(|name| (name.to_string(), self.get(name).unwrap_or_default()));
        Value::Object(members.collect())
    }

    /// About how long it is as JSON, bytes.
    pub(super) fn length(&self) -> usize {
        self.text.len() + 28 * self.members.len()
    }

    /// Writes it as JSON, members in the order of their names.
    pub(super) fn write(&self, output: &mut Vec<u8>) -> serde_json::Result<()> {
        if let Some(other) = &self.other {
            return serde_json::to_writer(output, other);
        }
        let mut members: Vec<_> = self.members.iter().collect();
        members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        output.push(b'{');
        for (at, (name, place)) in members.into_iter().enumerate() {
            if at > 0 {
                output.push(b',');
            }
            serde_json::to_writer(&mut *output, name)?;
            output.push(b':');
            output.extend_from_slice(self.text.get(place.clone()).unwrap_or(b"null"));
        }
        output.push(b'}');
        Ok(())
    }
}

impl From<Map<String, Value>> for Metadata {
    fn from(members: Map<String, Value>) -> Self {
        let mut made = Self::new();
        for (name, value) in members {
            made.put(name, &value);
        }
        made
    }
}

impl From<Value> for Metadata {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::default(),
            Value::Object(members) => members.into(),
            other => Self {
                other: Some(Box::new(other)),
                ..Self::default()
            },
        }
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.to_value() == other.to_value()
    }
}

impl PartialEq<Value> for Metadata {
    fn eq(&self, other: &Value) -> bool {
        self.to_value() == *other
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(metadata: &Metadata) -> String {
        let mut output = Vec::new();
        metadata.write(&mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn members_stand_in_the_order_of_their_names_and_once() {
        let mut made = Metadata::new();
        made.put("resource", "resource://a\"b");
        made.put("depth", &3);
        made.put("resource", &["x"]);
        made.put("a\nb".to_owned(), &json!({"z": null}));
        assert_eq!(
            text(&made),
            r#"{"a\nb":{"z":null},"depth":3,"resource":["x"]}"#
        );
        assert_eq!(made.get("resource"), Some(json!(["x"])));
        assert_eq!(made.get("none"), None);
        made.retain(|name| name != "resource");
        assert_eq!(made, json!({"a\nb": {"z": null}, "depth": 3}));
        assert_eq!(Metadata::from(made.to_value()), made);
    }

    #[test]
    fn what_is_no_object_is_kept_as_it_is() {
        assert_eq!(text(&Metadata::from(json!([1, "a"]))), r#"[1,"a"]"#);
        assert_eq!(Metadata::from(Value::Null), Metadata::new());
        assert!(Metadata::from(Value::Null).is_empty());
        assert!(!Metadata::from(json!(false)).is_empty());
    }

    #[test]
    fn what_cannot_be_json_is_null() {
        let odd = std::collections::BTreeMap::from([([1u8], 1)]);
        let mut made = Metadata::new();
        made.put("odd", &odd);
        made.put("even", &2);
        assert_eq!(text(&made), r#"{"even":2,"odd":null}"#);
    }
}
