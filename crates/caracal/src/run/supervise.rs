//! The second life of a launch: starts the command, forwards signals, and ends as it ended.
//!
//! **Forces.** A signal to the launcher is meant for the command. But what a terminal sends (Ctrl-C,
//! Ctrl-\, a hangup) goes to all processes in its foreground: a copy from us would be a second one,
//! which many programs take for "now, at once".
//!
//! **Choice.** The command stays in our process group, so the terminal, the shell's job control and
//! Ctrl-Z work as without us; and we forward only what a process sent, not what the kernel did.
//! Signals that we were started to ignore (`nohup`) stay ignored, for the command too.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitCode, ExitStatus};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
use signal_hook::low_level::siginfo::Cause;

use super::leash;
use crate::exit::Outcome;

const FORWARDED: [(i32, Signal); 4] = [
    (SIGHUP, Signal::HUP),
    (SIGINT, Signal::INT),
    (SIGQUIT, Signal::QUIT),
    (SIGTERM, Signal::TERM),
];
pub fn run(command: &[OsString]) -> Outcome {
    let ignored = ignored_signals();
    let heard = FORWARDED
        .iter()
        .map(|(number, _)| *number)
        .filter(|number| ignored & bit(*number) == 0);
    // Before the command is there: whatever comes from now on is for it.
    let mut signals = SignalsInfo::<WithOrigin>::new(heard.chain([SIGCHLD]))
        .context("signals cannot be handled")?;
    let mut child = match leash::command(command)?.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(leash::not_started(command, &error)),
    };
    loop {
        // Looked at first: it may have ended before anything was heard.
        if let Some(status) = child.try_wait().context("the command is lost")? {
            return Ok(told(status));
        }
        for origin in signals.wait() {
            forward(&mut child, &origin);
        }
    }
}

/// Passes on what a process sent. One thread waits for the command and signals it, so its pid is
/// never that of another by then.
fn forward(child: &mut Child, origin: &Origin) {
    let named = FORWARDED
        .iter()
        .find(|(number, _)| *number == origin.signal);
    let Some((_, signal)) = named else {
        return;
    };
    let ended = !matches!(child.try_wait(), Ok(None));
    if ended || matches!(origin.cause, Cause::Kernel) {
        return;
    }
    // It may end this very moment, which is what was wanted.
    let _ = kill_process(Pid::from_child(child), *signal);
}

fn told(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The mask of ignored signals, where the system tells it.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}
