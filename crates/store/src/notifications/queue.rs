//! What is due, of every zone: for whoever delivers.

use caracal_model::Timestamp;

use super::{Delivery, Outcome, Sink, sql};
use crate::error::StoreError;
use crate::{Store, params};

/// Sinks and deliveries of all zones, for the dispatcher.
#[derive(Clone, Copy, Debug)]
pub struct Notifications<'s>(&'s Store);

impl Store {
    /// Sinks and deliveries of all zones.
    pub fn notifications(&self) -> Notifications<'_> {
        Notifications(self)
    }
}

impl Notifications<'_> {
    /// Sinks that are to be told, after the one with this id.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn active(&self, after: &str, limit: u32) -> Result<Vec<Sink>, StoreError> {
        let rows = self.0.query(&sql::ACTIVE, &params![after, limit]).await?;
        rows.iter().map(Sink::read).collect()
    }

    /// Deliveries that may be tried now, at most one of a sink that wants them in order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<Delivery>, StoreError> {
        let rows = self.0.query(&sql::DUE, &params![now, limit]).await?;
        rows.iter().map(Delivery::read).collect()
    }

    /// Takes a delivery for one attempt; whoever does not end it in time loses it again. Answers
    /// whether it was there to be taken.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn take(
        &self,
        delivery: &Delivery,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.0.begin("taking a delivery").await?;
        let params = params![&delivery.id, delivery.attempts, until, now];
        let taken = tx.execute(&sql::TAKE, &params).await? == 1;
        tx.commit().await?;
        Ok(taken)
    }

    /// Notes how an attempt ended. `delivery.attempts` is the number of that attempt: who has lost
    /// the delivery meanwhile changes nothing.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn settle(
        &self,
        delivery: &Delivery,
        outcome: &Outcome,
        answer: Option<i64>,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (delivered, abandoned, next) = match outcome {
            Outcome::Delivered => (Some(now), None, now),
            Outcome::Later(at) => (None, None, *at),
            Outcome::Abandoned => (None, Some(now), now),
        };
        let mut tx = self.0.begin("settling a delivery").await?;
        let params = params![
            &delivery.id,
            delivery.attempts,
            delivered,
            abandoned,
            next,
            answer,
            error
        ];
        if tx.execute(&sql::SETTLE, &params).await? == 1 {
            match outcome {
                Outcome::Delivered => {
                    let params = params![&delivery.sink_id, now];
                    tx.execute(&sql::SUCCEEDED, &params).await?;
                }
                _ => {
                    let params = params![&delivery.sink_id, now, error];
                    tx.execute(&sql::FAILED, &params).await?;
                }
            }
        }
        tx.commit().await
    }

    /// Removes deliveries that were settled by then, some at a time; answers how many.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn prune(&self, until: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let mut tx = self.0.begin("removing old deliveries").await?;
        let removed = tx.execute(&sql::PRUNE, &params![until, limit]).await?;
        tx.commit().await?;
        Ok(removed)
    }

    /// How many deliveries are neither done nor given up.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn open(&self) -> Result<u64, StoreError> {
        let row = self.0.query_opt(&sql::OPEN, &[]).await?;
        row.map_or(Ok(0), |row| row.count("open"))
    }
}
