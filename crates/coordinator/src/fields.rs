//! Reads a JSON body field by field, so that every mistake is reported at once
//! (`details.issues`) and in words that say what to fix.
//!
//! **Rejected.** A derived deserializer: it stops at the first mistake and cannot tell `null` from
//! absent, which some fields must (`scopes`) and others must not (`parent_id`).

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::failure::{Code, Failure};

/// A JSON object from outside.
pub type Body = Map<String, Value>;

/// Collects what is wrong with one object.
#[derive(Debug)]
pub struct Fields<'b> {
    body: &'b Body,
    issues: Vec<(Vec<String>, String)>,
}

impl<'b> Fields<'b> {
    /// Reads this object.
    pub const fn of(body: &'b Body) -> Self {
        Self {
            body,
            issues: Vec::new(),
        }
    }

    /// Reports a mistake.
    pub fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.issues.push((vec![field.to_owned()], message.into()));
    }

    /// The value of a field, `null` included.
    pub fn get(&self, field: &str) -> Option<&'b Value> {
        self.body.get(field)
    }

    /// A text of at least one character, if the field is there.
    pub fn text(&mut self, field: &str) -> Option<&'b str> {
        let value = self.get(field)?;
        match value.as_str() {
            Some(text) if !text.is_empty() && !text.contains('\0') => Some(text),
            Some(_) => {
                self.wrong(field, "must not be empty or hold U+0000");
                None
            }
            None => {
                self.wrong(field, "must be a string");
                None
            }
        }
    }

    /// As [`Self::text`], `null` being absent.
    pub fn nullable_text(&mut self, field: &str) -> Option<&'b str> {
        if self.get(field)?.is_null() {
            None
        } else {
            self.text(field)
        }
    }

    /// A text that must be there; empty after a mistake was reported.
    pub fn required_text(&mut self, field: &str) -> &'b str {
        if self.get(field).is_none() {
            self.wrong(field, "is required");
        }
        self.text(field).unwrap_or_default()
    }

    /// A whole number within bounds, if the field is there.
    pub fn int(&mut self, field: &str, bounds: RangeInclusive<i64>) -> Option<i64> {
        let value = self.get(field)?;
        let int = whole(value).filter(|int| bounds.contains(int));
        if int.is_none() {
            let (least, most) = (bounds.start(), bounds.end());
            let bounds = if *most == i64::MAX {
                format!("of at least {least}")
            } else {
                format!("from {least} to {most}")
            };
            self.wrong(field, format!("must be a whole number {bounds}"));
        }
        int
    }

    /// One of these words, if the field is there.
    pub fn word<T: Copy>(&mut self, field: &str, words: &[(&'static str, T)]) -> Option<T> {
        let value = self.get(field)?;
        let known = words.iter().find(|(word, _)| value.as_str() == Some(word));
        if known.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(field, format!("must be one of {}", all.join(", ")));
        }
        known.map(|(_, meaning)| *meaning)
    }

    /// An object, if the field is there.
    pub fn object(&mut self, field: &str) -> Option<&'b Body> {
        let value = self.get(field)?;
        if !value.is_object() {
            self.wrong(field, "must be an object");
        }
        value.as_object()
    }

    /// A list of texts, each given to `keep`, if the field is there.
    pub fn texts(
        &mut self,
        field: &str,
        most: usize,
        keep: impl Fn(&str) -> Result<String, &'static str>,
    ) -> Option<Vec<String>> {
        let value = self.get(field)?;
        let Some(list) = value.as_array() else {
            self.wrong(field, "must be a list of strings");
            return None;
        };
        if list.len() > most {
            self.wrong(field, format!("must have at most {most} items"));
            return None;
        }
        let mut texts = Vec::with_capacity(list.len());
        for (at, value) in list.iter().enumerate() {
            match value.as_str().ok_or("must be a string").and_then(&keep) {
                Ok(text) => texts.push(text),
                Err(why) => {
                    self.issues
                        .push((vec![field.to_owned(), at.to_string()], why.to_owned()));
                }
            }
        }
        Some(texts)
    }

    /// Refuses when anything was wrong.
    ///
    /// # Errors
    /// `invalid_body` with `details.issues`.
    pub fn end(self) -> Result<(), Failure> {
        let Some((path, message)) = self.issues.first() else {
            return Ok(());
        };
        let description = format!("{} {message}", path.join("."));
        let details = self.issues();
        Err(Code::InvalidBody
            .refuse()
            .because(description)
            .with("details", details))
    }

    fn issues(&self) -> Value {
        let issue =
            |(path, message): &(Vec<String>, String)| json!({ "path": path, "message": message });
        json!({ "issues": self.issues.iter().map(issue).collect::<Vec<_>>() })
    }
}

/// A whole number, also when it is written as `1.0` or `1e2`: JSON has one kind of number.
pub fn whole(value: &Value) -> Option<i64> {
    if let Some(int) = value.as_i64() {
        return Some(int);
    }
    let float = value.as_f64()?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "within 2^53 and whole, so exact"
    )]
    (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i64)
}

/// Length as published clients count it: UTF-16 units.
pub fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once_with_its_path() {
        let body = json!({"labels": ["a", 7, ""], "ttl_seconds": "soon", "parent_id": null});
        let mut fields = Fields::of(body.as_object().unwrap());
        fields.required_text("application_id");
        fields.nullable_text("parent_id");
        fields.int("ttl_seconds", 1..=86_400);
        fields.texts("labels", 32, |text| {
            if text.is_empty() {
                Err("must not be empty")
            } else {
                Ok(text.to_owned())
            }
        });
        let issues = fields.issues();
        let failure = fields.end().unwrap_err();
        insta::assert_snapshot!(issues, @r#"{"issues":[{"message":"is required","path":["application_id"]},{"message":"must be a whole number from 1 to 86400","path":["ttl_seconds"]},{"message":"must be a string","path":["labels","1"]},{"message":"must not be empty","path":["labels","2"]}]}"#);
        assert_eq!(failure.description(), "application_id is required");
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
        assert_eq!(whole(&json!(3.0)), Some(3));
        assert_eq!(whole(&json!(3.5)), None);
        assert_eq!(whole(&json!("3")), None);
        assert_eq!(whole(&json!(1e300)), None);
    }
}
