//! Control keys: applications whose traits open the Control API, and nothing else (spec: sts §8,
//! admin-api §7.2).
//!
//! No policy is asked for them: what they may do stands in traits that only a global token can
//! give. So a trait that cannot be read closes the key; the reference takes an unreadable deadline
//! for none.

use std::collections::BTreeSet;

use caracal_model::{Scopes, Timestamp};

/// What the scopes of the Control API start with.
pub const CONTROL_PREFIX: &str = "control:";

/// What the traits of an application say about the Control API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlKey {
    scopes: BTreeSet<String>,
    expires_at: Option<Timestamp>,
    max_ttl_seconds: Option<u32>,
}

impl ControlKey {
    /// The key that these traits make; `None` when they make none, or say something about it that
    /// cannot be read.
    pub fn of(traits: &[String]) -> Option<Self> {
        let mut invokes = false;
        let mut key = Self {
            scopes: BTreeSet::new(),
            expires_at: None,
            max_ttl_seconds: None,
        };
        for named in traits {
            let Some(rest) = named.strip_prefix(CONTROL_PREFIX) else {
                continue;
            };
            match rest.split_once(':') {
                None if rest == "invoke" => invokes = true,
                Some(("scope", scope)) => {
                    key.scopes.insert(scope.to_owned());
                }
                Some(("expires", at)) => {
                    let at = Timestamp::parse_rfc3339(at).ok()?;
                    key.expires_at = Some(key.expires_at.map_or(at, |held| held.min(at)));
                }
                Some(("max-ttl", seconds)) => {
                    let most: u32 = seconds.parse().ok().filter(|most| *most > 0)?;
                    let held = key.max_ttl_seconds.unwrap_or(most);
                    key.max_ttl_seconds = Some(held.min(most));
                }
                _ => return None,
            }
        }
        invokes.then_some(key)
    }

    /// Whether the key is in force and opens all of these scopes, of which there is at least one.
    pub fn opens(&self, scopes: &Scopes, now: Timestamp) -> bool {
        let listed = |scope: &str| scope.starts_with(CONTROL_PREFIX) && self.scopes.contains(scope);
        self.is_live(now) && !scopes.is_empty() && scopes.iter().all(listed)
    }

    /// Whether its deadline, if it has one, is still to come.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| at > now)
    }

    /// When it ends.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// The longest life of a token, in seconds.
    pub fn max_ttl_seconds(&self) -> Option<u32> {
        self.max_ttl_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(traits: &[&str]) -> Option<ControlKey> {
        let traits: Vec<String> = traits.iter().map(|name| (*name).to_owned()).collect();
        ControlKey::of(&traits)
    }

    #[test]
    fn only_the_trait_that_says_so_makes_a_key_and_unreadable_traits_close_it() {
        let scope = "control:scope:control:app:read";
        assert!(key(&[]).is_none());
        assert!(key(&["reader", scope]).is_none());
        assert!(key(&["control:invoke"]).is_some());
        for odd in [
            "control:expires:tomorrow",
            "control:expires:2026-01-01",
            "control:expires:Jan 1, 2026",
            "control:max-ttl:",
            "control:max-ttl:0",
            "control:max-ttl:-60",
            "control:max-ttl:60s",
            "control:other",
            "control:invoke:twice",
        ] {
            assert!(key(&["control:invoke", scope, odd]).is_none(), "{odd}");
        }
    }

    #[test]
    fn a_key_opens_what_it_lists_until_its_deadline() {
        let key = key(&[
            "control:invoke",
            "control:scope:control:app:read",
            "control:scope:control:app:write",
            "control:scope:desk:read",
            "control:expires:2026-01-02T03:04:05+01:00",
            "control:expires:2027-01-01T00:00:00Z",
            "control:max-ttl:300",
            "control:max-ttl:600",
        ])
        .unwrap();
        let end = Timestamp::parse_rfc3339("2026-01-02T02:04:05Z").unwrap();
        let before = end.minus(std::time::Duration::from_micros(1));
        let opens = |scopes: &str, at| key.opens(&Scopes::parse(scopes), at);
        assert!(opens("control:app:read", before));
        assert!(opens("control:app:write control:app:read", before));
        assert!(!opens("control:app:read", end), "not a moment longer");
        for scopes in [
            "",
            "control:app:delete",
            "control:app:read control:policy:read",
            "desk:read",
            "control:app",
        ] {
            assert!(!opens(scopes, before), "{scopes}");
        }
        assert_eq!(key.expires_at(), Some(end), "the earliest of several");
        assert_eq!(key.max_ttl_seconds(), Some(300));
    }
}
