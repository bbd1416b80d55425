//! The six data roots of a zone, read once into the shape in which they are asked. What is malformed
//! is kept as such, because it denies with a reason of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use caracal_model::policy::PolicyInput;
use regorus::Value;

/// Scope to its tiers.
pub(crate) type Risk = HashMap<Box<str>, BTreeSet<Box<str>>>;

/// The data of one zone. A copy shares its parts.
#[derive(Clone, Debug)]
pub(crate) struct ZonePolicy {
    pub restricted: bool,
    /// Name in grants to application id.
    pub app_ids: Arc<HashMap<Box<str>, Box<str>>>,
    /// Resource identifier to grant.
    pub grants: Arc<HashMap<Box<str>, Grant>>,
    /// `None` when malformed.
    pub confinement: Option<Arc<Vec<Confinement>>>,
    /// Scope to its tiers; `None` when malformed.
    pub risk: Option<Arc<Risk>>,
    /// Declarations in the order of the contract; `None` when malformed.
    pub tiers: Option<Arc<Vec<Tier>>>,
}

impl Default for ZonePolicy {
    /// No root is defined.
    fn default() -> Self {
        Self {
            restricted: false,
            app_ids: Arc::default(),
            grants: Arc::default(),
            confinement: Some(Arc::default()),
            risk: Some(Arc::default()),
            tiers: Some(Arc::default()),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Grant {
    pub application: Option<Box<str>>,
    /// Label to scopes.
    pub roles: HashMap<Box<str>, HashSet<Box<str>>>,
}

#[derive(Debug)]
pub(crate) struct Confinement {
    pub label_prefix: Box<str>,
    pub scopes: HashSet<Box<str>>,
}

#[derive(Debug)]
pub(crate) struct Tier {
    pub name: Box<str>,
    /// As authored.
    pub declaration: serde_json::Value,
}

impl ZonePolicy {
    /// Takes the value of a defined root. For one question only, large roots are read as far as it
    /// asks: the grant of its resource, the names of its caller. What is left out cannot be part of
    /// the answer, and the time taken does not grow with the zone.
    pub(crate) fn set(&mut self, root: &str, value: &Value, question: Option<&PolicyInput>) {
        match root {
            "restrict" => self.restricted = is_filled(value),
            "app_ids" => {
                let caller = question.map(|question| question.principal.id.as_str());
                self.app_ids = Arc::new(app_ids(value, caller));
            }
            "grants" => {
                let resource = question.map(|question| question.resource.identifier.as_str());
                self.grants = Arc::new(grants(value, resource));
            }
            "confinement" => self.confinement = confinement(value).map(Arc::new),
            "risk" => self.risk = risk(value).map(Arc::new),
            "approval_tiers" => self.tiers = tiers(value).map(Arc::new),
            _ => {}
        }
    }
}

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Set(items) => !items.is_empty(),
        _ => false,
    }
}

fn text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(text) => Some((**text).into()),
        _ => None,
    }
}

/// The members of an object whose names are text.
fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let all = match value {
        Value::Object(members) => Some(members.iter()),
        _ => None,
    };
    all.into_iter()
        .flatten()
        .filter_map(|(name, value)| match name {
            Value::String(name) => Some((&**name, value)),
            _ => None,
        })
}

fn member<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    match value {
        Value::Object(members) => members.get(&Value::from(name)),
        _ => None,
    }
}

/// The items of an array or a set.
fn items(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::Array(items) => Some(items.iter().collect()),
        Value::Set(items) => Some(items.iter().collect()),
        _ => None,
    }
}

fn app_ids(value: &Value, only: Option<&str>) -> HashMap<Box<str>, Box<str>> {
    let named = |id: &Value| match (id, only) {
        (Value::String(id), Some(only)) => **id == *only,
        _ => true,
    };
    members(value)
        .filter(|(_, id)| named(id))
        .filter_map(|(name, id)| Some((name.into(), text(id)?)))
        .collect()
}

fn grants(value: &Value, only: Option<&str>) -> HashMap<Box<str>, Grant> {
    if let Some(resource) = only {
        let found = member(value, resource);
        return found
            .map(|found| (resource.into(), grant(found)))
            .into_iter()
            .collect();
    }
    members(value)
        .map(|(resource, grant)| (resource.into(), self::grant(grant)))
        .collect()
}

/// Anything that is not an object grants nothing.
fn grant(value: &Value) -> Grant {
    let roles = member(value, "roles").map(|roles| {
        let covers = |(label, scopes)| Some((Box::from(label), scope_set(scopes)?));
        members(roles).filter_map(covers).collect()
    });
    Grant {
        application: member(value, "application").and_then(text),
        roles: roles.unwrap_or_default(),
    }
}

/// The scopes of a role. An item that is not text can cover no scope, and so is passed over.
fn scope_set(value: &Value) -> Option<HashSet<Box<str>>> {
    Some(items(value)?.into_iter().filter_map(text).collect())
}

fn confinement(value: &Value) -> Option<Vec<Confinement>> {
    let rules = match value {
        Value::Object(members) => members.iter().map(|(_, rule)| rule).collect(),
        _ => items(value)?,
    };
    let rule = |rule: &Value| {
        let scopes = items(member(rule, "scopes")?)?;
        Some(Confinement {
            label_prefix: text(member(rule, "label_prefix")?)?,
            scopes: scopes.into_iter().map(text).collect::<Option<_>>()?,
        })
    };
    rules.into_iter().map(rule).collect()
}

fn named(value: &Value, name: &str) -> Option<Box<str>> {
    member(value, name)
        .and_then(text)
        .filter(|text| !text.is_empty())
}

fn risk(value: &Value) -> Option<Risk> {
    let Value::Array(entries) = value else {
        return None;
    };
    let mut tiers = Risk::new();
    for entry in entries.iter() {
        tiers
            .entry(named(entry, "scope")?)
            .or_default()
            .insert(named(entry, "tier")?);
    }
    Some(tiers)
}

fn tiers(value: &Value) -> Option<Vec<Tier>> {
    let Value::Array(declarations) = value else {
        return None;
    };
    let distinct: BTreeSet<&Value> = declarations.iter().collect();
    distinct.into_iter().map(tier).collect()
}

fn tier(value: &Value) -> Option<Tier> {
    let is_one_of = |name: &str, words: [&str; 3]| match member(value, name) {
        None => true,
        Some(Value::String(word)) => words.contains(&&**word),
        Some(_) => false,
    };
    // Compared as values: what the engine calls a positive number includes zero.
    let lasts = match member(value, "ttl_seconds") {
        None => true,
        Some(seconds @ Value::Number(number)) => {
            *seconds > Value::from(0u64) && number.is_integer()
        }
        Some(_) => false,
    };
    let well_formed = is_one_of("approver", ["operator", "subject", "any"])
        && is_one_of("privacy", ["identified", "pseudonymous", "anonymous"])
        && lasts;
    if !well_formed {
        return None;
    }
    let declaration = serde_json::from_str(&value.to_json_str().ok()?).ok()?;
    Some(Tier {
        name: named(value, "tier")?,
        declaration,
    })
}
