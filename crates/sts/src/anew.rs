//! What a mandate was decided on, looked at once more before it leaves (spec: sts §20.6).
//!
//! **Forces.** Between its reads and its answer an exchange waits: for a slow comparison of secrets,
//! for the mint rate, for its record to be stored. What is revoked in that time must not be outlived
//! by a token that was decided on before. And a warm mint must not ask the store.
//!
//! **Choice.** Memory counts the changes of a zone ([`Views::seen`](caracal_view::Views::seen)). An
//! exchange takes the count before it reads anything. While the count stands, so does all that was
//! read: one comparison is the whole price. Otherwise the same is read again and compared. Where
//! anything is another, the exchange is decided anew, from the start.
//!
//! **Rejected.** Asking in the transaction of the record: a gateway mandate has none, and Sessions and
//! Delegations would be read from the store for every mint.
//!
//! **Consequence.** No token leaves on what this replica knows to be dead, and what it learns later
//! is dead where the token is used. A record that was stored for a mandate which was then withheld
//! stays until it expires; nobody holds a bearer for it.

use std::sync::Arc;

use caracal_model::{Mandate, Refusal, Refused};
use caracal_view::{Seen, ViewError, ZoneView};

use crate::Sts;
use crate::authenticate::unavailable;
use crate::known::{Gathered, Presented};

/// How often an exchange is decided. Only what it rests on itself counts, so more than once is rare.
pub const TRIES: usize = 4;

/// What an exchange was decided on.
#[derive(Clone, Copy)]
pub struct Basis<'a> {
    /// What memory was like before anything of it was read.
    pub seen: Seen,
    /// The zone, its applications, resources, issuers and policy.
    pub zone: &'a Arc<ZoneView>,
    /// What was presented.
    pub presented: Presented<'a>,
    /// What was known of it.
    pub gathered: &'a Gathered,
    /// Mandates that were presented.
    pub mandates: [Option<&'a Mandate>; 2],
}

impl Basis<'_> {
    /// Whether all of it is still so, and whoever this was issued to was not cut off.
    ///
    /// # Errors
    /// 503 when state cannot be read.
    pub async fn stands(&self, sts: &Sts, issued: Option<&Mandate>) -> Result<bool, Refused> {
        #[cfg(test)]
        sts.interlude.pass().await;
        if sts.views.stands_since(&self.zone.id, self.seen) {
            return Ok(true);
        }
        match sts.views.zone(&self.zone.id).await {
            Ok(zone) if Arc::ptr_eq(&zone, self.zone) => {}
            Ok(_) | Err(ViewError::UnknownZone) => return Ok(false),
            Err(error) => return Err(unavailable(&error)),
        }
        for mandate in self.mandates.into_iter().flatten().chain(issued) {
            let revoked = sts.views.mandate_revoked(mandate).await;
            if revoked.map_err(|error| unavailable(&error))?.is_some() {
                return Ok(false);
            }
        }
        let now = Gathered::gather(sts, &self.zone.id, self.presented).await?;
        Ok(now.says_the_same_as(self.gathered))
    }
}

/// 503: whatever is decided is overtaken.
pub fn unsettled() -> Refused {
    let why = "what this rests on keeps changing, try again shortly";
    Refusal::Unavailable.because(why).retry_after(1)
}

/// What a test does while an exchange is about to release what it granted.
#[cfg(test)]
#[derive(Default)]
pub struct Interlude(parking_lot::Mutex<Vec<futures_util::future::BoxFuture<'static, ()>>>);

#[cfg(test)]
impl Interlude {
    /// The next exchange to come here does this first.
    pub fn then(&self, act: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().push(Box::pin(act));
    }

    pub async fn pass(&self) {
        let act = self.0.lock().pop();
        if let Some(act) = act {
            act.await;
        }
    }
}
