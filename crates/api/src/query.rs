//! Query strings: unknown keys are ignored, a known key may stand once (spec: admin-api §2).

use std::borrow::Cow;

use caracal_model::Timestamp;
use url::form_urlencoded;

use crate::failure::Failure;
use crate::fields::length;

/// The decoded pairs of a query string.
#[derive(Debug)]
pub struct Query<'q>(Vec<(Cow<'q, str>, Cow<'q, str>)>);

fn invalid(description: String) -> Failure {
    Failure::bad("invalid_query", description)
}

impl<'q> Query<'q> {
    /// Decodes a raw query string.
    pub fn parse(raw: Option<&'q str>) -> Self {
        Self(form_urlencoded::parse(raw.unwrap_or_default().as_bytes()).collect())
    }

    /// The value of `name`, if it was sent.
    ///
    /// # Errors
    /// `invalid_query` when it was sent twice, is empty, longer than `most` or holds U+0000.
    pub fn text(&self, name: &str, most: usize) -> Result<Option<&str>, Failure> {
        let mut values = self.0.iter().filter(|(key, _)| key == name);
        let Some((_, value)) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(invalid(format!("{name} is repeated; send it once")));
        }
        if value.is_empty() || length(value) > most || value.contains('\0') {
            return Err(invalid(format!("{name} must be 1 to {most} characters")));
        }
        Ok(Some(value))
    }

    /// One of these words.
    ///
    /// # Errors
    /// `invalid_query` when it is anything else.
    pub fn word(
        &self,
        name: &str,
        words: &[&'static str],
    ) -> Result<Option<&'static str>, Failure> {
        let Some(text) = self.text(name, 64)? else {
            return Ok(None);
        };
        match words.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => Err(invalid(format!(
                "{name} must be one of {}",
                words.join(", ")
            ))),
        }
    }

    /// A whole number from 1 to `most`.
    ///
    /// # Errors
    /// `invalid_query` when it is anything else.
    pub fn limit(&self, default: u32, most: u32) -> Result<u32, Failure> {
        let Some(text) = self.text("limit", 16)? else {
            return Ok(default);
        };
        match text.parse::<u32>() {
            Ok(limit) if (1..=most).contains(&limit) => Ok(limit),
            _ => Err(invalid(format!(
                "limit must be a whole number from 1 to {most}"
            ))),
        }
    }

    /// A UTC time.
    ///
    /// # Errors
    /// `invalid_query` when it is anything but ISO 8601 that ends in `Z`.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, Failure> {
        let Some(text) = self.text(name, 64)? else {
            return Ok(None);
        };
        let wrong = || {
            invalid(format!(
                "{name} must be a UTC time such as 2026-01-01T00:00:00Z"
            ))
        };
        with_seconds(text)
            .and_then(|text| Timestamp::parse_utc(&text).ok())
            .map(Some)
            .ok_or_else(wrong)
    }
}

/// The seconds may be missing (audit-and-streams §11).
fn with_seconds(text: &str) -> Option<Cow<'_, str>> {
    let (_, time) = text.split_once('T')?;
    let minutes = time.strip_suffix('Z')?;
    if minutes.len() == 5 {
        let text = text.strip_suffix('Z')?;
        return Some(Cow::Owned(format!("{text}:00Z")));
    }
    Some(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_key_may_stand_once_and_others_do_not_matter() {
        let query = Query::parse(Some("limit=5&x=1&x=2&until=2026-01-01T00:00Z&empty="));
        assert_eq!(query.limit(200, 500).unwrap(), 5);
        assert_eq!(query.text("x", 9).unwrap_err().error, "invalid_query");
        assert_eq!(query.text("empty", 9).unwrap_err().error, "invalid_query");
        assert_eq!(
            query.time("until").unwrap().unwrap().iso_millis(),
            "2026-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn limits_and_times_have_one_form() {
        for raw in [
            "limit=0",
            "limit=501",
            "limit=1.0",
            "limit=+1x",
            "limit=%205",
        ] {
            assert!(Query::parse(Some(raw)).limit(200, 500).is_err(), "{raw}");
        }
        for raw in [
            "since=2026-01-01",
            "since=2026-01-01T00:00:00%2B01:00",
            "since=now",
        ] {
            assert!(Query::parse(Some(raw)).time("since").is_err(), "{raw}");
        }
    }
}
