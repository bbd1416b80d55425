//! The constraints of a Delegation (spec: coordinator §7.1, sts §9.5): a closed list of keys, each
//! with a range. What is not on the list is refused, never ignored: an unknown constraint that was
//! dropped would be authority that nobody meant to give.

use std::collections::BTreeSet;

use caracal_model::Timestamp;
use serde_json::{Map, Value};

/// Hops that remain when none are named.
pub const DEFAULT_HOPS: u32 = 1;
/// Most hops that may be named.
pub const MAX_HOPS: u32 = 10;
const MAX_RESOURCES: usize = 64;
const MAX_BUDGET: u32 = 64;
const MAX_TTL_SECONDS: u32 = 86_400;
const MAX_REASON: usize = 256;

/// The wire code of the first constraint that is wrong, such as `invalid_max_hops`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// What bounds a Delegation besides its scopes, its resource and its expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Resource identifiers; `None` leaves the set to `resource_id`.
    pub resources: Option<BTreeSet<String>>,
    /// Explicit further Delegations that may follow, this one included; `None` is [`DEFAULT_HOPS`].
    pub max_hops: Option<u32>,
    /// An upper bound of how many scopes a child may carry.
    pub budget: Option<u32>,
    /// Longest lifetime of each mandate that is minted under it, in seconds.
    pub ttl_seconds: Option<u32>,
    /// When it ends, whatever its own expiry says.
    pub expires_at: Option<Timestamp>,
    /// Set on Delegations without a resource.
    pub policy_approved: Option<bool>,
    /// Why a Delegation has no resource.
    pub broad_reason: Option<String>,
}

impl Constraints {
    /// Reads constraints strictly.
    ///
    /// # Errors
    /// The code of the first wrong key, `invalid_delegation_constraint` for an unknown key or for
    /// what is no object.
    pub fn parse(value: &Value) -> Result<Self, ConstraintError> {
        let object = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(object) => object,
            _ => return Err(wrong("delegation_constraint")),
        };
        let mut parsed = Self::default();
        let mut depth = None;
        for (key, value) in object {
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                "resources" => parsed.resources = Some(resources(value)?),
                "max_depth" => depth = Some(bounded(value, 1, MAX_HOPS, "max_depth")?),
                "max_hops" => parsed.max_hops = Some(bounded(value, 1, MAX_HOPS, "max_hops")?),
                "budget" => parsed.budget = Some(bounded(value, 1, MAX_BUDGET, "budget")?),
                "ttl_seconds" => {
                    parsed.ttl_seconds = Some(bounded(value, 1, MAX_TTL_SECONDS, "ttl_seconds")?);
                }
                "policy_approved" => {
                    let approved = value.as_bool().ok_or_else(|| wrong("policy_approved"))?;
                    parsed.policy_approved = Some(approved);
                }
                "expires_at" => parsed.expires_at = Some(time(value)?),
                "broad_reason" => parsed.broad_reason = Some(reason(value)?),
                _ => return Err(wrong("delegation_constraint")),
            }
        }
        match (parsed.max_hops, depth) {
            (Some(hops), Some(depth)) if hops != depth => Err(wrong("max_hops")),
            (None, depth) => Ok(Self { max_hops: depth, ..parsed }),
            _ => Ok(parsed),
        }
    }

    /// Hops that remain at this Delegation, its own included.
    pub fn hops(&self) -> u32 {
        self.max_hops.unwrap_or(DEFAULT_HOPS)
    }

    /// As stored, as policy sees it and as answers carry it.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("resources", self.resources.as_ref().map(|all| all.iter().cloned().collect()));
        put("max_hops", self.max_hops.map(Value::from));
        put("budget", self.budget.map(Value::from));
        put("ttl_seconds", self.ttl_seconds.map(Value::from));
        put("expires_at", self.expires_at.map(|at| at.iso_millis().into()));
        put("policy_approved", self.policy_approved.map(Value::from));
        put("broad_reason", self.broad_reason.clone().map(Value::from));
        Value::Object(object)
    }
}

fn wrong(key: &str) -> ConstraintError {
    ConstraintError(format!("invalid_{key}"))
}

fn bounded(value: &Value, least: u32, most: u32, key: &str) -> Result<u32, ConstraintError> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (least..=most).contains(number)).ok_or_else(|| wrong(key))
}

fn resources(value: &Value) -> Result<BTreeSet<String>, ConstraintError> {
    let all = value.as_array().ok_or_else(|| wrong("resources"))?;
    if all.len() > MAX_RESOURCES {
        return Err(wrong("resources"));
    }
    all.iter()
        .map(|one| match one.as_str() {
            Some(text) if !text.trim().is_empty() => Ok(text.to_owned()),
            _ => Err(wrong("resources")),
        })
        .collect()
}

fn time(value: &Value) -> Result<Timestamp, ConstraintError> {
    let text = value.as_str().ok_or_else(|| wrong("expires_at"))?;
    Timestamp::parse_utc(text).map_err(|_| wrong("expires_at"))
}

fn reason(value: &Value) -> Result<String, ConstraintError> {
    let text = value.as_str().map(str::trim).unwrap_or_default();
    let fits = (1..=MAX_REASON).contains(&text.chars().count());
    if fits { Ok(text.to_owned()) } else { Err(wrong("broad_reason")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn code(value: &Value) -> String {
        Constraints::parse(value).unwrap_err().to_string()
    }

    #[test]
    fn every_key_has_a_range_and_a_code() {
        assert_eq!(code(&json!({"max_hops": 0})), "invalid_max_hops");
        assert_eq!(code(&json!({"max_hops": 11})), "invalid_max_hops");
        assert_eq!(code(&json!({"max_hops": "2"})), "invalid_max_hops");
        assert_eq!(code(&json!({"max_hops": 2, "max_depth": 3})), "invalid_max_hops");
        assert_eq!(code(&json!({"budget": 65})), "invalid_budget");
        assert_eq!(code(&json!({"ttl_seconds": 86_401})), "invalid_ttl_seconds");
        assert_eq!(code(&json!({"expires_at": "soon"})), "invalid_expires_at");
        assert_eq!(code(&json!({"resources": [""]})), "invalid_resources");
        assert_eq!(code(&json!({"broad_reason": " "})), "invalid_broad_reason");
        assert_eq!(code(&json!({"policy_approved": 1})), "invalid_policy_approved");
        assert_eq!(code(&json!({"resource": "x"})), "invalid_delegation_constraint");
        assert_eq!(code(&json!([])), "invalid_delegation_constraint");
    }

    #[test]
    fn what_was_read_is_written_back() {
        let value = json!({"resources": ["a", "b"], "max_hops": 3, "ttl_seconds": 60});
        assert_eq!(Constraints::parse(&value).unwrap().to_json(), value);
        let depth = Constraints::parse(&json!({"max_depth": 4})).unwrap();
        assert_eq!(depth.hops(), 4);
        assert_eq!(Constraints::default().hops(), DEFAULT_HOPS);
    }
}
