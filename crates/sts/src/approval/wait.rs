//! Waiting for a decision (spec: sts §11.3; clients §16.12).
//!
//! **Forces.** Clients ask again as soon as they are answered, so a wait must really wait; and there
//! may be thousands of them, so it must cost nothing while it does. **Choice.** Whoever waits takes
//! a seat at its hold. One listener (see `listen`) hears of decisions through the feed, reads what
//! changed in one query and tells the seats. **Consequence.** A wait costs one query when it begins.
//!
//! INVARIANT (seat first): a seat is taken before the hold is read, so a decision is either read or
//! heard of.

use std::collections::HashMap;
use std::time::Duration;

use caracal_authority::{ApprovalState, Course};
use caracal_model::{ApprovalId, Refusal, Refused};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{course, unavailable};
use crate::Sts;

/// Seats at one hold: an agent waits once, and so may whoever watches it.
const SEATS: usize = 16;
/// Seats in all.
const MOST: usize = 10_000;

/// Everybody who waits.
#[derive(Default)]
pub struct Waiters {
    seats: Mutex<Seats>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Seats {
    taken: usize,
    by_hold: HashMap<ApprovalId, (watch::Sender<Option<Course>>, usize)>,
}

/// A place at a hold, until it is dropped.
struct Seat<'w> {
    waiters: &'w Waiters,
    id: ApprovalId,
    heard: watch::Receiver<Option<Course>>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut seats = self.waiters.seats.lock();
        seats.taken = seats.taken.saturating_sub(1);
        if let Some((_, count)) = seats.by_hold.get_mut(&self.id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                seats.by_hold.remove(&self.id);
            }
        }
    }
}

impl Waiters {
    fn sit(&self, id: &ApprovalId) -> Result<Seat<'_>, Refused> {
        let mut seats = self.seats.lock();
        if seats.taken >= MOST {
            return Err(too_many());
        }
        let made = || (watch::Sender::new(None), 0);
        let (sender, count) = seats.by_hold.entry(id.clone()).or_insert_with(made);
        if *count >= SEATS {
            return Err(too_many());
        }
        *count += 1;
        let heard = sender.subscribe();
        seats.taken += 1;
        Ok(Seat {
            waiters: self,
            id: id.clone(),
            heard,
        })
    }

    /// How many wait.
    pub fn taken(&self) -> usize {
        self.seats.lock().taken
    }

    /// Those of these holds that somebody waits for; all that somebody waits for, for `None`.
    pub fn awaited(&self, of: Option<&[ApprovalId]>) -> Vec<ApprovalId> {
        let seats = self.seats.lock();
        match of {
            None => seats.by_hold.keys().cloned().collect(),
            Some(ids) => {
                let awaited = ids.iter().filter(|id| seats.by_hold.contains_key(*id));
                awaited.cloned().collect()
            }
        }
    }

    /// Tells whoever waits for this hold how it stands.
    pub fn tell(&self, id: &ApprovalId, course: Course) {
        if let Some((sender, _)) = self.seats.lock().by_hold.get(id) {
            sender.send_if_modified(|known| known.replace(course) != Some(course));
        }
    }

    /// Nobody waits any longer: the process stops.
    pub fn close(&self) {
        self.closed.cancel();
    }
}

fn too_many() -> Refused {
    let why = "too many requests wait for this approval, or for others";
    Refusal::RateLimited.because(why).retry_after(1)
}

/// How a hold stands, as soon as it is decided or over, else after `most`.
///
/// # Errors
/// 404 when there is no such hold, 429 when too many wait for it, 503 without the store.
pub async fn wait(sts: &Sts, id: &ApprovalId, most: Duration) -> Result<Course, Refused> {
    let mut seat = if most.is_zero() {
        None
    } else {
        Some(sts.waiters.sit(id)?)
    };
    let found = sts
        .store
        .find_approval(id)
        .await
        .map_err(|error| unavailable(&error))?;
    let mut latest = course(&found.ok_or_else(super::http::unknown)?);
    let Some(seat) = &mut seat else {
        return Ok(latest);
    };
    let began = sts.clock.ticks();
    while latest.state(sts.clock.now()) == ApprovalState::Pending {
        let left = most.saturating_sub(sts.clock.ticks().since(began));
        if left.is_zero() {
            break;
        }
        // Its end is known and needs no news; a little later, so that it is over by then.
        let ends = latest.expires_at.since(sts.clock.now()) + Duration::from_millis(1);
        tokio::select! {
            heard = seat.heard.changed() => {
                if heard.is_err() {
                    break;
                }
                latest = seat.heard.borrow_and_update().unwrap_or(latest);
            }
            () = tokio::time::sleep(left.min(ends)) => {}
            () = sts.waiters.closed.cancelled() => break,
        }
    }
    Ok(latest)
}
