//! A command that ends with its launcher, however that ends.
//!
//! **Forces.** A launcher that is killed (`kill -9`, out of memory) can do nothing about its command,
//! which would run on with its credentials and without anybody who knows of it.
//!
//! **Choice.** The kernel ends it: on Linux a process can ask to be killed when its parent dies. It
//! has to ask for itself, between fork and exec, where no safe code of ours can run; so this binary
//! is run once more, asks, and becomes the command. What the command starts in turn is its own
//! affair, as in any shell.
//!
//! **Consequence.** A program that runs as somebody else (setuid, file capabilities) loses the leash
//! when it starts: the kernel's rule. Elsewhere than on Linux the command is started directly.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::Context as _;

use crate::exit::Outcome;
use crate::term;

/// The command cannot be started.
const NOT_STARTED: u8 = 127;

/// What starts the command.
pub fn command(command: &[OsString]) -> anyhow::Result<Command> {
    if !cfg!(target_os = "linux") {
        return plain(command);
    }
    let myself = std::env::current_exe()
        .context("this program cannot find itself to start the command; is /proc mounted?")?;
    let mut leashed = Command::new(myself);
    leashed
        .args(["run", "--leash", &std::process::id().to_string(), "--"])
        .args(command);
    Ok(leashed)
}

fn plain(command: &[OsString]) -> anyhow::Result<Command> {
    let (program, arguments) = command.split_first().context("which command?")?;
    let mut plain = Command::new(program);
    plain.args(arguments);
    Ok(plain)
}

/// Asks to end with the launcher, then becomes the command; comes back only when that fails.
pub fn become_the_command(launcher: i32, command: &[OsString]) -> Outcome {
    end_with(launcher)?;
    let error = plain(command)?.exec();
    Ok(not_started(command, &error))
}

#[cfg(target_os = "linux")]
fn end_with(launcher: i32) -> anyhow::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL))
        .context("the command cannot be made to end with its launcher")?;
    // It may have ended before we asked; then nobody is left to tell us.
    let parent = getppid().map(|parent| parent.as_raw_nonzero().get());
    anyhow::ensure!(parent == Some(launcher), "the launcher has ended");
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn end_with(_: i32) -> anyhow::Result<()> {
    Ok(())
}

/// Says why there is no command; the code that a shell has for it.
pub fn not_started(command: &[OsString], error: &io::Error) -> ExitCode {
    let program = command.first().cloned().unwrap_or_default();
    let program = program.display();
    eprintln!(
        "{} {program} cannot be started: {error}",
        term::red("error:")
    );
    ExitCode::from(NOT_STARTED)
}
