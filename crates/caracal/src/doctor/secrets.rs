//! Sealed secrets: whether the keys that are set open them, and whether they are where the settings
//! say.

use caracal_crypto::envelope::Keyring;
use caracal_store::Store;
use caracal_store::custody::Custody;
use caracal_store::reseal::Place;

use crate::adapters::secret_backend;
use crate::platform::{Settings, holds_secrets};

use super::Patient;
use super::report::{Checks, Section};

const AT: Section = Section::Preflight;
/// Envelopes that are looked at in each place.
const LOOKED_AT: u32 = 100;
/// Nothing is ever kept there.
const NOWHERE: &str = "zones/none/doctor";

pub async fn examine(patient: &Patient, settings: &Settings, store: &Store, checks: &mut Checks) {
    if let Ok(Some(keyring)) = settings.keyring() {
        sealed(store, &keyring, checks).await;
    }
    if holds_secrets(&patient.roles) {
        backend(patient, settings, store, checks).await;
    }
}

async fn backend(patient: &Patient, settings: &Settings, store: &Store, checks: &mut Checks) {
    let name = "secret backend";
    let (environment, roles) = (&patient.environment, &patient.roles);
    let Ok((backend, _)) = secret_backend(environment, settings, roles, &patient.clock) else {
        // Told with the settings.
        return;
    };
    let custody = Custody::new(store.clone(), backend.clone());
    let Ok(elsewhere) = custody.elsewhere().await else {
        // The schema is not there yet; that was said above.
        return;
    };
    if let Some((kept_in, count)) = elsewhere.first() {
        let set = custody.backend();
        checks
            .fail(
                AT,
                name,
                format!("{count} secrets are kept in {kept_in}, not in {set}"),
            )
            .advise("set CARACAL_SECRET_BACKEND as it was; see \"Moving\" in docs/providers.md");
        return;
    }
    let Some(backend) = backend else { return };
    match backend.get(NOWHERE).await {
        Ok(_) => checks.ok(AT, name, format!("{} answers", backend.name())),
        Err(error) => checks
            .fail(AT, name, error.to_string())
            .advise("no secret can be changed without it, and after ten minutes none be read"),
    }
    match custody.waiting().await {
        Ok(0) | Err(_) => {}
        Ok(count) => checks
            .warn(AT, name, format!("{count} secrets wait to be moved"))
            .advise("the API moves them; its log says why it does not"),
    }
}

/// Whether the keys that are set open what is stored. What the current key sealed says so itself;
/// of the rest, the first of each place are opened.
async fn sealed(store: &Store, keyring: &Keyring, checks: &mut Checks) {
    let name = "stored credentials";
    let current = keyring.prefix();
    let (mut older, mut lost) = (0u32, 0u32);
    for place in Place::ALL {
        let found = store.sealed_otherwise(place, &current, "", LOOKED_AT).await;
        let Ok(found) = found else {
            // The schema is not there yet; that was said above.
            return;
        };
        for one in found {
            // Of an envelope outside, only what names its key is here.
            let opens = match &one.outside {
                Some(_) => keyring.knows(&one.envelope),
                None => keyring.open(one.aad(), &one.envelope).is_ok(),
            };
            *if opens { &mut older } else { &mut lost } += 1;
        }
    }
    match (older, lost) {
        (0, 0) => checks.ok(AT, name, "sealed by the key-encryption key that is set"),
        (_, 0) => checks
            .warn(AT, name, format!("{older} or more are still sealed by the previous key"))
            .advise("keep SECRET_STORE_KEK_PREVIOUS until the API has sealed them again"),
        _ => checks
            .fail(AT, name, format!("{lost} or more open with no key that is set"))
            .advise("set the SECRET_STORE_KEK they were sealed with, or it as SECRET_STORE_KEK_PREVIOUS"),
    }
}
