//! `caracal run`: starts a command with the credentials that a workload is bound to, and with
//! nothing else that it should not see (operations specification §12).
//!
//! **Forces.** Whoever launches holds a secret that opens more than the command needs, so the
//! command must not get at it: neither from its own environment nor from that of its parent, which
//! the same user can read as long as the parent lives.
//!
//! **Choice.** Two lives of one process. The first has the secret: it asks for the credentials,
//! then replaces itself by a second run of this binary whose environment is exactly that of the
//! command. The second starts the command, forwards signals to it and ends as it ended; there is
//! nothing left in it to read. Where the system can end a process with its parent (Linux), the
//! command is started so, by a third run of this binary that becomes the command: it cannot outlive
//! a launcher that is killed.
//!
//! **Rejected.** Replacing ourselves by the command: simpler, but an end by a signal would not be
//! told as an exit code. Forbidding others to read our memory: root may anyway, and containers often
//! run as root.

mod environment;
mod identity;
mod launch;
mod leash;
mod supervise;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cli::Data;
use crate::exit::Outcome;

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  export CARACAL_STS_URL=https://sts.example
  export CARACAL_WORKLOAD_ID=0199…             who launches
  export CARACAL_WORKLOAD_SECRET_FILE=/run/secrets/workload
  caracal run -- ./nightly-report --all
  caracal run -- sh -c 'echo ${MAIL_KEY:+set}'  a shell only if you ask for one

WHAT IT DOES
  1. asks the STS what the workload's variables are bound to
  2. asks for each credential; policy decides, and may want a human to approve first
  3. starts the command with those variables (NAME, and NAME_EXPIRES_AT where it is known), PATH,
     HOME, USER, LOGNAME, SHELL, TMPDIR, TEMP, TMP, TERM, COLORTERM, LANG, LC_*, XDG_*, NO_COLOR,
     FORCE_COLOR, CI, NODE_ENV and CARACAL_ENV. No other variable reaches it

  A credential is fetched once: what expires is not renewed. While a human has to approve, one line
  of JSON on standard error names the approval, and the launch waits for as long as it is open.

SETTINGS
  CARACAL_WORKLOAD_ID           or --workload-id
  CARACAL_WORKLOAD_SECRET       or CARACAL_WORKLOAD_SECRET_FILE, or --workload-secret-file; outside of
                                production also <config>/runtime/<id>/secret. Files must be readable
                                by their owner alone (chmod 600)
  CARACAL_STS_URL               or --sts-url; outside of production the running `caracal up`
  CARACAL_ENV=production        (or NODE_ENV) turns those conveniences off
  CARACAL_TLS_EXTRA_CA_FILE     further certificate authorities, PEM

EXIT CODE
  that of the command; 128 + N when signal N ended it; 127 when it cannot be started; 1 when a
  credential that it needs cannot be had")]
pub struct Run {
    #[command(flatten)]
    data: Data,
    /// Who launches [default: CARACAL_WORKLOAD_ID]
    #[arg(long, value_name = "ID")]
    workload_id: Option<String>,
    /// File with its secret [default: CARACAL_WORKLOAD_SECRET, CARACAL_WORKLOAD_SECRET_FILE]
    #[arg(long, value_name = "FILE")]
    workload_secret_file: Option<PathBuf>,
    /// URL of the STS [default: CARACAL_STS_URL]
    #[arg(long, value_name = "URL")]
    sts_url: Option<String>,
    /// The second life: the environment is that of the command already
    #[arg(long, hide = true)]
    supervise: bool,
    /// The third life: becomes the command, which ends with the process of this id
    #[arg(long, hide = true, value_name = "PID")]
    leash: Option<i32>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub fn run(&self) -> Outcome {
        if let Some(launcher) = self.leash {
            return leash::become_the_command(launcher, &self.command);
        }
        if self.supervise {
            return supervise::run(&self.command);
        }
        let (settings, home) = self.data.open()?;
        let launcher = identity::Launcher::find(
            &settings,
            &home,
            identity::Given {
                workload_id: self.workload_id.as_deref(),
                secret_file: self.workload_secret_file.as_deref(),
                sts_url: self.sts_url.as_deref(),
            },
        )?;
        let credentials = crate::up::small_runtime()?.block_on(launch::credentials(&launcher))?;
        // From here on nothing of the first life is needed.
        drop(launcher);
        let environment = environment::of_the_command(std::env::vars_os(), &credentials);
        self.live_again(&environment)
    }

    /// Replaces this process; comes back only when that fails.
    fn live_again(&self, environment: &[(OsString, OsString)]) -> Outcome {
        let myself = std::env::current_exe()
            .context("this program cannot find itself to start the command; is /proc mounted?")?;
        let error = Command::new(myself)
            .args(["run", "--supervise", "--"])
            .args(&self.command)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .exec();
        if error.kind() == std::io::ErrorKind::InvalidInput {
            bail!("an argument or a credential holds a NUL byte: no process can be given that");
        }
        Err(error).context("the command cannot be started")
    }
}
