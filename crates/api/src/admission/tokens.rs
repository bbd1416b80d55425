//! From a presented token to its actor.
//!
//! **Forces.** A look-up a request costs a round trip; an answer kept for long keeps a revoked token
//! alive. **Choice.** Tokens are 256 random bits, or the operator's own, and are found by a keyed
//! hash, which one indexed read answers. A found one is kept for a second: that bounds how long a
//! token that another replica revoked still works. What was not found is never kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::envelope::Keyring;
use caracal_crypto::mac::HmacKey;
use caracal_crypto::verifier::SecretVerifier;
use caracal_model::Ticks;
use parking_lot::Mutex;

use super::Actor;
use crate::failure::Failure;
use crate::service::Api;

const KEPT: Duration = Duration::from_secs(1);
const MOST: usize = 1024;
const PEPPER: &str = "caracal/admin-tokens";

/// The tokens that were seen lately.
pub struct Tokens {
    pepper: HmacKey,
    /// Under the key that is being replaced, while it is.
    previous: Option<HmacKey>,
    kept: Mutex<HashMap<String, (Arc<Actor>, Ticks)>>,
    used: Mutex<HashMap<String, Ticks>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// From the previous key to the current one, so that the previous one can go. Nobody is refused when
/// it cannot be done: the next use tries again.
async fn upgrade(api: &Api, old: &str, new: &str) {
    let upgrading = async {
        let mut tx = api.store.begin("upgrade an admin token").await?;
        tx.upgrade_admin_token(old, new).await?;
        tx.commit().await
    };
    if let Err(error) = upgrading.await {
        tracing::warn!(%error, "an admin token still hangs on the previous key");
    }
}

impl Tokens {
    /// Tokens checked with a key derived from the keyring.
    pub fn new(keyring: &Keyring) -> Self {
        Self {
            pepper: keyring.derive(PEPPER),
            previous: keyring.derive_previous(PEPPER),
            kept: Mutex::default(),
            used: Mutex::default(),
        }
    }

    /// What is stored of a token.
    pub fn verifier(&self, token: &str) -> String {
        SecretVerifier::for_generated(&self.pepper, token).to_string()
    }

    /// Forgets what was kept, after tokens were revoked.
    pub fn forget(&self) {
        self.kept.lock().clear();
    }

    /// The actor of a presented token; `None` when no live token is the same.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn actor_of(&self, api: &Api, token: &str) -> Result<Option<Arc<Actor>>, Failure> {
        let verifier = self.verifier(token);
        if let Some(actor) = self.kept(&verifier, api.clock.ticks()) {
            return Ok(Some(actor));
        }
        // The reading is taken before the look-up: a slow one can only shorten how long it is kept.
        let asked_at = api.clock.ticks();
        let mut found = api.store.admin_tokens().find(&verifier).await?;
        if let (None, Some(previous)) = (&found, &self.previous) {
            let old = SecretVerifier::for_generated(previous, token).to_string();
            found = api.store.admin_tokens().find(&old).await?;
            if found.is_some() {
                upgrade(api, &old, &verifier).await;
            }
        }
        let Some(actor) = found.and_then(Actor::of).map(Arc::new) else {
            return Ok(None);
        };
        self.keep(verifier, &actor, asked_at);
        self.note_use(api, &actor).await;
        Ok(Some(actor))
    }

    fn kept(&self, verifier: &str, now: Ticks) -> Option<Arc<Actor>> {
        let kept = self.kept.lock();
        let (actor, since) = kept.get(verifier)?;
        (now.since(*since) < KEPT).then(|| Arc::clone(actor))
    }

    fn keep(&self, verifier: String, actor: &Arc<Actor>, since: Ticks) {
        let mut kept = self.kept.lock();
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(verifier, (Arc::clone(actor), since));
    }

    /// Notes in the store, now and then, that a token is in use. Nobody is refused when it cannot.
    async fn note_use(&self, api: &Api, actor: &Actor) {
        let now = api.clock.ticks();
        {
            let mut used = self.used.lock();
            let lately = used
                .get(&actor.id)
                .is_some_and(|at| now.since(*at) < api.config.last_used_debounce);
            if lately {
                return;
            }
            if used.len() >= MOST {
                used.clear();
            }
            used.insert(actor.id.clone(), now);
        }
        let noted = async {
            let mut tx = api.store.begin("note the use of an admin token").await?;
            tx.admin_tokens().used(&actor.id, api.clock.now()).await?;
            tx.commit().await
        };
        if let Err(error) = noted.await {
            tracing::warn!(%error, "use of an admin token not noted");
        }
    }
}
