//! A clock that steps under the processes of a deployment, as an operator or NTP may have it do.
//!
//! `libfaketime` stands before the C library and reads from a file how far the time is off. What is
//! measured with the monotonic clock is left alone, as a step leaves it alone.

use std::path::{Path, PathBuf};

/// Where the Debian package `libfaketime` puts it.
const PLACES: &str = "/usr/lib";

/// The library, where it is installed.
pub fn library() -> Option<PathBuf> {
    let below = std::fs::read_dir(PLACES).ok()?;
    let libraries = below
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|path| path.exists())
}

/// The file that says how far the time is off.
pub fn file(directory: &Path) -> PathBuf {
    directory.join("clock")
}

/// Settings of a process whose clock reads that file, and is off by so many seconds to begin with; none
/// where there is no library.
pub fn environment(directory: &Path, seconds: i64) -> Vec<(String, String)> {
    let Some(library) = library() else {
        return Vec::new();
    };
    step(directory, seconds);
    let settings = [
        ("LD_PRELOAD", library.display().to_string()),
        (
            "FAKETIME_TIMESTAMP_FILE",
            file(directory).display().to_string(),
        ),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_RESET", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
        ("FAKETIME_DISABLE_SHM", "1".to_owned()),
    ];
    settings
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// The time is off by so many seconds from now on: within a second, for every process.
pub fn step(directory: &Path, seconds: i64) {
    std::fs::write(file(directory), format!("{seconds:+}\n")).expect("the clock's file");
}
