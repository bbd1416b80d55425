//! Answers that are not refusals.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A status and a JSON body.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    body: Option<String>,
    replayed: bool,
}

impl Answer {
    /// 200.
    pub fn ok(body: &Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: Some(body.to_string()),
            replayed: false,
        }
    }

    /// 201.
    pub fn created(body: &Value) -> Self {
        Self {
            status: StatusCode::CREATED,
            ..Self::ok(body)
        }
    }

    /// 204.
    pub const fn empty() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            body: None,
            replayed: false,
        }
    }

    /// An earlier answer, once more.
    pub fn replayed(status: i64, body: String) -> Self {
        let status = u16::try_from(status)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        Self {
            status: status.unwrap_or(StatusCode::CREATED),
            body: Some(body),
            replayed: true,
        }
    }

    /// HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The body, as text.
    pub fn body_text(&self) -> String {
        self.body.clone().unwrap_or_default()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let Some(body) = self.body else {
            return self.status.into_response();
        };
        let kind = HeaderValue::from_static("application/json; charset=utf-8");
        let mut response = (self.status, [(header::CONTENT_TYPE, kind)], body).into_response();
        if self.replayed {
            response
                .headers_mut()
                .insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}
