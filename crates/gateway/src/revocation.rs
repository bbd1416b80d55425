//! Whether a call that was admitted has been revoked since.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use caracal_model::Mandate;
use caracal_view::{MandateAnchors, Views};
use tokio::sync::watch;

/// Watches what one mandate hangs on. Made before the mandate is checked, so that no mark falls
/// between the check and the watch.
pub struct RevocationWatch {
    views: Views,
    marks: watch::Receiver<u64>,
    mandate: Option<Arc<Mandate>>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl RevocationWatch {
    /// From now on, whatever the mandate will be.
    pub fn new(views: &Views) -> Self {
        Self {
            views: views.clone(),
            marks: views.revocation_watch(),
            mandate: None,
            waiting: None,
        }
    }

    /// Watches this one.
    pub fn follow(&mut self, mandate: Arc<Mandate>) {
        self.mandate = Some(mandate);
    }

    /// Whether it has been revoked. Costs an atomic load while nothing at all is revoked.
    pub fn is_tripped(&mut self) -> bool {
        if !self.marks.has_changed().unwrap_or(false) {
            return false;
        }
        self.marks.borrow_and_update();
        let anchors = self.mandate.as_deref().map(MandateAnchors::of);
        anchors.is_some_and(|anchors| self.views.is_marked(&anchors.as_anchors()))
    }

    /// As [`RevocationWatch::is_tripped`], and wakes the task at the next mark.
    pub fn poll_tripped(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.is_tripped() {
                return true;
            }
            let waiting = self.waiting.get_or_insert_with(|| {
                let mut marks = self.marks.clone();
                Box::pin(async move {
                    if marks.changed().await.is_err() {
                        // No more marks, so nothing to wake for.
                        std::future::pending::<()>().await;
                    }
                })
            });
            if waiting.as_mut().poll(cx) == Poll::Pending {
                return false;
            }
            self.waiting = None;
        }
    }
}
