//! Attending a request: from its first byte to its answer.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use caracal_model::RequestId;
use caracal_net::Problem;
use caracal_store::Rider;
use http::StatusCode;

use crate::chainer::Trail;
use crate::draft::{Draft, End};
use crate::target::Rules;

/// The id of what a request made, in the extensions of its answer.
#[derive(Clone, Debug)]
pub struct Made(pub String);

/// What attends the requests of one service.
#[derive(Clone, Debug)]
pub struct Attendant {
    trail: Trail,
    rules: &'static Rules,
}

impl Attendant {
    /// Attends by these rules.
    pub fn new(trail: Trail, rules: &'static Rules) -> Self {
        Self { trail, rules }
    }
}

/// What becomes of a draft when its request does not come to an answer: the caller hung up, or the
/// time was up.
struct Unanswered {
    trail: Trail,
    draft: Arc<Draft>,
    rider: Arc<Rider>,
    answered: bool,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if !self.answered && self.rider.has_arrived() {
            self.trail.complete(self.draft.records(End::Unknown, true));
        }
    }
}

/// Puts a [`Draft`] into the extensions of a request and sees to it that its record is written.
/// Whoever learns who calls says so to the draft.
pub async fn attend(State(at): State<Attendant>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if !path.starts_with(at.rules.prefix) {
        return next.run(request).await;
    }
    let extensions = request.extensions();
    let pattern = extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let request_id = extensions.get::<RequestId>();
    let request_id = request_id.map_or_else(String::new, ToString::to_string);
    let method = request.method().as_str();
    let draft = Draft::new(&at.trail, at.rules, method, path, pattern, request_id);
    let draft = Arc::new(draft);
    request.extensions_mut().insert(Arc::clone(&draft));
    let rider = Rider::new(draft.intention());
    let mut guard = Unanswered {
        trail: at.trail.clone(),
        draft: Arc::clone(&draft),
        rider: Arc::clone(&rider),
        answered: false,
    };
    let response = rider.along(next.run(request)).await;
    guard.answered = true;
    finish(&at, &draft, rider.has_arrived(), response).await
}

async fn finish(at: &Attendant, draft: &Draft, intended: bool, response: Response) -> Response {
    let status = response.status();
    let end = End::Answered {
        status: status.as_u16(),
        made: response
            .extensions()
            .get::<Made>()
            .filter(|_| status == StatusCode::CREATED)
            .map(|made| made.0.as_str()),
    };
    if intended {
        at.trail.complete(draft.records(end, true));
        return response;
    }
    if status.as_u16() >= 400 {
        refused(at, draft, end, status.as_u16());
        return response;
    }
    if !draft.changes() {
        return response;
    }
    match at.trail.append(draft.records(end, false)).await {
        Ok(()) => response,
        Err(_) => unavailable(at.rules),
    }
}

fn refused(at: &Attendant, draft: &Draft, end: End<'_>, status: u16) {
    let actor = draft.actor();
    match actor {
        Some(actor) if status == 429 => {
            at.trail.count(actor.id.as_deref(), &draft.method, status);
        }
        Some(_) => at.trail.note(draft.records(end, false)),
        None if at.rules.counts_strangers => at.trail.count(None, &draft.method, status),
        None => {}
    }
}

fn unavailable(rules: &Rules) -> Response {
    let why = "what was done cannot be recorded; look whether it was done before you try again";
    let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "audit_unavailable").because(why);
    let problem = if rules.tells_message {
        problem.with("message", why)
    } else {
        problem
    };
    problem.into_response()
}
