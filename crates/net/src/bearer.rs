//! `Authorization: Bearer`: taking the token out, and comparing it with a configured one.

use caracal_model::Secret;
use caracal_model::secret::constant_time_eq;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// The bearer token: scheme in any case, one space, the rest trimmed; empty is none (spec:
/// gateway §3). Two `Authorization` headers are ambiguous, and ambiguous is none.
pub fn token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether the header is exactly `Bearer <expected>`, compared in constant time.
pub fn is(headers: &HeaderMap, expected: &Secret<String>) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let expected = expected.expose().as_bytes();
    !expected.is_empty()
        && value
            .as_bytes()
            .strip_prefix(b"Bearer ")
            .is_some_and(|token| constant_time_eq(token, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(values: &[&str]) -> HeaderMap {
        let values = values
            .iter()
            .map(|value| HeaderValue::from_str(value).unwrap());
        values.map(|value| (AUTHORIZATION, value)).collect()
    }

    #[test]
    fn a_bearer_is_taken_out_of_one_header_only() {
        for (values, expected) in [
            (&["Bearer abc"][..], Some("abc")),
            (&["bEaReR   abc "], Some("abc")),
            (&["Bearer "], None),
            (&["Bearer"], None),
            (&["Basic abc"], None),
            (&["Bearer a", "Bearer a"], None),
            (&[], None),
        ] {
            assert_eq!(token(&headers(values)), expected, "{values:?}");
        }
    }

    #[test]
    fn a_configured_bearer_is_compared_exactly() {
        let expected = Secret::new("abc".to_owned());
        for (values, fits) in [
            (&["Bearer abc"][..], true),
            (&["bearer abc"], false),
            (&["Bearer  abc"], false),
            (&["Bearer abcd"], false),
            (&["Bearer abc", "Bearer abc"], false),
            (&[], false),
        ] {
            assert_eq!(is(&headers(values), &expected), fits, "{values:?}");
        }
        assert!(!is(&headers(&["Bearer "]), &Secret::new(String::new())));
    }
}
