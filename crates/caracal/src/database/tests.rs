//! What a deployment stands on is talked to as its URL says, or not at all.

use super::*;

fn read(url: &str) -> Result<(String, Option<bool>), String> {
    let url = Secret::new(url.to_owned());
    match secured(&url, None) {
        Ok((url, tls)) => Ok((url.expose().clone(), tls.map(|tls| tls.required))),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn the_words_of_sslmode_are_honoured_or_refused() {
    let base = "postgres://u:pw@db/caracal";
    for (query, left, tls) in [
        ("", "", None),
        ("?sslmode=disable", "", None),
        ("?sslmode=prefer", "", Some(false)),
        ("?sslmode=require", "", Some(true)),
        ("?a=b&sslmode=verify-ca", "?a=b", Some(true)),
        (
            "?sslmode=verify-full&options=-c%20x%3Dy",
            "?options=-c%20x%3Dy",
            Some(true),
        ),
    ] {
        let read = read(&format!("{base}{query}"));
        assert_eq!(read, Ok((format!("{base}{left}"), tls)), "{query}");
    }
    for url in [
        "postgres://u:pw@db/caracal?sslmode=maybe",
        "postgres://u:pw@db/caracal?sslmode=verify-ca&sslrootcert=/nowhere/ca.pem",
        "host=db password=pw sslmode=verify-full",
    ] {
        let refused = read(url).unwrap_err();
        assert!(
            refused.contains("sslmode") || refused.contains("sslrootcert"),
            "{refused}"
        );
        assert!(!refused.contains("pw"), "{refused}");
    }
}
