//! The keys of a zone at one moment: what to publish, what to verify with, what to sign with
//! (spec README, decision 9: published before it signs, and for a day after it stopped).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::{Keyring, PublicJwk, SigningKey, VerifyKey};
use caracal_model::{Kid, Timestamp, ZoneId};
use caracal_store::zone_snapshot::KeyRow;

pub use caracal_store::reseal::ZONE_KEY_AAD;

/// How long a key is published after its successor started to sign.
pub const KEPT_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The keys of a zone.
#[derive(Debug, Default)]
pub struct ZoneKeys {
    /// What to publish, oldest first.
    pub jwks: Vec<PublicJwk>,
    /// What to verify with, by `kid`.
    pub verify: HashMap<String, VerifyKey>,
    /// What to sign with: the newest whose time has come. `None` without a keyring.
    pub signing: Option<Arc<SigningKey>>,
    /// When each published key signs and how long it stays, in the same order.
    pub times: Vec<KeyTimes>,
    /// Keys that were left out because they cannot be used.
    pub invalid: u64,
    /// When one of these lists changes by itself.
    pub next_change: Option<Timestamp>,
}

/// The times of a published key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// Which.
    pub kid: Kid,
    /// From when on it signs.
    pub signs_from: Timestamp,
    /// Until when it is published; open while it has no successor.
    pub published_until: Option<Timestamp>,
}

impl ZoneKeys {
    /// The keys at `now`. `rows` are in the order in which they start to sign.
    pub(super) fn build(
        zone: &ZoneId,
        rows: &[KeyRow],
        keyring: Option<&Keyring>,
        now: Timestamp,
    ) -> Self {
        let ends = rows
            .iter()
            .skip(1)
            .map(|next| Some(next.signs_from.plus(KEPT_AFTER)));
        let published: Vec<(&KeyRow, Option<Timestamp>)> = rows
            .iter()
            .zip(ends.chain([None]))
            .filter(|(_, ends)| ends.is_none_or(|ends| ends > now))
            .collect();
        let mut keys = Self::default();
        for (row, until) in &published {
            let jwk = PublicJwk {
                kid: row.kid.clone(),
                x: row.x.clone(),
                y: row.y.clone(),
            };
            match VerifyKey::from_jwk(&jwk) {
                Ok(key) => {
                    keys.verify.insert(row.kid.to_string(), key);
                    keys.jwks.push(jwk);
                    keys.times.push(KeyTimes {
                        kid: row.kid.clone(),
                        signs_from: row.signs_from,
                        published_until: *until,
                    });
                }
                Err(error) => {
                    keys.invalid += 1;
                    tracing::error!(%zone, kid = %row.kid, %error, "zone key left out");
                }
            }
        }
        let due = published
            .iter()
            .rev()
            .map(|(row, _)| *row)
            .filter(|row| row.signs_from <= now);
        if let Some(keyring) = keyring {
            for row in due {
                keys.signing = open(zone, row, keyring).map(Arc::new);
                if keys.signing.is_some() {
                    break;
                }
                keys.invalid += 1;
            }
        }
        keys.remember_own();
        let starts = published
            .iter()
            .map(|(row, _)| row.signs_from)
            .filter(|at| *at > now);
        keys.next_change = published
            .iter()
            .filter_map(|(_, ends)| *ends)
            .chain(starts)
            .min();
        keys
    }

    /// What is signed here is verified here by memory, if the published half is really its other half.
    fn remember_own(&mut self) {
        let Some(signing) = &self.signing else { return };
        let published = self.jwks.iter().any(|jwk| jwk == signing.public());
        if let Ok(key) = signing.verifier()
            && published
        {
            self.verify.insert(signing.kid().to_string(), key);
        }
    }
}

/// The private key, if its envelope opens: one that does not is skipped, so that a lost key does
/// not silence a zone that has another.
fn open(zone: &ZoneId, row: &KeyRow, keyring: &Keyring) -> Option<SigningKey> {
    let opened = keyring
        .open(ZONE_KEY_AAD, &row.sealed_private)
        .and_then(|der| SigningKey::from_pkcs8(row.kid.clone(), der.expose()));
    opened
        .inspect_err(|error| tracing::error!(%zone, kid = %row.kid, %error, "zone key not usable"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_crypto::{Kek, OsRng};

    const HOUR: Duration = Duration::from_secs(3600);

    fn keyring() -> Keyring {
        let kek = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";
        Keyring::new(Kek::from_hex(kek).unwrap(), None)
    }

    fn row(kid: &str, signs_from: Timestamp) -> KeyRow {
        let key = SigningKey::generate(Kid::trusted(kid)).unwrap();
        let sealed = keyring().seal(&OsRng, ZONE_KEY_AAD, key.pkcs8().expose());
        KeyRow {
            kid: key.kid().clone(),
            x: key.public().x.clone(),
            y: key.public().y.clone(),
            sealed_private: sealed.unwrap(),
            created_at: signs_from,
            signs_from,
        }
    }

    fn at(hours: u32) -> Timestamp {
        Timestamp::from_unix_seconds(1_795_392_000).plus(HOUR * hours)
    }

    fn state(rows: &[KeyRow], now: Timestamp) -> (Vec<&str>, Option<String>, Option<Timestamp>) {
        let keys = ZoneKeys::build(&ZoneId::trusted("z"), rows, Some(&keyring()), now);
        let signs = keys.signing.as_ref().map(|key| key.kid().to_string());
        let kids: Vec<String> = keys.jwks.iter().map(|jwk| jwk.kid.to_string()).collect();
        assert!(kids.iter().all(|kid| keys.verify.contains_key(kid)));
        let published = rows.iter().map(|row| row.kid.as_str());
        let published = published
            .filter(|kid| kids.iter().any(|held| held == kid))
            .collect();
        (published, signs, keys.next_change)
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_for_a_day_after() {
        let rows = [row("k1", at(0)), row("k2", at(10))];
        let k = |kid: &str| Some(kid.to_owned());
        assert_eq!(
            state(&rows, at(1)),
            (vec!["k1", "k2"], k("k1"), Some(at(10)))
        );
        assert_eq!(
            state(&rows, at(10)),
            (vec!["k1", "k2"], k("k2"), Some(at(34)))
        );
        assert_eq!(
            state(&rows, at(33)),
            (vec!["k1", "k2"], k("k2"), Some(at(34)))
        );
        assert_eq!(state(&rows, at(34)), (vec!["k2"], k("k2"), None));
    }

    #[test]
    fn a_key_that_does_not_open_is_skipped_and_without_a_keyring_nothing_signs() {
        let mut broken = row("k2", at(1));
        broken.sealed_private.truncate(20);
        let rows = [row("k1", at(0)), broken];
        assert_eq!(state(&rows, at(2)).1.as_deref(), Some("k1"));
        let keys = ZoneKeys::build(&ZoneId::trusted("z"), &rows, Some(&keyring()), at(2));
        assert_eq!(keys.invalid, 1);
        let keys = ZoneKeys::build(&ZoneId::trusted("z"), &rows, None, at(2));
        assert!(keys.signing.is_none());
        assert_eq!(keys.jwks.len(), 2);
    }
}
