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
    LAG: 1m is not within 100ms and 10s, for example 1s
    STATEMENT_MS: 2s is not a whole number, for example 15000
    RATE: lots is not a whole number in range (within 1 and 5000), for example 1000
    PROXY: perhaps is neither true nor false, for example false
    STS_URL: is required, for example https://sts.example
    ");
}

#[test]
fn rules_over_several_settings_are_looked_at_though_one_is_wrong() {
    let from = BTreeMap::from([("LAG".into(), "9s".into()), ("RATE".into(), "lots".into())]);
    let mut mistakes = Mistakes::default();
    let loaded = Example::load_by(&from, &mut mistakes, |example, mistakes| {
        assert_eq!((example.rate, example.lag.as_secs()), (1000, 9));
        mistakes.add("LAG", "is longer than a request lasts");
        mistakes.add("RATE", "is told already");
        assert!(mistakes.tell_of("STS_URL") && !mistakes.tell_of("TOKEN"));
    });
    assert!(loaded.is_none());
    insta::assert_snapshot!(mistakes, @r"
    RATE: lots is not a whole number in range (within 1 and 5000), for example 1000
    STS_URL: is required, for example https://sts.example
    LAG: is longer than a request lasts
    ");
}

#[test]
fn whoever_breaks_a_rule_gets_no_settings() {
    let from = BTreeMap::from([("STS_URL".into(), "https://sts.example".into())]);
    let mut mistakes = Mistakes::default();
    let loaded = Example::load_by(&from, &mut mistakes, |_, mistakes| {
        mistakes.add("LAG", "is not allowed here");
    });
    assert!(loaded.is_none() && mistakes.count() == 1);
}

crate::settings! {
    /// One setting, two names; and few values.
    struct Named {
        /// Connections.
        most: Option<u32> = var("MOST").also("MAX").within("1", "100"),
        /// Longest wait.
        wait: Duration = var("WAIT").or("5s").also_millis("WAIT_MS").within("1s", "1m"),
        /// What survives.
        lasting: String = var("LASTING").or("process").one_of(&["process", "machine"]),
    }
}

fn named(pairs: &[(&str, &str)]) -> Result<(Option<u32>, u64, String), String> {
    let from: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    let mut mistakes = Mistakes::default();
    let named = Named::load(&from, &mut mistakes).ok_or_else(|| mistakes.to_string())?;
    Ok((named.most, named.wait.as_secs(), named.lasting))
}

#[test]
fn a_setting_may_have_another_name_with_a_unit_of_its_own() {
    assert_eq!(named(&[]).unwrap(), (None, 5, "process".into()));
    let both = [("MAX", "7"), ("WAIT_MS", "9000"), ("WAIT", "9s")];
    assert_eq!(named(&both).unwrap(), (Some(7), 9, "process".into()));
    let told = named(&[
        ("MOST", "8"),
        ("MAX", "7"),
        ("WAIT_MS", "500"),
        ("LASTING", "perhaps"),
    ]);
    insta::assert_snapshot!(told.unwrap_err(), @r"
    MOST: and MAX are two names of one setting, but say 8 and 7
    WAIT_MS: 500 is not within 1s and 1m
    LASTING: perhaps is none of process, machine, for example process
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
    let kinds: Vec<_> = described.iter().map(|one| one.kind).collect();
    let expected = [
        "duration", "integer", "integer", "list", "boolean", "text", "URL",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(described[0].var.default, Some("1s"));
    assert_eq!(described[0].help, "How long memory is trusted.");
    assert_eq!(described[1].unit(), Some("ms"));
    assert_eq!(described[5].example, "a long random text");
    assert!(described[6].required && !described[5].required);
    let lasting = Named::describe()[2];
    assert_eq!(lasting.kind, "choice");
    assert_eq!(lasting.choices, ["process", "machine"]);
}
