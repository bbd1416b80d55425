//! Reading a JSON body field by field, so that every code of the contract is exact and every
//! mistake is reported at once (`details.issues`).
//!
//! **Rejected.** A derived deserializer: it stops at the first mistake, in words of its own, and
//! cannot tell an absent field from `null`, which clients of typed languages send for absent.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// A JSON object from outside.
pub type Body = Map<String, Value>;

/// How a text field must look.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    length: (usize, usize),
    trim: bool,
}

impl Text {
    /// Surrounding white space does not belong to the value.
    pub const fn trimmed(length: RangeInclusive<usize>) -> Self {
        Self {
            length: (*length.start(), *length.end()),
            trim: true,
        }
    }

    /// The value exactly as sent.
    pub const fn exact(length: RangeInclusive<usize>) -> Self {
        Self {
            length: (*length.start(), *length.end()),
            trim: false,
        }
    }
}

/// Length as published clients count it: UTF-16 units.
pub fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// A reader of one object that collects what is wrong with it.
#[derive(Debug)]
pub struct Fields<'b> {
    body: &'b Body,
    at: Vec<String>,
    issues: Vec<(Vec<String>, String)>,
}

impl<'b> Fields<'b> {
    /// Reads this object.
    pub fn of(body: &'b Body) -> Self {
        Self {
            body,
            at: Vec::new(),
            issues: Vec::new(),
        }
    }

    /// A strict body: other names than these are a mistake.
    pub fn only(&mut self, names: &[&str]) {
        let unknown: Vec<_> = self
            .body
            .keys()
            .filter(|k| !names.contains(&k.as_str()))
            .collect();
        for name in unknown {
            self.wrong(name, "is not a field of this request");
        }
    }

    /// Reports a mistake in a field.
    pub fn wrong(&mut self, name: &str, message: impl Into<String>) {
        let mut path = self.at.clone();
        path.push(name.to_owned());
        self.issues.push((path, message.into()));
    }

    /// The field, `null` being absent.
    pub fn get(&self, name: &str) -> Option<&'b Value> {
        self.body.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field was sent as `null`.
    pub fn is_null(&self, name: &str) -> bool {
        self.body.get(name).is_some_and(Value::is_null)
    }

    /// An optional text.
    pub fn text(&mut self, name: &str, rule: Text) -> Option<String> {
        let value = self.get(name)?;
        match value.as_str() {
            Some(text) => self.checked(name, text, rule),
            None => {
                self.wrong(name, "must be a string");
                None
            }
        }
    }

    /// An optional text of which a blank one counts as absent.
    pub fn text_or_blank(&mut self, name: &str, rule: Text) -> Option<String> {
        if self
            .get(name)
            .and_then(Value::as_str)
            .is_some_and(|text| text.trim().is_empty())
        {
            return None;
        }
        self.text(name, rule)
    }

    /// A text that must be there; empty after a mistake was reported.
    pub fn required_text(&mut self, name: &str, rule: Text) -> String {
        if self.get(name).is_none() {
            self.wrong(name, "is required");
        }
        self.text(name, rule).unwrap_or_default()
    }

    fn checked(&mut self, name: &str, text: &str, rule: Text) -> Option<String> {
        let text = if rule.trim { text.trim() } else { text };
        let (least, most) = rule.length;
        if (least..=most).contains(&length(text)) {
            return Some(text.to_owned());
        }
        self.wrong(name, format!("must be {least} to {most} characters"));
        None
    }

    /// A whole number of one or more that must be there.
    pub fn required_count(&mut self, name: &str) -> u64 {
        let count = self.get(name).and_then(Value::as_u64).unwrap_or(0);
        if count == 0 {
            self.wrong(name, "must be a whole number of 1 or more");
        }
        count
    }

    /// An optional boolean.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let value = self.get(name)?;
        if !value.is_boolean() {
            self.wrong(name, "must be true or false");
        }
        value.as_bool()
    }

    /// One of these words.
    pub fn word(&mut self, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let value = self.get(name)?;
        let known = value
            .as_str()
            .and_then(|text| words.iter().find(|word| **word == text));
        if known.is_none() {
            self.wrong(name, format!("must be one of {}", words.join(", ")));
        }
        known.copied()
    }

    /// An optional list of texts.
    pub fn texts(
        &mut self,
        name: &str,
        count: RangeInclusive<usize>,
        rule: Text,
    ) -> Option<Vec<String>> {
        let list = self.list(name, count)?;
        let mut texts = Vec::with_capacity(list.len());
        self.at.push(name.to_owned());
        for (at, value) in list.iter().enumerate() {
            match value.as_str() {
                Some(text) => texts.extend(self.checked(&at.to_string(), text, rule)),
                None => self.wrong(&at.to_string(), "must be a string"),
            }
        }
        self.at.pop();
        Some(texts)
    }

    /// An optional list.
    pub fn list(&mut self, name: &str, count: RangeInclusive<usize>) -> Option<&'b [Value]> {
        let value = self.get(name)?;
        let Some(list) = value.as_array() else {
            self.wrong(name, "must be a list");
            return None;
        };
        if !count.contains(&list.len()) {
            self.wrong(
                name,
                format!("must have {} to {} items", count.start(), count.end()),
            );
            return None;
        }
        Some(list)
    }

    /// Reads each object of a list with `read`; other items are mistakes.
    pub fn objects<T>(
        &mut self,
        name: &str,
        count: RangeInclusive<usize>,
        mut read: impl FnMut(&mut Fields<'b>) -> T,
    ) -> Option<Vec<T>> {
        let list = self.list(name, count)?;
        let mut all = Vec::with_capacity(list.len());
        for (at, value) in list.iter().enumerate() {
            let path = [name.to_owned(), at.to_string()];
            let Some(object) = value.as_object() else {
                let path = [self.at.as_slice(), &path].concat();
                self.issues.push((path, "must be an object".to_owned()));
                continue;
            };
            let mut item = Fields {
                body: object,
                at: [self.at.as_slice(), &path].concat(),
                issues: Vec::new(),
            };
            all.push(read(&mut item));
            self.issues.append(&mut item.issues);
        }
        Some(all)
    }

    /// An optional object.
    pub fn object(&mut self, name: &str) -> Option<&'b Body> {
        let value = self.get(name)?;
        if !value.is_object() {
            self.wrong(name, "must be an object");
        }
        value.as_object()
    }

    /// Refuses with `error` when anything was wrong.
    ///
    /// # Errors
    /// 400 with `details.issues`.
    pub fn end(self, error: &'static str) -> Result<(), Failure> {
        let Some((path, message)) = self.issues.first() else {
            return Ok(());
        };
        let description = format!("{} {message}", path.join("."));
        let issues: Vec<Value> = self
            .issues
            .iter()
            .map(|(path, message)| json!({ "path": path, "message": message }))
            .collect();
        Err(Failure::bad(error, description).with("details", json!({ "issues": issues })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(value: Value) -> Body {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_path() {
        let body = body(json!({"name": " ", "tags": ["a", 7], "ops": [{"path": 3}, 4], "more": 1}));
        let mut fields = Fields::of(&body);
        fields.only(&["name", "tags", "ops"]);
        fields.required_text("name", Text::trimmed(1..=3));
        fields.texts("tags", 0..=4, Text::exact(1..=3));
        fields.objects("ops", 0..=4, |op| {
            op.required_text("path", Text::exact(1..=3))
        });
        let failure = fields.end("invalid_thing").unwrap_err();
        insta::assert_snapshot!(failure.extra["details"], @r#"{"issues":[{"message":"is not a field of this request","path":["more"]},{"message":"must be 1 to 3 characters","path":["name"]},{"message":"must be a string","path":["tags","1"]},{"message":"must be a string","path":["ops","0","path"]},{"message":"must be an object","path":["ops","1"]}]}"#);
    }

    #[test]
    fn null_is_absent() {
        let body = body(json!({"name": null, "on": null}));
        let mut fields = Fields::of(&body);
        assert_eq!(fields.text("name", Text::exact(1..=3)), None);
        assert_eq!(fields.flag("on"), None);
        assert!(fields.is_null("name"));
        assert!(fields.end("invalid_thing").is_ok());
    }
}
