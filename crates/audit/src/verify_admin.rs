//! Does the admin audit still say what was said? As [`crate::verify_zone`], of what administrators
//! did (spec: audit-and-streams §12).

use caracal_crypto::HmacKey;
use caracal_ledger::Sound;
use caracal_model::LogId;
use caracal_store::Store;

use crate::verify::{Trust, VerifyError, verify_ledger};

/// Verifies the admin log of every zone, and that of what has none; answers with how far each goes.
/// With a key, also who made it.
///
/// # Errors
/// [`VerifyError::Found`] names the first record that cannot be trusted.
pub async fn verify_admin(
    store: &Store,
    key: Option<&HmacKey>,
) -> Result<Vec<(LogId, Sound)>, VerifyError> {
    let mut sounds = Vec::new();
    for zone in store.admin_audit().zones().await? {
        let log = LogId::admin(zone);
        let sound = verify_ledger(store, &log, key, &Trust::default()).await?;
        sounds.push((log, sound));
    }
    Ok(sounds)
}
