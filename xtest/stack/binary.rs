//! The binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// `CARACAL_TEST_BIN`, or the one beside the tests; built when there is none.
pub fn path() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("CARACAL_TEST_BIN") {
        Some(path) => path.into(),
        None => beside_the_tests(),
    })
}

fn beside_the_tests() -> PathBuf {
    // target/<profile>/deps/<this test> -> target/<profile>/caracal
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("a profile's directory");
    let binary = profile.join("caracal");
    if !binary.exists() {
        build(profile);
    }
    let built = modified(&binary);
    let source = newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates"));
    if source > built {
        // Not built here: whoever iterates on a test does not want to wait for the product.
        eprintln!(
            "{} is older than its source: run `cargo build -p caracal`",
            binary.display()
        );
    }
    binary
}

fn build(profile: &Path) {
    let name = profile
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("debug");
    let name = if name == "debug" { "dev" } else { name };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--package", "caracal", "--profile", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "the binary does not build"
    );
}

fn modified(path: &Path) -> SystemTime {
    path.metadata()
        .and_then(|file| file.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn newest(directory: &Path) -> SystemTime {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let times = entries.map(|entry| match entry.path() {
        // Tests of the crates do not change the binary.
        path if path.is_dir() && path.ends_with("tests") => SystemTime::UNIX_EPOCH,
        path if path.is_dir() => newest(&path),
        path if path.extension().is_some_and(|of| of == "rs" || of == "sql") => modified(&path),
        _ => SystemTime::UNIX_EPOCH,
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}
