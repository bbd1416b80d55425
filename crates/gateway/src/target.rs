//! The path and the query of a request: what may pass, and what the upstream receives (spec:
//! gateway §4, better item 7).
//!
//! **Forces.** An upstream may decode a path more often than we do, so a dot segment must not hide
//! behind any number of encodings. Signed URLs and odd object names must arrive byte for byte.
//! **Choice.** The path is judged on its decodings and forwarded as it came. The first decoding is
//! strict. Later ones leave a percent sign that escapes nothing as it is: that is a literal `%25`,
//! which the reference refused. A path that is still changing after [`ROUNDS`] decodings is not
//! an honest one.

use std::borrow::Cow;

/// How often a path is decoded before it is given up on.
const ROUNDS: usize = 8;

/// The path would leave the upstream's base, or may be read so by somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path traversal not permitted")]
pub struct Traversal;

/// The query cannot be merged safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the query is malformed")]
pub struct BadQuery;

/// The decoded path, once nothing in it can climb.
///
/// # Errors
/// [`Traversal`].
pub fn decoded(raw: &str) -> Result<Cow<'_, str>, Traversal> {
    if !raw.contains(['%', '\\']) {
        climbs(raw.as_bytes())?;
        return Ok(Cow::Borrowed(raw));
    }
    let first = unescape(raw.as_bytes(), Escapes::Strict)?;
    let first = first.unwrap_or_else(|| raw.as_bytes().to_vec());
    climbs(&first)?;
    settle(&first)?;
    String::from_utf8(first)
        .map(Cow::Owned)
        .map_err(|_| Traversal)
}

/// Decodes until nothing changes any more, judging every stage.
fn settle(first: &[u8]) -> Result<(), Traversal> {
    let mut stage = Cow::Borrowed(first);
    for _ in 0..ROUNDS {
        let Some(next) = unescape(&stage, Escapes::Lenient)? else {
            return Ok(());
        };
        climbs(&next)?;
        stage = Cow::Owned(next);
    }
    Err(Traversal)
}

/// Refuses backslashes and dot segments. `..;x` is one too: some servers cut path parameters off
/// before they look at the segment.
fn climbs(path: &[u8]) -> Result<(), Traversal> {
    if path.contains(&b'\\') {
        return Err(Traversal);
    }
    let mut names = path
        .split(|b| *b == b'/')
        .map(|segment| segment.split(|b| *b == b';').next().unwrap_or(segment));
    if names.any(|name| matches!(name, b"." | b"..")) {
        Err(Traversal)
    } else {
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    Strict,
    Lenient,
}

/// One decoding; `None` when there was nothing to decode.
fn unescape(text: &[u8], escapes: Escapes) -> Result<Option<Vec<u8>>, Traversal> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    let mut changed = false;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        match tail {
            [high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push((nibble(*high) << 4) | nibble(*low));
                rest = tail;
                changed = true;
            }
            _ if escapes == Escapes::Strict => return Err(Traversal),
            _ => out.push(b'%'),
        }
    }
    Ok(changed.then_some(out))
}

/// The value of a hex digit.
fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// The path below the upstream's base. Both keep their bytes.
pub fn joined(base: &str, path: &str) -> String {
    let at_root = |path: &str| path.is_empty() || path == "/";
    match (at_root(base), at_root(path)) {
        (true, true) => "/".to_owned(),
        (true, false) => path.to_owned(),
        (false, true) => base.to_owned(),
        (false, false) => {
            format!(
                "{}/{}",
                base.trim_end_matches('/'),
                path.strip_prefix('/').unwrap_or(path)
            )
        }
    }
}

/// The query that the upstream receives: the directive's own parameters, then the caller's under
/// other names, then the credential under a name that nobody else may use. When the directive
/// brings nothing, the caller's query keeps every byte.
///
/// # Errors
/// [`BadQuery`] for a malformed escape or a raw `;`, which some servers read as `&`.
pub fn merged<'q>(
    base: Option<&str>,
    query: Option<&'q str>,
    credential: Option<(&str, &str)>,
) -> Result<Option<Cow<'q, str>>, BadQuery> {
    if query.is_some_and(is_malformed) {
        return Err(BadQuery);
    }
    let base = base.filter(|base| !base.is_empty());
    if base.is_none() && credential.is_none() {
        return Ok(query.map(Cow::Borrowed));
    }
    let secret_name = credential.map(|(name, _)| name.as_bytes());
    let own: Vec<(&str, Cow<'_, [u8]>)> = base
        .into_iter()
        .flat_map(pairs)
        .filter(|(_, name)| Some(name.as_ref()) != secret_name)
        .collect();
    let theirs = query.into_iter().flat_map(pairs).filter(|(_, name)| {
        Some(name.as_ref()) != secret_name && own.iter().all(|(_, taken)| taken != name)
    });
    let mut out = String::new();
    for (pair, _) in own.iter().cloned().chain(theirs) {
        push(&mut out, pair);
    }
    if let Some((name, value)) = credential {
        let pair = form_urlencoded::Serializer::new(String::new())
            .append_pair(name, value)
            .finish();
        push(&mut out, &pair);
    }
    Ok(Some(Cow::Owned(out)))
}

fn push(out: &mut String, pair: &str) {
    if !out.is_empty() {
        out.push('&');
    }
    out.push_str(pair);
}

/// The pairs of a query as they stand, each with its decoded name.
fn pairs(query: &str) -> impl Iterator<Item = (&str, Cow<'_, [u8]>)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let name = pair.split('=').next().unwrap_or(pair);
            if !name.contains(['%', '+']) {
                return (pair, Cow::Borrowed(name.as_bytes()));
            }
            let spaced = name.replace('+', " ").into_bytes();
            let plain = unescape(&spaced, Escapes::Lenient).ok().flatten();
            (pair, Cow::Owned(plain.unwrap_or(spaced)))
        })
}

fn is_malformed(query: &str) -> bool {
    query.contains(';') || unescape(query.as_bytes(), Escapes::Strict).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_encoding_hides_a_climb() {
        for path in [
            "/a/../b",
            "/./x",
            "/a/b/..",
            "/..",
            "/.",
            "/a\\..\\s",
            "/a\\b",
            "/a/%5c..%5cs",
            "/a/%255c..%255cs",
            "/%5C",
            "/a/%2e%2e/b",
            "/a/%2E./b",
            "/a/%252e%252e/b",
            "/a/%25252e%25252e/b",
            "/a%2f..%2fb",
            "/a%252f%252e%252e%252fb",
            "/%25%32%65%25%32%65/b",
            "/a/..;x=1/b",
            "/a/%2e%2e%3bx/b",
            "/100%25/%252e%252e/b",
            "/a/.;/b",
            // Malformed escapes, and what is not text.
            "/a/%",
            "/a/%2",
            "/a/%zz",
            "/a/%c0%ae%c0%ae/b",
            "/a/%ff",
        ] {
            assert_eq!(decoded(path), Err(Traversal), "{path}");
        }
        let deep = format!("/a/%{}2e", "25".repeat(ROUNDS + 2));
        assert_eq!(decoded(&deep), Err(Traversal), "still changing");
    }

    #[test]
    fn what_cannot_climb_passes_decoded_once() {
        for (path, expected) in [
            ("/", "/"),
            ("", ""),
            ("*", "*"),
            ("/.env", "/.env"),
            ("/foo..bar", "/foo..bar"),
            ("/...", "/..."),
            ("/a/b/c", "/a/b/c"),
            ("//a//b/", "//a//b/"),
            ("/a%2Fb", "/a/b"),
            ("/100%25", "/100%"),
            ("/a%2520b", "/a%20b"),
            ("/50%25-off", "/50%-off"),
            ("/%25zz", "/%zz"),
            ("/%C3%A4", "/ä"),
            ("/a;b=..", "/a;b=.."),
            ("/a+b", "/a+b"),
        ] {
            assert_eq!(decoded(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn a_path_is_joined_below_the_base_and_keeps_its_bytes() {
        for (base, path, expected) in [
            ("", "", "/"),
            ("/", "/", "/"),
            ("", "/a//b/", "/a//b/"),
            ("/", "//a", "//a"),
            ("/v2", "/", "/v2"),
            ("/v2/", "", "/v2/"),
            ("/v2", "/items/", "/v2/items/"),
            ("/v2/", "/items%2F1", "/v2/items%2F1"),
            ("/v2", "/100%25", "/v2/100%25"),
            ("/v2", "//a", "/v2//a"),
        ] {
            assert_eq!(joined(base, path), expected, "{base} {path}");
        }
    }

    #[test]
    fn a_query_is_rewritten_only_where_the_directive_says_so() {
        let signed = "X-Sig=a%2Bb%2f&b=2&a=1&&a=1+1&empty=&flag";
        for (base, query, credential, expected) in [
            (None, Some(signed), None, Some(signed)),
            (None, Some(""), None, Some("")),
            (None, None, None, None),
            (Some(""), Some("z=1&a=2"), None, Some("z=1&a=2")),
            (
                Some("k=fixed"),
                Some("a=1&k=mine&k%3d=x&%6b=again"),
                None,
                Some("k=fixed&a=1&k%3d=x"),
            ),
            (Some("k=fixed"), None, None, Some("k=fixed")),
            (
                None,
                Some("key=mine&a=1"),
                Some(("key", "s 1&")),
                Some("a=1&key=s+1%26"),
            ),
            (
                Some("key=base&b=2"),
                Some("a=1&k%65y=x"),
                Some(("key", "s")),
                Some("b=2&a=1&key=s"),
            ),
            (None, None, Some(("key", "s")), Some("key=s")),
        ] {
            let merged = merged(base, query, credential).unwrap();
            assert_eq!(merged.as_deref(), expected, "{base:?} {query:?}");
        }
        for query in ["a;b", "a=%", "a=%zz", "a=1;k=2"] {
            assert_eq!(merged(None, Some(query), None), Err(BadQuery), "{query}");
        }
    }

    proptest! {
        /// Whatever is put between the slashes, however often it is encoded.
        #[test]
        fn an_encoded_dot_segment_never_passes(
            rounds in 0usize..12,
            dots in prop::sample::select(&["..", ".", "..\\", "\\", "..;a"][..]),
            before in "[a-z%/]{0,8}",
        ) {
            let mut hidden = dots.to_owned();
            for _ in 0..rounds {
                hidden = hidden.bytes().map(|b| format!("%{b:02x}")).collect();
                if hidden.len() > 8_000 {
                    break;
                }
            }
            let path = format!("/{before}/{hidden}/x");
            prop_assert!(decoded(&path).is_err(), "{}", path);
        }

        #[test]
        fn no_caller_sets_the_parameter_of_the_credential(query in "[a-c=&%+0-9]{0,24}") {
            let Ok(Some(merged)) = merged(Some("a=base"), Some(&query), Some(("b", "secret"))) else {
                return Ok(());
            };
            let read: Vec<_> = form_urlencoded::parse(merged.as_bytes()).collect();
            let named = |name: &str| read.iter().filter(|(n, _)| n == name).count();
            prop_assert_eq!((named("a"), named("b")), (1, 1), "{}", merged);
        }
    }
}
