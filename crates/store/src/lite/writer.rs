//! The one writer of a SQLite database: group commit.
//!
//! **Forces.** Committing each transaction alone pays one sync for each. Letting transactions run
//! at the same time is not on offer: SQLite has one writer.
//!
//! **Choice.** Transactions queue. The thread serves them one after another, each as a savepoint
//! inside one outer transaction, and commits that when the queue is empty, or full enough, or 2 ms
//! old. `commit` answers only after the outer COMMIT; when that fails, everybody in it is told so.
//!
//! **Consequence.** A transaction that dawdles between its statements holds up everybody: its owner
//! does no I/O of its own in between, and one that stalls for [`STALL`] is rolled back.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::types::Value as LiteValue;
use tokio::sync::{mpsc, oneshot};

use super::statement;
use crate::error::StoreError;
use crate::row::Row;
use crate::sql::Sql;

/// Transactions that may wait for the writer; the next one waits to enter the queue.
const QUEUE: usize = 1024;
/// Transactions in one outer transaction.
const GROUP: usize = 256;
/// Age at which an outer transaction takes no more in.
const GROUP_AGE: Duration = Duration::from_millis(2);
/// How long an open transaction may leave the writer without a word.
const STALL: Duration = Duration::from_secs(3);

/// How the savepoint of a transaction ends.
const KEEP: &str = "RELEASE tx";
const TAKE_BACK: &str = "ROLLBACK TO tx; RELEASE tx";

type Params = Vec<LiteValue>;
type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What a transaction asks of the writer.
pub(crate) enum Command {
    Query(Sql, Params, Reply<Vec<Row>>),
    Execute(Sql, Params, Reply<u64>),
    /// One statement for each row.
    ExecuteRows(Sql, Vec<Params>, Reply<u64>),
    Commit(Reply<()>),
    /// Answered after the outer COMMIT, as [`Command::Commit`] is: until then the owner may have
    /// seen of its neighbours what no reader sees.
    Rollback(Reply<()>),
}

type Exclusive = Box<dyn FnOnce(&mut Connection) + Send>;

enum Job {
    Transaction {
        doing: &'static str,
        commands: Receiver<Command>,
    },
    /// Something that needs the connection outside any transaction.
    Exclusive(Exclusive),
    Stop,
}

pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(crate) fn start(connection: Connection, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                Loop {
                    connection,
                    queue,
                    clock,
                }
                .run()
            })
            .map_err(|error| StoreError::Unreachable {
                doing: "starting the writer",
                source: error.into(),
            })?;
        Ok(Self {
            jobs,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues a transaction. It runs when its turn comes.
    pub(crate) async fn begin(&self, doing: &'static str) -> Result<Sender<Command>, StoreError> {
        let (sender, commands) = channel();
        self.send(Job::Transaction { doing, commands }, doing)
            .await?;
        Ok(sender)
    }

    /// Runs `work` on the connection, outside any transaction.
    pub(crate) async fn exclusive<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |connection: &mut Connection| {
            // Nobody waits any more when this fails.
            let _ = reply.send(work(connection));
        });
        self.send(Job::Exclusive(job), doing).await?;
        answer.await.map_err(|_| StoreError::closed(doing))?
    }

    async fn send(&self, job: Job, doing: &'static str) -> Result<(), StoreError> {
        self.jobs
            .send(job)
            .await
            .map_err(|_| StoreError::closed(doing))
    }

    /// Lets the queue finish, then ends the thread.
    pub(crate) async fn stop(&self) {
        if self.jobs.send(Job::Stop).await.is_err() {
            return;
        }
        self.jobs.closed().await;
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of the store panicked");
        }
    }
}

/// Somebody who waits for the outer COMMIT.
struct Waiter {
    doing: &'static str,
    reply: Reply<()>,
}

struct Loop {
    connection: Connection,
    queue: mpsc::Receiver<Job>,
    clock: Arc<dyn Clock>,
}

enum Next {
    Transaction(&'static str, Receiver<Command>),
    Exclusive(Exclusive),
    Nothing,
    Stop,
}

impl From<Job> for Next {
    fn from(job: Job) -> Self {
        match job {
            Job::Transaction { doing, commands } => Self::Transaction(doing, commands),
            Job::Exclusive(work) => Self::Exclusive(work),
            Job::Stop => Self::Stop,
        }
    }
}

impl Loop {
    fn run(mut self) {
        let mut next = Next::Nothing;
        loop {
            next = match next {
                Next::Nothing => self.queue.blocking_recv().map_or(Next::Stop, Next::from),
                Next::Transaction(doing, commands) => self.group(doing, commands),
                Next::Exclusive(work) => {
                    work(&mut self.connection);
                    Next::Nothing
                }
                Next::Stop => return,
            };
        }
    }

    /// One outer transaction; answers with the job that it did not take in.
    fn group(&mut self, first: &'static str, commands: Receiver<Command>) -> Next {
        if let Err(error) = self.connection.execute_batch("BEGIN IMMEDIATE") {
            refuse(
                &commands,
                statement::error(&self.connection, error, first),
                first,
            );
            return Next::Nothing;
        }
        let started = self.clock.ticks();
        let mut waiters = Vec::new();
        let mut next = Next::Transaction(first, commands);
        let left = loop {
            next = match next {
                Next::Transaction(doing, commands) => {
                    self.serve(doing, &commands, &mut waiters);
                    if self.connection.is_autocommit() || self.is_full(started, waiters.len()) {
                        break Next::Nothing;
                    }
                    self.queue.try_recv().map_or(Next::Nothing, Next::from)
                }
                other => break other,
            };
        };
        self.finish(waiters);
        left
    }

    fn is_full(&self, started: Ticks, waiting: usize) -> bool {
        waiting >= GROUP || self.clock.ticks().since(started) >= GROUP_AGE
    }

    fn finish(&self, waiters: Vec<Waiter>) {
        // Without the outer transaction, an error took everything back: nobody may hear of success.
        let committed = !self.connection.is_autocommit()
            && self
                .connection
                .execute_batch("COMMIT")
                .is_ok_and(|()| self.connection.is_autocommit());
        if !self.connection.is_autocommit() && self.connection.execute_batch("ROLLBACK").is_err() {
            tracing::error!("the store could neither commit nor roll back");
        }
        for waiter in waiters {
            let answer = if committed {
                Ok(())
            } else {
                Err(StoreError::Unreachable {
                    doing: waiter.doing,
                    source: "the commit failed".into(),
                })
            };
            // Nobody waits any more when this fails.
            let _ = waiter.reply.send(answer);
        }
    }

    /// One transaction, as a savepoint: until it commits, its owner drops it, or it stalls.
    fn serve(&self, doing: &'static str, commands: &Receiver<Command>, waiters: &mut Vec<Waiter>) {
        if let Err(error) = self.connection.execute_batch("SAVEPOINT tx") {
            refuse(
                commands,
                statement::error(&self.connection, error, doing),
                doing,
            );
            return;
        }
        let (end, reply) = loop {
            match commands.recv_timeout(STALL) {
                Ok(Command::Commit(reply)) => break (KEEP, Some(reply)),
                Ok(Command::Rollback(reply)) => break (TAKE_BACK, Some(reply)),
                Ok(command) => self.answer(command),
                Err(RecvTimeoutError::Disconnected) => break (TAKE_BACK, None),
                Err(RecvTimeoutError::Timeout) => {
                    tracing::error!(doing, "a transaction stalled and was rolled back");
                    break (TAKE_BACK, None);
                }
            }
            if self.connection.is_autocommit() {
                return; // SQLite took back the outer transaction; the owner has been told
            }
        };
        let ended = self.connection.execute_batch(end);
        match (reply, ended) {
            (Some(reply), Ok(())) => waiters.push(Waiter { doing, reply }),
            (Some(reply), Err(error)) => {
                let error = statement::error(&self.connection, error, doing);
                self.roll_back_savepoint();
                let _ = reply.send(Err(error));
            }
            (None, Ok(())) => {}
            (None, Err(_)) => self.roll_back_savepoint(),
        }
    }

    /// The savepoint did not end as it should: the outer transaction must not carry it along.
    fn roll_back_savepoint(&self) {
        let gone = self.connection.execute_batch(TAKE_BACK).is_ok();
        if !gone && self.connection.execute_batch("ROLLBACK").is_err() {
            tracing::error!("the store could not roll back a transaction");
        }
    }

    fn answer(&self, command: Command) {
        let connection = &self.connection;
        // An owner that went away in the meantime also drops its sender: the savepoint goes.
        match command {
            Command::Query(sql, params, reply) => {
                let _ = reply.send(statement::query(connection, &sql, &params));
            }
            Command::Execute(sql, params, reply) => {
                let _ = reply.send(statement::execute(connection, &sql, &params));
            }
            Command::ExecuteRows(sql, rows, reply) => {
                let _ = reply.send(statement::execute_rows(connection, &sql, &rows));
            }
            Command::Commit(reply) | Command::Rollback(reply) => drop(reply),
        }
    }
}

/// Tells the owner of a transaction that could not begin.
fn refuse(commands: &Receiver<Command>, error: StoreError, doing: &'static str) {
    match commands.recv_timeout(STALL) {
        Ok(Command::Query(_, _, reply)) => drop(reply.send(Err(error))),
        Ok(Command::Execute(_, _, reply) | Command::ExecuteRows(_, _, reply)) => {
            drop(reply.send(Err(error)));
        }
        Ok(Command::Commit(reply) | Command::Rollback(reply)) => drop(reply.send(Err(error))),
        Err(_) => tracing::warn!(%error, doing, "a transaction could not begin"),
    }
}
