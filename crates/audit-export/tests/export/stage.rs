//! A ledger whose hours pass when a test says so, and an exporter of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::Ingest;
use caracal_audit_export::{Bucket, Config, Deps, Exporter, Manifest, Metrics};
use caracal_bus::Bus;
use caracal_crypto::digest::sha256_hex;
use caracal_model::{Clock, TestClock};
use caracal_net::settings::Mistakes;
use caracal_store::Store;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;

/// A ledger with a clock of its own, and a directory that it is exported to.
pub struct Stage {
    pub store: Store,
    pub clock: Arc<TestClock>,
    bus: Bus,
    ingest: Ingest,
    pub dir: tempfile::TempDir,
    made: usize,
    settled: bool,
}

impl Stage {
    /// At the start of an hour.
    pub fn new(store: Store) -> Self {
        let clock = Arc::new(TestClock::default());
        let now = clock.now().unix_micros().rem_euclid(3_600_000_000);
        clock.advance(Duration::from_micros(
            u64::try_from(3_600_000_000 - now).unwrap(),
        ));
        let ingest = Ingest::new(store.clone(), None, clock.clone());
        let dir = tempfile::tempdir().unwrap();
        Self {
            store,
            bus: Bus::memory(clock.clone()),
            clock,
            ingest,
            dir,
            made: 0,
            settled: false,
        }
    }

    /// Ingests so many events.
    pub async fn events(&mut self, zone: &str, count: usize) {
        let mut texts = Vec::new();
        for _ in 0..count {
            self.made += 1;
            let (id, at) = (self.made, self.clock.now().iso_micros());
            texts.push(format!(
                r#"{{"id":"e{id}","zone_id":"{zone}","event_type":"token_exchange","request_id":"r{id}","decision":"allow","evaluation_status":"complete","determining_policies_json":[],"diagnostics_json":[],"metadata_json":{{"resource":"resource://crm"}},"occurred_at":"{at}"}}"#
            ));
        }
        self.ingest.commit(texts).await.unwrap();
    }

    /// One into the directory.
    pub fn exporter(&self) -> Exporter {
        self.exporter_of("me")
    }

    /// One of this process into the directory.
    pub fn exporter_of(&self, holder: &str) -> Exporter {
        let dir = self.dir.path().display().to_string();
        self.made_with(&[("AUDIT_EXPORT_DIR", &dir)], holder)
    }

    /// One with these settings.
    pub fn exporter_with(&self, settings: &[(&str, &str)]) -> Exporter {
        self.made_with(settings, "me")
    }

    fn made_with(&self, settings: &[(&str, &str)], holder: &str) -> Exporter {
        let from: BTreeMap<String, String> = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut mistakes = Mistakes::default();
        let config = Config::read(&from, &mut mistakes).unwrap();
        assert!(mistakes.is_empty(), "{mistakes}");
        let bucket = Bucket::open(&config, None, self.clock.clone()).unwrap();
        let deps = Deps {
            store: self.store.clone(),
            bus: self.bus.clone(),
            holder: holder.to_owned(),
            clock: self.clock.clone(),
            metrics: Metrics::default(),
        };
        Exporter::new(deps, bucket.unwrap(), &config)
    }

    /// So many hours later; for the first time, just after the end of one.
    pub fn hours_pass(&mut self, hours: u64) {
        let settle = if std::mem::replace(&mut self.settled, true) {
            0
        } else {
            61
        };
        self.clock
            .advance(Duration::from_secs(3_600 * hours + settle));
    }

    /// Every object, by key: its rows as `zone:seq`, and its manifest.
    pub fn objects(&self) -> Vec<(String, Vec<String>, Manifest)> {
        let mut found = Vec::new();
        walk(self.dir.path(), &mut |path| {
            let key = path.strip_prefix(self.dir.path()).unwrap();
            let key = key.display().to_string();
            let Some(stem) = key.strip_suffix(".parquet") else {
                return;
            };
            let manifest = self.dir.path().join(format!("{stem}.manifest.json"));
            let manifest: Manifest =
                serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
            let bytes = std::fs::read(path).unwrap();
            assert_eq!(manifest.object, key);
            assert_eq!(manifest.sha256, sha256_hex(&bytes));
            assert_eq!(manifest.bytes, bytes.len() as u64);
            found.push((key, rows(bytes), manifest));
        });
        found.sort_by(|a, b| a.2.hour.cmp(&b.2.hour).then(a.2.part.cmp(&b.2.part)));
        found
    }

    /// The rows of each object.
    pub fn exported(&self) -> Vec<Vec<String>> {
        self.objects()
            .into_iter()
            .map(|(_, rows, _)| rows)
            .collect()
    }
}

fn walk(dir: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, each);
        } else {
            each(&path);
        }
    }
}

fn rows(bytes: Vec<u8>) -> Vec<String> {
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
    reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            format!(
                "{}:{}",
                row.get_string(6).unwrap(),
                row.get_long(5).unwrap()
            )
        })
        .collect()
}
