//! The tokens that exist because the deployment says so (spec: admin-api §4.2). Run at every start:
//! what is there is left alone, what an earlier value left behind is revoked, and so is all of it
//! when the deployment names no token any more.

use caracal_crypto::mac::HmacKey;
use caracal_model::Secret;
use caracal_store::admin_tokens::{AdminToken, VERIFIER_INDEX};
use caracal_store::{StoreError, Tx};

use crate::service::Api;

struct Seed {
    name: &'static str,
    capability: &'static str,
    created_by: &'static str,
    /// From which the token is derived; the bootstrap token is the variable itself.
    label: Option<&'static str>,
}

#[rustfmt::skip] // a table reads best as a table
const SEEDS: [Seed; 4] = [
    Seed { name: "bootstrap",         capability: "write",   created_by: "env-bootstrap",       label: None },
    Seed { name: "console-read-only", capability: "read",    created_by: "env-derived",         label: Some("caracal:console:read-only:v1") },
    Seed { name: "console-write",     capability: "write",   created_by: "env-derived-write",   label: Some("caracal:console:write:v1") },
    Seed { name: "console-approve",   capability: "approve", created_by: "env-derived-approve", label: Some("caracal:console:approve:v1") },
];

/// How often a start looks again when another replica seeds at the same time.
const TRIES: usize = 5;

/// The token that the console derives from the bootstrap token for a label.
pub fn derived(secret: &Secret<String>, label: &str) -> Secret<String> {
    let key = HmacKey::from_bytes(Secret::new(secret.expose().clone().into_bytes()));
    Secret::new(format!("cat_{}", key.sign_b64url(label.as_bytes())))
}

/// Makes the tokens of the deployment if it names one, and revokes them if it does not.
///
/// # Errors
/// When the store does not answer.
pub async fn run(api: &Api) -> Result<(), StoreError> {
    for seed in &SEEDS {
        let verifier = api.config.admin_token.as_ref().map(|secret| {
            let token = seed.label.map(|label| derived(secret, label));
            let token = token.as_ref().unwrap_or(secret);
            api.tokens.verifier(token.expose())
        });
        let mut tries = 1;
        while let Err(error) = settle(api, seed, verifier.as_deref()).await {
            let raced = error.is_conflict_on(VERIFIER_INDEX) || error.is_transient();
            if !raced || tries == TRIES {
                return Err(error);
            }
            tries += 1;
        }
    }
    Ok(())
}

/// Leaves one live token of this seed, the one with this verifier; none without one.
async fn settle(api: &Api, seed: &Seed, verifier: Option<&str>) -> Result<(), StoreError> {
    let mut tx = api.store.begin("seed an admin token").await?;
    let keep = match verifier {
        Some(verifier) => Some(plant(api, &mut tx, seed, verifier).await?),
        None => None,
    };
    let now = api.clock.now();
    let revoked = tx
        .admin_tokens()
        .revoke_others(seed.created_by, keep.as_deref(), now)
        .await?;
    tx.commit().await?;
    if revoked > 0 {
        tracing::info!(
            token = seed.name,
            revoked,
            "tokens that the deployment does not name were revoked"
        );
    }
    Ok(())
}

/// The id of the token of this seed, which is made unless it is there.
async fn plant(api: &Api, tx: &mut Tx, seed: &Seed, verifier: &str) -> Result<String, StoreError> {
    let now = api.clock.now();
    let mut tokens = tx.admin_tokens();
    match tokens.find(verifier).await? {
        Some(token) if token.created_by == seed.created_by => Ok(token.id),
        other => {
            // The same value under another name: the deployment's word counts.
            if let Some(token) = other {
                tokens.revoke(&token.id, now).await?;
            }
            let token = AdminToken {
                id: api.ids.uuid(),
                name: seed.name.to_owned(),
                scope: "global".to_owned(),
                capability: seed.capability.to_owned(),
                zone_id: None,
                created_by: seed.created_by.to_owned(),
                created_at: now,
                last_used_at: None,
                revoked_at: None,
            };
            tokens.insert(&token, verifier).await?;
            Ok(token.id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_tokens_are_those_of_the_console() {
        let of = |secret: &str, kind: &str| {
            let secret = Secret::new(secret.to_owned());
            derived(&secret, &format!("caracal:console:{kind}:v1"))
                .expose()
                .clone()
        };
        let docs = "admin-token-for-docs";
        assert_eq!(
            of(docs, "read-only"),
            "cat_L3ZWQsFdzw1nuM49v1D0kypKoUsN3nyQaB2z33Luc64"
        );
        assert_eq!(
            of(docs, "write"),
            "cat_Nf9-tnSI40hRYvyrjxvy2Di6ocUCAN_tkkLwFs1GoSY"
        );
        assert_eq!(
            of(docs, "approve"),
            "cat_owOdKu4tc-zI53WFlx9fWnskg1BV2RQf7UWpQd5fM18"
        );
        let example = "example-admin-token";
        assert_eq!(
            of(example, "approve"),
            "cat_tmcHSO13fYYphoykCTAlf3Wdx3DH7p6vsD9RVg5Hu4M"
        );
    }
}
