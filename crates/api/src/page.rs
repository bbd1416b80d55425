//! Pages: newest first by (time, id), with cursors that are exact to the microsecond, so that rows
//! made in the same millisecond as a page boundary are not skipped (spec: admin-api §2.2, §19, §20).
//!
//! **Rejected.** A MAC on the cursor: cursors of the published shape, which carry none, are accepted
//! too, and a cursor only says where in an already authorized list to go on.

use caracal_crypto::digest::{b64url_decode, b64url_encode};
use caracal_model::Timestamp;
use caracal_model::id::is_id;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::query::Query;

/// Where the next page starts: after this row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Time of the last row.
    pub at: Timestamp,
    /// Its id.
    pub id: String,
}

#[derive(Serialize, Deserialize)]
struct Shape {
    ts: String,
    id: String,
}

impl Cursor {
    /// As clients see it: opaque.
    pub fn encode(&self) -> String {
        let shape = Shape {
            ts: self.at.iso_micros(),
            id: self.id.clone(),
        };
        b64url_encode(serde_json::to_string(&shape).unwrap_or_default().as_bytes())
    }

    fn decode(text: &str, fits: fn(&str) -> bool) -> Option<Self> {
        let bytes = b64url_decode(text).ok()?;
        let shape: Shape = serde_json::from_slice(&bytes).ok()?;
        let at = Timestamp::parse_utc(&shape.ts).ok()?;
        fits(&shape.id).then_some(Self { at, id: shape.id })
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// How many rows at most.
    pub limit: u32,
    /// Where it starts.
    pub after: Option<Cursor>,
}

impl Page {
    /// The page that a query asks for, in lists of configuration.
    ///
    /// # Errors
    /// `invalid_query` or `invalid_cursor`.
    pub fn of_configuration(query: &Query<'_>) -> Result<Self, Failure> {
        Self::of(query, 200, 500)
    }

    /// The page that a query asks for, with other limits.
    ///
    /// # Errors
    /// `invalid_query` or `invalid_cursor`.
    pub fn of(query: &Query<'_>, default: u32, most: u32) -> Result<Self, Failure> {
        let limit = query.limit(default, most)?;
        Self::after(query, limit, 512, is_id)
    }

    /// The page that a query asks for, in the list of subjects, whose ids are any text of issuers.
    ///
    /// # Errors
    /// `invalid_query` or `invalid_cursor`.
    pub fn of_subjects(query: &Query<'_>) -> Result<Self, Failure> {
        let is_subject = |text: &str| !text.is_empty() && !text.contains('\0');
        Self::after(query, query.limit(100, 200)?, 8192, is_subject)
    }

    fn after(
        query: &Query<'_>,
        limit: u32,
        longest: usize,
        fits: fn(&str) -> bool,
    ) -> Result<Self, Failure> {
        let after = match query.text("cursor", longest)? {
            None => None,
            Some(text) => Some(Cursor::decode(text, fits).ok_or_else(|| {
                Failure::bad(
                    "invalid_cursor",
                    "cursor must be a next_cursor of this list",
                )
            })?),
        };
        Ok(Self { limit, after })
    }

    /// Time of the row before the page, in microseconds; past every row for the first page.
    pub fn before(&self) -> (i64, &str) {
        match &self.after {
            Some(cursor) => (cursor.at.unix_micros(), &cursor.id),
            None => (i64::MAX, ""),
        }
    }

    /// `{items, next_cursor}`; `last` places the last row.
    pub fn envelope<R>(
        &self,
        rows: &[R],
        render: impl Fn(&R) -> Value,
        place: impl Fn(&R) -> (Timestamp, String),
    ) -> Value {
        let full = u32::try_from(rows.len()).is_ok_and(|count| count >= self.limit);
        let next = rows.last().filter(|_| full).map(|row| {
            let (at, id) = place(row);
            Cursor { at, id }.encode()
        });
        let items: Vec<Value> = rows.iter().map(render).collect();
        json!({ "items": items, "next_cursor": next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_shape_is_still_accepted() {
        let text = "eyJ0cyI6IjIwMjYtMDEtMDFUMDA6MDA6MDAuMDAwWiIsImlkIjoiYTEifQ";
        let cursor = Cursor::decode(text, is_id).unwrap();
        assert_eq!(
            (cursor.at.iso_millis().as_str(), cursor.id.as_str()),
            ("2026-01-01T00:00:00.000Z", "a1")
        );
    }

    #[test]
    fn cursors_keep_the_microsecond() {
        let cursor = Cursor {
            at: Timestamp::from_unix_micros(1_779_364_800_123_456),
            id: "a".into(),
        };
        assert_eq!(Cursor::decode(&cursor.encode(), is_id), Some(cursor));
    }

    #[test]
    fn anything_else_is_an_invalid_cursor() {
        let odd = b64url_encode(br#"{"ts":"soon","id":"a"}"#);
        for text in ["", "!!", "e30", &odd, "eyJ0cyI6MX0="] {
            assert_eq!(Cursor::decode(text, is_id), None, "{text}");
        }
    }
}
