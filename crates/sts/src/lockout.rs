//! Authentication lockout (spec: sts §14, §20.8).
//!
//! **Forces.** Guessing a secret must not be free. But an application id is not a secret, so
//! whoever knows one must not be able to lock its owner out.
//!
//! **Choice.** Failures count per (application, source address). A source that is locked out still
//! has its secret compared where that is cheap (keyed hash, or a digest of a secret that verified
//! before), and a right one passes. Outages never count.

use std::net::IpAddr;
use std::time::Duration;

use caracal_model::{Ticks, id::MAX_ID_LEN};
use papaya::HashMap;

/// Failures that are answered with 401 within one window.
const FAILURES: u32 = 60;
/// The window, and how long a lockout lasts.
const WINDOW: Duration = Duration::from_secs(60);
/// Sources that are remembered. When more than these fail within a minute, a lockout by source is no
/// defence any more: all are forgotten, so that memory and the work of one failure stay bounded.
const MAX_SOURCES: usize = 65_536;

type Source = (Box<str>, IpAddr);

#[derive(Clone, Copy)]
struct Count {
    since: Ticks,
    failures: u32,
}

/// Failed authentications by application and source.
#[derive(Default)]
pub struct Lockout {
    counts: HashMap<Source, Count>,
}

impl Lockout {
    /// Seconds until this source may try again; `None` when it may now.
    pub fn locked_for(&self, application: &str, source: IpAddr, now: Ticks) -> Option<u32> {
        let counts = self.counts.pin();
        let count = counts.get(&key(application, source))?;
        let age = now.since(count.since);
        let locked = count.failures > FAILURES && age < WINDOW;
        locked.then(|| seconds_up(WINDOW.saturating_sub(age)))
    }

    /// Counts one failure.
    pub fn failed(&self, application: &str, source: IpAddr, now: Ticks) {
        let counts = self.counts.pin();
        if counts.len() >= MAX_SOURCES {
            counts.retain(|_, count| now.since(count.since) < WINDOW);
        }
        if counts.len() >= MAX_SOURCES {
            counts.clear();
        }
        counts.update_or_insert(
            key(application, source),
            |count| match now.since(count.since) < WINDOW {
                // The failure that crosses the limit starts the lockout.
                true if count.failures == FAILURES => Count {
                    since: now,
                    failures: FAILURES + 1,
                },
                true => Count {
                    failures: count.failures.saturating_add(1),
                    ..*count
                },
                false => Count {
                    since: now,
                    failures: 1,
                },
            },
            Count {
                since: now,
                failures: 1,
            },
        );
    }
}

fn key(application: &str, source: IpAddr) -> Source {
    let end = application.floor_char_boundary(MAX_ID_LEN);
    (application.get(..end).unwrap_or_default().into(), source)
}

fn seconds_up(left: Duration) -> u32 {
    u32::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn at(seconds: u64) -> Ticks {
        Ticks::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn sixty_failures_pass_and_the_next_locks_this_source_for_a_minute() {
        let lockout = Lockout::default();
        for _ in 0..60 {
            lockout.failed("app", HERE, at(1));
            assert_eq!(lockout.locked_for("app", HERE, at(1)), None);
        }
        lockout.failed("app", HERE, at(30));
        assert_eq!(lockout.locked_for("app", HERE, at(30)), Some(60));
        assert_eq!(lockout.locked_for("app", HERE, at(89)), Some(1));
        assert_eq!(lockout.locked_for("app", HERE, at(90)), None);
    }

    #[test]
    fn a_flood_from_ever_new_sources_does_not_grow_memory() {
        let lockout = Lockout::default();
        for source in 0..MAX_SOURCES as u32 + 10 {
            lockout.failed("app", IpAddr::V4(Ipv4Addr::from(source)), at(1));
        }
        assert!(lockout.counts.pin().len() <= MAX_SOURCES);
    }

    #[test]
    fn knowing_an_application_id_locks_nobody_else_out() {
        let lockout = Lockout::default();
        for _ in 0..100 {
            lockout.failed("app", HERE, at(1));
        }
        assert_eq!(lockout.locked_for("app", THERE, at(1)), None);
    }
}
