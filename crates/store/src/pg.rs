//! The Postgres engine: a pool, statements prepared once a connection, and transactions that cost
//! no round trip of their own to begin.

mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Histogram, Secret, ZoneId};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    TimeoutType,
};
use futures_util::future::join_all;
use futures_util::{FutureExt, join};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Statement};

use crate::error::StoreError;
use crate::param::Param;
use crate::row::{Row, Value};
use crate::secure::{MakeSecure, PgTls};
use crate::sql::Sql;
use crate::store::{PoolOptions, PoolStats};
use crate::tx::Closing;

use self::upkeep::Upkeep;

pub(crate) struct Pg {
    pool: Pool,
    answer_within: Duration,
    upkeep: Upkeep,
    clock: Arc<dyn Clock>,
    waits: Histogram,
}

/// What the server needs to tell that it gave up on a statement, past the time that it may take.
const GRACE: Duration = Duration::from_secs(1);

impl Pg {
    pub(crate) fn open(
        url: &Secret<String>,
        options: PoolOptions,
        tls: Option<&PgTls>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        // The driver's message may quote the URL, and the URL holds a password.
        let mut config: tokio_postgres::Config = url.expose().parse().map_err(|_| invalid_url())?;
        let given = config.get_options().unwrap_or_default();
        let (statement, idle) = (options.statement_timeout, options.idle_in_tx);
        let (statement, idle) = (statement.as_millis(), idle.as_millis());
        // `caracal.zone_id` is what row security asks for outside of a zone: see `Sight::All`. A plan
        // is made for each run of a statement: one that is kept for a table that was empty, as every
        // month begins, reads the table whole until statistics are taken.
        config.options(format!(
            "{given} -c statement_timeout={statement} \
             -c idle_in_transaction_session_timeout={idle} -c caracal.zone_id=* \
             -c plan_cache_mode=force_custom_plan"
        ));
        let connect_timeout = options.connect_timeout;
        config.connect_timeout(connect_timeout);
        config.application_name("caracal");
        let manager = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = match tls {
            None => {
                config.ssl_mode(SslMode::Disable);
                Manager::from_config(config, NoTls, manager)
            }
            Some(tls) => {
                config.ssl_mode(tls.mode());
                Manager::from_config(config, MakeSecure::new(tls), manager)
            }
        };
        let old = move |_: &mut _, of: &deadpool_postgres::Metrics| {
            if of.age() < options.lifetime {
                Ok(())
            } else {
                Err(HookError::message("as old as a connection may be"))
            }
        };
        let pool = Pool::builder(manager)
            .max_size(options.max)
            .pre_recycle(Hook::sync_fn(old))
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(connect_timeout))
            .create_timeout(Some(connect_timeout))
            .recycle_timeout(Some(connect_timeout))
            .build()
            .map_err(|error| StoreError::Unreachable {
                doing: "setting up the pool",
                source: error.into(),
            })?;
        Ok(Self {
            upkeep: Upkeep::start(&pool, options),
            pool,
            answer_within: options.statement_timeout.saturating_add(GRACE),
            clock,
            waits: Histogram::durations(),
        })
    }

    pub(crate) async fn client(&self, doing: &'static str) -> Result<Object, StoreError> {
        let since = self.clock.ticks();
        let client = self.pool.get().await;
        self.waits.took(self.clock.ticks().since(since));
        client.map_err(|failure| match failure {
            PoolError::Timeout(TimeoutType::Wait) => StoreError::Busy { doing },
            PoolError::Backend(failure) => match error(failure, doing) {
                refused @ StoreError::Statement { .. } => StoreError::Unreachable {
                    doing,
                    source: refused.into(),
                },
                other => other,
            },
            other => StoreError::Unreachable {
                doing,
                source: other.into(),
            },
        })
    }

    pub(crate) const fn waits(&self) -> &Histogram {
        &self.waits
    }

    pub(crate) async fn query(
        &self,
        sight: Sight<'_>,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let client = self.client(sql.name).await?;
        let asked = ask(&client, sight, sql, params);
        match timeout(self.answer_within, asked).await {
            Ok(answer) => answer,
            Err(late) => {
                drop(Object::take(client));
                Err(silent(sql.name, late))
            }
        }
    }

    pub(crate) async fn begin(&self, doing: &'static str, mode: Mode) -> Result<PgTx, StoreError> {
        Ok(PgTx {
            client: Some(self.client(doing).await?),
            answer_within: self.answer_within,
            mode,
            begun: false,
            sight: None,
        })
    }

    pub(crate) fn pool(&self) -> PoolStats {
        let status = self.pool.status();
        PoolStats {
            in_use: status.size.saturating_sub(status.available),
            max: status.max_size,
        }
    }

    pub(crate) fn shutdown(&self) {
        self.upkeep.stop();
        self.pool.close();
    }
}

/// The server enforces the time of a statement, but not when it, or the way to it, has fallen
/// silent or talks nonsense. Such a connection does not go back to the pool.
fn silent(doing: &'static str, late: Elapsed) -> StoreError {
    StoreError::Unreachable {
        doing,
        source: late.into(),
    }
}

async fn ask(
    client: &Object,
    sight: Sight<'_>,
    sql: &Sql,
    params: &[Param<'_>],
) -> Result<Vec<Row>, StoreError> {
    let statement = prepare_for(client, sql, params.len()).await?;
    let Sight::Zone(_) = sight else {
        return query(client, sql, &statement, params).await;
    };
    // All three leave with the first poll, so that they share a round trip and a caller who
    // goes away leaves no transaction open.
    let begin = format!("BEGIN READ ONLY; {}", sight.statement());
    let (began, rows, ended) = join!(
        client.batch_execute(&begin),
        query(client, sql, &statement, params),
        client.batch_execute("COMMIT")
    );
    began.map_err(|failure| error(failure, "BEGIN"))?;
    let rows = rows?;
    ended.map_err(|failure| error(failure, "COMMIT"))?;
    Ok(rows)
}

fn invalid_url() -> StoreError {
    StoreError::Invalid {
        doing: "opening the store",
        what: "a database URL of this form",
    }
}

/// Which rows a statement is to see, whatever it says. Row security (`migrate`) holds us to it: the
/// second line behind repositories that have one zone and cannot name another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sight<'z> {
    /// Those of every zone: the service's own loops, and what has no zone.
    All,
    /// Those of one zone.
    Zone(&'z ZoneId),
}

impl<'z> Sight<'z> {
    fn zone(self) -> Option<&'z ZoneId> {
        match self {
            Self::All => None,
            Self::Zone(zone) => Some(zone),
        }
    }

    /// Says it for the rest of the transaction.
    fn statement(self) -> String {
        let zone = self.zone().map_or("*", |zone| zone.as_str());
        format!("SET LOCAL caracal.zone_id = '{}'", zone.replace('\'', "''"))
    }
}

/// What a transaction may do.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Write,
    Snapshot,
}

impl Mode {
    const fn begin(self) -> &'static str {
        match self {
            Self::Write => "BEGIN",
            Self::Snapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }
}

/// Ends a transaction before it is on disk, and waits until it is: the message is a transaction of
/// its own, whose commit waits for the disk (and a synchronous standby) as the server is configured,
/// and the log before it is written with it.
const EARLY_COMMIT: &str = "SET LOCAL synchronous_commit = off; COMMIT; \
    SELECT pg_logical_emit_message(true, 'caracal', '')";

/// A transaction. BEGIN, and every change of what is seen, travel with the statement that follows.
pub(crate) struct PgTx {
    /// Gone once it did not answer in time.
    client: Option<Object>,
    answer_within: Duration,
    mode: Mode,
    begun: bool,
    /// The zone that was said last; the connection says `*`.
    sight: Option<ZoneId>,
}

impl PgTx {
    pub(crate) async fn query(
        &mut self,
        sight: Sight<'_>,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let statement = self.prepared(sql, params.len()).await?;
        let before = self.before(sight);
        let client = live(self.client.as_ref(), sql.name)?;
        let asked = async {
            let (ready, rows) = join!(say(client, before), query(client, sql, &statement, params));
            ready?;
            rows
        };
        let answer = timeout(self.answer_within, asked).await;
        self.settled(sql.name, answer)
    }

    pub(crate) async fn execute(
        &mut self,
        sight: Sight<'_>,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, StoreError> {
        let statement = self.prepared(sql, params.len()).await?;
        let before = self.before(sight);
        let client = live(self.client.as_ref(), sql.name)?;
        let asked = async {
            let (ready, changed) = join!(say(client, before), client.execute(&statement, params));
            ready?;
            changed.map_err(|failure| error(failure, sql.name))
        };
        let answer = timeout(self.answer_within, asked).await;
        self.settled(sql.name, answer)
    }

    /// Sends the last statements and the COMMIT in one go. `early` gives the locks free before the
    /// commit is on disk, and then waits until it is.
    pub(crate) async fn execute_and_commit(
        &mut self,
        doing: &'static str,
        last: &[Closing<'_>],
        early: bool,
    ) -> Result<(), StoreError> {
        let mut statements = Vec::with_capacity(last.len());
        for one in last {
            statements.push(self.prepared(one.sql, one.params.len()).await?);
        }
        let before: Vec<_> = last.iter().map(|one| self.before(one.sight)).collect();
        let client = live(self.client.as_ref(), doing)?;
        let asked = async {
            // They leave in this order, with the first poll of each.
            let with = last.iter().zip(&statements).zip(before);
            let executed = with.map(|((one, statement), before)| async {
                let (ready, executed) =
                    join!(say(client, before), client.execute(statement, &one.params));
                ready?;
                executed.map_err(|failure| error(failure, one.sql.name))
            });
            let commit = if early { EARLY_COMMIT } else { "COMMIT" };
            let (executed, committed) = join!(join_all(executed), client.batch_execute(commit));
            // After a failed statement COMMIT rolls back without a word, and an early one is not
            // reached: what failed speaks first.
            executed.into_iter().try_for_each(|one| one.map(drop))?;
            committed.map_err(|failure| error(failure, doing))
        };
        let answer = timeout(self.answer_within, asked).await;
        self.settled(doing, answer)?;
        self.begun = false;
        Ok(())
    }

    async fn prepared(&mut self, sql: &Sql, parameters: usize) -> Result<Statement, StoreError> {
        let client = live(self.client.as_ref(), sql.name)?;
        let answer = timeout(self.answer_within, prepare_for(client, sql, parameters)).await;
        self.settled(sql.name, answer)
    }

    /// What was answered; a connection that did not answer in time is closed, not given back.
    fn settled<T>(
        &mut self,
        doing: &'static str,
        answer: Result<Result<T, StoreError>, Elapsed>,
    ) -> Result<T, StoreError> {
        answer.unwrap_or_else(|late| {
            drop(self.client.take().map(Object::take));
            Err(silent(doing, late))
        })
    }

    /// What has to be said before the next statement. It counts as said from here on, before the
    /// await: a caller that goes away must still be rolled back.
    fn before(&mut self, sight: Sight<'_>) -> Option<String> {
        let turns = self.sight.as_ref() != sight.zone();
        let begins = !std::mem::replace(&mut self.begun, true);
        if turns {
            self.sight = sight.zone().cloned();
        }
        match (begins, turns) {
            (false, false) => None,
            (true, false) => Some(self.mode.begin().to_owned()),
            (false, true) => Some(sight.statement()),
            (true, true) => Some(format!("{}; {}", self.mode.begin(), sight.statement())),
        }
    }

    pub(crate) async fn commit(&mut self, doing: &'static str) -> Result<(), StoreError> {
        if self.begun {
            let client = live(self.client.as_ref(), doing)?;
            let asked = async {
                let committed = client.batch_execute("COMMIT").await;
                committed.map_err(|failure| error(failure, doing))
            };
            let answer = timeout(self.answer_within, asked).await;
            self.settled(doing, answer)?;
            self.begun = false;
        }
        Ok(())
    }
}

/// Nothing more is said on a connection that was closed for its silence.
fn live<'c>(client: Option<&'c Object>, doing: &'static str) -> Result<&'c Object, StoreError> {
    client.ok_or_else(|| StoreError::Unreachable {
        doing,
        source: "the connection did not answer before".into(),
    })
}

impl Drop for PgTx {
    fn drop(&mut self) {
        if let (true, Some(client)) = (self.begun, &self.client) {
            // The first poll puts ROLLBACK on the connection's queue, ahead of whatever the next
            // borrower sends; nobody needs its answer.
            let _ = client.batch_execute("ROLLBACK").now_or_never();
        }
    }
}

async fn say(client: &Object, what: Option<String>) -> Result<(), StoreError> {
    match what {
        None => Ok(()),
        Some(what) => client
            .batch_execute(&what)
            .await
            .map_err(|failure| error(failure, "BEGIN")),
    }
}

pub(crate) async fn prepare(client: &Object, sql: &Sql) -> Result<Statement, StoreError> {
    client
        .prepare_cached(sql.pg)
        .await
        .map_err(|failure| error(failure, sql.name))
}

/// A statement that takes exactly this many parameters. The driver's own refusal does not tell a
/// mistake of ours from an outage.
async fn prepare_for(
    client: &Object,
    sql: &Sql,
    parameters: usize,
) -> Result<Statement, StoreError> {
    let statement = prepare(client, sql).await?;
    if statement.params().len() == parameters {
        return Ok(statement);
    }
    Err(StoreError::Statement {
        doing: sql.name,
        source: "the statement and its parameters disagree about their number".into(),
    })
}

async fn query(
    client: &Object,
    sql: &Sql,
    statement: &Statement,
    params: &[Param<'_>],
) -> Result<Vec<Row>, StoreError> {
    let params = dynamic(params);
    let found = client
        .query(statement, &params)
        .await
        .map_err(|failure| error(failure, sql.name))?;
    let columns = statement
        .columns()
        .iter()
        .map(|column| column.name().to_owned())
        .collect();
    rows(&found, columns).map_err(|failure| error(failure, sql.name))
}

/// Parameters as the driver takes them.
pub(crate) fn dynamic<'p>(params: &'p [Param<'_>]) -> Vec<&'p (dyn ToSql + Sync)> {
    params
        .iter()
        .map(|param| param as &(dyn ToSql + Sync))
        .collect()
}

fn rows(
    found: &[tokio_postgres::Row],
    columns: std::sync::Arc<[String]>,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    found
        .iter()
        .map(|row| {
            let values = (0..row.len())
                .map(|at| row.try_get::<_, Value>(at))
                .collect::<Result<_, _>>()?;
            Ok(Row::new(std::sync::Arc::clone(&columns), values))
        })
        .collect()
}

/// By SQLSTATE; what has none came from the connection.
pub(crate) fn error(failure: tokio_postgres::Error, doing: &'static str) -> StoreError {
    let Some(told) = failure.as_db_error() else {
        return without_state(failure, doing);
    };
    match told.code().code() {
        "23505" => StoreError::Conflict {
            constraint: told.constraint().unwrap_or_default().to_owned(),
        },
        "23503" => StoreError::Reference { doing },
        "22021" => StoreError::Invalid {
            doing,
            what: "text of this encoding",
        },
        // A division by zero is how a statement says that its condition does not hold.
        "22012" => StoreError::Overtaken { doing },
        "22003" => StoreError::Invalid {
            doing,
            what: "a number of this size",
        },
        "54000" => StoreError::Invalid {
            doing,
            what: "a value of this size",
        },
        "40001" | "40P01" | "55P03" | "57014" => StoreError::Busy { doing },
        code if code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") => {
            StoreError::Unreachable {
                doing,
                source: failure.into(),
            }
        }
        // A standby that has not been promoted yet.
        "25006" => StoreError::Unreachable {
            doing,
            source: failure.into(),
        },
        _ => StoreError::Statement {
            doing,
            source: failure.into(),
        },
    }
}

fn without_state(failure: tokio_postgres::Error, doing: &'static str) -> StoreError {
    let from_connection = failure.is_closed()
        || std::error::Error::source(&failure).is_none_or(|source| source.is::<std::io::Error>());
    if from_connection {
        StoreError::Unreachable {
            doing,
            source: failure.into(),
        }
    } else {
        StoreError::Statement {
            doing,
            source: failure.into(),
        }
    }
}
