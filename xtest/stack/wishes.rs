//! What a run of the drills was asked for, by the environment.

use std::time::Duration;

/// Every failure that is drilled, by the scenario that it is part of.
pub const FAILURES: &[(&str, &[&str])] = &[
    (
        "embedded",
        &[
            "the process is killed",
            "the disk of the local log is full",
            "clocks step five minutes forward, and back",
            "clocks step five minutes back, and forward",
            "everything is killed while clocks are ahead",
            "everything is killed while clocks are behind",
        ],
    ),
    (
        "servers",
        &[
            "Redis is away briefly, and keeps its data",
            "Redis is away for long, and keeps its data",
            "Redis is started again without its data",
            "Redis is emptied",
            "Postgres crashes and recovers",
            "Postgres is away for long",
            "Redis and Postgres are away: revocations cannot be known",
        ],
    ),
    (
        "processes",
        &[
            "api is killed",
            "sts is killed",
            "gateway is killed",
            "coordinator is killed",
            "audit is killed",
            "the disk of the local log is full",
            "clocks step five minutes forward, and back",
            "clocks step five minutes back, and forward",
            "everything is killed while clocks are ahead",
            "everything is killed while clocks are behind",
        ],
    ),
    ("leaders", &["the Audit that signs checkpoints is killed"]),
    (
        "ledger leaders",
        &["the Audit that exports, drops and tries again is killed"],
    ),
    (
        "content",
        &[
            "the STS can write evidence neither to its disk nor to the stream",
            "dead letters cannot be written",
            "the policy in force does not compile",
            "a row of the ledger is changed",
        ],
    ),
    (
        "replicas",
        &[
            "one of two replicas of api is killed",
            "one of two replicas of sts is killed",
            "one of two replicas of gateway is killed",
            "one of two replicas of coordinator is killed",
            "one of two replicas of audit is killed",
        ],
    ),
];

/// How long a failure lasts that is to last long: `XTEST_OUTAGE_SECONDS`.
pub fn long() -> Duration {
    Duration::from_secs(number("XTEST_OUTAGE_SECONDS").unwrap_or(12))
}

/// How often every failure is repeated: `XTEST_FAULT_ROUNDS`.
pub fn rounds() -> u64 {
    number("XTEST_FAULT_ROUNDS").unwrap_or(1)
}

/// From one governed call of a probe to the next, where `XTEST_PROBE_RATE` says how many it makes in
/// a second, all its workers together.
///
/// # Panics
/// When it says none or so.
pub fn pace() -> Option<Duration> {
    let rate = std::env::var("XTEST_PROBE_RATE").ok()?;
    let rate: f64 = rate.parse().expect("XTEST_PROBE_RATE is a number");
    let between = Duration::try_from_secs_f64(1.0 / rate);
    Some(between.expect("XTEST_PROBE_RATE is more than nothing"))
}

/// Whether any failure of this scenario is to happen; says so when not.
///
/// # Panics
/// When `XTEST_DRILLS` names what is no failure of any scenario.
pub fn wants_any_of(scenario: &str) -> bool {
    let wanted = chosen();
    let of_it = failures(scenario);
    let any = wanted.iter().any(|failure| of_it.contains(failure));
    if !any {
        crate::visibly(&format!(
            "skipped {scenario}: XTEST_DRILLS names none of it"
        ));
    }
    any
}

/// Whether this failure is to happen.
///
/// # Panics
/// As [`wants_any_of`], or when the failure is none of [`FAILURES`].
pub fn wants(failure: &str) -> bool {
    let known = FAILURES.iter().any(|(_, all)| all.contains(&failure));
    assert!(known, "{failure} is none of xtest::wishes::FAILURES");
    chosen().contains(&failure)
}

fn chosen() -> Vec<&'static str> {
    let parts = std::env::var("XTEST_DRILLS").unwrap_or_default();
    named(&parts).unwrap_or_else(|error| panic!("XTEST_DRILLS: {error}"))
}

/// The failures whose names contain one of these parts, which commas separate; all when there is no
/// part.
///
/// # Errors
/// Which part is in no name, and all names.
pub fn named(parts: &str) -> Result<Vec<&'static str>, String> {
    let all = || FAILURES.iter().flat_map(|(_, all)| all.iter().copied());
    let parts = parts.split(',').map(str::trim);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    for part in &parts {
        if !all().any(|failure| failure.contains(part)) {
            let mut names: Vec<&str> = all().collect();
            names.sort_unstable();
            names.dedup();
            return Err(format!(
                "no failure is called {part:?}; there are:\n{}",
                names.join("\n")
            ));
        }
    }
    let is_named = |failure: &&str| parts.iter().any(|part| failure.contains(part));
    Ok(all()
        .filter(|failure| parts.is_empty() || is_named(failure))
        .collect())
}

fn failures(scenario: &str) -> &'static [&'static str] {
    let found = FAILURES.iter().find(|(name, _)| *name == scenario);
    found.unwrap_or_else(|| panic!("no scenario {scenario}")).1
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
