//! The owner of every loop of a process.
//!
//! **Forces.** A loop that nobody owns goes on after its service has closed, or dies and nobody
//! notices. **Choice.** [`Tasks::spawn`] is the only way to start one: it is named, it is told to
//! stop through a token, it is waited for, and its panic ends the process visibly, because a
//! replica without (say) its revocation feed is worse than no replica. **Consequence.** `main`
//! selects on [`Tasks::failed`] and shuts down when it resolves.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Name = Cow<'static, str>;

/// Starts, names, stops and waits for tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    stop: CancellationToken,
    running: Mutex<BTreeMap<u64, (Name, AbortHandle)>>,
    next: AtomicU64,
    failed: watch::Sender<Option<Name>>,
    /// Where work runs that nobody waits for.
    background: Option<Handle>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An owner without tasks.
    pub fn new() -> Self {
        Self::with_background(None)
    }

    /// As [`Tasks::new`], with a runtime of its own for [`Tasks::spawn_background`].
    pub fn with_background(background: Option<Handle>) -> Self {
        Self(Arc::new(Inner {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            running: Mutex::default(),
            next: AtomicU64::new(0),
            failed: watch::Sender::new(None),
            background,
        }))
    }

    /// Cancelled when the process stops: every loop watches it.
    pub fn stop(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Starts a task under a name. Its panic is logged and resolves [`Tasks::failed`].
    pub fn spawn(&self, name: impl Into<Name>, task: impl Future<Output = ()> + Send + 'static) {
        self.start(None, name.into(), task);
    }

    /// As [`Tasks::spawn`], for work that computes for long and that no request waits for: where the
    /// process has a runtime for it, the threads that serve are left alone.
    pub fn spawn_background(
        &self,
        name: impl Into<Name>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.start(self.0.background.as_ref(), name.into(), task);
    }

    fn start(
        &self,
        on: Option<&Handle>,
        name: Name,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let key = self.0.next.fetch_add(1, Ordering::Relaxed);
        let owned = Owned {
            tasks: self.clone(),
            key,
        };
        // The entry is made under the lock, so a task that ends at once cannot leave before it.
        let mut running = self.0.running.lock();
        let task = owned.run(name.clone(), task);
        let handle = match on {
            Some(runtime) => self.0.tracker.spawn_on(task, runtime),
            None => self.0.tracker.spawn(task),
        };
        running.insert(key, (name, handle.abort_handle()));
    }

    /// Resolves with the name of the first task that panicked.
    pub async fn failed(&self) -> Name {
        let mut failed = self.0.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(name) => name.clone().unwrap_or_default(),
            // The sender lives as long as `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells every task to stop and waits for them; those still running after `within` are aborted
    /// and named in the answer.
    pub async fn shutdown(&self, within: Duration) -> Vec<Name> {
        self.0.stop.cancel();
        self.0.tracker.close();
        if tokio::time::timeout(within, self.0.tracker.wait())
            .await
            .is_ok()
        {
            return Vec::new();
        }
        let late = std::mem::take(&mut *self.0.running.lock());
        late.into_values()
            .map(|(name, handle)| {
                tracing::warn!(task = %name, "did not stop in time and was aborted");
                handle.abort();
                name
            })
            .collect()
    }
}

/// Takes the task off the list when it ends, however it ends.
struct Owned {
    tasks: Tasks,
    key: u64,
}

impl Owned {
    async fn run(self, name: Name, task: impl Future<Output = ()>) {
        if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
            tracing::error!(task = %name, panic = panic_text(&*panic), "task panicked");
            self.tasks.0.failed.send_if_modified(|failed| {
                let first = failed.is_none();
                failed.get_or_insert(name);
                first
            });
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.tasks.0.running.lock().remove(&self.key);
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_heeds_the_token_is_waited_for() {
        let tasks = Tasks::new();
        let (ended, stop) = (Arc::new(AtomicU64::new(0)), tasks.stop());
        let seen = ended.clone();
        tasks.spawn("heeds", async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            seen.store(1, Ordering::SeqCst);
        });
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
        assert_eq!(ended.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("stubborn", std::future::pending());
        tasks.spawn("quick", async {});
        let late = tasks.shutdown(Duration::from_millis(20)).await;
        assert_eq!(late, ["stubborn"]);
    }

    #[test]
    fn the_background_is_another_runtime_and_is_waited_for() {
        let threads = |name: &str| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let builder = builder.worker_threads(1).thread_name(name).enable_all();
            builder.build().unwrap()
        };
        let (serving, background) = (threads("serving"), threads("background"));
        let tasks = Tasks::with_background(Some(background.handle().clone()));
        let (seen, stop) = (Arc::new(Mutex::new(None)), tasks.stop());
        let told = Arc::clone(&seen);
        serving.block_on(async {
            tasks.spawn_background("ledger", async move {
                stop.cancelled().await;
                *told.lock() = std::thread::current().name().map(str::to_owned);
            });
            assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
        });
        assert_eq!(seen.lock().as_deref(), Some("background"));
    }

    #[tokio::test]
    async fn a_panic_is_told_by_the_name_of_its_task() {
        let tasks = Tasks::new();
        tasks.spawn("follower", async { panic!("feed gone") });
        let name = tokio::time::timeout(Duration::from_secs(5), tasks.failed()).await;
        assert_eq!(name.unwrap(), "follower");
    }
}
