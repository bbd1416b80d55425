//! A deadline that every bit of progress moves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use tokio::time::Sleep;

/// Fires when nothing has happened for `limit`. Progress costs a reading of the clock; the timer is
/// set again only when it fires too early.
pub struct Stall {
    clock: Arc<dyn Clock>,
    limit: Duration,
    last: Ticks,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// Counts from now.
    pub fn new(clock: Arc<dyn Clock>, limit: Duration) -> Self {
        let last = clock.ticks();
        Self {
            clock,
            limit,
            last,
            timer: None,
        }
    }

    /// Something has happened.
    pub fn progress(&mut self) {
        self.last = self.clock.ticks();
    }

    /// Ready once nothing has happened for too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut left = self.limit;
        loop {
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let idle = self.clock.ticks().since(self.last);
            if idle >= self.limit {
                return Poll::Ready(());
            }
            left = self.limit - idle;
            self.timer = None;
        }
    }
}
