//! The chains of what administrators did, for `caracal audit verify`.

use anyhow::Context as _;
use caracal_audit::{VerifyError, verify_admin_zone};
use caracal_crypto::mac::HmacKey;
use caracal_ledger::Head;
use caracal_model::ZoneId;
use caracal_store::Store;

/// Verifies every admin chain, or that of one zone, and tells each by `holds` or `broken`; answers
/// whether all hold.
pub async fn verify(
    store: &Store,
    key: Option<&HmacKey>,
    only: Option<&str>,
    holds: impl Fn(&str, &Head),
    broken: impl Fn(&str),
) -> anyhow::Result<bool> {
    let mut all = true;
    let zones = store.admin_audit().zones().await;
    for zone in zones.context("the admin audit cannot be read")? {
        if only.is_some_and(|only| zone.as_str() != only) {
            continue;
        }
        match verify_admin_zone(store, &zone, key).await {
            Ok(head) => holds(&name(&zone), &head),
            Err(VerifyError::Found(finding)) => {
                broken(&format!("admin audit, {finding}"));
                all = false;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn name(zone: &ZoneId) -> String {
    match zone.as_str() {
        "" => "admin audit of the deployment".to_owned(),
        zone => format!("admin audit of zone {zone}"),
    }
}
