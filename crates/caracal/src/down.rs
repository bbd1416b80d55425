//! `caracal down`: asks the running `up` to stop, and waits until it has.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::Data;
use crate::exit::Outcome;
use crate::home::Home;
use crate::term;

/// Drain and flush take up to 35 s (operations specification §5).
const STOPPED_WITHIN: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub fn run(data: &Data) -> Outcome {
    let (_, home) = data.open()?;
    let Some(pid) = home.owner()? else {
        println!("not running on {}", home.path().display());
        return Ok(ExitCode::SUCCESS);
    };
    ask(pid)?;
    let gone = crate::up::small_runtime()?
        .block_on(term::patiently("finishing what is in flight", gone(&home)))?;
    if !gone {
        bail!(
            "process {pid} is still there {} s after it was asked to stop; see {}",
            STOPPED_WITHIN.as_secs(),
            home.log().display()
        );
    }
    println!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Asks a process of ours to stop.
pub fn ask(pid: u32) -> anyhow::Result<()> {
    let process = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("it is just starting; try again in a moment")?;
    kill_process(process, Signal::TERM).with_context(|| {
        format!("process {pid} cannot be signalled; try as the user that started it")
    })
}

async fn gone(home: &Home) -> anyhow::Result<bool> {
    let mut waited = Duration::ZERO;
    while waited < STOPPED_WITHIN {
        if home.owner()?.is_none() {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        waited += LOOK_EVERY;
    }
    Ok(false)
}
