//! Changes of the sinks of a zone, and of what is on its way to them.

use caracal_model::{Timestamp, ZoneId};

use super::{Delivery, Sink, place, sql};
use crate::error::StoreError;
use crate::{Sql, Tx, params};

/// Changes of the sinks of one zone.
#[derive(Debug)]
pub struct SinkWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The notification sinks of this zone.
    pub fn sinks<'t>(&'t mut self, zone: &'t ZoneId) -> SinkWrites<'t> {
        SinkWrites { tx: self, zone }
    }
}

impl SinkWrites<'_> {
    /// One sink.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&mut self, id: &str) -> Result<Option<Sink>, StoreError> {
        let row = self
            .tx
            .query_opt(&sql::GET, &params![self.zone, id])
            .await?;
        row.as_ref().map(Sink::read).transpose()
    }

    /// How many there are. Stays true until the end of the transaction only for who holds the zone.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn count(&mut self) -> Result<u64, StoreError> {
        let row = self.tx.query_opt(&sql::COUNT, &params![self.zone]).await?;
        row.map_or(Ok(0), |row| row.count("sinks"))
    }

    /// Adds a sink.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn insert(&mut self, sink: &Sink) -> Result<(), StoreError> {
        let types = sink.types();
        let params = params![
            self.zone,
            &sink.id,
            &sink.name,
            &sink.url,
            &types,
            sink.active,
            sink.in_order,
            &sink.secret,
            place(sink.cursor_seq),
            sink.created_at,
        ];
        self.tx.execute(&sql::INSERT, &params).await.map(drop)
    }

    /// Writes what may change of a sink; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn update(&mut self, sink: &Sink) -> Result<bool, StoreError> {
        let types = sink.types();
        let params = params![
            self.zone,
            &sink.id,
            &sink.name,
            &sink.url,
            &types,
            sink.active,
            sink.in_order,
            place(sink.consecutive_failures),
            &sink.last_error,
            sink.updated_at,
        ];
        Ok(self.tx.execute(&sql::UPDATE, &params).await? == 1)
    }

    /// Puts another secret in the place of the one before; answers whether the sink was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn rotate(
        &mut self,
        id: &str,
        secret: &[u8],
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let params = params![self.zone, id, secret, at];
        Ok(self.tx.execute(&sql::ROTATE, &params).await? == 1)
    }

    /// Removes a sink and what is on its way to it; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete(&mut self, id: &str) -> Result<bool, StoreError> {
        let params = params![self.zone, id];
        self.tx.execute(&sql::DELETE_DELIVERIES, &params).await?;
        Ok(self.tx.execute(&sql::DELETE, &params).await? == 1)
    }

    /// Adds deliveries and moves the cursor of their sink; `false` when it was elsewhere, and then
    /// nothing may be kept.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn advance(
        &mut self,
        sink: &Sink,
        to: u64,
        new: &[Delivery],
    ) -> Result<bool, StoreError> {
        let params = params![self.zone, &sink.id, place(sink.cursor_seq), place(to)];
        if self.tx.execute(&sql::MOVE, &params).await? != 1 {
            return Ok(false);
        }
        self.add(new).await?;
        Ok(true)
    }

    /// Adds deliveries, each event once.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn add(&mut self, new: &[Delivery]) -> Result<(), StoreError> {
        let rows: Vec<_> = new.iter().map(Delivery::params).collect();
        self.tx.execute_rows(&sql::ADD, &rows).await.map(drop)
    }

    /// One delivery.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delivery(&mut self, sink: &str, id: &str) -> Result<Option<Delivery>, StoreError> {
        self.one(&sql::DELIVERY, sink, id).await
    }

    /// The delivery of an event.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn of_event(
        &mut self,
        sink: &str,
        event: &str,
    ) -> Result<Option<Delivery>, StoreError> {
        self.one(&sql::OF_EVENT, sink, event).await
    }

    async fn one(
        &mut self,
        sql: &Sql,
        sink: &str,
        named: &str,
    ) -> Result<Option<Delivery>, StoreError> {
        let params = params![self.zone, sink, named];
        let row = self.tx.query_opt(sql, &params).await?;
        row.as_ref().map(Delivery::read).transpose()
    }

    /// Has a delivery tried again from the start; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn again(
        &mut self,
        sink: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let params = params![self.zone, sink, id, now];
        Ok(self.tx.execute(&sql::AGAIN, &params).await? == 1)
    }
}
