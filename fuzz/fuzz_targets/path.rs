//! No path makes the Gateway's rules panic, and none that they accept can climb: not as it came,
//! not below an upstream's base, and not after any number of decodings by an upstream.
#![no_main]

use caracal_gateway::target::{decoded, joined};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    let Ok(path) = decoded(raw) else { return };
    assert!(!climbs(path.as_bytes()), "{path:?} was accepted");
    // What the upstream receives is the raw path, whatever it does with it.
    for base in ["", "/", "/v2", "/v2/"] {
        stays(joined(base, raw).into_bytes());
    }
});

/// Decodes as often as anything changes. Each decoding is shorter, so it ends.
fn stays(mut path: Vec<u8>) {
    loop {
        assert!(
            !climbs(&path),
            "{:?} was accepted",
            String::from_utf8_lossy(&path)
        );
        let next = unescaped(&path);
        if next == path {
            return;
        }
        path = next;
    }
}

/// A dot segment, or a backslash, which some servers take for a slash. Path parameters do not hide
/// a dot segment: some servers cut them off first.
fn climbs(path: &[u8]) -> bool {
    let name = |segment: &[u8]| {
        segment
            .split(|b| *b == b';')
            .next()
            .unwrap_or_default()
            .to_vec()
    };
    path.contains(&b'\\')
        || path
            .split(|b| *b == b'/')
            .any(|s| matches!(&*name(s), b"." | b".."))
}

/// One decoding by somebody who takes no offence at what escapes nothing.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => std::str::from_utf8(&[*high, *low])
                .ok()
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        out.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &tail[2..] } else { tail };
    }
    out
}
