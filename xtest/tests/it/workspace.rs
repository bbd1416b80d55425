//! The structure of the workspace is a promise too: arrows point down only.

use std::collections::BTreeMap;
use std::process::Command;

/// Each crate and the layer that it stands in; a crate may only use crates of lower layers, and
/// none of its own (architecture page, section 2).
const LAYERS: &[(&str, u8)] = &[
    ("caracal-model", 0),
    ("caracal-crypto", 1),
    ("caracal-authority", 2),
    ("caracal-policy", 2),
    ("caracal-ledger", 2),
    ("caracal-store", 2),
    ("caracal-bus", 2),
    // Pure: metrics come in as text, verdicts go out.
    ("caracal-capacity", 2),
    ("caracal-view", 3),
    ("caracal-evidence", 3),
    ("caracal-net", 3),
    ("caracal-tlog", 3),
    // The typed clients are built with the HTTP kit.
    ("caracal-client", 4),
    ("caracal-oauth", 4),
    ("caracal-vaults", 4),
    // Attends requests with the HTTP kit.
    ("caracal-trail", 4),
    ("caracal-sts", 5),
    ("caracal-gateway", 5),
    ("caracal-coordinator", 5),
    ("caracal-api", 5),
    ("caracal-audit", 5),
    ("caracal-audit-export", 5),
    ("caracal", 6),
];

/// Heavy dependencies and the only crates that may know them.
const HOMES: &[(&str, &[&str])] = &[
    ("aws-lc-rs", &["caracal-crypto"]),
    ("regorus", &["caracal-policy"]),
    ("tokio-postgres", &["caracal-store", "xtest"]),
    ("deadpool-postgres", &["caracal-store"]),
    // The local evidence log is a SQLite file of its own (architecture section 5).
    ("rusqlite", &["caracal-store", "caracal-evidence"]),
    // How the ledger keeps its events.
    ("zstd", &["caracal-store"]),
    ("redis", &["caracal-bus", "xtest"]),
    ("rustls", &["caracal-net"]),
    ("object_store", &["caracal-audit-export"]),
    ("parquet", &["caracal-audit-export"]),
    ("clap", &["caracal", "caracal-bench"]),
];

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let uses = list(&package["dependencies"])
                .iter()
                .filter(|d| d["kind"].is_null())
                .map(|d| d["name"].as_str().unwrap().to_owned())
                .collect();
            (package["name"].as_str().unwrap().to_owned(), uses)
        })
        .collect()
}

#[test]
fn arrows_between_crates_point_down_only() {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, uses) in dependencies() {
        let Some(own) = layers.get(name.as_str()) else {
            assert!(
                ["caracal-bench", "caracal-fuzz", "xtest"].contains(&&*name),
                "{name} has no layer"
            );
            continue;
        };
        for used in uses {
            if layers.get(used.as_str()).is_some_and(|layer| layer >= own) {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that point up or sideways: {wrong:?}"
    );
}

#[test]
fn each_heavy_dependency_has_one_home() {
    for (name, uses) in dependencies() {
        for (heavy, homes) in HOMES {
            let strays = uses.iter().any(|used| used == heavy) && !homes.contains(&&*name);
            assert!(!strays, "{name} uses {heavy}, whose home is {homes:?}");
        }
    }
}

/// Calls are measured over the public wire. The ledger has no wire of its own when embedded, so the
/// module that measures it, and no other, links its crates.
#[test]
fn the_bench_knows_only_the_public_wire() {
    let uses = &dependencies()["caracal-bench"];
    let mut ours: Vec<_> = uses
        .iter()
        .filter(|used| used.starts_with("caracal"))
        .map(String::as_str)
        .collect();
    ours.sort_unstable();
    let of_the_ledger = ["audit", "crypto", "ledger", "model", "store"];
    assert_eq!(ours, of_the_ledger.map(|name| format!("caracal-{name}")));
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/src");
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("audit.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("caracal_"), "{}", path.display());
        }
    }
}
