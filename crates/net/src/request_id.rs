//! Each request has an id: the caller's when it has the right form, else one of ours. Handlers
//! find it in the extensions, callers in `X-Request-Id` and in every error body.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use caracal_model::{Clock, Ids, RequestId, Ticks};
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode};

use crate::metrics::{Histograms, Registry};
use crate::problem::{Problem, X_REQUEST_ID, set_request_id};
use crate::tasks::panic_text;
use crate::trace::{self, Begun, Current, Route};

/// The route of what no route matches: unknown paths, and at the Gateway what is proxied.
const UNMATCHED: &str = "*";

/// Which ids of callers are kept (spec README, conventions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// 1 to 128 visible ASCII characters: STS and Gateway.
    VisibleAscii,
    /// The id pattern: API and Coordinator.
    Id,
}

/// Keeps or makes request ids.
#[derive(Clone)]
pub struct RequestIds {
    pattern: Pattern,
    ids: Arc<Ids>,
    measured: Option<Measured>,
}

/// Where the time of requests is counted.
#[derive(Clone)]
struct Measured {
    service: &'static str,
    requests: Histograms<3>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for RequestIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestIds({:?})", self.pattern)
    }
}

impl RequestIds {
    /// Ids of this pattern; new ones come from `ids`.
    pub fn new(pattern: Pattern, ids: Arc<Ids>) -> Self {
        Self {
            pattern,
            ids,
            measured: None,
        }
    }

    /// The same, and every request is counted in this registry, by route and status.
    #[must_use]
    pub fn measured(self, registry: &Registry) -> Self {
        Self {
            measured: Some(Measured {
                service: registry.service(),
                requests: registry.requests().clone(),
                clock: registry.clock().clone(),
            }),
            ..self
        }
    }

    /// The id of a request with these headers.
    pub fn of(&self, headers: &HeaderMap) -> RequestId {
        headers
            .get(X_REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| match self.pattern {
                Pattern::VisibleAscii => RequestId::visible_ascii(text),
                Pattern::Id => RequestId::id_pattern(text),
            })
            .unwrap_or_else(|| RequestId::trusted(self.ids.uuid()))
    }
}

/// The router of a service: unknown routes answer 404 and wrong methods 405 in the common
/// envelope, and everything that [`identify`] does.
pub fn finish(router: Router, ids: RequestIds) -> Router {
    let router = router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    identify(router, ids)
}

/// Gives every request its id, tells it to every answer, and turns a panic of a handler into a
/// 500: one bad request must not take a connection, much less the process, with it.
pub fn identify(router: Router, ids: RequestIds) -> Router {
    router.layer(middleware::from_fn_with_state(ids, attend))
}

/// 404 `not_found`.
pub async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found").because("no such route")
}

/// 405; `Allow` is added by the route.
pub async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
        .because("this route takes another method; Allow says which")
}

async fn attend(State(ids): State<RequestIds>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = ids.of(request.headers());
    let attended = ids.measured.as_ref().map(|measured| {
        let clock = measured.clock.as_ref();
        let span = Begun::new(&ids.ids, clock, request.method(), request.headers());
        (measured, clock.ticks(), span)
    });
    let trace = attended
        .as_ref()
        .and_then(|(_, _, span)| span.as_ref().map(|span| span.context));
    let current = Current {
        request_id: id.clone(),
        trace,
    };
    request.extensions_mut().insert(id.clone());
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let answer = trace::within(current, async {
        answer.await.unwrap_or_else(|panic| {
            tracing::error!(request_id = %id, panic = panic_text(&*panic), "handler panicked");
            Problem::internal().into_response()
        })
    });
    let response = named(answer.await, &id);
    if let Some((measured, since, span)) = attended {
        measured.count(route.as_ref(), response.status(), since);
        if let Some(span) = span {
            let (service, clock) = (measured.service, measured.clock.as_ref());
            let route = route.map(Route::Matched);
            span.end(service, route, response.status(), &id, clock);
        }
    }
    response
}

impl Measured {
    /// What no route matches is one route, or callers could make up as many as they like.
    fn count(&self, route: Option<&MatchedPath>, status: StatusCode, since: Ticks) {
        let route = route.map_or(UNMATCHED, MatchedPath::as_str);
        let times = self.requests.of([self.service, route, status.as_str()]);
        times.took(self.clock.ticks().since(since));
    }
}

fn named(mut response: Response, id: &RequestId) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else {
        set_request_id(&mut response, id);
        return response;
    };
    let mut answer = problem.respond(Some(id));
    // Layers between the handler and this one may have added headers, such as `Allow`.
    for (name, value) in response.headers() {
        if !answer.headers().contains_key(name) && name != http::header::CONTENT_LENGTH {
            answer.headers_mut().append(name.clone(), value.clone());
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use caracal_model::{TestClock, TestRng};
    use std::fmt::Write as _;
    use tower::ServiceExt as _;

    fn service(pattern: Pattern) -> Router {
        let ids = Ids::new(Arc::new(TestClock::default()), Arc::new(TestRng::default()));
        let router = Router::new()
            .route("/fine", get(|| async { "fine" }))
            .route("/broken", get(|| async { panic!("oh") as () }))
            .route(
                "/denied",
                get(|| async { Problem::new(StatusCode::FORBIDDEN, "access_denied") }),
            );
        finish(router, RequestIds::new(pattern, Arc::new(ids)))
    }

    async fn answer(router: &Router, method: &str, path: &str, id: &str) -> String {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-request-id", id);
        let request = request.body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let mut seen = response.headers()[X_REQUEST_ID]
            .to_str()
            .unwrap()
            .to_owned();
        if seen != id {
            seen = format!("(made, {})", seen.len());
        }
        let allow = response
            .headers()
            .get("allow")
            .map(|v| v.to_str().unwrap().to_owned());
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 4096)
            .await
            .unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        format!(
            "{status} id={seen} allow={} {}",
            allow.unwrap_or_default(),
            body.trim_end()
        )
    }

    #[tokio::test]
    async fn every_answer_carries_the_id() {
        let router = service(Pattern::VisibleAscii);
        let mut table = String::new();
        for (method, path) in [
            ("GET", "/fine"),
            ("GET", "/denied"),
            ("GET", "/broken"),
            ("GET", "/no"),
            ("POST", "/fine"),
        ] {
            writeln!(
                table,
                "{method} {path}: {}",
                answer(&router, method, path, "r!1").await
            )
            .unwrap();
        }
        insta::assert_snapshot!(table, @r#"
        GET /fine: 200 OK id=r!1 allow= fine
        GET /denied: 403 Forbidden id=r!1 allow= {"error":"access_denied","requestId":"r!1","request_id":"r!1"}
        GET /broken: 500 Internal Server Error id=r!1 allow= {"error":"internal_error","requestId":"r!1","request_id":"r!1"}
        GET /no: 404 Not Found id=r!1 allow= {"error":"not_found","error_description":"no such route","requestId":"r!1","request_id":"r!1"}
        POST /fine: 405 Method Not Allowed id=r!1 allow=GET,HEAD {"error":"method_not_allowed","error_description":"this route takes another method; Allow says which","requestId":"r!1","request_id":"r!1"}
        "#);
    }

    #[tokio::test]
    async fn ids_of_another_form_are_replaced() {
        for (pattern, id) in [
            (Pattern::Id, "r!1"),
            (Pattern::VisibleAscii, "a b"),
            (Pattern::Id, &"x".repeat(129)),
        ] {
            let seen = answer(&service(pattern), "GET", "/fine", id).await;
            assert_eq!(seen, "200 OK id=(made, 36) allow= fine");
        }
    }
}
