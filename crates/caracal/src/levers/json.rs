//! The levers for other tools: the chart's values, dashboards, editors. The shape is told in
//! docs/cli.md; members are added, never changed.

use serde::Serialize;

use super::{Lever, UNUSED};

/// Everything.
#[derive(Debug, Serialize)]
pub struct Export {
    settings: Vec<Setting>,
    unused: Vec<Unused>,
}

/// One name of one service.
#[derive(Debug, Serialize)]
struct Setting {
    service: &'static str,
    group: String,
    name: &'static str,
    /// `integer`, `duration`, `boolean`, `text`, `choice`, `list`, `path`, `URL`, `address` or
    /// `hex key`.
    r#type: &'static str,
    default: Option<String>,
    min: Option<&'static str>,
    max: Option<&'static str>,
    unit: Option<&'static str>,
    choices: &'static [&'static str],
    secret: bool,
    /// Whether `NAME_FILE` is read.
    file: bool,
    required: bool,
    required_when: Option<String>,
    /// The setting that this is another name of.
    alias_of: Option<&'static str>,
    example: Option<&'static str>,
    help: &'static str,
}

/// A name that moves nothing.
#[derive(Debug, Serialize)]
struct Unused {
    service: &'static str,
    name: &'static str,
    why: &'static str,
}

impl Export {
    /// Of these levers.
    pub fn new(levers: &[Lever]) -> Self {
        let unused = UNUSED.iter().map(|one| Unused {
            service: one.services,
            name: one.name,
            why: one.why,
        });
        Self {
            settings: levers.iter().flat_map(Setting::of).collect(),
            unused: unused.collect(),
        }
    }
}

impl Setting {
    /// The setting under its own name, and under its other name if it has one.
    fn of(lever: &Lever) -> Vec<Self> {
        let var = lever.of.var;
        let (min, max) = lever.bounds().unzip();
        let own = Self {
            service: lever.role.name(),
            group: lever.group.title(),
            name: var.name,
            r#type: lever.of.kind,
            default: lever.default.clone(),
            min,
            max,
            unit: lever.of.unit(),
            choices: lever.of.choices,
            secret: !var.is_shown(),
            file: lever.has_file(),
            required: lever.of.required,
            required_when: lever.needed.clone(),
            alias_of: None,
            example: Some(lever.of.example),
            help: lever.of.help,
        };
        let other = lever.of.other().map(|other| Self {
            service: own.service,
            group: own.group.clone(),
            name: other.name,
            r#type: other.kind,
            default: None,
            // Those of the setting are in its own unit.
            min: min.filter(|_| other.same_unit),
            max: max.filter(|_| other.same_unit),
            unit: other.unit,
            choices: own.choices,
            secret: own.secret,
            file: false,
            required: false,
            required_when: None,
            alias_of: Some(own.name),
            example: None,
            help: own.help,
        });
        [Some(own), other].into_iter().flatten().collect()
    }
}
