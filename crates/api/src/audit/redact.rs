//! What audit reads never show: values under names that stand for credentials.

use serde_json::Value;

const HIDDEN: &str = "[redacted]";

const NAMES: [&str; 17] = [
    "password",
    "passwd",
    "secret",
    "token",
    "access_token",
    "refresh_token",
    "id_token",
    "api_key",
    "apikey",
    "authorization",
    "cookie",
    "set_cookie",
    "client_secret",
    "private_key",
    "session",
    "session_id",
    "assertion",
];

/// Whether values under this name are hidden, in any case of its letters.
pub fn is_hidden(name: &str) -> bool {
    NAMES.iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
}

/// The value with everything hidden that has to be, at any depth.
pub fn redacted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let hide = |(name, value): (String, Value)| {
                let value = if is_hidden(&name) {
                    Value::from(HIDDEN)
                } else {
                    redacted(value)
                };
                (name, value)
            };
            Value::Object(map.into_iter().map(hide).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(redacted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn credentials_are_hidden_at_any_depth() {
        let shown = redacted(json!({
            "application_id": "a1",
            "Session_ID": "s1",
            "nested": [{"Token": {"deep": 1}, "fine": "x"}],
            "agent_session_id": "kept",
        }));
        let expected = json!({
            "application_id": "a1",
            "Session_ID": "[redacted]",
            "nested": [{"Token": "[redacted]", "fine": "x"}],
            "agent_session_id": "kept",
        });
        assert_eq!(shown, expected);
    }
}
