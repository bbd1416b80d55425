//! The loop that exports: one process of the deployment, one object at a time, in order.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caracal_bus::Bus;
use caracal_crypto::digest::sha256_hex;
use caracal_model::{Clock, Timestamp};
use caracal_store::Store;
use caracal_store::audit_exports::{Export, ExportRange};
use tokio_util::sync::CancellationToken;

use crate::ExportError;
use crate::bucket::Bucket;
use crate::config::Config;
use crate::manifest::{Chain, Manifest, Stretch, ZoneStretch};
use crate::metrics::Metrics;
use crate::plan::{MOST_EVENTS, Planner, hours_between, last_complete, manifest_key};
use crate::table::{Table, hold_the_same};

const LEADER: &str = "caracal:audit:export";
/// Between two looks at whether an hour is complete, and at who leads.
const EVERY: Duration = Duration::from_secs(10);
/// How long a leader that is silent stays one.
const LEASE: Duration = Duration::from_secs(120);
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Events that are read at a time.
const PAGE: u32 = 1_000;

/// What the deployment hands to the export.
pub struct Deps {
    /// The ledger.
    pub store: Store,
    /// Elects who exports.
    pub bus: Bus,
    /// Names this process among those that might.
    pub holder: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counts.
    pub metrics: Metrics,
}

/// Exports complete hours to a bucket.
pub struct Exporter {
    deps: Deps,
    bucket: Bucket,
    tmp_dir: PathBuf,
    first: Option<Timestamp>,
    most_events: u64,
    /// The last hour that is known to be exported.
    through: Option<Timestamp>,
    failures: u32,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter")
            .field("holder", &self.deps.holder)
            .finish_non_exhaustive()
    }
}

impl Exporter {
    /// Exports into `bucket`.
    pub fn new(deps: Deps, bucket: Bucket, config: &Config) -> Self {
        Self {
            deps,
            bucket,
            tmp_dir: config.tmp_dir.clone().unwrap_or_else(std::env::temp_dir),
            first: config.first(),
            most_events: MOST_EVENTS,
            through: None,
            failures: 0,
        }
    }

    /// The same, with objects of at most so many events.
    #[must_use]
    pub fn at_most(mut self, events: u64) -> Self {
        self.most_events = events.max(1);
        self
    }

    /// Exports every hour once it is complete, while this process leads, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wait = tokio::select! {
                () = stop.cancelled() => return,
                wait = self.turn() => wait,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look; answers with how long to wait for the next.
    async fn turn(&mut self) -> Duration {
        match self.catch_up().await {
            Ok(_) => {
                self.failures = 0;
                EVERY
            }
            Err(error) => {
                self.deps.metrics.errors.inc();
                tracing::warn!(%error, "the ledger was not exported; it is tried again");
                self.failures = self.failures.saturating_add(1);
                EVERY
                    .saturating_mul(1 << self.failures.min(5))
                    .min(LONGEST_WAIT)
            }
        }
    }

    /// Exports everything that is complete, if this process leads; answers with how many objects.
    ///
    /// # Errors
    /// [`ExportError`]: what was exported before it stays so, and the next call goes on behind it.
    pub async fn catch_up(&mut self) -> Result<u64, ExportError> {
        let mut objects = 0;
        while self.leads().await {
            let target = last_complete(self.deps.clock.now());
            if self.through.is_some_and(|through| through >= target) {
                break;
            }
            let planner = Planner {
                store: &self.deps.store,
                first: self.first,
                most_events: self.most_events,
            };
            let next = planner.next(target, self.deps.clock.now()).await?;
            self.measure(target).await?;
            let Some(plan) = next else { break };
            self.write(&plan).await?;
            objects += 1;
            self.measure(target).await?;
        }
        Ok(objects)
    }

    async fn leads(&self) -> bool {
        let Deps {
            bus,
            holder,
            metrics,
            ..
        } = &self.deps;
        let leads = bus.lead(LEADER, holder, LEASE).await;
        let leads = leads.unwrap_or_else(|error| {
            tracing::warn!(%error, "it is not known who exports the ledger");
            false
        });
        metrics.leads(leads);
        leads
    }

    /// Notes how far the export is.
    async fn measure(&mut self, target: Timestamp) -> Result<(), ExportError> {
        let Some(last) = self.deps.store.last_audit_export().await? else {
            return Ok(());
        };
        let done = if last.ends_hour && last.exported_at.is_some() {
            last.hour
        } else {
            last.hour.minus(Duration::from_secs(3_600))
        };
        self.through = Some(done);
        self.deps
            .metrics
            .backlog_hours
            .set(hours_between(done, target));
        Ok(())
    }

    /// Writes a planned object and its manifest, and records that they are there.
    async fn write(&self, plan: &Export) -> Result<(), ExportError> {
        let began = self.deps.clock.ticks();
        let ranges = self.deps.store.audit_export_ranges(&plan.object).await?;
        let (zones, file) = self.encode(ranges).await?;
        let mut manifest = Manifest::of(plan, zones);
        let contents = self.upload(&plan.object, file).await?;
        manifest.bytes = u64::try_from(contents.len()).unwrap_or(u64::MAX);
        manifest.sha256 = sha256_hex(&contents);
        self.upload_manifest(&manifest).await?;
        self.deps
            .store
            .audit_export_done(&plan.object, &manifest.sha256)
            .await?;
        let metrics = &self.deps.metrics;
        metrics.events.inc_by(manifest.events);
        metrics.took(self.deps.clock.ticks().since(began));
        tell(&manifest);
        Ok(())
    }

    /// The rows of these stretches as a file, and what was found on the way.
    async fn encode(
        &self,
        ranges: Vec<ExportRange>,
    ) -> Result<(Vec<ZoneStretch>, Bytes), ExportError> {
        let scratch = tempfile::tempfile_in(&self.tmp_dir);
        let scratch = scratch.map_err(file("making a file in AUDIT_EXPORT_TMP_DIR"))?;
        let mut table = Table::new(scratch)?;
        let mut zones = Vec::with_capacity(ranges.len());
        for range in ranges {
            let stretch;
            (table, stretch) = self.rows(table, range).await?;
            zones.push(stretch);
        }
        let contents = off_the_runtime(move || contents(table.finish()?)).await?;
        Ok((zones, contents))
    }

    async fn rows(
        &self,
        mut table: Table<File>,
        range: ExportRange,
    ) -> Result<(Table<File>, ZoneStretch), ExportError> {
        let to = range.to.chain_seq;
        let mut at = range.after.chain_seq;
        let zone = range.to.zone.clone();
        let mut stretch = Stretch::new(range);
        while at < to {
            let page = self.deps.store.zone(&zone).audit().chain(at, PAGE).await?;
            // Where the rest is no longer kept, there is nothing up to the end.
            at = page.last().map_or(to, |event| event.chain_seq);
            (table, stretch) = off_the_runtime(move || {
                for event in page.iter().filter(|event| event.chain_seq <= to) {
                    stretch.push(event);
                    table.push(event)?;
                }
                Ok((table, stretch))
            })
            .await?;
        }
        Ok((table, stretch.finish()))
    }

    /// Creates the object; answers with what is there: ours, or the same events from an attempt
    /// that was not recorded.
    async fn upload(&self, key: &str, ours: Bytes) -> Result<Bytes, ExportError> {
        let Some(there) = self.bucket.create(key, ours.clone()).await? else {
            return Ok(ours);
        };
        if there == ours {
            return Ok(there);
        }
        // Another version of this program may have encoded the same events otherwise.
        let kept = there.clone();
        let same = off_the_runtime(move || Ok(hold_the_same(there, ours).unwrap_or(false))).await?;
        if same {
            Ok(kept)
        } else {
            Err(ExportError::Taken {
                object: key.to_owned(),
            })
        }
    }

    async fn upload_manifest(&self, manifest: &Manifest) -> Result<(), ExportError> {
        let key = manifest_key(&manifest.object);
        let there = self.bucket.create(&key, manifest.text().into()).await?;
        let same = there.is_none_or(|there| {
            serde_json::from_slice::<Manifest>(&there).is_ok_and(|there| there == *manifest)
        });
        if same {
            Ok(())
        } else {
            Err(ExportError::Taken { object: key })
        }
    }
}

fn tell(manifest: &Manifest) {
    let (object, events) = (manifest.object.as_str(), manifest.events);
    tracing::info!(object, events, "exported");
    for zone in &manifest.zones {
        if let Chain::Broken { seq, why } = &zone.chain {
            let zone_id = zone.zone_id.as_str();
            tracing::error!(
                object,
                zone_id,
                seq,
                why,
                "exported a chain that does not hold"
            );
        }
    }
}

fn contents(mut scratch: File) -> Result<Bytes, ExportError> {
    let mut contents = Vec::new();
    scratch
        .seek(SeekFrom::Start(0))
        .and_then(|_| scratch.read_to_end(&mut contents))
        .map_err(file("reading the file in AUDIT_EXPORT_TMP_DIR"))?;
    Ok(contents.into())
}

fn file(doing: &'static str) -> impl FnOnce(std::io::Error) -> ExportError {
    move |source| ExportError::File { doing, source }
}

/// Compression and hashing take long enough to hold up others.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(ExportError::Interrupted))
}
