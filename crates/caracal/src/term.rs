//! The terminal: colour when wanted, and progress for whatever takes more than a second.

use std::future::Future;
use std::io::IsTerminal as _;
use std::sync::LazyLock;
use std::time::Duration;

/// Longer than this, and the user is told what is going on.
const QUIET: Duration = Duration::from_secs(1);
/// How often the user is told that it is still going on.
const AGAIN: Duration = Duration::from_secs(5);

static COLOUR: LazyLock<bool> = LazyLock::new(|| {
    let off = ["NO_COLOR", "CARACAL_NO_COLOR"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    !off && std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
});

fn paint(code: u8, text: &str) -> String {
    if *COLOUR {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub fn bold(text: &str) -> String {
    paint(1, text)
}

pub fn dim(text: &str) -> String {
    paint(2, text)
}

pub fn red(text: &str) -> String {
    paint(31, text)
}

pub fn green(text: &str) -> String {
    paint(32, text)
}

/// Progress goes to standard error: what a command answers may be piped.
pub fn progress(what: &str) {
    eprintln!("{}", dim(what));
}

/// Awaits `work`, and says `what` on standard error when it takes more than a second.
pub async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = Box::pin(work);
    let mut wait = QUIET;
    loop {
        match tokio::time::timeout(wait, &mut work).await {
            Ok(done) => return done,
            Err(_) => progress(&format!("… {what}")),
        }
        wait = AGAIN;
    }
}
