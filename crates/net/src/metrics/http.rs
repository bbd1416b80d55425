//! `/metrics`, `/metrics.json` and `/capacity` over HTTP.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use caracal_model::Secret;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};

use super::Registry;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Who may read metrics (spec: operations §4).
#[derive(Debug)]
pub struct Access {
    /// `METRICS_BEARER`.
    pub bearer: Option<Secret<String>>,
    /// Whether reading without a configured bearer is allowed (dev mode).
    pub open: bool,
    /// Refuse with JSON (API, Coordinator) instead of plain text.
    pub json_refusal: bool,
}

impl Access {
    /// Whether a request with these headers may read.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        match &self.bearer {
            Some(bearer) => crate::bearer::is(headers, bearer),
            None => self.open,
        }
    }

    fn refusal(&self) -> Response {
        if self.json_refusal {
            crate::Problem::new(StatusCode::UNAUTHORIZED, "unauthorized")
                .because("send METRICS_BEARER as Authorization: Bearer")
                .into_response()
        } else {
            (StatusCode::UNAUTHORIZED, "unauthorized").into_response()
        }
    }
}

impl Registry {
    /// The answer of `/metrics` to a request with these headers, whoever sends it.
    pub async fn answer(&self, headers: &HeaderMap) -> Response {
        if wants_open_metrics(headers) {
            return ([(CONTENT_TYPE, OPEN_METRICS)], self.render_open().await).into_response();
        }
        ([(CONTENT_TYPE, TEXT)], self.render().await).into_response()
    }

    /// The answer of `/capacity` to a request with these headers.
    pub async fn answer_capacity(&self, headers: &HeaderMap, access: &Access) -> Response {
        if access.allows(headers) {
            Json(self.capacity().await).into_response()
        } else {
            access.refusal()
        }
    }
}

type Scrape = State<(Registry, Arc<Access>)>;

/// The routes, below a prefix; with `/metrics.json` where there is something to say.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(
    registry: &Registry,
    access: Arc<Access>,
    flat: bool,
    prefix: &str,
) -> Router<S> {
    let mut router = Router::new().route(&format!("{prefix}/metrics"), any(metrics));
    if flat {
        router = router.route(&format!("{prefix}/metrics.json"), any(metrics_json));
    }
    router.with_state((registry.clone(), access))
}

/// `/capacity`.
pub(super) fn capacity_route<S: Clone + Send + Sync + 'static>(
    registry: &Registry,
    access: Arc<Access>,
) -> Router<S> {
    let router = Router::new().route("/capacity", any(capacity));
    router.with_state((registry.clone(), access))
}

async fn metrics(State((registry, access)): Scrape, headers: HeaderMap) -> Response {
    if access.allows(&headers) {
        registry.answer(&headers).await
    } else {
        access.refusal()
    }
}

async fn metrics_json(State((registry, access)): Scrape, headers: HeaderMap) -> Response {
    if access.allows(&headers) {
        Json(registry.flat().await).into_response()
    } else {
        access.refusal()
    }
}

async fn capacity(State((registry, access)): Scrape, headers: HeaderMap) -> Response {
    registry.answer_capacity(&headers, &access).await
}

/// Whether OpenMetrics is asked for by name, and is as welcome as plain text (RFC 9110 §12.5.1).
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT).iter();
    let ranges = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    let (mut open, mut text) = (0.0_f32, 0.0_f32);
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let weight = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(Some(1.0), |(_, q)| q.trim().parse().ok())
            .filter(|q| (0.0..=1.0).contains(q))
            .unwrap_or(0.0);
        if media.eq_ignore_ascii_case("application/openmetrics-text") {
            open = open.max(weight);
        } else if media.eq_ignore_ascii_case("text/plain") {
            text = text.max(weight);
        }
    }
    open > 0.0 && open >= text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_whoever_asks_for_it() {
        let asks = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            wants_open_metrics(&headers)
        };
        let prometheus = "application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert!(asks(prometheus));
        assert!(asks("application/OpenMetrics-Text"));
        for other in [
            "*/*",
            "text/plain",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;q=0.4, text/plain;q=0.5",
        ] {
            assert!(!asks(other), "{other}");
        }
        assert!(!wants_open_metrics(&HeaderMap::new()));
    }

    #[test]
    fn metrics_without_a_bearer_are_open_in_dev_only() {
        let with = |bearer: Option<&str>, open| Access {
            bearer: bearer.map(|text| Secret::new(text.to_owned())),
            open,
            json_refusal: false,
        };
        let mut right = HeaderMap::new();
        right.insert("authorization", "Bearer m".parse().unwrap());
        let none = HeaderMap::new();
        assert!(with(None, true).allows(&none));
        assert!(!with(None, false).allows(&right));
        assert!(with(Some("m"), false).allows(&right));
        assert!(!with(Some("m"), true).allows(&none));
    }
}
