//! How a command ends: a code, and for a failure one message that says what to do next.

use std::panic::UnwindSafe;
use std::process::ExitCode;

use crate::{telemetry, term};

/// What a command answers with.
pub type Outcome = anyhow::Result<ExitCode>;

/// Runs a command, reports its failure, and turns its outcome into the process's exit code. Of a
/// panic its hook has spoken.
pub fn with(command: impl FnOnce() -> Outcome + UnwindSafe) -> ExitCode {
    let outcome = std::panic::catch_unwind(command);
    telemetry::flush();
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("{} {}", term::red("error:"), masked(&format!("{error:#}")));
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// The text without what looks like a credential: an error may quote what it could not parse.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, len)) = next_credential(rest) {
        out.push_str(rest.get(..at).unwrap_or_default());
        out.push_str("***");
        rest = rest.get(at + len..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Where the next credential stands, and how long it is.
fn next_credential(text: &str) -> Option<(usize, usize)> {
    let starts = ["cs_", "ws_", "cat_", "nsk_", "eyJ", "-----BEGIN"];
    let mut from = 0;
    while let Some(tail) = text.get(from..) {
        let at = from + starts.iter().filter_map(|start| tail.find(start)).min()?;
        let found = text.get(at..)?;
        let opens = text
            .get(..at)?
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_ascii_alphanumeric());
        let len = if found.starts_with("-----BEGIN") {
            found.len()
        } else {
            found
                .find(|c: char| !c.is_ascii_alphanumeric() && !"_-.".contains(c))
                .unwrap_or(found.len())
        };
        // Shorter than any credential of ours: a word that happens to begin so.
        if opens && len >= 24 {
            return Some((at, len));
        }
        from = at + 1;
        while !text.is_char_boundary(from) {
            from += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_messages_are_masked_and_words_are_not() {
        let secret = "A".repeat(43);
        for (text, shown) in [
            (
                format!("token cat_{secret} refused"),
                "token *** refused".to_owned(),
            ),
            (format!("cs_{secret}"), "***".to_owned()),
            (
                "Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln, yes".to_owned(),
                "Bearer ***, yes".to_owned(),
            ),
            (
                "the cat_ and the ws_url".to_owned(),
                "the cat_ and the ws_url".to_owned(),
            ),
            ("docs_".repeat(9), "docs_".repeat(9)),
            (
                "key: -----BEGIN PRIVATE KEY-----\nabc".to_owned(),
                "key: ***".to_owned(),
            ),
        ] {
            assert_eq!(masked(&text), shown);
        }
    }
}
