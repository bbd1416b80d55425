//! Logs: one JSON object a line on standard error (operations specification §2.6), and panics in one
//! line. Nothing that looks like a credential leaves through either.

use std::fmt;
use std::io::IsTerminal as _;

use caracal_crypto::os::SystemClock;
use caracal_model::Clock as _;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Environment;
use crate::exit::masked;
use crate::version::VERSION;

/// Longer values are cut.
const MAX_VALUE: usize = 8_192;

/// The message of a panic may quote anything. What a panic ends is for others to say: a request, a
/// task and with it the process, or the command.
pub fn panics_end_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        eprintln!("caracal: internal error: {}", masked(&text));
    }));
}

/// Starts logging at `LOG_LEVEL`; without one, `info`, or `warn` on a terminal, where a person
/// reads and not a collector.
pub fn start(environment: &Environment) {
    let unset = if std::io::stderr().is_terminal() {
        "warn"
    } else {
        "info"
    };
    let level = environment.get("LOG_LEVEL").unwrap_or(unset);
    // An unknown level must not keep an authorization server from starting.
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let line = Line {
        clock: SystemClock::new(),
        hostname: hostname(),
        env: environment
            .get("CARACAL_ENV")
            .unwrap_or_default()
            .to_owned(),
    };
    let lines = tracing_subscriber::fmt::layer()
        .event_format(line)
        .with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    drop(
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .try_init(),
    );
}

/// Of the machine or container.
pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Writes an event as one line.
struct Line {
    clock: SystemClock,
    hostname: String,
    env: String,
}

impl Line {
    fn object(&self, event: &Event<'_>) -> Map<String, Value> {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("time".to_owned(), self.clock.now().unix_millis().into());
        line.insert(
            "level".to_owned(),
            metadata.level().as_str().to_lowercase().into(),
        );
        line.insert("msg".to_owned(), fields.message.into());
        line.insert("service".to_owned(), service(metadata.target()).into());
        line.insert("hostname".to_owned(), self.hostname.as_str().into());
        line.insert("pid".to_owned(), std::process::id().into());
        line.insert("version".to_owned(), VERSION.into());
        line.insert("env".to_owned(), self.env.as_str().into());
        for (name, value) in fields.others {
            // A field may not pass for one of ours.
            line.entry(name).or_insert(value);
        }
        line
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writeln!(out, "{}", Value::Object(self.object(event)))
    }
}

/// The service that a module belongs to: `caracal_sts::exchange` to `sts`; shared parts are the
/// process's.
fn service(target: &str) -> &str {
    let own = target
        .split("::")
        .next()
        .and_then(|krate| krate.strip_prefix("caracal_"));
    own.filter(|name| ["api", "sts", "gateway", "coordinator", "audit"].contains(name))
        .unwrap_or("caracal")
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn keep(&mut self, field: &Field, value: Value) {
        self.others.push((field.name().to_owned(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = masked(cut(value));
        if field.name() == "message" {
            self.message = text;
        } else {
            self.keep(field, text.into());
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, value.into());
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_VALUE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce()) -> Value {
        let lines = Lines::default();
        let into = lines.clone();
        let line = Line {
            clock: SystemClock::new(),
            hostname: "h".into(),
            env: "test".into(),
        };
        let layer = tracing_subscriber::fmt::layer()
            .event_format(line)
            .with_writer(move || into.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = lines.0.lock().unwrap().clone();
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 1);
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_line_has_the_published_keys_and_no_secret() {
        let secret = format!("cs_{}", "x".repeat(43));
        let line = logged(|| {
            tracing::warn!(target: "caracal_sts::exchange", n = 3, given = %secret, "two\nlines");
        });
        assert_eq!(line["level"], "warn");
        assert_eq!(line["msg"], "two\nlines");
        assert_eq!(
            (&line["service"], &line["env"]),
            (&"sts".into(), &"test".into())
        );
        assert_eq!((&line["n"], &line["given"]), (&3.into(), &"***".into()));
        assert!(line["time"].is_i64() && line["pid"].is_u64());
    }

    #[test]
    fn a_field_cannot_pass_for_one_of_ours() {
        let line = logged(|| tracing::info!(target: "other", pid = 1, level = "none", "m"));
        assert_eq!(
            (&line["level"], &line["service"]),
            (&"info".into(), &"caracal".into())
        );
        assert_eq!(line["pid"], std::process::id());
    }
}
