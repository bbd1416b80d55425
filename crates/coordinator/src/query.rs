//! Query strings and pages (spec: coordinator §2): unknown keys are ignored, a known key may stand
//! once, a cursor is the last id of the page before.

use std::time::Duration;

use caracal_model::id::is_id;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::failure::{Code, Failure};
use crate::fields::length;

/// The decoded pairs of a query string.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

fn invalid(description: String) -> Failure {
    Code::InvalidQuery.refuse().because(description)
}

fn decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

impl Query {
    /// Decodes a raw query string.
    pub fn parse(raw: Option<&str>) -> Self {
        let pairs = raw
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// Whether the key was sent.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
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

    /// One of these words, if it was sent.
    ///
    /// # Errors
    /// `invalid_query` when it is anything else.
    pub fn word(&self, name: &str, words: &[&str]) -> Result<Option<&str>, Failure> {
        match self.text(name, 64)? {
            Some(text) if !words.contains(&text) => Err(invalid(format!(
                "{name} must be one of {}",
                words.join(", ")
            ))),
            text => Ok(text),
        }
    }

    /// Whether the caller asks for a page, rather than for everything.
    pub fn is_paged(&self) -> bool {
        self.has("limit") || self.has("cursor")
    }

    /// How long the caller wants to wait for proof that every replica has applied a revocation.
    ///
    /// # Errors
    /// `invalid_query` when it is not a whole number from 1 to 10000.
    pub fn wait(&self) -> Result<Option<Duration>, Failure> {
        let Some(text) = self.text("wait_ms", 16)? else {
            return Ok(None);
        };
        let millis = text
            .parse()
            .ok()
            .filter(|millis| (1..=10_000).contains(millis));
        let wrong = || invalid("wait_ms must be a whole number from 1 to 10000".to_owned());
        millis
            .map(Duration::from_millis)
            .map(Some)
            .ok_or_else(wrong)
    }

    /// The page that is asked for.
    ///
    /// # Errors
    /// `invalid_query` for the limit, `invalid_cursor` for the cursor.
    pub fn page(&self) -> Result<Page, Failure> {
        let limit = match self.text("limit", 16)? {
            None => 100,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=500).contains(limit))
                .ok_or_else(|| invalid("limit must be a whole number from 1 to 500".to_owned()))?,
        };
        let cursor = self.text("cursor", 512)?.map(str::to_owned);
        if cursor.as_deref().is_some_and(|cursor| !is_id(cursor)) {
            return Err(Code::InvalidCursor.into());
        }
        Ok(Page { limit, cursor })
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// How many items at most.
    pub limit: u32,
    /// The last id of the page before.
    pub cursor: Option<String>,
}

impl Page {
    /// `{items, next_cursor}`: the cursor is null on a short page.
    pub fn envelope<R>(
        &self,
        rows: &[R],
        id: impl Fn(&R) -> String,
        render: impl Fn(&R) -> Value,
    ) -> Value {
        let full = u32::try_from(rows.len()).is_ok_and(|count| count >= self.limit);
        let next = rows.last().filter(|_| full).map(id);
        let items: Vec<Value> = rows.iter().map(render).collect();
        json!({ "items": items, "next_cursor": next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_stand_once_and_have_bounds() {
        let mut table = String::new();
        for raw in [
            "limit=5&other=1&other=2",
            "limit=0",
            "limit=501",
            "limit=1.5",
            "limit=1&limit=2",
            "cursor=",
            "cursor=a%20b",
            "cursor=0198",
        ] {
            let page = Query::parse(Some(raw)).page();
            let answer = match page {
                Ok(page) => format!("{} {:?}", page.limit, page.cursor),
                Err(failure) => format!("{}: {}", failure.error(), failure.description()),
            };
            table += &format!("{raw:<24} | {answer}\n");
        }
        insta::assert_snapshot!(table, @r#"
        limit=5&other=1&other=2  | 5 None
        limit=0                  | invalid_query: limit must be a whole number from 1 to 500
        limit=501                | invalid_query: limit must be a whole number from 1 to 500
        limit=1.5                | invalid_query: limit must be a whole number from 1 to 500
        limit=1&limit=2          | invalid_query: limit is repeated; send it once
        cursor=                  | invalid_query: cursor must be 1 to 512 characters
        cursor=a%20b             | invalid_cursor: cursor must be the next_cursor of this list
        cursor=0198              | 100 Some("0198")
        "#);
    }
}
