//! The keys of trusted issuers (spec: sts §7, §20.7).
//!
//! **Forces.** Asking the issuer for every ID token makes it a dependency of each login; keeping
//! its keys keeps those that it has withdrawn. It publishes a new key whenever it likes, and anybody
//! can send a token that names a key which does not exist.
//!
//! **Choice.** A set is kept for 10 minutes, never longer. An unknown key is looked for once more,
//! but not more often than every 30 s for one issuer. One request fetches; those that come meanwhile
//! wait for what it finds, failure included, so that an issuer which does not answer holds each of
//! them up once and not one after another. It goes on when who asked hangs up: nothing is put down of
//! a question that was not answered, and nobody makes us ask again and again. A failure is the
//! issuer's or ours, never the caller's: 503.
//!
//! **Rejected.** Serving an old set while the issuer is out: a withdrawn key would come back to life
//! by cutting the line.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use caracal_crypto::foreign::KeySet;
use caracal_model::{Clock, Refusal, Refused, Ticks};
use caracal_net::egress::{Bounds, Fetcher};
use caracal_net::trace::carried;
use caracal_view::IssuerRow;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// How long a set is good.
const KEPT: Duration = Duration::from_secs(600);
/// How often an unknown key is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// What an answer may take.
const BOUNDS: Bounds = Bounds {
    within: Duration::from_secs(5),
    bytes: 256 * 1024,
};
/// Issuers that are remembered.
const MOST: usize = 4_096;

/// Where key sets come from.
#[async_trait]
pub trait KeySource: Send + Sync {
    /// The document at this URL.
    ///
    /// # Errors
    /// Why there is none, for the log.
    async fn fetch(&self, url: &str) -> Result<Bytes, String>;
}

#[async_trait]
impl KeySource for Fetcher {
    async fn fetch(&self, url: &str) -> Result<Bytes, String> {
        let request =
            Request::get(url).header(ACCEPT, "application/json, application/jwk-set+json");
        let request = request.body(Bytes::new()).map_err(|e| e.to_string())?;
        let answer = Self::fetch(self, request, BOUNDS).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(format!("status {}", status.as_u16())),
        }
    }
}

/// What is known of one issuer.
#[derive(Default)]
struct Known {
    keys: Option<(Arc<KeySet>, Ticks)>,
    looked_again: Option<Ticks>,
    /// Whether the issuer did not answer when it was asked last.
    is_out: bool,
}

/// One issuer. Locked while somebody asks it.
#[derive(Default)]
struct Slot {
    /// How often it was asked: who waits for the lock sees whether somebody else asked meanwhile.
    asked: AtomicU64,
    known: Arc<tokio::sync::Mutex<Known>>,
}

/// The keys of every trusted issuer of every zone.
pub struct IssuerKeys {
    source: Arc<dyn KeySource>,
    clock: Arc<dyn Clock>,
    /// By row and URL: another row, or another URL in it, starts over.
    slots: Mutex<HashMap<(String, String), Arc<Slot>>>,
}

impl IssuerKeys {
    /// Keys from there.
    pub fn new(source: Arc<dyn KeySource>, clock: Arc<dyn Clock>) -> Self {
        Self {
            source,
            clock,
            slots: Mutex::default(),
        }
    }

    /// A set of this issuer's keys that names `kid`, if the issuer publishes one.
    ///
    /// # Errors
    /// 503 when the issuer does not answer, or not within the time that is left.
    pub async fn with(
        &self,
        issuer: &IssuerRow,
        kid: &str,
        within: Duration,
    ) -> Result<Option<Arc<KeySet>>, Refused> {
        let slot = self.slot(issuer);
        let asked = slot.asked.load(Ordering::SeqCst);
        let came = self.clock.ticks();
        let lock = Arc::clone(&slot.known).lock_owned();
        let known = tokio::time::timeout(within, lock).await;
        let known = known.map_err(|_| out(issuer))?;
        let now = self.clock.ticks();
        let within = within.saturating_sub(now.since(came));
        let fresh = |(_, at): &&(Arc<KeySet>, Ticks)| now.since(*at) < KEPT;
        let held = known
            .keys
            .as_ref()
            .filter(fresh)
            .map(|(keys, _)| keys.clone());
        if let Some(keys) = &held
            && keys.names(kid)
        {
            return Ok(held);
        }
        let too_soon = |at: Ticks| now.since(at) < LOOK_AGAIN;
        let meanwhile = slot.asked.load(Ordering::SeqCst) != asked;
        let looked = held.is_some() && known.looked_again.is_some_and(too_soon);
        if (meanwhile || looked) && known.is_out {
            // Whether it publishes the key is not known, so the token is not called wrong.
            return Err(out(issuer));
        }
        if looked {
            return Ok(None);
        }
        let looks_again = held.is_some().then_some(now);
        let asking = self.ask(issuer.clone(), slot, known, looks_again);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends within BOUNDS, and whoever comes next waits for it"
        )]
        let asking = tokio::spawn(carried(asking));
        let keys = match tokio::time::timeout(within, asking).await {
            Ok(Ok(Some(keys))) => keys,
            Ok(Ok(None) | Err(_)) | Err(_) => return Err(out(issuer)),
        };
        Ok(keys.names(kid).then_some(keys))
    }

    /// Asks the issuer, and puts down what came of it.
    fn ask(
        &self,
        issuer: IssuerRow,
        slot: Arc<Slot>,
        mut known: OwnedMutexGuard<Known>,
        looks_again: Option<Ticks>,
    ) -> impl Future<Output = Option<Arc<KeySet>>> + Send + 'static {
        let (source, clock) = (Arc::clone(&self.source), Arc::clone(&self.clock));
        async move {
            let keys = fetch(source.as_ref(), &issuer).await.map(Arc::new);
            slot.asked.fetch_add(1, Ordering::SeqCst);
            known.looked_again = looks_again.or(known.looked_again);
            known.is_out = keys.is_none();
            if let Some(keys) = &keys {
                known.keys = Some((keys.clone(), clock.ticks()));
            }
            keys
        }
    }

    fn slot(&self, issuer: &IssuerRow) -> Arc<Slot> {
        let key = (issuer.id.clone(), issuer.jwks_url.clone());
        let mut slots = self.slots.lock();
        if slots.len() >= MOST && !slots.contains_key(&key) {
            // Rows that are gone stay behind until then; those in use are fetched again.
            slots.clear();
        }
        slots.entry(key).or_default().clone()
    }
}

async fn fetch(source: &dyn KeySource, issuer: &IssuerRow) -> Option<KeySet> {
    let fetched = tokio::time::timeout(BOUNDS.within, source.fetch(&issuer.jwks_url)).await;
    let parsed = match fetched {
        Ok(Ok(json)) => KeySet::parse(&json).map_err(|error| error.to_string()),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("timed out".to_owned()),
    };
    parsed
        .inspect_err(|why| {
            tracing::warn!(issuer = %issuer.issuer, why, "keys of a trusted issuer not fetched");
        })
        .ok()
}

fn out(issuer: &IssuerRow) -> Refused {
    let why = format!(
        "the keys of {} cannot be fetched, try again shortly",
        issuer.issuer
    );
    Refusal::Unavailable.because(why).retry_after(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use caracal_crypto::es256::SigningKey;
    use caracal_model::{Kid, TestClock};
    use futures_util::FutureExt as _;
    use serde_json::json;

    /// Answers with these keys; counts how often it was asked.
    struct Published {
        answer: Mutex<Result<Bytes, String>>,
        asked: AtomicUsize,
    }

    impl Published {
        fn keys(kids: &[&str]) -> Arc<Self> {
            let this = Arc::new(Self {
                answer: Mutex::new(Err(String::new())),
                asked: AtomicUsize::new(0),
            });
            this.publishes(kids);
            this
        }

        fn publishes(&self, kids: &[&str]) {
            let keys: Vec<_> = kids
                .iter()
                .map(|kid| {
                    SigningKey::generate(Kid::trusted(*kid))
                        .unwrap()
                        .public()
                        .clone()
                })
                .collect();
            *self.answer.lock() = Ok(json!({ "keys": keys }).to_string().into());
        }

        fn is_out(&self) {
            *self.answer.lock() = Err("refused".to_owned());
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    #[async_trait]
    impl KeySource for Published {
        async fn fetch(&self, _: &str) -> Result<Bytes, String> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.answer.lock().clone()
        }
    }

    fn row(id: &str) -> IssuerRow {
        IssuerRow {
            id: id.to_owned(),
            issuer: "https://idp.example".to_owned(),
            jwks_url: "https://idp.example/keys".to_owned(),
            audience: "caracal".to_owned(),
        }
    }

    async fn found(keys: &IssuerKeys, kid: &str) -> &'static str {
        match keys.with(&row("i1"), kid, BOUNDS.within).await {
            Ok(Some(_)) => "found",
            Ok(None) => "unknown",
            Err(refused) => {
                assert_eq!(refused.refusal, Refusal::Unavailable);
                "out"
            }
        }
    }

    #[tokio::test]
    async fn a_set_is_kept_for_ten_minutes_and_never_longer() {
        let (source, clock) = (Published::keys(&["k1"]), Arc::new(TestClock::default()));
        let keys = IssuerKeys::new(source.clone(), clock.clone());
        assert_eq!(found(&keys, "k1").await, "found");
        source.is_out();
        clock.advance(KEPT - Duration::from_secs(1));
        assert_eq!(found(&keys, "k1").await, "found");
        assert_eq!(source.asked(), 1);
        clock.advance(Duration::from_secs(1));
        assert_eq!(found(&keys, "k1").await, "out", "never stale");
        source.publishes(&["k2"]);
        assert_eq!(found(&keys, "k1").await, "unknown", "withdrawn");
        assert_eq!(found(&keys, "k2").await, "found");
        assert_eq!(source.asked(), 3);
    }

    #[tokio::test]
    async fn an_unknown_key_is_looked_for_once_in_thirty_seconds() {
        let (source, clock) = (Published::keys(&["k1"]), Arc::new(TestClock::default()));
        let keys = IssuerKeys::new(source.clone(), clock.clone());
        assert_eq!(found(&keys, "k1").await, "found");
        source.publishes(&["k1", "k2"]);
        assert_eq!(found(&keys, "k2").await, "found", "rotated a moment ago");
        for _ in 0..100 {
            assert_eq!(found(&keys, "made up").await, "unknown");
        }
        assert_eq!(source.asked(), 2);
        clock.advance(LOOK_AGAIN);
        assert_eq!(found(&keys, "made up").await, "unknown");
        assert_eq!(source.asked(), 3);
        clock.advance(LOOK_AGAIN);
        source.is_out();
        for _ in 0..3 {
            let answer = found(&keys, "k3").await;
            assert_eq!(answer, "out", "it may exist, we cannot know");
        }
        assert_eq!(source.asked(), 4, "and it is not asked for each of them");
        assert_eq!(
            found(&keys, "k1").await,
            "found",
            "what is fresh is not forgotten"
        );
    }

    /// Nobody knows what the issuer publishes before it has answered.
    #[tokio::test]
    async fn who_hangs_up_while_a_key_is_looked_for_makes_it_unknown_to_nobody() {
        let (source, clock) = (Published::keys(&["k1"]), Arc::new(TestClock::default()));
        let keys = IssuerKeys::new(source.clone(), clock.clone());
        assert_eq!(found(&keys, "k1").await, "found");
        source.publishes(&["k1", "k2"]);
        for _ in 0..3 {
            assert!(found(&keys, "k2").now_or_never().is_none());
        }
        assert_eq!(found(&keys, "k2").await, "found", "rotated a moment ago");
        assert_eq!(source.asked(), 2, "and it was asked once for all of them");
    }

    #[tokio::test]
    async fn those_that_wait_share_one_answer() {
        let (source, clock) = (Published::keys(&["k1"]), Arc::new(TestClock::default()));
        let keys = IssuerKeys::new(source.clone(), clock);
        let all = futures_util::future::join_all((0..50).map(|_| found(&keys, "k1"))).await;
        assert!(all.iter().all(|one| *one == "found"));
        assert_eq!(source.asked(), 1);
        let other = IssuerKeys::new(source.clone(), Arc::new(TestClock::default()));
        source.is_out();
        let all = futures_util::future::join_all((0..50).map(|_| found(&other, "k1"))).await;
        assert!(all.iter().all(|one| *one == "out"));
        assert_eq!(source.asked(), 2, "a failure is shared as well");
    }

    /// Never answers.
    struct Silent;

    #[async_trait]
    impl KeySource for Silent {
        async fn fetch(&self, _: &str) -> Result<Bytes, String> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_is_left() {
        let keys = IssuerKeys::new(Arc::new(Silent), Arc::new(TestClock::default()));
        let issuer = row("i1");
        let ask = |millis| keys.with(&issuer, "k1", Duration::from_millis(millis));
        // One asks the issuer, the other waits for what the first is told.
        let both = async { tokio::join!(ask(200), ask(20)) };
        let told = tokio::time::timeout(BOUNDS.within, both).await;
        let (asking, waiting) = told.expect("within the deadline");
        for told in [asking, waiting] {
            assert_eq!(told.map(|_| ()).unwrap_err().refusal, Refusal::Unavailable);
        }
    }

    #[tokio::test]
    async fn another_row_is_another_issuer() {
        let (source, clock) = (Published::keys(&["k1"]), Arc::new(TestClock::default()));
        let keys = IssuerKeys::new(source.clone(), clock);
        for id in ["i1", "i2", "i1"] {
            assert!(
                keys.with(&row(id), "k1", BOUNDS.within)
                    .await
                    .unwrap()
                    .is_some()
            );
        }
        assert_eq!(source.asked(), 2);
    }

    #[tokio::test]
    async fn what_is_no_key_set_is_an_outage_of_the_issuer() {
        let (source, clock) = (Published::keys(&[]), Arc::new(TestClock::default()));
        let keys = IssuerKeys::new(source.clone(), clock);
        *source.answer.lock() = Ok(Bytes::from_static(b"<html>"));
        assert_eq!(found(&keys, "k1").await, "out");
    }
}
