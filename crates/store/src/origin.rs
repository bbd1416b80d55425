//! Which request a commit is of: what it announces remembers that, so that evidence of the change is
//! found with everything else of the request.
//!
//! Carried by the task, not by every signature on the way: nothing is decided by it, and work that no
//! request caused has none.

use std::future::Future;

use caracal_model::RequestId;

tokio::task_local! {
    static REQUEST: RequestId;
}

/// Does the work of a request.
pub async fn of_request<F: Future>(id: Option<RequestId>, work: F) -> F::Output {
    match id {
        Some(id) => REQUEST.scope(id, work).await,
        None => work.await,
    }
}

/// The request whose work this task does.
pub(crate) fn request() -> Option<String> {
    REQUEST.try_with(ToString::to_string).ok()
}
