//! The loops of approvals: the one listener that wakes who waits, and the sweep that removes what
//! is long over and records evidence that a crash left behind.

use std::sync::Arc;
use std::time::Duration;

use caracal_ledger::Event;
use caracal_model::ApprovalId;
use caracal_store::StoreError;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

use super::course;
use crate::Sts;

/// How often everything that is awaited is read again, should news have been lost.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// How often evidence is looked for that was left behind.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Evidence younger than this is being recorded by whoever committed it.
const LEFT_BEHIND: Duration = Duration::from_secs(10);
/// How often what is over is removed.
const PURGE_EVERY: Duration = Duration::from_secs(3600);
/// How long what is over stays readable.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Rows at a time.
const BATCH: u32 = 500;
/// News that one query answers.
const TOGETHER: usize = 200;

type News = Receiver<Option<ApprovalId>>;

/// What changed; `None` is anything.
type Changed = Option<Vec<ApprovalId>>;

/// Shows how many wait.
pub fn measure(sts: &Arc<Sts>) {
    let waiting = sts.metrics.approvals_waiting.clone();
    let sts_then = Arc::downgrade(sts);
    sts.registry.on_scrape(move || {
        let taken = sts_then.upgrade().map_or(0, |sts| sts.waiters.taken());
        waiting.set(i64::try_from(taken).unwrap_or(i64::MAX));
        async {}
    });
}

/// Hears of decisions and tells who waits for them, until told to stop. From the moment that the
/// process drains nobody waits any longer.
pub async fn listen(sts: Arc<Sts>, draining: CancellationToken, stop: CancellationToken) {
    let mut news = sts.views.approval_news();
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => break,
            () = draining.cancelled() => break,
            heard = news.recv() => match heard {
                Ok(Some(id)) => gather(&mut news, id),
                Ok(None) | Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => break,
            },
            () = tokio::time::sleep(READ_AGAIN) => None,
        };
        let awaited = sts.waiters.awaited(changed.as_deref());
        if awaited.is_empty() {
            continue;
        }
        match sts.store.find_approvals(&awaited).await {
            Ok(found) => {
                for hold in &found {
                    sts.waiters.tell(&hold.id, course(hold));
                }
            }
            Err(error) => tracing::warn!(%error, "approvals not read, they are read again shortly"),
        }
    }
    sts.waiters.close();
}

/// This news and what else has arrived.
fn gather(news: &mut News, first: ApprovalId) -> Changed {
    let mut ids = vec![first];
    while ids.len() < TOGETHER {
        match news.try_recv() {
            Ok(Some(id)) => ids.push(id),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            Ok(None) | Err(TryRecvError::Lagged(_)) => return None,
        }
    }
    Some(ids)
}

/// Removes what is long over, every hour, and records evidence that was left behind, until told to
/// stop. Every replica does; each step is safe to do twice.
pub async fn sweep(sts: Arc<Sts>, stop: CancellationToken) {
    let mut purged = None;
    while !stop.is_cancelled() {
        if let Err(error) = record_left_behind(&sts).await {
            tracing::warn!(%error, "evidence of approvals still waits in the store");
        }
        let now = sts.clock.ticks();
        if purged.is_none_or(|at| now.since(at) >= PURGE_EVERY) {
            match purge(&sts, &stop).await {
                Ok(()) => purged = Some(now),
                Err(error) => tracing::warn!(%error, "approvals that are over were not removed"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Removes holds that ended a day ago.
pub async fn purge(sts: &Sts, stop: &CancellationToken) -> Result<(), StoreError> {
    let before = sts.clock.now().minus(KEPT);
    while !stop.is_cancelled()
        && sts.store.purge_approvals(before, BATCH).await? >= u64::from(BATCH)
    {}
    Ok(())
}

/// Records evidence whose process died, or whose log could not be written, after the commit.
pub async fn record_left_behind(sts: &Sts) -> Result<(), StoreError> {
    let before = sts.clock.now().minus(LEFT_BEHIND);
    let left = sts.store.approval_evidence(before, BATCH).await?;
    let mut events = Vec::new();
    for (id, text) in &left {
        match Event::parse(text) {
            Ok(event) => events.push(event),
            // It stays where it is: somebody has to look at it.
            Err(error) => tracing::error!(id, %error, "evidence of an approval cannot be read"),
        }
    }
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = events.iter().map(|event| event.id.to_string()).collect();
    if let Err(error) = sts.evidence.record(&events).await {
        tracing::warn!(%error, "evidence of approvals cannot be recorded yet");
        return Ok(());
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    sts.store.approval_evidence_recorded(&ids).await
}
