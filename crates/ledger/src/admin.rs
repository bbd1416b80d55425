//! What an administrator did, and its one text (spec: audit-and-streams §12).
//!
//! The text is the values in a fixed order, each followed by the byte 0x1F; an absent value is
//! empty. It is what the chain of the zone is made of ([`crate::chain`]) and what is stored: nothing
//! has to be serialized again to be verified. No value holds 0x1F or U+0000, so the text can be
//! read in one way only.

use caracal_model::{Timestamp, ZoneId};

/// Follows every value.
const END: char = '\u{1f}';
/// Longest path that is kept, in characters; what is longer is cut.
const LONGEST_PATH: usize = 1_024;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRecord {
    /// UUIDv7; unique.
    pub id: String,
    /// Correlates with answers and logs.
    pub request_id: String,
    /// The token or the subject.
    pub actor_id: Option<String>,
    /// Its name.
    pub actor_name: Option<String>,
    /// What it may do, as its service says it.
    pub actor_scope: Option<String>,
    /// `METHOD path`, or what was done in words.
    pub action: String,
    /// HTTP method.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The zone whose chain it joins; none is the chain of the deployment.
    pub zone_id: Option<ZoneId>,
    /// The innermost collection of the path.
    pub entity_type: Option<String>,
    /// Which of it.
    pub entity_id: Option<String>,
    /// What was answered.
    pub status_code: u16,
    /// Everything else, as JSON text.
    pub payload: Option<String>,
    /// To the millisecond.
    pub occurred_at: Timestamp,
}

impl AdminRecord {
    /// The one text of this record.
    pub fn to_text(&self) -> String {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_default();
        let path: String = self.path.chars().take(LONGEST_PATH).collect();
        let action: String = self.action.chars().take(LONGEST_PATH).collect();
        let values = [
            self.id.clone(),
            self.request_id.clone(),
            or_none(&self.actor_id),
            or_none(&self.actor_name),
            or_none(&self.actor_scope),
            action,
            self.method.clone(),
            path,
            self.zone_id
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            or_none(&self.entity_type),
            or_none(&self.entity_id),
            self.status_code.to_string(),
            or_none(&self.payload),
            self.occurred_at.iso_millis(),
        ];
        let mut text = String::new();
        for value in values {
            text.extend(value.chars().filter(|&c| c != END && c != '\0'));
            text.push(END);
        }
        text
    }

    /// Reads a text back; `None` when it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut values = text.strip_suffix(END)?.split(END);
        let mut next = || values.next();
        let some = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        let record = Self {
            id: some(next()?)?,
            request_id: next()?.to_owned(),
            actor_id: some(next()?),
            actor_name: some(next()?),
            actor_scope: some(next()?),
            action: next()?.to_owned(),
            method: next()?.to_owned(),
            path: next()?.to_owned(),
            zone_id: some(next()?).map(ZoneId::trusted),
            entity_type: some(next()?),
            entity_id: some(next()?),
            status_code: next()?.parse().ok()?,
            payload: some(next()?),
            occurred_at: Timestamp::parse_utc(next()?).ok()?,
        };
        values.next().is_none().then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{StoredLink, append, verify};
    use proptest::prelude::*;

    fn vector() -> AdminRecord {
        let some = |text: &str| Some(text.to_owned());
        AdminRecord {
            id: "01900000-0000-7000-8000-000000000001".into(),
            request_id: "req-1".into(),
            actor_id: some("t1"),
            actor_name: some("bootstrap"),
            actor_scope: some("global"),
            action: "POST /v1/zones".into(),
            method: "POST".into(),
            path: "/v1/zones".into(),
            zone_id: Some(ZoneId::trusted("z1")),
            entity_type: some("zones"),
            entity_id: some("z1"),
            status_code: 201,
            payload: some(
                r#"{"rls_mode":"control_plane_wildcard","rls_zone_guc":"*","change_kind":"create","changed_fields":["name"]}"#,
            ),
            occurred_at: Timestamp::from_unix_seconds(1_767_225_600),
        }
    }

    #[test]
    fn the_content_hash_is_that_of_the_specification() {
        let link = append(None, &vector().to_text(), None);
        assert_eq!(
            link.content_sha256,
            "7696e2058b83c72950b1c14aa451f0bfe733d15c53bb109fc94ca9ed82172a0a"
        );
        let stored = StoredLink {
            seq: 1,
            wire: &vector().to_text(),
            content_sha256: &link.content_sha256,
            chain_hash: &link.chain_hash,
            chain_hmac: &link.chain_hmac,
        };
        assert_eq!(verify([stored], None, None).as_ref(), Ok(link.head()));
    }

    #[test]
    fn what_is_no_record_is_told() {
        let text = vector().to_text();
        let longer = format!("{text}{text}");
        for bad in [
            "",
            "a",
            &longer,
            &text[1..].replace("201", "x"),
            text.trim_end_matches(END),
        ] {
            assert_eq!(AdminRecord::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_back_as_it_was_written(
            id in "[a-z0-9-]{1,36}", texts in prop::array::uniform8(".{0,40}"), status in 100u16..600,
            millis in 0i64..4_000_000_000_000,
        ) {
            let clean = |text: &String| text.replace([END, '\0'], "");
            let some = |text: &String| Some(clean(text)).filter(|text| !text.is_empty());
            let record = AdminRecord {
                id,
                request_id: clean(&texts[0]),
                actor_id: some(&texts[1]),
                actor_name: some(&texts[2]),
                actor_scope: None,
                action: clean(&texts[3]),
                method: clean(&texts[4]),
                path: clean(&texts[5]),
                zone_id: some(&texts[6]).map(ZoneId::trusted),
                entity_type: some(&texts[7]),
                entity_id: None,
                status_code: status,
                payload: None,
                occurred_at: Timestamp::from_unix_micros(millis * 1_000),
            };
            prop_assert_eq!(AdminRecord::parse(&record.to_text()), Some(record));
        }
    }
}
