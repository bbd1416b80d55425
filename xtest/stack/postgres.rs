//! A Postgres server of one test, which may crash and be away without anybody else noticing.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio_postgres::NoTls;

use crate::ports;
use crate::process::Process;

/// Who runs it when we are root, as which it refuses to run.
const USER: &str = "postgres";
const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// The server, and everything that it keeps.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    /// Where it is.
    pub url: String,
    _directory: TempDir,
}

impl Postgres {
    /// Makes one and starts it. `None` where [`is_there`] says no.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Option<Self> {
        let programs = programs()?;
        let directory = tempfile::Builder::new()
            .prefix("caracal-xtest-pg-")
            .tempdir()
            .expect("a directory");
        let place = directory.path();
        if rustix::process::geteuid().is_root() {
            let owned = Command::new("chown").arg(USER).arg(place).status();
            assert!(owned.is_ok_and(|status| status.success()), "chown {USER}");
        }
        let data = place.join("data");
        let made = as_its_user(place, &programs.join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"])
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{made:?}");
        // In the file, so that a test may turn it on.
        append(&data.join("postgresql.conf"), "fsync = off\n");
        let port = ports::free();
        let process = Self::process(place, &programs.join("postgres"), &data, port);
        let mut server = Self {
            process,
            url: format!("postgres://postgres@127.0.0.1:{port}/postgres"),
            _directory: directory,
        };
        server.starts().await;
        Some(server)
    }

    fn process(place: &Path, program: &Path, data: &Path, port: u16) -> Process {
        let command = as_its_user(place, program);
        let arguments = command.get_args().map(ToOwned::to_owned);
        let own = format!(
            "-D {} -p {port} -k {} -c listen_addresses=127.0.0.1 \
             -c max_connections=200 -c shared_buffers=32MB -c max_wal_size=256MB",
            data.display(),
            place.display()
        );
        let arguments: Vec<_> = arguments
            .chain(own.split_whitespace().map(Into::into))
            .collect();
        let log = place.join("log");
        Process::new(
            "postgres",
            command.get_program().into(),
            arguments,
            vec![],
            log,
        )
    }

    /// Starts it and waits until it answers. What an earlier one left behind may keep the first
    /// attempts from starting.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn starts(&mut self) {
        let deadline = Instant::now() + STARTED_WITHIN;
        loop {
            if self.process.ended().is_some() {
                self.process.kill9();
            }
            if !self.process.is_started() {
                self.process.start();
            }
            let connected = tokio_postgres::connect(&self.url, NoTls);
            let connected = tokio::time::timeout(Duration::from_secs(1), connected).await;
            if matches!(connected, Ok(Ok(_))) {
                return;
            }
            assert!(Instant::now() < deadline, "{}", self.process.log_tail(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends at once, without a word to whoever is connected; the next start recovers from its log.
    pub fn crashes(&mut self) {
        self.process.ends_on(Signal::QUIT);
    }
}

fn append(path: &Path, line: &str) {
    let file = std::fs::OpenOptions::new().append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.expect("a configuration");
}

/// `env -C place setpriv … program`: processes that replace one another, so that the one which is
/// killed is the server.
fn as_its_user(place: &Path, program: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg("-C").arg(place);
    if rustix::process::geteuid().is_root() {
        command.arg("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    }
    command.arg(program);
    command
}

/// Whether there is a Postgres to start.
pub fn is_there() -> bool {
    programs().is_some()
}

/// Where the newest Postgres has its programs.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let found = versions
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    let mut found: Vec<PathBuf> = found.filter(|bin| bin.join("initdb").exists()).collect();
    let version = |bin: &PathBuf| -> f64 {
        let name = bin.parent().and_then(Path::file_name);
        let name = name.and_then(|name| name.to_str());
        name.and_then(|name| name.parse().ok()).unwrap_or(0.0)
    };
    found.sort_by(|a, b| version(a).total_cmp(&version(b)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_the_path = std::env::split_paths(&path).find(|bin| bin.join("initdb").exists());
    found.pop().or(on_the_path)
}
