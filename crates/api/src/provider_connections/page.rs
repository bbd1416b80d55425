//! The page that a person sees after connecting an account.

use axum::response::{Html, IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use crate::failure::Failure;

/// Whether a person looks: HTML is accepted and JSON is not.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let accepted: Vec<_> = accepted.filter_map(|value| value.to_str().ok()).collect();
    let accepts = |kind: &str| accepted.iter().any(|value| value.contains(kind));
    accepts("text/html") && !accepts("application/json")
}

/// The outcome, for a person.
pub fn page(answer: &Result<Value, Failure>) -> Response {
    let (status, title, text) = match answer {
        Ok(_) => (
            StatusCode::CREATED,
            "Account connected",
            "You can close this window.".to_owned(),
        ),
        Err(failure) => (
            failure.status,
            "Account not connected",
            format!("{} ({})", failure.description, failure.error),
        ),
    };
    let text = escaped(&text);
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         </head><body><h1>{title}</h1><p>{text}</p></body></html>"
    );
    let mut response = (status, Html(html)).into_response();
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    if let Some(seconds) = answer
        .as_ref()
        .err()
        .and_then(|failure| failure.retry_after)
    {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_is_text() {
        assert_eq!(
            escaped("<a href='x'>&\""),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;"
        );
    }

    #[test]
    fn only_a_browser_gets_a_page() {
        for (accept, wanted) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/html,application/xhtml+xml"), true),
            (Some("text/html, application/json"), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(is_wanted(&headers), wanted, "{accept:?}");
        }
    }
}
