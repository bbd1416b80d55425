//! The Postgres engine: a pool, statements prepared once a connection, and transactions that cost
//! no round trip of their own to begin.

use std::time::Duration;

use caracal_model::Secret;
use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType,
};
use futures_util::{FutureExt, join};
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Statement};

use crate::error::StoreError;
use crate::param::Param;
use crate::row::{Row, Value};
use crate::sql::Sql;
use crate::store::PoolStats;

pub(crate) struct Pg {
    pool: Pool,
}

impl Pg {
    pub(crate) fn open(
        url: &Secret<String>,
        max_conns: usize,
        connect_timeout: Duration,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        // The driver's message may quote the URL, and the URL holds a password.
        let mut config: tokio_postgres::Config = url.expose().parse().map_err(|_| invalid_url())?;
        let given = config.get_options().unwrap_or_default();
        let millis = statement_timeout.as_millis();
        // The wildcard is what row-level security asks for outside of a zone's transaction.
        config.options(format!(
            "{given} -c statement_timeout={millis} -c caracal.zone_id=*"
        ));
        config.connect_timeout(connect_timeout);
        config.application_name("caracal");
        let manager = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let pool = Pool::builder(Manager::from_config(config, NoTls, manager))
            .max_size(max_conns)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(connect_timeout))
            .create_timeout(Some(connect_timeout))
            .recycle_timeout(Some(connect_timeout))
            .build()
            .map_err(|error| StoreError::Unreachable {
                doing: "setting up the pool",
                source: error.into(),
            })?;
        Ok(Self { pool })
    }

    pub(crate) async fn client(&self, doing: &'static str) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(|failure| match failure {
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

    pub(crate) async fn query(
        &self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let client = self.client(sql.name).await?;
        let statement = prepare_for(&client, sql, params.len()).await?;
        query(&client, sql, &statement, params).await
    }

    pub(crate) async fn begin(&self, doing: &'static str, mode: Mode) -> Result<PgTx, StoreError> {
        Ok(PgTx {
            client: self.client(doing).await?,
            mode,
            begun: false,
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
        self.pool.close();
    }
}

fn invalid_url() -> StoreError {
    StoreError::Invalid {
        doing: "opening the store",
        what: "a database URL of this form",
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

/// A transaction. BEGIN travels with the first statement.
pub(crate) struct PgTx {
    client: Object,
    mode: Mode,
    begun: bool,
}

impl PgTx {
    pub(crate) async fn query(
        &mut self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let statement = prepare_for(&self.client, sql, params.len()).await?;
        let (began, rows) = {
            let begin = begin(&self.client, self.mode, &mut self.begun);
            join!(begin, query(&self.client, sql, &statement, params))
        };
        began?;
        rows
    }

    pub(crate) async fn execute(
        &mut self,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, StoreError> {
        let statement = prepare_for(&self.client, sql, params.len()).await?;
        let (began, changed) = {
            let begin = begin(&self.client, self.mode, &mut self.begun);
            join!(begin, self.client.execute(&statement, params))
        };
        began?;
        changed.map_err(|failure| error(failure, sql.name))
    }

    /// Sends a last statement and the COMMIT in one go.
    pub(crate) async fn execute_and_commit(
        &mut self,
        doing: &'static str,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(), StoreError> {
        let statement = prepare_for(&self.client, sql, params.len()).await?;
        let (began, changed, committed) = {
            let begin = begin(&self.client, self.mode, &mut self.begun);
            let last = self.client.execute(&statement, params);
            join!(begin, last, self.client.batch_execute("COMMIT"))
        };
        began?;
        // After a failed statement COMMIT rolls back without a word, so this one speaks first.
        changed.map_err(|failure| error(failure, sql.name))?;
        committed.map_err(|failure| error(failure, doing))?;
        self.begun = false;
        Ok(())
    }

    pub(crate) async fn commit(&mut self, doing: &'static str) -> Result<(), StoreError> {
        if self.begun {
            self.client
                .batch_execute("COMMIT")
                .await
                .map_err(|failure| error(failure, doing))?;
            self.begun = false;
        }
        Ok(())
    }
}

impl Drop for PgTx {
    fn drop(&mut self) {
        if self.begun {
            // The first poll puts ROLLBACK on the connection's queue, ahead of whatever the next
            // borrower sends; nobody needs its answer.
            let _ = self.client.batch_execute("ROLLBACK").now_or_never();
        }
    }
}

async fn begin(client: &Object, mode: Mode, begun: &mut bool) -> Result<(), StoreError> {
    if *begun {
        return Ok(());
    }
    // Before the await: a caller that goes away now must still be rolled back.
    *begun = true;
    client
        .batch_execute(mode.begin())
        .await
        .map_err(|failure| error(failure, "BEGIN"))
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
