//! What may be shown of a text that somebody else wrote.

/// Words that are this long and have a digit may be what the other side was shown.
const SECRETIVE: usize = 12;

/// An error that a server answered with, for a log: on one line, at most `most` characters, and without
/// words that may be secrets. A server that repeats what it is shown, or a stranger that sits in its
/// place, gets none of that into our log.
///
/// Secrets are long, and have digits in them; words of a language, and the names of errors, do not.
pub fn presentable(text: &str, most: usize) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    let words = plain.split_inclusive(divides).map(shown);
    words.collect::<String>().chars().take(most).collect()
}

/// What stands between words, and in no token.
const fn divides(c: char) -> bool {
    matches!(c, ' ' | '"' | '\'' | '<' | '>' | ',' | ';' | '(' | ')')
}

fn shown(word: &str) -> String {
    let bare = word.trim_end_matches(divides);
    let long = bare.chars().count() >= SECRETIVE;
    if long && bare.chars().any(|c| c.is_ascii_digit()) {
        return format!("…{}", word.get(bare.len()..).unwrap_or_default());
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_and_what_may_be_a_secret_does_not() {
        for (text, expected) in [
            ("permission denied", "permission denied"),
            (
                "com.amazonaws#AccessDeniedException",
                "com.amazonaws#AccessDeniedException",
            ),
            (
                "HTTP 403: RESOURCE_EXHAUSTED",
                "HTTP 403: RESOURCE_EXHAUSTED",
            ),
            ("token hvs.CAESIJ4x9Q may not", "token … may not"),
            ("Bearer eyJhbGciOi4.x.y", "Bearer …"),
            ("{\"secret\":\"a1b2c3d4e5f6g7\"}", "{\"secret\":\"…\"}"),
            ("<Key>AKIA1234567890</Key>", "<Key>…</Key>"),
            ("one\r\ntwo", "onetwo"),
        ] {
            assert_eq!(presentable(text, 100), expected);
        }
        assert_eq!(presentable("permission denied", 4), "perm");
    }
}
