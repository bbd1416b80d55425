//! The six data roots of a zone, read once into the shape in which they are asked. What is malformed
//! is kept as such, because it denies with a reason of its own.

use std::collections::{BTreeSet, HashMap, HashSet};

use regorus::Value;

/// The data of one zone.
#[derive(Debug, Default)]
pub(crate) struct ZonePolicy {
    pub restricted: bool,
    /// Name in grants to application id.
    pub app_ids: HashMap<Box<str>, Box<str>>,
    /// Resource identifier to grant.
    pub grants: HashMap<Box<str>, Grant>,
    /// `None` when malformed.
    pub confinement: Option<Vec<Confinement>>,
    /// Scope to its tiers; `None` when malformed.
    pub risk: Option<HashMap<Box<str>, BTreeSet<Box<str>>>>,
    /// Declarations in the order of the contract; `None` when malformed.
    pub tiers: Option<Vec<Tier>>,
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
    /// Reads the values of the roots; what is not there is `None`.
    pub(crate) fn read(mut root: impl FnMut(&str) -> Option<Value>) -> Self {
        Self {
            restricted: root("restrict").is_some_and(|value| is_filled(&value)),
            app_ids: root("app_ids")
                .map(|value| app_ids(&value))
                .unwrap_or_default(),
            grants: root("grants")
                .map(|value| grants(&value))
                .unwrap_or_default(),
            confinement: root("confinement").map_or_else(|| Some(Vec::new()), |v| confinement(&v)),
            risk: root("risk").map_or_else(|| Some(HashMap::new()), |v| risk(&v)),
            tiers: root("approval_tiers").map_or_else(|| Some(Vec::new()), |v| tiers(&v)),
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
    members(value)
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// The items of an array or a set.
fn items(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::Array(items) => Some(items.iter().collect()),
        Value::Set(items) => Some(items.iter().collect()),
        _ => None,
    }
}

fn app_ids(value: &Value) -> HashMap<Box<str>, Box<str>> {
    members(value)
        .filter_map(|(name, id)| Some((name.into(), text(id)?)))
        .collect()
}

fn grants(value: &Value) -> HashMap<Box<str>, Grant> {
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

fn risk(value: &Value) -> Option<HashMap<Box<str>, BTreeSet<Box<str>>>> {
    let Value::Array(entries) = value else {
        return None;
    };
    let mut tiers: HashMap<Box<str>, BTreeSet<Box<str>>> = HashMap::new();
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
