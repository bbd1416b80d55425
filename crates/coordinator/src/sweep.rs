//! What time does (spec: coordinator §6.6, §12): tasks end, services without a heartbeat are
//! suspended, edges expire, and what ended long ago is deleted.
//!
//! Every replica sweeps. Each step is a conditional update, so two sweepers at one row do no harm
//! and need no lock; none of them grants anything by being late, because liveness is tested against
//! the time wherever it matters.

use std::time::Duration;

use caracal_model::{SessionId, Timestamp, ZoneId};
use caracal_net::Tasks;
use caracal_net::metrics::Counter;
use caracal_store::sessions::Due;
use caracal_store::sessions::end::{Cut, Root};
use caracal_store::{StoreError, Tx};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Cleaned, Job};
use crate::service::Coordinator;
use crate::session::end::{TTL, end};
use crate::session::standing::{HEARTBEAT_LOST, suspend_tree};

/// Tasks of one zone that are ended on the way, when a quota seems to be full.
const ON_THE_WAY: u32 = 50;
const DAY: Duration = Duration::from_secs(86_400);
/// Longest wait after failures, in intervals.
const MAX_BACKOFF: u32 = 8;

#[derive(Clone, Copy)]
enum Sweep {
    Tasks,
    Leases,
    Retention,
}

/// Starts the sweepers under `tasks`, which stops them and waits for them.
pub fn tasks(coordinator: &Coordinator, tasks: &Tasks) {
    let config = &coordinator.config;
    for (name, sweep, every) in [
        ("coordinator ttl sweeper", Sweep::Tasks, config.ttl_sweep),
        (
            "coordinator lease sweeper",
            Sweep::Leases,
            config.lease_sweep,
        ),
        (
            "coordinator retention cleaner",
            Sweep::Retention,
            config.retention_interval,
        ),
    ] {
        tasks.spawn(name, run(coordinator.clone(), sweep, every, tasks.stop()));
    }
}

async fn run(coordinator: Coordinator, sweep: Sweep, every: Duration, stop: CancellationToken) {
    let mut failures = 0u32;
    loop {
        // Jitter of a tenth keeps replicas apart.
        let mut wait = every.mul_f64(0.95 + 0.1 * coordinator.fraction());
        wait *= 1 << failures.min(MAX_BACKOFF.ilog2());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let job = sweep.job(&coordinator);
        job.runs.inc();
        match Box::pin(sweep.once(&coordinator, &stop)).await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures = failures.saturating_add(1);
                job.failures.inc();
                tracing::warn!(%error, "sweep failed; what it left is taken up by the next");
            }
        }
    }
}

impl Sweep {
    fn job(self, coordinator: &Coordinator) -> &Job {
        match self {
            Self::Tasks => &coordinator.metrics.ttl,
            Self::Leases => &coordinator.metrics.lease,
            Self::Retention => &coordinator.metrics.retention,
        }
    }

    async fn once(
        self,
        coordinator: &Coordinator,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        match self {
            Self::Tasks => overdue(coordinator, stop).await.map(drop),
            Self::Leases => lapsed(coordinator, stop).await.map(drop),
            Self::Retention => retention(coordinator, stop).await,
        }
    }
}

/// Ends every task past its time; answers how many Sessions ended.
///
/// # Errors
/// The store's.
pub async fn overdue(
    coordinator: &Coordinator,
    stop: &CancellationToken,
) -> Result<usize, StoreError> {
    let batch = coordinator.config.sweep_batch;
    let mut all = 0;
    loop {
        let now = coordinator.clock.now();
        let due = coordinator.store.overdue_tasks(None, now, batch).await?;
        let full = u32::try_from(due.len()).is_ok_and(|count| count >= batch);
        let ended = expire(coordinator, due, now, stop).await?;
        all += ended;
        if !full || ended == 0 || stop.is_cancelled() {
            return Ok(all);
        }
    }
}

/// Ends the overdue tasks of one zone, some at a time; answers how many Sessions ended.
///
/// # Errors
/// The store's.
pub async fn overdue_of(
    coordinator: &Coordinator,
    zone: &ZoneId,
    now: Timestamp,
) -> Result<usize, StoreError> {
    let due = coordinator
        .store
        .overdue_tasks(Some(zone), now, ON_THE_WAY)
        .await?;
    expire(coordinator, due, now, &CancellationToken::new()).await
}

async fn expire(
    coordinator: &Coordinator,
    due: Vec<Due>,
    now: Timestamp,
    stop: &CancellationToken,
) -> Result<usize, StoreError> {
    let mut all = 0;
    for one in due {
        if stop.is_cancelled() {
            break;
        }
        let roots = [Root {
            id: one.id,
            parent: one.parent,
        }];
        let mut cut = Cut::of(&roots, TTL, now);
        cut.by_time = true;
        let ended = end(coordinator, &one.zone, &cut).await;
        let ended = ended.map(|ended| ended.sessions.len());
        let [root] = roots;
        all += unless_alone(ended, &coordinator.metrics.ttl, &one.zone, &root.id)?;
    }
    count(&coordinator.metrics.ttl_terminated, all);
    Ok(all)
}

/// A Session that cannot be dealt with keeps no other from its due; an outage does.
fn unless_alone(
    done: Result<usize, StoreError>,
    job: &Job,
    zone: &ZoneId,
    session: &SessionId,
) -> Result<usize, StoreError> {
    match done {
        Err(error) if !error.is_outage() => {
            job.failures.inc();
            tracing::error!(%error, %zone, %session, "a Session was left as it is by a sweep");
            Ok(0)
        }
        other => other,
    }
}

/// Suspends every service whose lease has lapsed; answers how many Sessions were suspended.
///
/// # Errors
/// The store's.
pub async fn lapsed(
    coordinator: &Coordinator,
    stop: &CancellationToken,
) -> Result<usize, StoreError> {
    let batch = coordinator.config.sweep_batch;
    let mut all = 0;
    loop {
        let due = coordinator
            .store
            .lapsed_services(coordinator.clock.now(), batch)
            .await?;
        let full = u32::try_from(due.len()).is_ok_and(|count| count >= batch);
        let mut suspended = 0;
        for one in due {
            if stop.is_cancelled() {
                break;
            }
            let done = suspend_tree(coordinator, &one.zone, &one.id, HEARTBEAT_LOST, true).await;
            suspended += unless_alone(done, &coordinator.metrics.lease, &one.zone, &one.id)?;
        }
        count(&coordinator.metrics.lease_suspended, suspended);
        all += suspended;
        if !full || suspended == 0 || stop.is_cancelled() {
            return Ok(all);
        }
    }
}

/// Marks and deletes what is old, each table in transactions of its own: one that fails does not
/// keep the others from shrinking.
async fn retention(coordinator: &Coordinator, stop: &CancellationToken) -> Result<(), StoreError> {
    let config = &coordinator.config;
    let now = coordinator.clock.now();
    let before = |days: u32| now.minus(DAY * days);
    let results = [
        expire_edges(coordinator, stop).await,
        delete(
            coordinator,
            stop,
            Old::Edges(before(config.delegation_days)),
        )
        .await,
        delete(
            coordinator,
            stop,
            Old::Sessions(before(config.session_days)),
        )
        .await,
        delete(coordinator, stop, Old::Receipts(now)).await,
        prune_outbox(coordinator, stop, before(config.outbox_days)).await,
    ];
    results.into_iter().collect()
}

/// What is deleted, if it ended before then.
#[derive(Clone, Copy)]
enum Old {
    Edges(Timestamp),
    Sessions(Timestamp),
    Receipts(Timestamp),
}

impl Old {
    async fn delete_some(self, tx: &mut Tx, limit: u32) -> Result<u64, StoreError> {
        match self {
            Self::Edges(before) => tx.delete_ended_edges(before, limit).await,
            Self::Sessions(before) => tx.delete_ended_sessions(before, limit).await,
            Self::Receipts(before) => tx.delete_expired_receipts(before, limit).await,
        }
    }

    const fn counter(self, cleaned: &Cleaned) -> &Counter {
        match self {
            Self::Edges(_) => &cleaned.deleted_edges,
            Self::Sessions(_) => &cleaned.deleted_sessions,
            Self::Receipts(_) => &cleaned.deleted_receipts,
        }
    }
}

/// Marks edges past their time as expired.
async fn expire_edges(
    coordinator: &Coordinator,
    stop: &CancellationToken,
) -> Result<(), StoreError> {
    let limit = coordinator.config.retention_batch;
    while !stop.is_cancelled() {
        let lapsed = coordinator
            .store
            .lapsed_edges(coordinator.clock.now(), limit)
            .await?;
        let full = u32::try_from(lapsed.len()).is_ok_and(|count| count >= limit);
        let mut by_zone = std::collections::BTreeMap::<ZoneId, Vec<_>>::new();
        for (zone, edge) in lapsed {
            by_zone.entry(zone).or_default().push(edge);
        }
        let mut expired = 0;
        for (zone, edges) in by_zone {
            let mut tx = coordinator.store.begin("expire delegations").await?;
            expired += tx.zone(&zone).delegations().expire(&edges).await?;
            tx.commit().await?;
        }
        if expired > 0 {
            coordinator.announce().await;
        }
        count(&coordinator.metrics.cleaned.expired_edges, expired);
        if !full || expired == 0 {
            break;
        }
    }
    Ok(())
}

async fn delete(
    coordinator: &Coordinator,
    stop: &CancellationToken,
    old: Old,
) -> Result<(), StoreError> {
    let limit = coordinator.config.retention_batch;
    while !stop.is_cancelled() {
        let mut tx = coordinator.store.begin("delete what is old").await?;
        let deleted = old.delete_some(&mut tx, limit).await?;
        tx.commit().await?;
        old.counter(&coordinator.metrics.cleaned).inc_by(deleted);
        if deleted < u64::from(limit) {
            break;
        }
    }
    Ok(())
}

async fn prune_outbox(
    coordinator: &Coordinator,
    stop: &CancellationToken,
    before: Timestamp,
) -> Result<(), StoreError> {
    let limit = coordinator.config.retention_batch;
    while !stop.is_cancelled() {
        let pruned = coordinator.store.outbox().prune(before, limit).await?;
        coordinator.metrics.cleaned.deleted_outbox.inc_by(pruned);
        if pruned < u64::from(limit) {
            break;
        }
    }
    Ok(())
}

fn count(counter: &Counter, by: usize) {
    counter.inc_by(u64::try_from(by).unwrap_or(0));
}
