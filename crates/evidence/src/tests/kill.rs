//! What survives when the process does not.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Tells the test below that it is the child, and where to write.
const CHILD_DIR: &str = "CARACAL_TEST_EVIDENCE_DIR";

/// A copy of the files is what a kill at this moment leaves: what the operating system has.
fn copy_as_after_a_kill(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        // The index of the write-ahead log is shared memory; it does not outlive its users.
        if !file.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
        }
    }
    to
}

#[tokio::test]
async fn after_a_kill_everything_undelivered_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let first = Arc::new(Shelf::default());
    let relay = Running::start(drain, &first);
    record(&log, 0..40).await;
    until(&log, |stats| stats.pending == 0).await;
    first.away.store(true, std::sync::atomic::Ordering::SeqCst);
    record(&log, 40..100).await;

    let left = copy_as_after_a_kill(dir.path());
    let (again, drain) = open(left.path());
    let second = Arc::new(Shelf::default());
    let taken_over = Running::start(drain, &second);
    record(&again, 100..110).await;
    taken_over.stop().await;
    again.close().await;
    // Nothing is missing; what came twice had been taken but not yet deleted.
    let got = second.ids();
    let doubles = got.len() - 70;
    assert_eq!(got, ids(40 - doubles..110));
    assert!(on_disk(left.path()).is_empty());

    relay.stop().await;
    log.close().await;
}

/// Not a test of its own: the body of the process that gets killed.
#[tokio::test]
#[ignore = "runs as the child of `a_killed_process_leaves_everything_it_had_answered_for`"]
#[expect(
    clippy::disallowed_methods,
    reason = "how a test tells its child what to do"
)]
async fn child_that_records_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else {
        return;
    };
    let (log, _drain) = open(Path::new(&dir));
    for number in 0.. {
        log.record(&[event(number)]).await.unwrap();
        println!("recorded {number}");
    }
}

#[tokio::test]
async fn a_killed_process_leaves_everything_it_had_answered_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("tests::kill::child_that_records_until_it_is_killed")
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let number = |line: String| line.split("recorded ").nth(1)?.parse::<usize>().ok();
    let mut answered = lines.by_ref().filter_map(number).take(500).last().unwrap();
    // SIGKILL: nothing in the child gets to run any more.
    child.kill().unwrap();
    child.wait().unwrap();
    answered = lines.filter_map(number).last().unwrap_or(answered);

    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    Running::start(drain, &shelf).stop().await;
    log.close().await;
    let got = shelf.ids();
    assert!(got.len() > answered, "{} of {answered}", got.len());
    assert_eq!(got, ids(0..got.len()));
}
