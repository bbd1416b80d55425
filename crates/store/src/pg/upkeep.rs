//! Idle connections: how many there are, and for how long.
//!
//! **Forces.** A connection costs Postgres memory whether it is used or not, and the sum over all
//! replicas has a limit; making one costs the request that needs it several round trips. **Choice.** A
//! few are kept open at all times, those beyond are closed when they were idle for long, and none gets
//! old: behind a proxy or a failover, an old one may lead to a server that is not the right one any
//! more.

use deadpool_postgres::{Object, Pool, WeakPool};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::store::PoolOptions;

/// Looks after the idle connections of a pool until it is dropped.
pub(super) struct Upkeep(JoinHandle<()>);

impl Upkeep {
    /// Starts. The pool is not kept alive by this.
    #[expect(
        clippy::disallowed_methods,
        reason = "the pool owns it: stopped and dropped with it"
    )]
    pub fn start(pool: &Pool, options: PoolOptions) -> Self {
        let pool = pool.weak();
        Self(tokio::spawn(run(pool, options)))
    }

    /// Ends it.
    pub fn stop(&self) {
        self.0.abort();
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(pool: WeakPool, options: PoolOptions) {
    let mut looks = interval(options.look_every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        close_idle(&pool, options);
        open_missing(&pool, options).await;
    }
}

/// Closes what is old, and what was idle for long beyond those that are kept.
fn close_idle(pool: &Pool, options: PoolOptions) {
    let mut left = pool.status().size;
    let kept = options.min.min(options.max);
    pool.retain(|_, of| {
        let is_old = of.age() >= options.lifetime;
        let is_spare = of.last_used() >= options.idle && left > kept;
        if is_old || is_spare {
            left = left.saturating_sub(1);
        }
        !(is_old || is_spare)
    });
}

/// Opens those that are to be kept and are not there. Held together, or the second would be the first
/// again. An outage is the matter of whoever asks something: here it only waits for the next look.
async fn open_missing(pool: &Pool, options: PoolOptions) {
    let mut held: Vec<Object> = Vec::new();
    let kept = options.min.min(options.max);
    while pool.status().size < kept {
        match pool.get().await {
            Ok(connection) => held.push(connection),
            Err(error) => {
                tracing::debug!(%error, "no idle connections are kept ready");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use caracal_crypto::os::SystemClock;

    use super::*;
    use crate::store::Engine;
    use crate::testing::Database;

    /// Five milliseconds each.
    const LOOKS: usize = 4_000;

    /// A test with the pool of each Postgres at hand.
    async fn on_postgres<F: Future>(name: &str, options: PoolOptions, test: impl Fn(Pool) -> F) {
        for database in Database::each(name).await {
            let store = database
                .open_pool(Arc::new(SystemClock::default()), options)
                .await;
            if let Engine::Pg(pg) = store.engine() {
                test(pg.pool.clone()).await;
            }
            store.shutdown().await;
            drop(store);
            database.remove().await;
        }
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        for _ in 0..LOOKS {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}");
    }

    async fn said(connection: &Object, what: &str) -> String {
        let row = connection.query_one(what, &[]).await.unwrap();
        row.get(0)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_few_are_kept_open_and_those_beyond_are_closed() {
        let options = PoolOptions {
            max: 6,
            min: 2,
            idle: Duration::from_millis(50),
            look_every: Duration::from_millis(20),
            ..PoolOptions::default()
        };
        on_postgres("upkeep", options, |pool| async move {
            until("two are opened without being asked for", || {
                pool.status().size == 2
            })
            .await;
            let mut held = Vec::new();
            for _ in 0..5 {
                held.push(pool.get().await.unwrap());
            }
            assert_eq!(pool.status().size, 5);
            drop(held);
            until("three of five are closed", || pool.status().size == 2).await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn none_gets_old_and_none_may_idle_in_a_transaction() {
        let options = PoolOptions {
            max: 1,
            lifetime: Duration::from_millis(30),
            idle_in_tx: Duration::from_millis(1500),
            look_every: Duration::from_secs(3600),
            ..PoolOptions::default()
        };
        on_postgres("lifetime", options, |pool| async move {
            let connection = pool.get().await.unwrap();
            let pid = said(&connection, "SELECT pg_backend_pid()::text").await;
            let limit = said(&connection, "SHOW idle_in_transaction_session_timeout").await;
            assert_eq!(limit, "1500ms");
            tokio::time::sleep(options.lifetime).await;
            drop(connection);
            let another = pool.get().await.unwrap();
            assert_ne!(said(&another, "SELECT pg_backend_pid()::text").await, pid);
        })
        .await;
    }
}
