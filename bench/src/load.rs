//! The load itself: closed loops and open arrivals.
//!
//! **Forces.** A closed loop slows down with the server and so hides how long others would have
//! waited (coordinated omission). An open loop has a time at which each call was due, and its
//! latency counts from there. But a timer wakes up to a millisecond late, which is our fault and
//! not the server's.
//!
//! **Choice.** A worker that was still busy when its call was due counts from the due time. One
//! that slept until the due time counts from its waking, unless it woke later than a timer may.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::args::{Operation, Step};
use crate::identity::{Identities, Identity, JSON};
use crate::latency::Tally;
use crate::wire::{Answer, Base, Conn};

const RESOURCE: HeaderName = HeaderName::from_static("x-caracal-resource");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
/// How late a timer may fire before the lateness counts.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// What a step needs besides its settings.
#[derive(Clone)]
pub struct Load {
    pub sts: Base,
    pub gateway: Base,
    pub coordinator: Base,
    pub identities: Arc<Identities>,
}

/// A finished step.
pub struct Done {
    pub tally: Tally,
    pub took: Duration,
}

impl Load {
    /// Runs one step to its end.
    pub async fn run(&self, step: Step) -> anyhow::Result<Done> {
        let tickets = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for n in 0..step.workers {
            let pace = match step.rate {
                None => Pace::Closed,
                Some(rate) => Pace::Open {
                    rate,
                    tickets: Arc::clone(&tickets),
                },
            };
            let worker = Worker::new(self, n, began, step, pace)?;
            workers.spawn(worker.run());
        }
        let mut tally = Tally::new()?;
        while let Some(one) = workers.join_next().await {
            tally.add(&one?)?;
        }
        Ok(Done {
            tally,
            took: began.elapsed(),
        })
    }
}

/// When the next call is due.
enum Pace {
    Closed,
    Open { rate: u32, tickets: Arc<AtomicU64> },
}

struct Worker {
    n: usize,
    identities: Arc<Identities>,
    sts: Conn,
    gateway: Conn,
    coordinator: Conn,
    mint_at: String,
    call_at: String,
    operation: Operation,
    began: Instant,
    until: Instant,
    pace: Pace,
    tally: Tally,
}

/// Why a call failed, as the table of errors names it.
type Failed = String;

#[derive(Deserialize)]
struct Minted<'a> {
    access_token: &'a str,
}

#[derive(Deserialize)]
struct Started<'a> {
    agent_session_id: &'a str,
}

impl Worker {
    fn new(load: &Load, n: usize, began: Instant, step: Step, pace: Pace) -> anyhow::Result<Self> {
        Ok(Self {
            n,
            identities: Arc::clone(&load.identities),
            sts: Conn::new(&load.sts),
            gateway: Conn::new(&load.gateway),
            coordinator: Conn::new(&load.coordinator),
            mint_at: load.sts.at("/oauth/2/token"),
            call_at: load.gateway.at("/"),
            operation: step.operation,
            began,
            until: began + step.lasts,
            pace,
            tally: Tally::new()?,
        })
    }

    async fn run(mut self) -> Tally {
        while let Some(start) = self.next().await {
            let Some(identity) = self.identities.of(self.n) else {
                break;
            };
            let done = match self.operation {
                Operation::Call | Operation::Mint => self.call(&identity).await,
                Operation::Session => self.session(&identity).await,
            };
            match done {
                Ok(()) => self.tally.calls.note(start.elapsed()),
                Err(what) => self.tally.failed(what),
            }
        }
        self.tally
    }

    /// Waits for the next call and says when its clock starts; `None` ends the worker.
    async fn next(&self) -> Option<Instant> {
        let Pace::Open { rate, tickets } = &self.pace else {
            let now = Instant::now();
            return (now < self.until).then_some(now);
        };
        let ticket = tickets.fetch_add(1, Ordering::Relaxed);
        let due = self.began + due_after(ticket, *rate);
        if due >= self.until {
            return None;
        }
        if Instant::now() >= due {
            return Some(due);
        }
        tokio::time::sleep_until(due.into()).await;
        let woke = Instant::now();
        Some(if woke - due <= TIMER_SLACK { woke } else { due })
    }

    /// One Session, started and ended.
    async fn session(&mut self, identity: &Identity) -> Result<(), Failed> {
        let starting = Instant::now();
        let headers = [
            (AUTHORIZATION, identity.bearer.clone()),
            (CONTENT_TYPE, JSON),
        ];
        let body = identity.session_body.clone();
        let answer = self
            .coordinator
            .send(Method::POST, &identity.sessions_at, &headers, body)
            .await;
        let answer = succeeded("start", answer)?;
        let started: Started<'_> =
            serde_json::from_slice(&answer.body).map_err(|_| "start not understood".to_owned())?;
        self.tally.starts.note(starting.elapsed());

        let ending = Instant::now();
        let at = [identity.sessions_at.as_str(), "/", started.agent_session_id].concat();
        let headers = [(AUTHORIZATION, identity.bearer.clone())];
        let answer = self
            .coordinator
            .send(Method::DELETE, &at, &headers, Bytes::new())
            .await;
        succeeded("end", answer)?;
        self.tally.ends.note(ending.elapsed());
        Ok(())
    }

    /// One governed call: mint, then the Gateway with the fresh mandate.
    async fn call(&mut self, identity: &Identity) -> Result<(), Failed> {
        let minting = Instant::now();
        let form = identity.mint_form.clone();
        let headers = [(CONTENT_TYPE, FORM)];
        let answer = self
            .sts
            .send(Method::POST, &self.mint_at, &headers, form)
            .await;
        let answer = succeeded("mint", answer)?;
        let minted: Minted<'_> =
            serde_json::from_slice(&answer.body).map_err(|_| "mint not understood".to_owned())?;
        self.tally.minted += 1;
        self.tally.mints.note(minting.elapsed());
        if self.operation == Operation::Mint {
            return Ok(());
        }
        let mut bearer = HeaderValue::from_str(&["Bearer ", minted.access_token].concat())
            .map_err(|_| "mint not understood".to_owned())?;
        bearer.set_sensitive(true);

        let calling = Instant::now();
        let headers = [
            (AUTHORIZATION, bearer),
            (RESOURCE, identity.resource.clone()),
        ];
        let answer = self
            .gateway
            .send(Method::GET, &self.call_at, &headers, Bytes::new())
            .await;
        succeeded("gateway", answer)?;
        self.tally.gateway.note(calling.elapsed());
        Ok(())
    }
}

/// When ticket `n` of an open loop is due, from the start of the step.
fn due_after(n: u64, rate: u32) -> Duration {
    let nanos = u128::from(n) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn succeeded(what: &str, answer: Result<Answer, crate::wire::Lost>) -> Result<Answer, Failed> {
    match answer {
        Ok(answer) if answer.status.is_success() => Ok(answer),
        Ok(answer) => Err(format!(
            "{what} {} {}",
            answer.status.as_u16(),
            answer.code()
        )),
        Err(lost) => Err(format!("{what} {}", lost.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_evenly_spaced_and_do_not_drift() {
        assert_eq!(due_after(0, 3), Duration::ZERO);
        assert_eq!(due_after(3, 3), Duration::from_secs(1));
        assert_eq!(due_after(3_000_000, 3), Duration::from_secs(1_000_000));
    }
}
