//! The declaration of one setting, and what is told of it.

use super::value::Unit;

/// The declaration of one setting.
#[derive(Clone, Copy, Debug)]
pub struct Var {
    /// Its name in the environment.
    pub name: &'static str,
    /// Another name of it, and what a bare number of a duration counts there.
    pub also: Option<(&'static str, Unit)>,
    /// Used when unset.
    pub default: Option<&'static str>,
    /// Least and greatest value.
    pub bounds: Option<(&'static str, &'static str)>,
    /// The only values, when there are few.
    pub choices: &'static [&'static str],
    /// What a bare number of a duration counts.
    pub unit: Unit,
    /// Never shown, and `NAME_FILE` is honoured.
    pub secret: bool,
    /// A secret whose `NAME_FILE` means something of its own: never shown, and not read from there.
    pub hidden: bool,
    /// When it is required, if not always.
    pub needed: Option<&'static str>,
    /// The services that it is for; empty means all that read the table in which it stands.
    pub services: &'static [&'static str],
    /// A right value, where that of its type teaches nothing.
    pub example: Option<&'static str>,
}

/// A setting of that name.
pub const fn var(name: &'static str) -> Var {
    Var {
        name,
        also: None,
        default: None,
        bounds: None,
        choices: &[],
        unit: Unit::Suffixed,
        secret: false,
        hidden: false,
        needed: None,
        services: &[],
        example: None,
    }
}

impl Var {
    /// Its default.
    #[must_use]
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// Its bounds, both included.
    #[must_use]
    pub const fn within(mut self, least: &'static str, greatest: &'static str) -> Self {
        self.bounds = Some((least, greatest));
        self
    }

    /// Its only values.
    #[must_use]
    pub const fn one_of(mut self, choices: &'static [&'static str]) -> Self {
        self.choices = choices;
        self
    }

    /// A second name of the same unit, as another family of services calls it.
    #[must_use]
    pub const fn also(mut self, name: &'static str) -> Self {
        self.also = Some((name, self.unit));
        self
    }

    /// A second name that takes a plain number of milliseconds.
    #[must_use]
    pub const fn also_millis(mut self, name: &'static str) -> Self {
        self.also = Some((name, Unit::Millis));
        self
    }

    /// A duration written as a number of milliseconds.
    #[must_use]
    pub const fn millis(mut self) -> Self {
        self.unit = Unit::Millis;
        self
    }

    /// A duration written as a number of seconds.
    #[must_use]
    pub const fn seconds(mut self) -> Self {
        self.unit = Unit::Seconds;
        self
    }

    /// A secret.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// A secret that has a file of its own meaning.
    #[must_use]
    pub const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// When it is required.
    #[must_use]
    pub const fn needed(mut self, when: &'static str) -> Self {
        self.needed = Some(when);
        self
    }

    /// The services that it is for.
    #[must_use]
    pub const fn only_for(mut self, services: &'static [&'static str]) -> Self {
        self.services = services;
        self
    }

    /// A right value.
    #[must_use]
    pub const fn such_as(mut self, example: &'static str) -> Self {
        self.example = Some(example);
        self
    }

    /// Whether its value may be shown.
    #[must_use]
    pub const fn is_shown(&self) -> bool {
        !self.secret && !self.hidden
    }

    /// A right value: its own example, its default, or that of its type.
    pub(super) fn right(&self, of_type: &'static str) -> &'static str {
        let default = self.default.filter(|text| !text.trim().is_empty());
        let first = self.choices.first().copied();
        self.example.or(default).or(first).unwrap_or(of_type)
    }
}

/// What the reference page, `config explain` and `doctor` say of a setting.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its declaration.
    pub var: Var,
    /// Its type, in a word or two.
    pub kind: &'static str,
    /// Whether a start without it fails, whatever else is set.
    pub required: bool,
    /// The only values, when there are few.
    pub choices: &'static [&'static str],
    /// A right value.
    pub example: &'static str,
    /// Its help.
    pub help: &'static str,
}

/// The other name of a setting.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    /// The name.
    pub name: &'static str,
    /// Its type there.
    pub kind: &'static str,
    /// What one of it is there.
    pub unit: Option<&'static str>,
    /// Whether values are written as under the first name.
    pub same_unit: bool,
}

impl Described {
    /// Its other name, if it has one.
    #[must_use]
    pub fn other(&self) -> Option<Other> {
        let (name, unit) = self.var.also?;
        let same_unit = unit == self.var.unit;
        let kind = if same_unit { self.kind } else { "integer" };
        Some(Other {
            name,
            kind,
            unit: unit_of(name, kind),
            same_unit,
        })
    }

    /// What one of it is, as the name says: `ms`, `s`, `bytes`, `days`, `hours`, `per minute`. None
    /// for what is no number, and for numbers of things.
    #[must_use]
    pub fn unit(&self) -> Option<&'static str> {
        unit_of(self.var.name, self.kind)
    }
}

fn unit_of(name: &str, kind: &str) -> Option<&'static str> {
    const SUFFIXES: [(&str, &str); 9] = [
        ("_PER_MIN", "per minute"),
        ("_MS", "ms"),
        ("_SECONDS", "s"),
        ("_SECS", "s"),
        ("_SECS_MAX", "s"),
        ("_SEC", "s"),
        ("_BYTES", "bytes"),
        ("_DAYS", "days"),
        ("_HOURS", "hours"),
    ];
    let found = SUFFIXES.iter().find(|(end, _)| name.ends_with(end));
    found.map(|(_, unit)| *unit).filter(|_| kind == "integer")
}
