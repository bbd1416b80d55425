//! Transactions: statements, and the news that goes out with them.
//!
//! **Rules.** A failed statement abandons the transaction on both engines: Postgres would anyway,
//! so SQLite must too. A transaction that is dropped is rolled back. Its owner waits for nothing
//! but the store between its statements: on SQLite everybody else waits for it (`lite::writer`).

use std::sync::mpsc::Sender;

use caracal_model::{Change, Outgoing, ZoneId};
use rusqlite::types::Value as LiteValue;
use tokio::sync::oneshot;
use tokio_postgres::types::ToSql;

use crate::admin_audit;
use crate::error::StoreError;
use crate::lite::writer::Command;
use crate::outbox;
use crate::param::Param;
use crate::pg::{Mode, PgTx, Sight, dynamic};
use crate::rider::Boarded;
use crate::row::Row;
use crate::sql::Sql;
use crate::store::{Engine, Store, check};

/// A transaction that may write.
pub struct Tx {
    store: Store,
    doing: &'static str,
    engine: Running,
    outgoing: Vec<Outgoing>,
    /// What runs with the commit, in this order.
    contended: Vec<Contended>,
    /// The zone of the next statement.
    within: Option<ZoneId>,
    /// Set while a statement runs, and left so when it fails or its caller goes away.
    abandoned: bool,
}

/// A statement on rows that everybody in a zone changes.
struct Contended {
    sql: Sql,
    within: Option<ZoneId>,
    params: Vec<Param<'static>>,
    /// How many rows SQLite has to change; Postgres refuses by itself (`SELECT 1 / …`).
    must: Option<u64>,
}

/// A statement that runs with the COMMIT.
pub(crate) struct Closing<'c> {
    pub sight: Sight<'c>,
    pub sql: &'c Sql,
    pub params: Vec<&'c (dyn ToSql + Sync)>,
}

enum Running {
    /// Queued for the writer with the first statement.
    Lite(Option<Sender<Command>>),
    Pg(Box<PgTx>),
}

impl Tx {
    pub(crate) async fn begin(store: Store, doing: &'static str) -> Result<Self, StoreError> {
        let engine = match store.engine() {
            Engine::Lite(_) => Running::Lite(None),
            Engine::Pg(pg) => Running::Pg(Box::new(Box::pin(pg.begin(doing, Mode::Write)).await?)),
        };
        Ok(Self {
            store,
            doing,
            engine,
            outgoing: Vec::new(),
            contended: Vec::new(),
            within: None,
            abandoned: false,
        })
    }

    /// The next statement sees the rows of this zone only; the one after sees all again.
    pub(crate) fn within(&mut self, zone: &ZoneId) -> &mut Self {
        self.within = Some(zone.clone());
        self
    }

    /// Runs a statement that answers with rows.
    pub async fn query(&mut self, sql: &Sql, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        let within = self.within.take();
        self.enter(sql, params)?;
        let rows = match &mut self.engine {
            Running::Pg(tx) => Box::pin(tx.query(sight(&within), sql, params)).await,
            Running::Lite(_) => {
                self.ask(|reply| Command::Query(*sql, to_lite(params), reply))
                    .await
            }
        }?;
        self.abandoned = false;
        Ok(rows)
    }

    /// Runs a statement that answers with one row, the first when there are several.
    pub async fn query_opt(
        &mut self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Runs a statement; answers with the number of rows that it changed.
    pub async fn execute(&mut self, sql: &Sql, params: &[Param<'_>]) -> Result<u64, StoreError> {
        let within = self.within.take();
        self.enter(sql, params)?;
        let changed = match &mut self.engine {
            Running::Pg(tx) => Box::pin(tx.execute(sight(&within), sql, &dynamic(params))).await,
            Running::Lite(_) => {
                self.ask(|reply| Command::Execute(*sql, to_lite(params), reply))
                    .await
            }
        }?;
        self.abandoned = false;
        Ok(changed)
    }

    /// Runs a statement for many rows at once. Its Postgres text takes one array a column
    /// (`SELECT * FROM unnest($1::text[], $2::bigint[])`), its SQLite text one row (`VALUES
    /// ($1, $2)`).
    pub async fn execute_rows(
        &mut self,
        sql: &Sql,
        rows: &[Vec<Param<'_>>],
    ) -> Result<u64, StoreError> {
        let within = self.within.take();
        if rows.is_empty() {
            return Ok(0);
        }
        for row in rows {
            self.enter(sql, row)?;
            self.abandoned = false;
        }
        self.abandoned = true;
        let changed = match &mut self.engine {
            Running::Pg(tx) => {
                let columns = columns(rows);
                Box::pin(tx.execute(sight(&within), sql, &as_params(&columns))).await
            }
            Running::Lite(_) => {
                let rows = rows.iter().map(|row| to_lite(row)).collect();
                self.ask(|reply| Command::ExecuteRows(*sql, rows, reply))
                    .await
            }
        }?;
        self.abandoned = false;
        Ok(changed)
    }

    /// Runs a statement with the commit, after all others. For rows that everybody in a zone changes:
    /// in Postgres they are locked from here to the commit record, which is one visit to the server,
    /// and given free before that record is on disk. With `must`, nothing of the transaction is kept
    /// unless that many rows change: [`StoreError::Overtaken`].
    ///
    /// Others may see this transaction before it is durable, but none that waits for its own commit
    /// becomes durable without it, and its owner hears of it only when it is. An owner that goes away
    /// while it waits for such a row may find everything done, as with any commit.
    pub fn contend(&mut self, sql: &Sql, params: Vec<Param<'static>>, must: Option<u64>) {
        self.contended.push(Contended {
            sql: *sql,
            within: self.within.take(),
            params,
            must,
        });
    }

    /// Sends an entry to a topic when, and only when, this transaction commits.
    pub fn announce(&mut self, entry: Outgoing) {
        self.within = None;
        self.outgoing.push(entry);
    }

    /// Tells every replica's memory of a change when this transaction commits.
    pub fn change(&mut self, change: &Change) {
        self.announce(change.outgoing());
    }

    /// The transaction within one zone.
    pub fn zone<'t>(&'t mut self, zone: &'t ZoneId) -> ZoneTx<'t> {
        ZoneTx { tx: self, zone }
    }

    /// Makes everything durable, the news and the record of the request included
    /// ([`crate::Rider`]), and rings [`Store::outbox_wake`].
    pub async fn commit(self) -> Result<(), StoreError> {
        self.commit_after(None).await
    }

    /// [`Tx::execute_rows`] and [`Tx::commit`]; in Postgres they share a round trip.
    pub async fn commit_with_rows(
        self,
        sql: &Sql,
        rows: &[Vec<Param<'_>>],
    ) -> Result<(), StoreError> {
        self.commit_after(Some((sql, rows))).await
    }

    async fn commit_after(
        mut self,
        rows: Option<(&Sql, &[Vec<Param<'_>>])>,
    ) -> Result<(), StoreError> {
        if self.abandoned {
            return Err(StoreError::Abandoned { doing: self.doing });
        }
        self.within = None;
        let boarded = Boarded::now();
        let outgoing = std::mem::take(&mut self.outgoing);
        let now = self.store.clock().now();
        let intents = boarded.iter().flat_map(|boarded| &boarded.intents);
        let intents: Vec<_> = intents.map(|intent| intent.params(now)).collect();
        let news = outbox::rows(&outgoing, self.store.ids(), now);
        let mut last: Vec<(&Sql, &[Vec<Param<'_>>])> = rows.into_iter().collect();
        last.push((&admin_audit::sql::INTEND, &intents));
        last.push((&outbox::sql::INSERT, &news));
        last.retain(|(_, rows)| !rows.is_empty());
        self.execute_and_end(&last).await?;
        if let Some(boarded) = boarded {
            boarded.arrive();
        }
        if !outgoing.is_empty() {
            self.store.outbox_wake().notify_one();
        }
        Ok(())
    }

    /// The last statements, each for many rows, and the end; in Postgres they share a round trip.
    async fn execute_and_end(
        &mut self,
        last: &[(&Sql, &[Vec<Param<'_>>])],
    ) -> Result<(), StoreError> {
        for (sql, rows) in last {
            let mut params = rows.iter().flatten();
            params.try_for_each(|param| param.check(sql.name))?;
        }
        let contended = std::mem::take(&mut self.contended);
        for one in &contended {
            check(&one.sql, &one.params)?;
        }
        match &mut self.engine {
            Running::Pg(tx) if !last.is_empty() || !contended.is_empty() => {
                let columns: Vec<_> = last.iter().map(|(_, rows)| columns(rows)).collect();
                let first = contended.iter().map(|one| Closing {
                    sight: sight(&one.within),
                    sql: &one.sql,
                    params: dynamic(&one.params),
                });
                let then = last
                    .iter()
                    .zip(&columns)
                    .map(|((sql, _), columns)| Closing {
                        sight: Sight::All,
                        sql,
                        params: as_params(columns),
                    });
                let closing: Vec<_> = first.chain(then).collect();
                let early = !contended.is_empty();
                Box::pin(tx.execute_and_commit(self.doing, &closing, early)).await
            }
            _ => {
                for one in &contended {
                    let changed = self.execute(&one.sql, &one.params).await?;
                    if one.must.is_some_and(|must| must != changed) {
                        return Err(StoreError::Overtaken {
                            doing: one.sql.name,
                        });
                    }
                }
                for (sql, rows) in last {
                    self.execute_rows(sql, rows).await?;
                }
                self.end().await
            }
        }
    }

    async fn end(&mut self) -> Result<(), StoreError> {
        match &mut self.engine {
            Running::Pg(tx) => tx.commit(self.doing).await,
            Running::Lite(None) => Ok(()),
            Running::Lite(Some(_)) => self.ask(Command::Commit).await,
        }
    }

    /// Gives up. Dropping the transaction does the same, but does not wait: after this, whatever
    /// the transaction saw of others is committed, or taken back, for every reader.
    pub async fn rollback(mut self) {
        if self.abandoned || !matches!(self.engine, Running::Lite(Some(_))) {
            return;
        }
        let doing = self.doing;
        if let Err(error) = self.ask(Command::Rollback).await {
            tracing::debug!(%error, doing, "what a transaction saw was taken back as well");
        }
    }

    fn enter(&mut self, sql: &Sql, params: &[Param<'_>]) -> Result<(), StoreError> {
        if self.abandoned {
            return Err(StoreError::Abandoned { doing: self.doing });
        }
        self.abandoned = true;
        check(sql, params)
    }

    async fn ask<T>(
        &mut self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (Running::Lite(sender), Engine::Lite(lite)) = (&mut self.engine, self.store.engine())
        else {
            return Err(StoreError::closed(self.doing));
        };
        let sender = match sender {
            Some(sender) => sender,
            None => sender.insert(lite.writer.begin(self.doing).await?),
        };
        let (reply, answer) = oneshot::channel();
        let abandoned = || StoreError::Abandoned { doing: self.doing };
        sender.send(command(reply)).map_err(|_| abandoned())?;
        answer.await.map_err(|_| abandoned())?
    }
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx")
            .field("doing", &self.doing)
            .finish_non_exhaustive()
    }
}

fn sight(within: &Option<ZoneId>) -> Sight<'_> {
    within.as_ref().map_or(Sight::All, Sight::Zone)
}

fn to_lite(params: &[Param<'_>]) -> Vec<LiteValue> {
    params.iter().map(Param::to_lite).collect()
}

/// Rows turned into columns, which the driver sends as arrays.
fn columns<'r, 'p>(rows: &'r [Vec<Param<'p>>]) -> Vec<Vec<&'r Param<'p>>> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).collect())
        .collect()
}

fn as_params<'c, 'r, 'p>(columns: &'c [Vec<&'r Param<'p>>]) -> Vec<&'c (dyn ToSql + Sync)> {
    columns
        .iter()
        .map(|column| column as &(dyn ToSql + Sync))
        .collect()
}

/// A transaction within one zone.
#[derive(Debug)]
pub struct ZoneTx<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl<'t> ZoneTx<'t> {
    /// The zone.
    pub fn id(&self) -> &'t ZoneId {
        self.zone
    }

    /// The transaction, for the next statement of a repository of this crate.
    pub(crate) fn tx(&mut self) -> &mut Tx {
        self.tx.within(self.zone)
    }
}
