//! Events as flat rows: a choice of fields, in JSON or as CSV for spreadsheets.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::Shown;
use crate::failure::Failure;

/// Fields of the event itself.
const OF_EVENT: [&str; 10] = [
    "id",
    "occurred_at",
    "event_type",
    "decision",
    "evaluation_status",
    "request_id",
    "ingested_at",
    "policy_set_id",
    "policy_set_version_id",
    "manifest_sha",
];
const POLICIES: &str = "determining_policies";

/// Fields of its metadata, in the order of columns.
const OF_METADATA: [&str; 35] = [
    "application_id",
    "application_name",
    "resource",
    "requested_scopes",
    "agent_session_id",
    "agent_lifecycle",
    "agent_labels",
    "delegation_edge_id",
    "delegation_hop_count",
    "method",
    "latency_ms",
    "upstream_status",
    "result_class",
    "reason",
    "trace_id",
    "provider_id",
    "connection_id",
    "upstream_host",
    "gateway_status",
    "error_kind",
    "response_bytes",
    "auth_mode",
    "subject_fingerprint",
    "subject",
    "authorized_by",
    "command",
    "subcommand",
    "challenge_id",
    "tier",
    "approver_class",
    "privacy_mode",
    "approver_subject_id",
    "subject_anchor",
    "subject_kind",
    "federated_user_issuer",
];

fn all() -> impl Iterator<Item = &'static str> {
    OF_EVENT.into_iter().chain([POLICIES]).chain(OF_METADATA)
}

/// The fields that a query selects; `None` when it selects none.
///
/// # Errors
/// 400 `invalid_fields` for an unknown one.
pub fn fields(text: Option<&str>) -> Result<Option<Vec<&'static str>>, Failure> {
    choose(text, all)
}

/// As [`fields`], among these.
///
/// # Errors
/// 400 `invalid_fields` for an unknown one.
pub fn choose<N: Iterator<Item = &'static str>>(
    text: Option<&str>,
    among: impl Fn() -> N,
) -> Result<Option<Vec<&'static str>>, Failure> {
    let Some(text) = text else {
        return Ok(None);
    };
    let mut chosen = Vec::new();
    for name in text.split(',').map(str::trim) {
        let known = among().find(|known| *known == name).ok_or_else(|| {
            Failure::bad(
                "invalid_fields",
                format!("`{name}` is not a field of an export"),
            )
        })?;
        if !chosen.contains(&known) {
            chosen.push(known);
        }
    }
    Ok(Some(chosen))
}

fn value(shown: &Shown, field: &str) -> Option<Value> {
    if field == POLICIES {
        let policies = shown
            .row
            .get("determining_policies_json")
            .and_then(Value::as_array);
        let names = policies
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.get("policy").cloned());
        return Some(names.collect());
    }
    if OF_EVENT.contains(&field) {
        return shown.row.get(field).cloned();
    }
    shown.row.get("metadata_json")?.get(field).cloned()
}

/// An event with exactly these fields; metadata that it lacks is left out.
pub fn flat(shown: &Shown, fields: &[&'static str]) -> Map<String, Value> {
    let pairs = fields
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), value(shown, field)?)));
    pairs.collect()
}

/// A table with a header row (RFC 4180), safe to open in a spreadsheet.
pub fn csv(events: &[Shown], fields: Option<&[&'static str]>) -> String {
    let columns: Vec<&str> = fields.map_or_else(|| all().collect(), <[_]>::to_vec);
    let mut text = String::new();
    line(&mut text, columns.iter().map(|name| Cow::Borrowed(*name)));
    for event in events {
        let cell =
            |field: &&str| Cow::Owned(value(event, field).as_ref().map_or_else(String::new, plain));
        line(&mut text, columns.iter().map(cell));
    }
    text
}

/// Objects as a table of these columns, as [`csv`].
pub fn table(columns: &[&str], rows: &[Value]) -> String {
    let mut text = String::new();
    line(&mut text, columns.iter().map(|name| Cow::Borrowed(*name)));
    for row in rows {
        let cell = |name: &&str| Cow::Owned(row.get(*name).map_or_else(String::new, plain));
        line(&mut text, columns.iter().map(cell));
    }
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => json!(other).to_string(),
    }
}

fn line<'c>(text: &mut String, cells: impl Iterator<Item = Cow<'c, str>>) {
    for (at, cell) in cells.enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&quoted(&cell));
    }
    text.push_str("\r\n");
}

/// A cell that starts like a formula is made text, so that opening an export runs nothing.
fn quoted(cell: &str) -> String {
    let cell = match cell.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{cell}"),
        false => cell.to_owned(),
    };
    if cell.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(metadata: Value) -> Shown {
        let row = json!({
            "id": "e1",
            "decision": "deny",
            "determining_policies_json": [{"policy": "a"}, {"policy": "b"}],
            "metadata_json": metadata,
        });
        Shown {
            row: row.as_object().unwrap().clone(),
            metadata: Map::new(),
        }
    }

    #[test]
    fn cells_are_quoted_and_formulas_are_text() {
        let event =
            event(json!({"reason": "=1+1", "resource": "a,\"b\"", "agent_labels": ["x", "y"]}));
        let fields = fields(Some("id,determining_policies,reason,resource,agent_labels")).unwrap();
        insta::assert_snapshot!(csv(&[event], fields.as_deref()).replace("\r\n", "|"), @r#"id,determining_policies,reason,resource,agent_labels|e1,a b,'=1+1,"a,""b""",x y|"#);
    }

    #[test]
    fn a_choice_of_fields_is_flat_and_leaves_out_what_is_missing() {
        let fields = fields(Some("id, reason,method")).unwrap().unwrap();
        let flat = flat(&event(json!({"reason": "x"})), &fields);
        assert_eq!(json!(flat), json!({"id": "e1", "reason": "x"}));
    }

    #[test]
    fn unknown_fields_are_refused() {
        for text in ["ids", "", "id,,reason", "session_id"] {
            assert_eq!(
                fields(Some(text)).unwrap_err().error,
                "invalid_fields",
                "{text}"
            );
        }
    }
}
