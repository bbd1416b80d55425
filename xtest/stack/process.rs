//! A process of a deployment: started, killed without warning, started again.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};

/// A command line with its environment, and the process that runs it now, if one does.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages.
    pub name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Not started yet. Its output is appended to `log`.
    pub fn new(
        name: &'static str,
        program: PathBuf,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        environment: Vec<(String, String)>,
        log: PathBuf,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self {
            name,
            program,
            arguments,
            environment,
            log,
            child: None,
        }
    }

    /// Starts it, as the leader of a process group of its own.
    ///
    /// # Panics
    /// When it cannot be started, or runs already.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log");
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUST_BACKTRACE", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .process_group(0)
            .spawn();
        let child =
            child.unwrap_or_else(|e| panic!("{} does not start: {e}", self.program.display()));
        self.child = Some(child);
    }

    /// `kill -9`: no destructor, no flush, no goodbye.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            drop(child.wait());
        }
    }

    /// Stops it where it is: it keeps its connections and answers nobody.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// When it has not after a minute.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.ends_on(Signal::TERM)
    }

    /// As [`Process::stop`], with a signal that means something else to it.
    ///
    /// # Panics
    /// As [`Process::stop`].
    pub fn ends_on(&mut self, signal: Signal) -> Option<ExitStatus> {
        self.signal(signal);
        let mut child = self.child.take()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                return Some(status);
            }
            assert!(
                Instant::now() < deadline,
                "{} does not stop\n{}",
                self.name,
                self.log_tail(40)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// From now on no file of its takes more than this many bytes, as on a disk that is full; `None`
    /// frees it. Its owner may do that to it without any privilege; it has to ignore the signal
    /// that comes with it ([`Process::minds_no_limit`]).
    ///
    /// # Panics
    /// When the system refuses.
    pub fn file_limit(&self, bytes: Option<u64>) {
        if let Some(child) = &self.child {
            let limit = Rlimit {
                current: bytes,
                maximum: None,
            };
            prlimit(Some(Pid::from_child(child)), Resource::Fsize, limit).expect("a limit");
        }
    }

    /// Starts it with `SIGXFSZ` ignored, so that a write beyond its limit is an error and not its
    /// end.
    #[must_use]
    pub fn minds_no_limit(mut self) -> Self {
        let script = r#"trap '' XFSZ; exec "$0" "$@""#;
        let program = std::mem::replace(&mut self.program, "/bin/sh".into());
        let before = ["-c".into(), script.into(), program.into_os_string()];
        self.arguments.splice(0..0, before);
        self
    }

    /// Whether it was started, and neither killed nor stopped since.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// How it ended, when it did so without being killed or stopped.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("a child of ours")
    }

    /// The last lines that it wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        format!(
            "--- {}\n{}",
            self.name,
            all[all.len().saturating_sub(lines)..].join("\n")
        )
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It may have ended by itself; then there is nobody to signal.
            let _ = kill_process_group(Pid::from_child(child), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}
