//! Drills: a failure under a running probe, and what came of it.
//!
//! Each ends with the same proof: what was answered is on record exactly once, the only degradation
//! was refusal, and it healed without hands. What was noticed where, and when it was over, becomes a
//! row; `XTEST_DRILL_TABLE` names a file that the rows are appended to.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::http::Http;
use crate::probe::{Outcast, Probe, Promised, Replays, before_now};
use crate::wishes::{pace, wants};
use crate::{Deployment, Part, Stack, World, visibly};

/// How often each replica is asked whether it is ready, unless the probe has a pace.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// Governed calls that are served in a row when all is well, unless the probe has a pace.
const IN_A_ROW: usize = 30;
/// For how long at least calls are served when all is well, where the probe has a pace.
const WELL_FOR: Duration = Duration::from_secs(5);
/// An outcast older than this is replaced: what was taken from it must still be in force while a
/// failure lasts, so that its refusal means something.
const OUTCAST_FOR: Duration = Duration::from_secs(120);
/// How long it may take from the end of a failure until all is well.
const WELL_WITHIN: Duration = Duration::from_secs(60);
/// How far clocks are stepped at most, and a minute: events carry the time of their producer.
const CLOCKS: Duration = Duration::from_secs(360);

/// Many deployments that are drilled at once are not to be kept busy with being asked.
fn ask_every() -> Duration {
    let second = Duration::from_secs(1);
    pace().map_or(ASK_EVERY, |pace| pace.clamp(ASK_EVERY, second))
}

/// Governed calls that are served in a row when all is well: with a pace, as many as fit into
/// [`WELL_FOR`], but one at least.
fn in_a_row() -> usize {
    let Some(pace) = pace() else {
        return IN_A_ROW;
    };
    let fit = WELL_FOR.as_nanos() / pace.as_nanos().max(1);
    usize::try_from(fit).map_or(IN_A_ROW, |fit| fit.clamp(1, IN_A_ROW))
}

/// The first time that a replica gave this reason for not being ready.
#[derive(Clone, Debug)]
pub struct Unready {
    /// The service.
    pub part: Part,
    /// Which of its replicas.
    pub nth: usize,
    /// What it said; `down` when it said nothing.
    pub reason: String,
    /// When.
    pub at: Instant,
}

/// Asks every replica all the time whether it is ready.
struct Watch {
    seen: Arc<Mutex<Vec<Unready>>>,
    askers: Vec<JoinHandle<()>>,
}

impl Watch {
    fn start(stack: &Stack) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let replicas = stack.replicas();
        let askers = replicas.iter().enumerate().map(|(at, (part, url))| {
            let nth = replicas[..at].iter().filter(|(p, _)| p == part).count();
            tokio::spawn(ask(*part, nth, format!("{url}/ready"), Arc::clone(&seen)))
        });
        let askers = askers.collect();
        Self { seen, askers }
    }

    fn stop(self) -> Vec<Unready> {
        self.askers.iter().for_each(JoinHandle::abort);
        std::mem::take(&mut *self.seen.lock())
    }
}

async fn ask(part: Part, nth: usize, url: String, seen: Arc<Mutex<Vec<Unready>>>) {
    let (http, every) = (Http::default(), ask_every());
    loop {
        let asked = tokio::time::timeout(Duration::from_secs(10), http.try_get(&url)).await;
        let reason = match asked {
            Ok(Ok(answer)) if answer.status == 200 => None,
            Ok(Ok(answer)) => {
                let said = [answer.text("reason"), answer.text("error")];
                Some(
                    said.into_iter()
                        .find(|text| !text.is_empty())
                        .unwrap_or_default(),
                )
            }
            _ => Some("down".to_owned()),
        };
        if let Some(reason) = reason {
            let mut seen = seen.lock();
            let is_new = |one: &Unready| (one.part, one.nth, &one.reason) != (part, nth, &reason);
            if seen.iter().all(is_new) {
                let at = Instant::now();
                seen.push(Unready {
                    part,
                    nth,
                    reason,
                    at,
                });
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// What came of one failure.
#[derive(Debug)]
pub struct Row {
    /// What failed.
    pub failure: String,
    /// Where.
    pub deployment: Deployment,
    /// How long.
    pub lasted: Duration,
    /// Why replicas were not ready, in the order in which they said so.
    pub unready: Vec<Unready>,
    /// From the failure to the first of them.
    pub noticed: Option<Duration>,
    /// Governed calls that were served while it lasted.
    pub served: usize,
    /// Governed calls that were not, until all was well.
    pub refused: usize,
    /// From its end to the last call that was not served.
    pub healed: Duration,
    /// From its end until every replica said that it is ready.
    pub ready: Duration,
    /// Decisions that are on record.
    pub recorded: usize,
}

impl Row {
    /// Whether some replica of this service gave this reason.
    pub fn said(&self, part: Part, reason: &str) -> bool {
        let said = |one: &Unready| one.part == part && one.reason == reason;
        self.unready.iter().any(said)
    }

    /// # Panics
    /// When none did.
    #[track_caller]
    pub fn must_say(&self, part: Part, reason: &str) {
        assert!(
            self.said(part, reason),
            "{}: {:?}",
            self.failure,
            self.unready
        );
    }

    /// `gateway: redis_unreachable; sts: …`
    fn reasons(&self) -> String {
        let mut reasons: Vec<String> = Vec::new();
        for one in &self.unready {
            let text = format!("{} `{}`", one.part.name(), one.reason);
            if !reasons.contains(&text) {
                reasons.push(text);
            }
        }
        if reasons.is_empty() {
            return "none".to_owned();
        }
        reasons.join(", ")
    }

    fn tell(&self) {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let noticed = self.noticed.map_or("–".to_owned(), seconds);
        let line = format!(
            "| {} | {} | {} | {} | {noticed} | {} / {} | {} | {} | {} |",
            self.failure,
            format!("{:?}", self.deployment).to_lowercase(),
            seconds(self.lasted),
            self.reasons(),
            self.served,
            self.refused,
            seconds(self.healed),
            seconds(self.ready),
            self.recorded,
        );
        visibly(&line);
        if let Some(path) = std::env::var_os("XTEST_DRILL_TABLE") {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            drop(writeln!(file.expect("XTEST_DRILL_TABLE"), "{line}"));
        }
    }
}

/// A deployment that is drilled.
pub struct Drill {
    /// A zone in it.
    pub world: World,
    replays: Arc<Replays>,
    outcast: Outcast,
    promised: Promised,
    began: String,
}

impl Drill {
    /// With a zone of its own.
    pub async fn on(stack: &Arc<Stack>) -> Self {
        let began = before_now(CLOCKS);
        let world = World::new(Arc::clone(stack)).await;
        Self {
            outcast: Outcast::of(&world).await,
            replays: Arc::default(),
            promised: Promised::default(),
            world,
            began,
        }
    }

    /// Has the deployment suffer: `inject` under load, then `mend` after it has `lasted` so long.
    /// Ends when all is well and everything is on record. `None` when `XTEST_DRILLS` leaves it out.
    ///
    /// # Panics
    /// When it does not come to that.
    pub async fn suffers(
        &mut self,
        failure: &str,
        lasted: Duration,
        inject: impl AsyncFnOnce(&Stack),
        mend: impl AsyncFnOnce(&Stack),
    ) -> Option<Row> {
        if !wants(failure) {
            return None;
        }
        let stack = Arc::clone(&self.world.stack);
        let since = before_now(CLOCKS);
        visibly(&format!("{:?}: {failure}", stack.deployment));
        if self.outcast.age() > OUTCAST_FOR {
            self.outcast = Outcast::of(&self.world).await;
        }
        let outcast = Some(self.outcast.clone());
        let in_a_row = in_a_row();
        let probe = Probe::start(&self.world, &self.replays, outcast).await;
        probe.is_served(Instant::now(), in_a_row, WELL_WITHIN).await;
        let watch = Watch::start(&stack);
        let began = Instant::now();
        inject(&stack).await;
        tokio::time::sleep(lasted.saturating_sub(began.elapsed())).await;
        mend(&stack).await;
        let mended = Instant::now();
        probe.is_served(mended, in_a_row, WELL_WITHIN).await;
        stack.is_ready().await;
        let ready = mended.elapsed();
        // Calls that began before may still be under way.
        probe.is_served(Instant::now(), in_a_row, WELL_WITHIN).await;
        let told = probe.stop().await;
        let unready = watch.stop();
        told.are_recorded(&self.world, &since, failure).await;
        stack.none_has_ended();
        let refused = told.looks.iter().filter(|look| !look.served);
        let last = refused.clone().map(|look| look.ended).max();
        let served =
            |look: &&crate::probe::Look| look.served && look.began >= began && look.ended <= mended;
        let row = Row {
            failure: failure.to_owned(),
            deployment: stack.deployment,
            lasted: mended - began,
            noticed: unready.first().map(|first| first.at - began),
            served: told.looks.iter().filter(served).count(),
            refused: refused.filter(|look| look.ended >= began).count(),
            healed: last.map_or(Duration::ZERO, |at| at.saturating_duration_since(mended)),
            ready,
            recorded: told.events.len(),
            unready,
        };
        row.tell();
        self.promised.add(told);
        Some(row)
    }

    /// After everything: all of it is on record, once, and the ledger verifies.
    ///
    /// # Panics
    /// When not.
    pub async fn ends(self) {
        self.promised
            .are_recorded(&self.world, &self.began, "at the end")
            .await;
        let verified = self.world.stack.caracal("audit verify").await;
        assert!(verified.status.success(), "{verified:?}");
        visibly(&format!(
            "{:?}: {} decisions on record, {:?}",
            self.world.stack.deployment,
            self.promised.events.len(),
            self.promised.statuses
        ));
    }
}
