//! Logs: one JSON object a line on standard error (operations specification §2.6), and panics in one
//! line. Nothing that looks like a credential leaves through either.

mod queue;

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use caracal_crypto::os::SystemClock;
use caracal_model::Clock as _;
use caracal_net::logs;
use caracal_net::settings::{Mistakes, Strings};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Environment;
use crate::exit::masked;
use crate::version::VERSION;

pub use self::queue::flush;

caracal_net::settings! {
    /// How much is logged, and how.
    pub struct LogSettings {
        /// Least severity of what is logged: error, warn, info, debug or trace; for single parts as
        /// in `info,caracal_sts=debug`. Unset is info, or warn on a terminal.
        pub level: Option<String> = var("LOG_LEVEL").such_as("info"),
        /// Lines that may wait for a slow reader of standard error; further ones are dropped and
        /// counted.
        pub queue: usize = var("CARACAL_LOG_QUEUE_SIZE").or("16384").within("1", "1048576"),
        /// Of so many lines below info, one is logged.
        pub sample_debug: u64 = var("CARACAL_LOG_SAMPLE_DEBUG").or("1").within("1", "1000000"),
        /// Longer values are cut.
        pub max_field: usize = var("CARACAL_LOG_MAX_FIELD_BYTES").or("8192").within("64", "1048576"),
        /// What `env` says in every line.
        pub env: Option<String> = var("CARACAL_ENV").also("APP_ENV").such_as("production"),
    }
}

impl LogSettings {
    /// Reads the settings, and checks the level.
    pub fn read(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        Self::load_by(from, mistakes, |settings, mistakes| {
            if !settings.level.as_deref().is_none_or(is_level) {
                let right = "is one of error, warn, info, debug and trace, for example info";
                mistakes.add("LOG_LEVEL", right);
            }
        })
    }

    /// What counts when the settings cannot be used: the mistakes are to be told, and logged.
    fn unset() -> Option<Self> {
        let nothing = std::collections::BTreeMap::<String, String>::new();
        Self::load(&nothing, &mut Mistakes::default())
    }
}

/// The message of a panic may quote anything. What a panic ends is for others to say: a request, a
/// task and with it the process, or the command.
pub fn panics_end_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        say(&format!("caracal: internal error: {}", masked(&text)));
    }));
}

/// Whether each part is a severity, or gives one to a part of ours. The filter itself takes any word
/// for a part, and then logs nothing else.
fn is_level(text: &str) -> bool {
    let known = |word: &str| {
        let word = word.trim().to_ascii_lowercase();
        ["off", "error", "warn", "info", "debug", "trace"].contains(&word.as_str())
    };
    let is_right = |part: &str| known(part.rsplit('=').next().unwrap_or_default());
    text.split(',').all(is_right) && EnvFilter::try_new(text).is_ok()
}

/// A line on standard error, if that takes any: `eprintln!` panics where it is a file on a disk that
/// is full, and no decision may fail for want of a log line.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Starts logging at `LOG_LEVEL`; without one, `info`, or `warn` on a terminal, where a person
/// reads and not a collector.
pub fn start(environment: &Environment) {
    let unset = if std::io::stderr().is_terminal() {
        "warn"
    } else {
        "info"
    };
    let settings = LogSettings::read(environment, &mut Mistakes::default());
    let Some(settings) = settings.or_else(LogSettings::unset) else {
        return;
    };
    let filter = EnvFilter::new(settings.level.as_deref().unwrap_or(unset));
    let line = Line {
        clock: SystemClock::new(),
        hostname: hostname(),
        env: settings.env.unwrap_or_default(),
        max_field: settings.max_field,
    };
    let lines = tracing_subscriber::fmt::layer()
        .event_format(line)
        // It would tell of a log that takes no lines with `eprintln!`.
        .log_internal_errors(false);
    let lines = match queue::Queue::of_process(settings.queue) {
        Ok(queue) => lines.with_writer(move || queue.clone()).boxed(),
        // Without a thread to spare, lines are written where they come up.
        Err(_) => lines.with_writer(std::io::stderr).boxed(),
    };
    // A second start in one process (tests) keeps the first.
    drop(
        tracing_subscriber::registry()
            .with(filter)
            .with(Sample::one_in(settings.sample_debug))
            .with(lines)
            .try_init(),
    );
}

/// Lets one of so many events below `info` through.
struct Sample {
    one_in: u64,
    seen: AtomicU64,
}

impl Sample {
    fn one_in(one_in: u64) -> Self {
        Self {
            one_in: one_in.max(1),
            seen: AtomicU64::new(0),
        }
    }
}

impl<S: Subscriber> Layer<S> for Sample {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // What is more verbose is greater.
        if self.one_in == 1 || *event.metadata().level() <= Level::INFO {
            return true;
        }
        let passes = self
            .seen
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(self.one_in);
        if !passes {
            logs::sampled();
        }
        passes
    }
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
    /// Bytes of a value beyond which it is cut.
    max_field: usize,
}

impl Line {
    fn object(&self, event: &Event<'_>) -> Map<String, Value> {
        let metadata = event.metadata();
        let mut fields = Fields {
            max: self.max_field,
            ..Fields::default()
        };
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
        let current = caracal_net::trace::current(Clone::clone);
        if let Some(trace) = current.as_ref().and_then(|current| current.trace) {
            line.insert("trace_id".to_owned(), trace.trace_text().into());
            line.insert("span_id".to_owned(), trace.span_text().into());
        }
        for (name, value) in fields.others {
            // A field may not pass for one of ours.
            line.entry(name).or_insert(value);
        }
        if let Some(current) = current {
            let request_id = current.request_id.as_str().into();
            line.entry("request_id").or_insert(request_id);
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
    /// Longest value, in bytes.
    max: usize,
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
        let text = masked(cut(value, self.max));
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

fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
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
            max_field: 64,
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
    fn long_values_are_cut() {
        let line = logged(|| tracing::info!(target: "other", long = "ä".repeat(40), "m"));
        assert_eq!(line["long"], "ä".repeat(32));
    }

    #[test]
    fn of_so_many_debug_lines_one_is_logged_and_the_others_are_counted() {
        let lines = Lines::default();
        let into = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || into.clone());
        let layers = tracing_subscriber::registry()
            .with(Sample::one_in(3))
            .with(layer);
        let before = logs::counts().sampled;
        tracing::subscriber::with_default(layers, || {
            for n in 0..6 {
                tracing::debug!(n, "often");
                tracing::info!(n, "seldom");
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("often").count(), 2);
        assert_eq!(text.matches("seldom").count(), 6);
        assert!(logs::counts().sampled >= before + 4);
    }

    #[test]
    fn an_unknown_level_is_a_mistake() {
        let read = |level: &str| {
            let environment = Environment::of_pairs(&[("LOG_LEVEL", level)]);
            let mut mistakes = Mistakes::default();
            LogSettings::read(&environment, &mut mistakes);
            mistakes.to_string()
        };
        assert_eq!(read("info,caracal_sts=debug"), "");
        for wrong in ["verbose", "info,=,", "caracal_sts=loud", "info,caracal_sts"] {
            assert!(read(wrong).starts_with("LOG_LEVEL: "), "{wrong}");
        }
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
