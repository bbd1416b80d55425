//! Verifying client secrets (spec: sts §13; README decision 22).
//!
//! **Forces.** A secret that we generated is 256 random bits: one keyed hash settles it. One that
//! a person chose is protected by Argon2id, which costs 64 MiB and tens of milliseconds, so a
//! flood of wrong ones must not take the machine.
//!
//! **Choice.** Argon2id runs on the blocking pool, `STS_SECRET_VERIFY_CONCURRENCY` at a time, and
//! a secret that verified is remembered for an hour as a MAC under a key of this process, bound to
//! the stored verifier, so that a rotated secret is forgotten with its verifier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_crypto::mac::HmacKey;
use caracal_crypto::verifier::SecretVerifier;
use caracal_model::{Clock, Rng, Secret, Ticks};
use papaya::HashMap;
use tokio::sync::Semaphore;

/// How long a verified secret is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// What a secret is compared with that has nothing to be compared with: the example of the
/// specification. What comes of it is thrown away.
const DECOY: &str = "argon2id$AAECAwQFBgcICQoLDA0ODw$uH5/Nrj7C0VGYxLjj0XODcSA1OcWXAQ3EnCORE1W/Cg";
/// How many verified secrets are remembered.
const MAX_REMEMBERED: usize = 8192;

/// What comparing a secret told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the secret.
    Right,
    /// It is not.
    Wrong,
    /// Only a slow comparison could tell, and the caller did not ask for one.
    Unknown,
}

/// Verifies client secrets.
pub struct Secrets {
    pepper: Arc<HmacKey>,
    /// Of the KEK that is being replaced, while it is: what was stored before must go on verifying.
    previous: Option<HmacKey>,
    /// Keys the digests below; made anew with each process.
    memory_key: HmacKey,
    verified: HashMap<[u8; 32], Ticks>,
    slow: Arc<Semaphore>,
    slowly: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl Secrets {
    /// `pepper` keys the verifiers of generated secrets, as `previous` did before the KEK was
    /// rotated; `concurrency` bounds Argon2id.
    pub fn new(
        pepper: HmacKey,
        previous: Option<HmacKey>,
        concurrency: usize,
        clock: Arc<dyn Clock>,
        rng: &dyn Rng,
    ) -> Self {
        let mut key = vec![0; 32];
        rng.fill(&mut key);
        Self {
            pepper: Arc::new(pepper),
            previous,
            memory_key: HmacKey::from_bytes(Secret::new(key)),
            verified: HashMap::new(),
            slow: Arc::new(Semaphore::new(concurrency.max(1))),
            slowly: AtomicU64::new(0),
            clock,
        }
    }

    /// Compares at the cost of a hash, or says that this is not possible.
    pub fn verify_cheaply(&self, verifier: &SecretVerifier, secret: &str) -> Verdict {
        if !verifier.is_slow() {
            let before = self.previous.iter();
            let mut peppers = std::iter::once(&*self.pepper).chain(before);
            return match peppers.any(|pepper| verifier.verify(pepper, secret)) {
                true => Verdict::Right,
                false => Verdict::Wrong,
            };
        }
        let verified = self.verified.pin();
        let known = verified.get(&self.digest(verifier, secret));
        let fresh = known.is_some_and(|at| self.clock.ticks().since(*at) < REMEMBERED);
        if fresh {
            Verdict::Right
        } else {
            Verdict::Unknown
        }
    }

    /// The verifier of a right secret under the current pepper, when it is stored under the previous
    /// one.
    pub fn upgraded(&self, verifier: &SecretVerifier, secret: &str) -> Option<SecretVerifier> {
        let previous = self.previous.as_ref()?;
        let outdated = !verifier.is_slow()
            && verifier.verify(previous, secret)
            && !verifier.verify(&self.pepper, secret);
        outdated.then(|| SecretVerifier::for_generated(&self.pepper, secret))
    }

    /// Compares, however long it takes.
    pub async fn verify(&self, verifier: &SecretVerifier, secret: &Secret<String>) -> bool {
        match self.verify_cheaply(verifier, secret.expose()) {
            Verdict::Right => true,
            Verdict::Wrong => false,
            Verdict::Unknown => self.verify_slowly(verifier, secret).await,
        }
    }

    /// Takes as long as a slow comparison, in vain: so that nobody learns from the time that an answer
    /// takes what there was to compare with.
    pub async fn compare_in_vain(&self, secret: &Secret<String>) {
        if let Ok(decoy) = SecretVerifier::parse(DECOY) {
            self.compare_slowly(&decoy, secret).await;
        }
    }

    /// How many slow comparisons were made.
    #[cfg(test)]
    pub fn slow_comparisons(&self) -> u64 {
        self.slowly.load(Ordering::SeqCst)
    }

    async fn verify_slowly(&self, verifier: &SecretVerifier, secret: &Secret<String>) -> bool {
        let right = self.compare_slowly(verifier, secret).await;
        if right {
            self.remember(verifier, secret.expose());
        }
        right
    }

    async fn compare_slowly(&self, verifier: &SecretVerifier, secret: &Secret<String>) -> bool {
        self.slowly.fetch_add(1, Ordering::SeqCst);
        let Ok(turn) = Arc::clone(&self.slow).acquire_owned().await else {
            return false;
        };
        let stored = verifier.clone();
        let presented = Secret::new(secret.expose().clone());
        let pepper = Arc::clone(&self.pepper);
        let work = tokio::task::spawn_blocking(move || {
            let right = stored.verify(&pepper, presented.expose());
            drop(turn);
            right
        });
        work.await.unwrap_or(false)
    }

    fn remember(&self, verifier: &SecretVerifier, secret: &str) {
        let now = self.clock.ticks();
        let verified = self.verified.pin();
        if verified.len() >= MAX_REMEMBERED {
            verified.retain(|_, at| now.since(*at) < REMEMBERED);
        }
        if verified.len() < MAX_REMEMBERED {
            verified.insert(self.digest(verifier, secret), now);
        }
    }

    fn digest(&self, verifier: &SecretVerifier, secret: &str) -> [u8; 32] {
        let bound = Secret::new(format!("{verifier}\n{secret}"));
        self.memory_key.sign(bound.expose().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_crypto::os::OsRng;
    use caracal_model::TestClock;

    fn pepper() -> HmacKey {
        HmacKey::from_bytes(Secret::new(vec![7; 32]))
    }

    #[tokio::test]
    async fn a_chosen_secret_is_compared_slowly_once_and_cheaply_for_an_hour() {
        let clock = Arc::new(TestClock::default());
        let secrets = Secrets::new(pepper(), None, 1, clock.clone(), &OsRng);
        let stored = SecretVerifier::argon2id(&OsRng, "chosen by a person, and long").unwrap();
        let right = Secret::new(String::from("chosen by a person, and long"));
        let wrong = Secret::new(String::from("guessed"));

        assert_eq!(
            secrets.verify_cheaply(&stored, right.expose()),
            Verdict::Unknown
        );
        assert!(!secrets.verify(&stored, &wrong).await);
        assert!(secrets.verify(&stored, &right).await);
        assert_eq!(
            secrets.verify_cheaply(&stored, right.expose()),
            Verdict::Right
        );
        assert_eq!(
            secrets.verify_cheaply(&stored, wrong.expose()),
            Verdict::Unknown
        );
        clock.advance(REMEMBERED);
        assert_eq!(
            secrets.verify_cheaply(&stored, right.expose()),
            Verdict::Unknown
        );
    }

    #[tokio::test]
    async fn a_generated_secret_is_always_settled_cheaply() {
        let secrets = Secrets::new(pepper(), None, 1, Arc::new(TestClock::default()), &OsRng);
        let stored = SecretVerifier::for_generated(&pepper(), "cs_right");
        assert_eq!(secrets.verify_cheaply(&stored, "cs_right"), Verdict::Right);
        assert_eq!(secrets.verify_cheaply(&stored, "cs_wrong"), Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_secret_from_before_a_rotation_of_the_kek_goes_on_verifying() {
        let old = || HmacKey::from_bytes(Secret::new(vec![8; 32]));
        let clock = Arc::new(TestClock::default());
        let during = Secrets::new(pepper(), Some(old()), 1, clock.clone(), &OsRng);
        let stored = SecretVerifier::for_generated(&old(), "cs_right");
        assert_eq!(during.verify_cheaply(&stored, "cs_right"), Verdict::Right);
        assert_eq!(during.verify_cheaply(&stored, "cs_wrong"), Verdict::Wrong);
        let new = during.upgraded(&stored, "cs_right").unwrap();
        assert!(during.upgraded(&stored, "cs_wrong").is_none());
        assert!(during.upgraded(&new, "cs_right").is_none());
        let after = Secrets::new(pepper(), None, 1, clock, &OsRng);
        assert_eq!(after.verify_cheaply(&new, "cs_right"), Verdict::Right);
        assert_eq!(after.verify_cheaply(&stored, "cs_right"), Verdict::Wrong);
    }
}
