use super::*;
use caracal_model::Secret;
use std::time::Duration;

crate::settings! {
    /// For these tests.
    struct Example {
        /// How long memory is trusted.
        lag: Duration = var("LAG").or("1s").within("100ms", "10s"),
        /// Statement timeout.
        statement: Duration = var("STATEMENT_MS").or("15000").millis(),
        /// Exchanges a minute.
        rate: u32 = var("RATE").or("1000").within("1", "5000"),
        /// Who may be reached.
        hosts: Vec<String> = var("HOSTS").or(" "),
        /// Whether a proxy stands before us.
        proxy: bool = var("PROXY").or("false"),
        /// The bearer.
        token: Option<Secret<String>> = var("TOKEN").secret(),
        /// Where the STS is.
        sts: url::Url = var("STS_URL"),
    }
}

fn load(pairs: &[(&str, &str)]) -> Result<Example, String> {
    let from: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    let mut mistakes = Mistakes::default();
    Example::load(&from, &mut mistakes).ok_or_else(|| mistakes.to_string())
}

#[test]
fn defaults_apply_and_empty_means_unset() {
    let example = load(&[
        ("STS_URL", "https://sts.example"),
        ("RATE", ""),
        ("TOKEN", " "),
    ])
    .unwrap();
    assert_eq!(example.lag, Duration::from_secs(1));
    assert_eq!(example.statement, Duration::from_secs(15));
    assert_eq!(example.rate, 1000);
    assert!(example.hosts.is_empty() && !example.proxy && example.token.is_none());
    assert_eq!(example.sts.as_str(), "https://sts.example/");
}

#[test]
fn every_mistake_is_told_at_once_and_no_secret_with_it() {
    let told = load(&[
        ("LAG", "1m"),
        ("RATE", "lots"),
        ("PROXY", "perhaps"),
        ("STATEMENT_MS", "2s"),
    ]);
    insta::assert_snapshot!(told.unwrap_err(), @r"
    LAG: 1m is not within 100ms and 10s
    STATEMENT_MS: 2s: is not a whole number, for example 1m30s
    RATE: lots: is not a whole number in range, for example 100
    PROXY: perhaps: is neither true nor false, for example true
    STS_URL: is required, for example https://sts.example
    ");
}

#[test]
fn a_secret_may_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "hunter2\n").unwrap();
    let path = path.to_str().unwrap();
    let sts = ("STS_URL", "https://sts.example");
    let example = load(&[("TOKEN_FILE", path), sts]).unwrap();
    assert_eq!(example.token.unwrap().expose(), "hunter2");
    let example = load(&[("TOKEN", "direct"), ("TOKEN_FILE", path), sts]).unwrap();
    assert_eq!(example.token.unwrap().expose(), "direct");
    std::fs::write(path, " \n").unwrap();
    assert!(
        load(&[("TOKEN_FILE", path), sts])
            .unwrap_err()
            .contains("is empty")
    );
    assert!(load(&[("TOKEN_FILE", "/nowhere"), sts]).is_err());
}

#[test]
fn durations_are_written_as_in_go() {
    for (text, millis) in [
        ("250ms", Some(250)),
        ("1m30s", Some(90_000)),
        ("1.5h", Some(5_400_000)),
        ("2h0m1s", Some(7_201_000)),
    ] {
        let parsed = Duration::parse(text, Unit::Suffixed).ok();
        assert_eq!(parsed, millis.map(Duration::from_millis), "{text}");
    }
    for text in [
        "0s",
        "5",
        "-1s",
        "s",
        "1d",
        "1s1",
        "1..5s",
        "99999999999999999999h",
    ] {
        assert!(Duration::parse(text, Unit::Suffixed).is_err(), "{text}");
    }
}

#[test]
fn every_setting_is_described() {
    let described = Example::describe();
    assert_eq!(described.len(), 7);
    assert_eq!(described[0].var.default, Some("1s"));
    assert_eq!(described[0].help, "How long memory is trusted.");
    assert_eq!(described[5].example, "a long random text");
}
