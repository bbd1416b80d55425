//! What evidence costs: events a second of processor time, bytes on disk an event, and how long
//! reads take among so many.
//!
//! **Forces.** Ingestion has no public wire of its own when embedded, and behind a bus it is the bus
//! that is measured first.
//!
//! **Choice.** The one part of this program that links the server's crates: it hands batches to the
//! ledger as the relay of evidence does, on a store of its own, and asks the questions of the API.
//! Events are made before the clock runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use caracal_audit::Ingest;
use caracal_crypto::HmacKey;
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Ids, Secret, Timestamp, ZoneId};
use caracal_store::audit_events::AuditFilter;
use caracal_store::{Durability, PoolOptions, Sql, Store, StoreConfig, StoreUrl};
use serde::Serialize;

use crate::args::Format;
use crate::latency::Latency;
use crate::procs;
use crate::report::{Percentiles, table};

mod events;

use events::Maker;

/// Events that are made at a time, before the clock runs for them.
const CHUNK: u64 = 20_000;
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Measure the ledger: ingestion, bytes an event, reads
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// Events that are appended
    #[arg(long, default_value_t = 200_000)]
    pub events: u64,
    /// Events of one batch
    #[arg(long, default_value_t = 1_000)]
    pub batch: usize,
    /// Zones that they belong to
    #[arg(long, default_value_t = 4)]
    pub zones: usize,
    /// Reads of each kind
    #[arg(long, default_value_t = 200)]
    pub reads: u32,
    /// An empty Postgres database of this program's own, instead of SQLite
    #[arg(long, env = "CARACAL_BENCH_POSTGRES", hide_env_values = true)]
    pub postgres: Option<String>,
    /// Directory of the SQLite file, which is removed afterwards [default: the system's]
    #[arg(long)]
    pub scratch: Option<PathBuf>,
    /// How the report is written to standard output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// The result.
#[derive(Debug, Serialize)]
pub struct AuditReport {
    pub engine: &'static str,
    pub events: u64,
    pub zones: usize,
    pub batch: usize,
    /// Mean length of a text.
    pub text_bytes: f64,
    /// Stored, indexes included.
    pub stored_bytes_per_event: f64,
    pub seconds: f64,
    pub events_per_second: f64,
    /// Of this process; that of a Postgres server is not in it.
    pub cpu_seconds: f64,
    pub events_per_cpu_second: f64,
    pub reads: Vec<ReadReport>,
}

/// One kind of read.
#[derive(Debug, Serialize)]
pub struct ReadReport {
    pub what: &'static str,
    /// Rows of the last answer.
    pub rows: usize,
    pub latency_ms: Percentiles,
}

/// Where the ledger is while it is measured.
struct Place {
    store: Store,
    directory: Option<PathBuf>,
}

/// Runs the measurement and prints its report.
pub fn run(args: &AuditArgs) -> anyhow::Result<()> {
    if args.events == 0 || args.batch == 0 || args.zones == 0 {
        bail!("--events, --batch and --zones must be at least 1");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(Box::pin(async {
        let place = open(args).await?;
        let measured = Box::pin(measure(args, &place.store)).await;
        place.store.shutdown().await;
        if let Some(directory) = place.directory {
            std::fs::remove_dir_all(directory)?;
        }
        measured
    }))?;
    println!("{}", report.render(args.format)?);
    Ok(())
}

async fn open(args: &AuditArgs) -> anyhow::Result<Place> {
    let clock = Arc::new(SystemClock::new());
    let ids = Arc::new(Ids::new(clock.clone(), Arc::new(OsRng)));
    let (url, directory) = match &args.postgres {
        Some(url) => {
            let url = StoreUrl::Pg {
                url: Secret::new(url.clone()),
                tls: None,
                pool: PoolOptions {
                    connect_timeout: Duration::from_secs(10),
                    statement_timeout: Duration::from_secs(60),
                    ..PoolOptions::default()
                },
            };
            (url, None)
        }
        None => {
            let base = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
            let directory = base.join(format!("caracal-bench-audit-{}", std::process::id()));
            (StoreUrl::Lite(directory.join("store.db")), Some(directory))
        }
    };
    let durability = Durability::Process;
    let store = Store::open(StoreConfig { url, durability }, clock, ids).await?;
    store.migrate().await.context("the schema")?;
    if !store.audit_zones().await?.is_empty() {
        bail!("this database has evidence in it; give one that is empty");
    }
    Ok(Place { store, directory })
}

async fn measure(args: &AuditArgs, store: &Store) -> anyhow::Result<AuditReport> {
    let clock = Arc::new(SystemClock::new());
    let key = HmacKey::from_hex(KEY).context("the key")?;
    let ingest = Ingest::new(store.clone(), Some(key), clock.clone());
    let mut maker = Maker::new(Ids::new(clock, Arc::new(OsRng)), args.zones);
    let empty = stored_bytes(store).await?;
    let (mut seconds, mut cpu_seconds, mut text_bytes) = (0.0, 0.0, 0_u64);
    let mut left = args.events;
    while left > 0 {
        let count = left.min(CHUNK);
        let texts: Vec<String> = (0..count).map(|_| maker.event()).collect();
        text_bytes += texts.iter().map(|text| text.len() as u64).sum::<u64>();
        let (began, cpu) = (Instant::now(), procs::own_cpu_seconds());
        for batch in texts.chunks(args.batch) {
            let outcome = ingest.commit(batch.to_vec()).await?;
            if outcome.inserted != batch.len() {
                bail!("not every event was appended: {outcome:?}");
            }
        }
        seconds += began.elapsed().as_secs_f64();
        cpu_seconds += procs::own_cpu_seconds() - cpu;
        left -= count;
    }
    let stored = stored_bytes(store).await?.saturating_sub(empty);
    let reads = reads(args, store, &maker).await?;
    #[expect(clippy::cast_precision_loss, reason = "counts of a run fit 52 bits")]
    let (events, text_bytes, stored) = (args.events as f64, text_bytes as f64, stored as f64);
    Ok(AuditReport {
        engine: if args.postgres.is_some() {
            "Postgres"
        } else {
            "SQLite"
        },
        events: args.events,
        zones: args.zones,
        batch: args.batch,
        text_bytes: text_bytes / events,
        stored_bytes_per_event: stored / events,
        seconds,
        events_per_second: events / seconds,
        cpu_seconds,
        events_per_cpu_second: if cpu_seconds > 0.0 {
            events / cpu_seconds
        } else {
            0.0
        },
        reads,
    })
}

const STORED: Sql = Sql {
    name: "bench::STORED",
    pg: "SELECT CAST(COALESCE(SUM(pg_total_relation_size(inhrelid)), 0) AS BIGINT) AS bytes
         FROM pg_inherits WHERE inhparent = 'audit_events'::regclass",
    lite: "SELECT page_count * page_size AS bytes FROM pragma_page_count(), pragma_page_size()",
};

async fn stored_bytes(store: &Store) -> anyhow::Result<u64> {
    let row = store.query_opt(&STORED, &[]).await?;
    Ok(row.context("the size of the ledger")?.count("bytes")?)
}

async fn reads(args: &AuditArgs, store: &Store, maker: &Maker) -> anyhow::Result<Vec<ReadReport>> {
    let zone = maker.zone(0);
    let (request, session, record) = maker.last_of(0);
    let old = maker.began().plus(Duration::from_micros(1));
    let all = AuditFilter::default;
    let request = AuditFilter {
        request_id: Some(request),
        ..all()
    };
    let session = AuditFilter {
        session_id: Some(session),
        ..all()
    };
    let record = AuditFilter {
        authority_record_id: Some(record),
        ..all()
    };
    let denied = AuditFilter {
        decision: Some("deny"),
        ..all()
    };
    let mut reports = Vec::new();
    for (what, filter, after) in [
        ("newest 50", all(), None),
        ("50 in the middle", all(), maker.middle()),
        ("denied, newest 50", denied, None),
        ("of a request", request, None),
        ("of a Session", session, None),
        ("of an Authority record", record, None),
        (
            "oldest 50 by time",
            AuditFilter {
                until: Some(old),
                ..all()
            },
            None,
        ),
    ] {
        reports.push(read(args, store, zone, what, filter, after).await?);
    }
    Ok(reports)
}

async fn read(
    args: &AuditArgs,
    store: &Store,
    zone: &ZoneId,
    what: &'static str,
    filter: AuditFilter<'_>,
    after: Option<Timestamp>,
) -> anyhow::Result<ReadReport> {
    let audit = store.zone(zone).audit();
    let after = after.map(|at| (at, "~"));
    let mut latency = Latency::new()?;
    let mut rows = 0;
    // The first ones warm what a running server has warm: connections, statements, plans.
    for round in 0..args.reads.saturating_add(10) {
        let began = Instant::now();
        rows = audit.page(&filter, after, 50).await?.len();
        if round >= 10 {
            latency.note(began.elapsed());
        }
    }
    Ok(ReadReport {
        what,
        rows,
        latency_ms: Percentiles::from(&latency),
    })
}

impl AuditReport {
    fn render(&self, format: Format) -> anyhow::Result<String> {
        let bullet = match format {
            Format::Json => return Ok(serde_json::to_string_pretty(self)?),
            Format::Table => "  ",
            Format::Markdown => "- ",
        };
        let mut rows = vec![
            ["read", "rows", "p50 ms", "p95 ms", "p99 ms", "max ms"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for read in &self.reads {
            let ms = |value: f64| format!("{value:.2}");
            let at = &read.latency_ms;
            let mut cells = vec![read.what.to_owned(), read.rows.to_string()];
            cells.extend([at.p50, at.p95, at.p99, at.max].map(ms));
            rows.push(cells);
        }
        let mut out = format!("{}\n", table(&rows, format == Format::Markdown));
        for fact in [
            format!(
                "{}: {} events in {} zones, batches of {}",
                self.engine, self.events, self.zones, self.batch
            ),
            format!(
                "{:.0} events a second; {:.0} a second of this program's processor time",
                self.events_per_second, self.events_per_cpu_second
            ),
            format!(
                "{:.0} bytes stored an event, indexes included; its text has {:.0}",
                self.stored_bytes_per_event, self.text_bytes
            ),
        ] {
            out.extend([bullet, fact.as_str(), "\n"]);
        }
        out.truncate(out.trim_end().len());
        Ok(out)
    }
}
