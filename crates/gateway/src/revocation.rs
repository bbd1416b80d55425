//! Whether a call that was admitted has been revoked since.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use caracal_model::Mandate;
use caracal_view::{MandateAnchors, Views};
use tokio::sync::watch;

/// Why a response under way may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its mandate was revoked.
    Revoked,
    /// Neither feed nor store can tell whether it was.
    Blind,
}

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

    /// Why the response may not go on, if it may not.
    pub fn cut(&mut self) -> Option<Cut> {
        if self.is_tripped() {
            return Some(Cut::Revoked);
        }
        self.views.is_blind().then_some(Cut::Blind)
    }

    /// As [`RevocationWatch::cut`], and wakes the task at the next news.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Option<Cut> {
        loop {
            let cut = self.cut();
            if cut.is_some() {
                return cut;
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
                return None;
            }
            self.waiting = None;
        }
    }
}
