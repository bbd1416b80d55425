//! Which events a read wants, as the query says: for a question to the store, and for an event in
//! hand.

use caracal_model::Timestamp;
use caracal_store::audit_events::{AuditEvent, AuditFilter};

use crate::failure::Failure;
use crate::query::Query;

/// What `decision` may be: the published words, and those that approvals and lifecycles add.
#[rustfmt::skip] // a line each
pub const DECISIONS: [&str; 16] = [
    "allow", "deny", "partial",
    "pending", "approved", "rejected", "consumed",
    "started", "suspended", "resumed", "terminated",
    "created", "revoked", "expired",
    "activated", "archived",
];

/// The filters of a read.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `occurred_at` not before.
    pub since: Option<Timestamp>,
    until: Option<Timestamp>,
    decision: Option<&'static str>,
    event_types: Vec<String>,
    request_id: Option<String>,
    application_id: Option<String>,
    session_id: Option<String>,
    authority_record_id: Option<String>,
    label: Option<String>,
}

impl Wanted {
    /// Reads the filters of a query.
    ///
    /// # Errors
    /// `invalid_query` for what cannot be a filter.
    pub fn of(query: &Query<'_>) -> Result<Self, Failure> {
        let text = |name, most| Ok::<_, Failure>(query.text(name, most)?.map(str::to_owned));
        Ok(Self {
            since: query.time("since")?,
            until: query.time("until")?,
            decision: query.word("decision", &DECISIONS)?,
            event_types: event_types(query)?,
            // Unbounded in the published surface; an address of a request is no longer than this.
            request_id: text("request_id", 8_192)?,
            application_id: text("application_id", 128)?,
            session_id: text("session_id", 128)?,
            authority_record_id: text("authority_record_id", 128)?,
            label: text("label", 64)?,
        })
    }

    /// The event types, as [`Wanted::filter`] borrows them.
    pub fn event_types(&self) -> Vec<&str> {
        self.event_types.iter().map(String::as_str).collect()
    }

    /// For a question to the store.
    pub fn filter<'f>(&'f self, event_types: &'f [&'f str]) -> AuditFilter<'f> {
        AuditFilter {
            since: self.since,
            until: self.until,
            decision: self.decision,
            event_types,
            request_id: self.request_id.as_deref(),
            application_id: self.application_id.as_deref(),
            session_id: self.session_id.as_deref(),
            authority_record_id: self.authority_record_id.as_deref(),
            label: self.label.as_deref(),
        }
    }

    /// Whether an event is wanted: what the store would say.
    pub fn takes(&self, event: &AuditEvent) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| match wanted {
            None => true,
            Some(wanted) => found == Some(wanted.as_str()),
        };
        self.since.is_none_or(|since| event.occurred_at >= since)
            && self.until.is_none_or(|until| event.occurred_at < until)
            && self
                .decision
                .is_none_or(|decision| event.decision == decision)
            && (self.event_types.is_empty() || self.event_types.contains(&event.event_type))
            && is(&self.request_id, Some(&event.request_id))
            && is(&self.application_id, event.application_id.as_deref())
            && is(&self.session_id, event.agent_session_id.as_deref())
            && is(
                &self.authority_record_id,
                event.authority_record_id.as_deref(),
            )
            && self
                .label
                .as_ref()
                .is_none_or(|label| event.labels.contains(label))
    }
}

fn event_types(query: &Query<'_>) -> Result<Vec<String>, Failure> {
    let Some(text) = query.text("event_type", 512)? else {
        return Ok(Vec::new());
    };
    let types: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if types.len() > 16 || types.iter().any(String::is_empty) {
        let why = "event_type must be 1 to 16 names separated by commas";
        return Err(Failure::bad("invalid_query", why));
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use caracal_model::ZoneId;

    use super::*;

    fn event() -> AuditEvent {
        AuditEvent {
            zone: ZoneId::trusted("z"),
            chain_seq: 1,
            id: "e1".into(),
            event_type: "token_exchange".into(),
            request_id: "r1".into(),
            decision: "deny".into(),
            application_id: Some("a1".into()),
            agent_session_id: Some("s1".into()),
            authority_record_id: None,
            labels: vec!["one".into(), "two".into()],
            occurred_at: Timestamp::parse_utc("2026-05-21T12:00:00.123456Z").unwrap(),
            ingested_at: Timestamp::parse_utc("2026-05-21T12:00:01Z").unwrap(),
            event: "{}".into(),
            content_sha256: String::new(),
            chain_hash: String::new(),
            chain_hmac: String::new(),
        }
    }

    #[rustfmt::skip] // a table
    const TABLE: &[(&str, bool)] = &[
        ("",                                         true),
        ("unknown=x",                                true),
        ("decision=deny",                            true),
        ("decision=allow",                           false),
        ("decision=started",                         false),
        ("event_type=token_exchange",                true),
        ("event_type=run_launch,%20token_exchange",  true),
        ("event_type=token",                         false),
        ("request_id=r1",                            true),
        ("request_id=r",                             false),
        ("application_id=a1",                        true),
        ("application_id=a2",                        false),
        ("session_id=s1",                            true),
        ("session_id=a1",                            false),
        ("authority_record_id=rec",                  false),
        ("label=two",                                true),
        ("label=tw",                                 false),
        ("since=2026-05-21T12:00:00.123456Z",        true),
        ("since=2026-05-21T12:00:00.123457Z",        false),
        ("until=2026-05-21T12:00:00.123456Z",        false),
        ("until=2026-05-21T12:00:00.123457Z",        true),
        ("decision=deny&label=one&since=2026-05-21T12:00Z", true),
        ("decision=deny&label=three",                false),
    ];

    #[test]
    fn each_filter_takes_exactly_what_it_names() {
        for (raw, takes) in TABLE {
            let wanted = Wanted::of(&Query::parse(Some(raw))).unwrap();
            assert_eq!(wanted.takes(&event()), *takes, "{raw}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for raw in [
            "decision=maybe",
            "decision=deny&decision=deny",
            "label=",
            "since=2026-05-21",
            "until=2026-05-21T12:00:00%2B02:00",
            "event_type=a,,b",
            "event_type=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17",
        ] {
            let refused = Wanted::of(&Query::parse(Some(raw))).unwrap_err();
            assert_eq!(refused.error, "invalid_query", "{raw}");
        }
        let long = "x".repeat(65);
        assert!(Wanted::of(&Query::parse(Some(&format!("label={long}")))).is_err());
    }
}
