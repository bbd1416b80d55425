//! The way of a secret out of our database, and the way back.
//!
//! A change in four steps; only the third one is the caller's transaction:
//!
//! 1. hold: nobody else writes to the backend under this reference; an envelope that is outside is
//!    taken back in, so that it cannot be lost;
//! 2. try: the backend is given the new envelope. If it does not take it, nothing has changed;
//! 3. commit: the new envelope and the rows that hang on it, in one transaction, here;
//! 4. settle: the envelope leaves our database, since the backend has it already.
//!
//! INVARIANT (held): who writes to the backend holds the row, and gives up long before the hold
//! ends. Without it, a late write of an old envelope could undo a new one.
//!
//! Whatever does not get to the fourth step is found by [`Custody::sweep`]: an envelope that is here
//! goes out, and so replaces what the second step may have left there; what was forgotten here is
//! deleted there. That is the undo, and it survives the process.

use std::time::Duration;

use caracal_crypto::digest::sha256_hex;
use caracal_model::ZoneId;

use super::{Custody, CustodyError, SecretBackend};
use crate::error::StoreError;
use crate::secrets::Kept;
use crate::{Param, Sql, Store, params, statements};

/// How long a row is held at most: several times what a backend may take to answer.
const HOLD: Duration = Duration::from_secs(60);
/// How long a change waits for another one of the same secret.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);
/// How many bytes of an envelope name its key.
const PREFIX: usize = 12;
const BATCH: u32 = 100;
/// Failures in a row after which a sweep does not go on.
const PATIENT_FAILURES: u32 = 3;

statements! { pub(crate) mod sql {
    HOLD_NEW = "INSERT INTO secret_store (ref, zone_id, envelope, version, updated_at, backend, \
            held_by, held_until) \
        VALUES ($2, $1, $3, 0, $4, $5, $6, $7) \
        ON CONFLICT (ref) DO UPDATE SET backend = excluded.backend, held_by = excluded.held_by, \
            held_until = excluded.held_until \
        WHERE secret_store.zone_id = excluded.zone_id AND (secret_store.held_until IS NULL \
            OR secret_store.held_until < excluded.updated_at)";
    HOLD = "UPDATE secret_store SET backend = $3, held_by = $4, held_until = $5 \
        WHERE zone_id = $1 AND ref = $2 AND outside_sha256 IS NULL \
            AND (held_until IS NULL OR held_until < $6)";
    TAKE_IN = "UPDATE secret_store SET envelope = $4, outside_sha256 = NULL, \
            version = version + 1 \
        WHERE zone_id = $1 AND ref = $2 AND held_by = $3 AND outside_sha256 = $5";
    MOVE_OUT = "UPDATE secret_store SET envelope = $5, outside_sha256 = $6, held_by = NULL, \
            held_until = NULL \
        WHERE zone_id = $1 AND ref = $2 AND held_by = $3 AND envelope = $4 \
            AND outside_sha256 IS NULL";
    FORGET = "DELETE FROM secret_store WHERE zone_id = $1 AND ref = $2 AND held_by = $3 \
        AND length(envelope) = 0 AND outside_sha256 IS NULL";
    LET_GO = "UPDATE secret_store SET held_by = NULL, held_until = NULL \
        WHERE zone_id = $1 AND ref = $2 AND held_by = $3";
    HOLD_ANY = "UPDATE secret_store SET held_by = $3, held_until = $4 \
        WHERE zone_id = $1 AND ref = $2 AND (held_until IS NULL OR held_until < $5)";
    /// There is nothing outside any more.
    RETURNED = "UPDATE secret_store SET backend = NULL, held_by = NULL, held_until = NULL \
        WHERE zone_id = $1 AND ref = $2 AND held_by = $3 AND outside_sha256 IS NULL \
            AND length(envelope) > 0";
    OUTSIDE = "SELECT zone_id, ref FROM secret_store WHERE backend IS NOT NULL \
        AND (held_until IS NULL OR held_until < $1) AND ref > $2 ORDER BY ref LIMIT $3";
    LEFT = "SELECT COUNT(*) AS waiting FROM secret_store WHERE backend IS NOT NULL";
    HERE = "SELECT zone_id, ref FROM secret_store WHERE outside_sha256 IS NULL \
        AND (held_until IS NULL OR held_until < $1) AND ref > $2 ORDER BY ref LIMIT $3";
    WAITING = "SELECT COUNT(*) AS waiting FROM secret_store WHERE outside_sha256 IS NULL";
    ELSEWHERE = "SELECT backend, COUNT(*) AS secrets FROM secret_store \
        WHERE outside_sha256 IS NOT NULL AND backend <> $1 GROUP BY backend ORDER BY backend";
} }

/// A change of a secret that the backend has taken, to be settled once it is committed, or to be
/// given up. One that is dropped is found by the sweep when its hold has ended.
#[must_use = "settle it, or give it up"]
pub struct Staged(Option<(Held, Vec<u8>)>);

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Staged({:?})", self.0.as_ref().map(|(held, _)| held))
    }
}

#[derive(Debug)]
struct Held {
    zone: ZoneId,
    at: String,
    /// Who holds the row: a name of this change alone.
    by: String,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Envelopes that went out.
    pub out: u64,
    /// Envelopes that came back.
    pub back: u64,
    /// References that the backend has forgotten.
    pub forgotten: u64,
}

/// See [`Custody::elsewhere`].
pub(super) async fn elsewhere(
    store: &Store,
    here: &'static str,
) -> Result<Vec<(String, u64)>, StoreError> {
    let rows = store.query(&sql::ELSEWHERE, &params![here]).await?;
    rows.iter()
        .map(|row| Ok((row.string("backend")?, row.count("secrets")?)))
        .collect()
}

impl Custody {
    /// Steps 1 and 2 of a change: after this, the backend has shown that it takes the envelope. With
    /// none outside, there is nothing to do. Not to be called within a transaction.
    ///
    /// # Errors
    /// [`CustodyError`]; then nothing has changed.
    pub async fn stage(
        &self,
        zone: &ZoneId,
        at: &str,
        envelope: &[u8],
    ) -> Result<Staged, CustodyError> {
        let Some(backend) = self.0.backend.clone().filter(|_| !self.0.leaving) else {
            return Ok(Staged(None));
        };
        let held = Held {
            zone: zone.clone(),
            at: at.to_owned(),
            by: self.0.store.ids().uuid(),
        };
        self.hold(&held, backend.name()).await?;
        let tried = async {
            self.take_in(&held).await?;
            self.counted(backend.put(at, envelope).await)
        };
        if let Err(error) = tried.await {
            self.let_go(&held).await;
            return Err(error);
        }
        Ok(Staged(Some((held, envelope.to_vec()))))
    }

    /// Step 4: what was committed leaves our database. Never fails the change, which is in force: what
    /// does not work out here is left to the sweep.
    pub async fn settle(&self, staged: Staged) {
        let Staged(Some((held, envelope))) = staged else {
            return;
        };
        if !matches!(self.move_out(&held, &envelope).await, Ok(true)) {
            self.let_go(&held).await;
        }
    }

    /// The change was not committed, or nobody knows whether it was: the sweep finds out.
    pub async fn give_up(&self, staged: Staged) {
        if let Staged(Some((held, _))) = staged {
            self.let_go(&held).await;
        }
    }

    /// Something was forgotten or put here without being staged: the next sweep is due.
    pub fn is_due(&self) {
        self.0.wake.notify_one();
    }

    /// Waits until a sweep is [due](Custody::is_due).
    pub async fn due(&self) {
        self.0.wake.notified().await;
    }

    /// Secrets that have to be moved (out, or back) or forgotten outside; zero with nothing outside.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn waiting(&self) -> Result<u64, StoreError> {
        if !self.is_outside() {
            return Ok(0);
        }
        let waiting = if self.0.leaving {
            &sql::LEFT
        } else {
            &sql::WAITING
        };
        let row = self.0.store.query_opt(waiting, &[]).await?;
        row.map_or(Ok(0), |row| row.count("waiting"))
    }

    /// Moves out what is here, or back what is outside, and has the backend forget what was forgotten
    /// here. Goes on after a failure, but not after several in a row: then the backend is gone.
    ///
    /// # Errors
    /// The last [`CustodyError`]; what was done stays done.
    pub async fn sweep(&self) -> Result<Moved, CustodyError> {
        let mut moved = Moved::default();
        let Some(backend) = self.0.backend.clone() else {
            return Ok(moved);
        };
        let (mut after, mut in_a_row, mut failed) = (String::new(), 0, None);
        let due = if self.0.leaving {
            &sql::OUTSIDE
        } else {
            &sql::HERE
        };
        loop {
            let now = self.0.store.clock().now();
            let params = params![now, &after, BATCH];
            let rows = self.0.store.query(due, &params).await?;
            let Some(last) = rows.last() else {
                return failed.map_or(Ok(moved), Err);
            };
            after = last.string("ref")?;
            for row in &rows {
                let held = Held {
                    zone: ZoneId::trusted(row.text("zone_id")?),
                    at: row.string("ref")?,
                    by: self.0.store.ids().uuid(),
                };
                match Box::pin(self.deliver(backend.as_ref(), &held)).await {
                    Ok(delivered) => {
                        moved.out += delivered.out;
                        moved.back += delivered.back;
                        moved.forgotten += delivered.forgotten;
                        in_a_row = 0;
                    }
                    Err(error) if in_a_row >= PATIENT_FAILURES => return Err(error),
                    Err(error) => {
                        in_a_row += 1;
                        failed = Some(error);
                    }
                }
            }
        }
    }

    /// Brings the backend to what our database says of this reference.
    async fn deliver(
        &self,
        backend: &dyn SecretBackend,
        held: &Held,
    ) -> Result<Moved, CustodyError> {
        let now = self.0.store.clock().now();
        let (until, at) = (now.plus(HOLD), &held.at);
        let is_held = if self.0.leaving {
            let params = params![&held.zone, at, &held.by, until, now];
            self.changes(&sql::HOLD_ANY, &held.zone, &params).await?
        } else {
            let params = params![&held.zone, at, backend.name(), &held.by, until, now];
            self.changes(&sql::HOLD, &held.zone, &params).await?
        };
        if !is_held {
            return Ok(Moved::default());
        }
        let delivered = Box::pin(self.deliver_held(backend, held)).await;
        if !matches!(delivered, Ok(moved) if moved != Moved::default()) {
            self.release(held).await;
        }
        delivered
    }

    async fn deliver_held(
        &self,
        backend: &dyn SecretBackend,
        held: &Held,
    ) -> Result<Moved, CustodyError> {
        let mut moved = Moved::default();
        // INVARIANT (held): read after the row is held.
        match self.kept(&held.zone, &held.at).await? {
            Some(_) if self.0.leaving => moved.back = self.bring_back(backend, held).await?.into(),
            Some(Kept::Here(envelope)) => {
                self.counted(backend.put(&held.at, &envelope).await)?;
                moved.out = self.move_out(held, &envelope).await?.into();
            }
            Some(Kept::Outside(_)) => {}
            None => {
                self.counted(backend.delete(&held.at).await)?;
                let params = params![&held.zone, &held.at, &held.by];
                moved.forgotten = self
                    .changes(&sql::FORGET, &held.zone, &params)
                    .await?
                    .into();
            }
        }
        Ok(moved)
    }

    /// The envelope is here before it is deleted there.
    async fn bring_back(
        &self,
        backend: &dyn SecretBackend,
        held: &Held,
    ) -> Result<bool, CustodyError> {
        self.take_in(held).await?;
        if let Some(Kept::Outside(outside)) = self.kept(&held.zone, &held.at).await? {
            return Err(CustodyError::Astray {
                backend: outside.backend,
                at: held.at.clone(),
                what: "another envelope than ours, or nothing,",
            });
        }
        self.counted(backend.delete(&held.at).await)?;
        let params = params![&held.zone, &held.at, &held.by];
        Ok(self.changes(&sql::RETURNED, &held.zone, &params).await?)
    }

    async fn hold(&self, held: &Held, backend: &'static str) -> Result<(), CustodyError> {
        if let Some(Kept::Outside(outside)) = self.kept(&held.zone, &held.at).await?
            && outside.backend != backend
        {
            return Err(CustodyError::Elsewhere {
                backend: outside.backend,
                at: held.at.clone(),
            });
        }
        let began = self.0.store.clock().ticks();
        loop {
            let now = self.0.store.clock().now();
            let params = params![
                &held.zone,
                &held.at,
                &b""[..],
                now,
                backend,
                &held.by,
                now.plus(HOLD)
            ];
            if self.changes(&sql::HOLD_NEW, &held.zone, &params).await? {
                return Ok(());
            }
            if self.0.store.clock().ticks().since(began) > PATIENCE {
                let at = held.at.clone();
                return Err(CustodyError::Busy { at });
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Takes the envelope that is outside back in, before another one is put in its place.
    async fn take_in(&self, held: &Held) -> Result<(), CustodyError> {
        let Some(Kept::Outside(outside)) = self.kept(&held.zone, &held.at).await? else {
            return Ok(());
        };
        let envelope = self.fetch(&held.at, &outside.backend).await?;
        let ours = envelope.filter(|envelope| sha256_hex(envelope) == outside.sha256);
        let Some(envelope) = ours else {
            // It is lost already; a new one is how that is mended.
            tracing::error!(at = %held.at, "the secret backend does not hold what it was given");
            return Ok(());
        };
        let params = params![&held.zone, &held.at, &held.by, &envelope, &outside.sha256];
        // When it is not there any more, it was sealed again, and that one is here.
        self.changes(&sql::TAKE_IN, &held.zone, &params).await?;
        Ok(())
    }

    async fn move_out(&self, held: &Held, envelope: &[u8]) -> Result<bool, StoreError> {
        let prefix = envelope.get(..PREFIX).unwrap_or(envelope);
        let sha256 = sha256_hex(envelope);
        let params = params![&held.zone, &held.at, &held.by, envelope, prefix, sha256];
        self.changes(&sql::MOVE_OUT, &held.zone, &params).await
    }

    /// Whoever comes next need not wait until the hold ends, and the sweep neither.
    async fn let_go(&self, held: &Held) {
        self.release(held).await;
        self.is_due();
    }

    async fn release(&self, held: &Held) {
        let params = params![&held.zone, &held.at, &held.by];
        if let Err(error) = self.changes(&sql::LET_GO, &held.zone, &params).await {
            tracing::warn!(%error, at = %held.at, "a secret stays held for a while");
        }
    }

    async fn changes(
        &self,
        sql: &Sql,
        zone: &ZoneId,
        params: &[Param<'_>],
    ) -> Result<bool, StoreError> {
        let mut tx = self.0.store.begin("moving a secret").await?;
        let changed = tx.within(zone).execute(sql, params).await?;
        tx.commit().await?;
        Ok(changed > 0)
    }
}
