//! What a deployment keeps: the files of an embedded one; the rows of Postgres, and all of Redis.

use std::fs;
use std::path::Path;

use redis::Value;
use tokio_postgres::SimpleQueryMessage;
use xtest::{Deployment, Stack};

use super::Seen;

/// All of it.
pub async fn everything(stack: &Stack, seen: &mut Seen) {
    match stack.deployment {
        Deployment::Embedded => files(Path::new(stack.setting("CARACAL_HOME")), seen),
        Deployment::Distributed => {
            rows(stack, seen).await;
            keys(stack, seen).await;
        }
    }
}

fn files(at: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, seen);
        } else if let Ok(bytes) = fs::read(&path) {
            // A journal may be gone by now.
            seen.note(path.display().to_string(), bytes);
        }
    }
}

async fn rows(stack: &Stack, seen: &mut Seen) {
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
    for table in column(stack, tables).await {
        let rows = column(stack, &format!("SELECT t::text FROM {table} t")).await;
        seen.note(format!("table {table}"), rows.join("\n"));
    }
}

async fn column(stack: &Stack, sql: &str) -> Vec<String> {
    let of = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    stack.sql(sql).await.into_iter().filter_map(of).collect()
}

async fn keys(stack: &Stack, seen: &mut Seen) {
    let mut streams = 0;
    for key in texts(&stack.redis("KEYS *").await) {
        let kind = texts(&stack.redis(&format!("TYPE {key}")).await).concat();
        let read = match &*kind {
            "string" => format!("GET {key}"),
            "stream" => format!("XRANGE {key} - +"),
            "hash" => format!("HGETALL {key}"),
            "list" => format!("LRANGE {key} 0 -1"),
            "set" => format!("SMEMBERS {key}"),
            "zset" => format!("ZRANGE {key} 0 -1"),
            // It has expired meanwhile.
            "none" => continue,
            other => panic!("{key} is a {other}"),
        };
        streams += usize::from(kind == "stream");
        let held = texts(&stack.redis(&read).await).join(" ");
        seen.note(format!("Redis {key}"), format!("{key} {held}"));
    }
    assert!(streams > 0, "nothing went through Redis");
}

/// Every text in an answer.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(bytes).into_owned()],
        Value::SimpleString(text) => vec![text.clone()],
        Value::Array(values) | Value::Set(values) => values.iter().flat_map(texts).collect(),
        Value::Map(pairs) => {
            let both = |(key, value)| [texts(key), texts(value)].concat();
            pairs
                .iter()
                .map(|(key, value)| (key, value))
                .flat_map(both)
                .collect()
        }
        _ => Vec::new(),
    }
}
