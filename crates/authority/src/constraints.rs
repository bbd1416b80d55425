//! The constraints of a Delegation (spec: coordinator §7.1). Strict both ways: a member that we do
//! not know might be meant to narrow, so it is refused rather than ignored.

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_model::Timestamp;
use serde_json::{Map, Value};

/// Most resources that one Delegation names.
const MAX_RESOURCES: usize = 64;
/// Most hops, and so the most depth.
const MAX_HOPS: u32 = 10;
/// Largest budget.
const MAX_BUDGET: u32 = 64;
/// Longest lifetime, in seconds.
const MAX_TTL_SECONDS: u32 = 86_400;
/// Longest reason, in characters.
const MAX_REASON: usize = 256;

/// The members in the order in which they are checked: the first that fails names the error.
const MEMBERS: [&str; 8] = [
    "resources",
    "max_depth",
    "max_hops",
    "budget",
    "ttl_seconds",
    "policy_approved",
    "expires_at",
    "broad_reason",
];

/// Why constraints were refused, as the wire says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{code}")]
pub struct ConstraintError {
    /// `invalid_<member>` or `invalid_delegation_constraint`.
    pub code: &'static str,
}

const fn fault(code: &'static str) -> ConstraintError {
    ConstraintError { code }
}

/// How a Delegation narrows beyond its scopes. What is `None` does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Identifiers of the only resources; never an empty set.
    pub resources: Option<BTreeSet<Arc<str>>>,
    /// Delegations that may follow from here on, this one included (`max_depth` is an alias).
    pub max_hops: Option<u32>,
    /// Bounds the budget of the next Delegation; counts nothing.
    pub budget: Option<u32>,
    /// Longest lifetime of a mandate minted under it.
    pub ttl_seconds: Option<u32>,
    /// Latest expiry of a mandate minted under it; whole milliseconds, as on the wire.
    pub expires_at: Option<Timestamp>,
    /// Set on Delegations without a resource.
    pub policy_approved: Option<bool>,
    /// Why a Delegation may go without a resource.
    pub broad_reason: Option<Arc<str>>,
}

impl Constraints {
    /// Reads one object.
    ///
    /// # Errors
    /// [`ConstraintError`] with the code of the first member that is wrong.
    pub fn parse(value: &Value) -> Result<Self, ConstraintError> {
        let Value::Object(members) = value else {
            return Err(fault("invalid_delegation_constraint"));
        };
        let resources = resources(members)?;
        let max_depth = bounded(members, "max_depth", MAX_HOPS, "invalid_max_depth")?;
        let max_hops = bounded(members, "max_hops", MAX_HOPS, "invalid_max_hops")?;
        let constraints = Self {
            resources,
            max_hops: max_hops.or(max_depth),
            budget: bounded(members, "budget", MAX_BUDGET, "invalid_budget")?,
            ttl_seconds: bounded(
                members,
                "ttl_seconds",
                MAX_TTL_SECONDS,
                "invalid_ttl_seconds",
            )?,
            policy_approved: flag(members)?,
            expires_at: time(members)?,
            broad_reason: reason(members)?,
        };
        if members.keys().any(|name| !MEMBERS.contains(&name.as_str())) {
            return Err(fault("invalid_delegation_constraint"));
        }
        if max_depth.is_some() && max_hops.is_some() && max_depth != max_hops {
            return Err(fault("invalid_max_hops"));
        }
        Ok(constraints)
    }

    /// Reads what a request says in up to three places: `constraints` wins over
    /// `constraints_json`, and the body's `ttl_seconds` fills in where neither names one.
    ///
    /// # Errors
    /// As [`Constraints::parse`], of the merged object.
    pub fn from_request(
        constraints_json: Option<&Value>,
        constraints: Option<&Value>,
        ttl_seconds: Option<u32>,
    ) -> Result<Self, ConstraintError> {
        let mut merged = Map::new();
        for part in [constraints_json, constraints].into_iter().flatten() {
            let Value::Object(members) = part else {
                return Err(fault("invalid_delegation_constraint"));
            };
            merged.extend(members.clone());
        }
        if let Some(ttl) = ttl_seconds {
            merged.entry("ttl_seconds").or_insert_with(|| ttl.into());
        }
        Self::parse(&Value::Object(merged))
    }

    /// The normalised object, as stored and as policy sees it.
    pub fn to_json(&self) -> Value {
        let Self {
            resources,
            max_hops,
            budget,
            ttl_seconds,
            expires_at,
            policy_approved,
            broad_reason,
        } = self;
        let members = [
            (
                "resources",
                resources
                    .as_ref()
                    .map(|all| all.iter().map(|r| &**r).collect()),
            ),
            ("max_hops", max_hops.map(Value::from)),
            ("budget", budget.map(Value::from)),
            ("ttl_seconds", ttl_seconds.map(Value::from)),
            ("expires_at", expires_at.map(|at| at.iso_millis().into())),
            ("policy_approved", policy_approved.map(Value::from)),
            ("broad_reason", broad_reason.as_deref().map(Value::from)),
        ];
        let present = members
            .into_iter()
            .filter_map(|(name, value)| Some((name.into(), value?)));
        Value::Object(present.collect())
    }

    /// Whether the resource with this identifier is within them.
    pub fn admit_resource(&self, identifier: &str) -> bool {
        self.resources
            .as_ref()
            .is_none_or(|only| only.contains(identifier))
    }
}

fn resources(members: &Map<String, Value>) -> Result<Option<BTreeSet<Arc<str>>>, ConstraintError> {
    const WRONG: ConstraintError = fault("invalid_resources");
    let Some(value) = members.get("resources") else {
        return Ok(None);
    };
    let listed = value
        .as_array()
        .filter(|l| l.len() <= MAX_RESOURCES)
        .ok_or(WRONG)?;
    let named = listed.iter().map(|item| {
        let identifier = item.as_str().filter(|text| !text.is_empty()).ok_or(WRONG)?;
        Ok(Arc::from(identifier))
    });
    let all = named.collect::<Result<BTreeSet<_>, _>>()?;
    Ok((!all.is_empty()).then_some(all))
}

fn bounded(
    members: &Map<String, Value>,
    name: &str,
    most: u32,
    code: &'static str,
) -> Result<Option<u32>, ConstraintError> {
    let Some(value) = members.get(name) else {
        return Ok(None);
    };
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number
        .filter(|n| (1..=most).contains(n))
        .map(Some)
        .ok_or(fault(code))
}

fn flag(members: &Map<String, Value>) -> Result<Option<bool>, ConstraintError> {
    let Some(value) = members.get("policy_approved") else {
        return Ok(None);
    };
    value
        .as_bool()
        .map(Some)
        .ok_or(fault("invalid_policy_approved"))
}

fn time(members: &Map<String, Value>) -> Result<Option<Timestamp>, ConstraintError> {
    let Some(value) = members.get("expires_at") else {
        return Ok(None);
    };
    let at = value
        .as_str()
        .and_then(|text| Timestamp::parse_utc(text).ok());
    // Rounded down, so that what is written is never later than what was read.
    let whole = |at: Timestamp| Timestamp::from_unix_micros(at.unix_millis().saturating_mul(1_000));
    at.map(whole).map(Some).ok_or(fault("invalid_expires_at"))
}

fn reason(members: &Map<String, Value>) -> Result<Option<Arc<str>>, ConstraintError> {
    let Some(value) = members.get("broad_reason") else {
        return Ok(None);
    };
    let text = value
        .as_str()
        .filter(|t| (1..=MAX_REASON).contains(&t.chars().count()));
    text.map(Arc::from)
        .map(Some)
        .ok_or(fault("invalid_broad_reason"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn code(value: &Value) -> &'static str {
        Constraints::parse(value).map_or_else(|error| error.code, |_| "fine")
    }

    #[test]
    fn the_first_member_that_is_wrong_names_the_error() {
        for (value, expected) in [
            (json!([]), "invalid_delegation_constraint"),
            (json!(null), "invalid_delegation_constraint"),
            (json!({"unknown": 1}), "invalid_delegation_constraint"),
            (json!({"unknown": 1, "budget": 0}), "invalid_budget"),
            (json!({"resources": [""]}), "invalid_resources"),
            (json!({"resources": "resource://a"}), "invalid_resources"),
            (json!({"resources": vec!["r"; 65]}), "invalid_resources"),
            (
                json!({"resources": null, "max_hops": 0}),
                "invalid_resources",
            ),
            (json!({"max_depth": 11}), "invalid_max_depth"),
            (json!({"max_hops": 0}), "invalid_max_hops"),
            (json!({"max_hops": 1.5}), "invalid_max_hops"),
            (json!({"max_hops": -1}), "invalid_max_hops"),
            (json!({"max_hops": 2, "max_depth": 3}), "invalid_max_hops"),
            (json!({"budget": 65}), "invalid_budget"),
            (json!({"ttl_seconds": 86_401}), "invalid_ttl_seconds"),
            (json!({"policy_approved": "yes"}), "invalid_policy_approved"),
            (
                json!({"expires_at": "2026-05-21T14:00:00+02:00"}),
                "invalid_expires_at",
            ),
            (json!({"broad_reason": ""}), "invalid_broad_reason"),
            (json!({"broad_reason": "é".repeat(256)}), "fine"),
            (json!({"max_hops": 3, "max_depth": 3, "budget": 64}), "fine"),
        ] {
            assert_eq!(code(&value), expected, "{value}");
        }
    }

    #[test]
    fn depth_is_another_name_for_hops() {
        let parsed = Constraints::parse(&json!({"max_depth": 4})).unwrap();
        assert_eq!(parsed.to_json(), json!({"max_hops": 4}));
    }

    #[test]
    fn what_is_normalised_stays_as_it_is() {
        let value = json!({
            "resources": ["resource://a", "resource://b"], "max_hops": 2, "budget": 3,
            "ttl_seconds": 300, "policy_approved": true, "broad_reason": "import",
            "expires_at": "2026-05-21T12:00:00.123Z",
        });
        assert_eq!(Constraints::parse(&value).unwrap().to_json(), value);
    }

    #[test]
    fn an_expiry_is_rounded_down() {
        let parsed = Constraints::parse(&json!({"expires_at": "2026-05-21T12:00:00.123999Z"}));
        assert_eq!(
            parsed.unwrap().to_json(),
            json!({"expires_at": "2026-05-21T12:00:00.123Z"})
        );
    }

    #[test]
    fn no_resources_named_is_no_constraint() {
        assert_eq!(
            Constraints::parse(&json!({"resources": []})),
            Ok(Constraints::default())
        );
        assert!(Constraints::default().admit_resource("resource://any"));
    }

    #[test]
    fn a_request_says_it_in_three_places() {
        let read =
            |json, typed, ttl| Constraints::from_request(json, typed, ttl).map(|c| c.to_json());
        let old = json!({"max_hops": 2, "ttl_seconds": 60});
        let new = json!({"max_hops": 3});
        assert_eq!(
            read(Some(&old), Some(&new), Some(300)),
            Ok(json!({"max_hops": 3, "ttl_seconds": 60}))
        );
        assert_eq!(read(None, None, Some(300)), Ok(json!({"ttl_seconds": 300})));
        assert_eq!(read(None, None, None), Ok(json!({})));
        assert!(read(Some(&json!(1)), None, None).is_err());
    }
}
