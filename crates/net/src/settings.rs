//! Settings: each declared once, all mistakes told at once.
//!
//! Name, type, default, bounds and help stand together in [`settings!`](crate::settings!); loading,
//! `caracal doctor` and the reference page come from that line. Values arrive through [`Strings`],
//! so a test is a map. An empty value means unset (spec: operations §2). A secret may also come
//! from the file that `NAME_FILE` names, and is never shown.

mod value;
mod var;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

pub use value::{Mode, Unit, Value};
pub use var::{Described, Other, Var, var};

/// Where settings come from.
pub trait Strings {
    /// The value of that name; `None` when unset.
    fn get(&self, name: &str) -> Option<String>;

    /// The contents of a file that a `NAME_FILE` names.
    ///
    /// # Errors
    /// As [`std::fs::read_to_string`].
    fn file(&self, path: &str) -> io::Result<String> {
        std::fs::read_to_string(path)
    }
}

/// The environment of this process.
#[derive(Clone, Copy, Debug)]
pub struct Environment;

impl Strings for Environment {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the environment"
    )]
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

impl Strings for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

/// One over the other: what the first does not set, the second may.
#[derive(Clone, Copy, Debug)]
pub struct Layered<A, B>(pub A, pub B);

impl<A: Strings, B: Strings> Strings for Layered<A, B> {
    fn get(&self, name: &str) -> Option<String> {
        self.0
            .get(name)
            .filter(|text| !text.is_empty())
            .or_else(|| self.1.get(name))
    }
}

/// One mistake in the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Which setting.
    pub name: String,
    /// What is wrong and what would be right. Holds no secret.
    pub why: String,
}

/// All mistakes of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Adds one, for rules that span several settings. Each setting is told of once, with what was
    /// found first: the rules after it looked at what stood in for it.
    pub fn add(&mut self, name: impl Into<String>, why: impl Into<String>) {
        let (name, why) = (name.into(), why.into());
        if !self.tell_of(&name) {
            self.0.push(Mistake { name, why });
        }
    }

    /// Whether there is one in this setting.
    pub fn tell_of(&self, name: &str) -> bool {
        self.0.iter().any(|mistake| mistake.name == name)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{}: {}", mistake.name, mistake.why)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// A type that a setting can have: a [`Value`], or an `Option` of one.
pub trait Setting: Sized {
    /// Reads and checks one setting; adds to `mistakes` and answers `None` when it cannot.
    fn read(var: &Var, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self>;

    /// Stands for a value that is wrong, so that rules over several settings are looked at all the
    /// same; nothing runs on it.
    fn stand_in(var: &Var) -> Option<Self>;
}

impl<T: Value> Setting for T {
    fn read(var: &Var, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        match found(var, from) {
            Ok(None) => {
                let example = var.right(T::EXAMPLE);
                mistakes.add(var.name, format!("is required, for example {example}"));
                None
            }
            Ok(Some(text)) => checked(var, &text, from, mistakes),
            Err(why) => {
                mistakes.add(var.name, why);
                None
            }
        }
    }

    fn stand_in(var: &Var) -> Option<Self> {
        let text = var.default.unwrap_or_else(|| var.right(T::EXAMPLE));
        T::parse(text.trim(), var.unit).ok()
    }
}

impl<T: Value> Setting for Option<T> {
    fn read(var: &Var, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        match found(var, from) {
            Ok(None) => Some(None),
            Ok(Some(text)) => checked(var, &text, from, mistakes).map(Some),
            Err(why) => {
                mistakes.add(var.name, why);
                None
            }
        }
    }

    fn stand_in(_: &Var) -> Option<Self> {
        Some(None)
    }
}

/// The text of a setting, and the name that it came under.
struct Found {
    name: &'static str,
    unit: Unit,
    text: String,
}

/// The text of a setting: the variable, the file that `NAME_FILE` names, its other name, or the
/// default.
fn found(var: &Var, from: &dyn Strings) -> Result<Option<Found>, String> {
    let set = |name: &str| from.get(name).filter(|text| !text.trim().is_empty());
    let at = |name, unit| move |text| Found { name, unit, text };
    if let Some(text) = set(var.name) {
        return Ok(Some(at(var.name, var.unit)(text)));
    }
    let file_var = format!("{}_FILE", var.name);
    if var.secret
        && let Some(path) = from.get(&file_var).filter(|path| !path.is_empty())
    {
        let text = from
            .file(&path)
            .map_err(|error| format!("{file_var} ({path}): {error}"))?;
        let text = text.trim_end();
        if text.is_empty() {
            return Err(format!("{file_var} ({path}) is empty"));
        }
        return Ok(Some(at(var.name, var.unit)(text.to_owned())));
    }
    let other = var
        .also
        .and_then(|(name, unit)| set(name).map(at(name, unit)));
    let default = || var.default.map(str::to_owned).map(at(var.name, var.unit));
    Ok(other.or_else(default))
}

fn checked<T: Value>(
    var: &Var,
    found: &Found,
    from: &dyn Strings,
    mistakes: &mut Mistakes,
) -> Option<T> {
    let shown = if var.is_shown() {
        format!("{} ", found.text.trim())
    } else {
        String::new()
    };
    let value = match valid(var, found) {
        Ok(value) => value,
        Err(why) => {
            let example = if found.unit == var.unit {
                format!(", for example {}", var.right(T::EXAMPLE))
            } else {
                String::new()
            };
            mistakes.add(found.name, format!("{shown}{why}{example}"));
            return None;
        }
    };
    if let Some((other, text)) = contradiction(var, found, &value, from) {
        mistakes.add(
            found.name,
            format!("and {other} are two names of one setting, but say {shown}and {text}"),
        );
        return None;
    }
    Some(value)
}

/// What the text says, if that is allowed.
fn valid<T: Value>(var: &Var, found: &Found) -> Result<T, String> {
    let text = found.text.trim();
    if !var.choices.is_empty() && !var.choices.contains(&text) {
        return Err(format!("is none of {}", var.choices.join(", ")));
    }
    let range = |(least, greatest): (&str, &str)| format!("within {least} and {greatest}");
    let value = T::parse(text, found.unit).map_err(|why| match var.bounds {
        Some(bounds) => format!("{why} ({})", range(bounds)),
        None => why,
    })?;
    let Some((least, greatest)) = var.bounds else {
        return Ok(value);
    };
    let bound = |text| T::parse(text, var.unit).ok();
    let inside = bound(least).is_none_or(|least| !value.is_below(&least))
        && bound(greatest).is_none_or(|greatest| !greatest.is_below(&value));
    if inside {
        Ok(value)
    } else {
        Err(format!("is not {}", range((least, greatest))))
    }
}

/// The setting's other name and text, when they say something else.
fn contradiction<T: Value>(
    var: &Var,
    found: &Found,
    value: &T,
    from: &dyn Strings,
) -> Option<(&'static str, String)> {
    let (other, unit) = var.also.filter(|(other, _)| *other != found.name)?;
    let text = from.get(other).filter(|text| !text.trim().is_empty())?;
    let agrees = T::parse(text.trim(), unit)
        .is_ok_and(|said| !said.is_below(value) && !value.is_below(&said));
    (!agrees).then_some((other, text))
}

/// What is told of a setting's type, for the reference page.
pub trait Typed {
    /// The type, in a word or two.
    const KIND: &'static str;
    /// A right value.
    const EXAMPLE: &'static str;
    /// The only values, when there are few.
    const CHOICES: &'static [&'static str];
    /// Whether there must be a value.
    const REQUIRED: bool;
}

impl<T: Value> Typed for T {
    const KIND: &'static str = <T as Value>::KIND;
    const EXAMPLE: &'static str = <T as Value>::EXAMPLE;
    const CHOICES: &'static [&'static str] = <T as Value>::CHOICES;
    const REQUIRED: bool = true;
}

impl<T: Value> Typed for Option<T> {
    const KIND: &'static str = T::KIND;
    const EXAMPLE: &'static str = T::EXAMPLE;
    const CHOICES: &'static [&'static str] = T::CHOICES;
    const REQUIRED: bool = false;
}

/// Describes a setting of this type.
#[must_use]
pub fn described<T: Typed>(var: Var, help: &'static str) -> Described {
    let choices = match var.choices {
        [] => T::CHOICES,
        choices => choices,
    };
    Described {
        var,
        kind: match (var.unit, choices) {
            // A duration in a unit of its name is a number to whoever writes it.
            (Unit::Millis | Unit::Seconds, _) => "integer",
            (Unit::Suffixed, []) => T::KIND,
            (Unit::Suffixed, _) => "choice",
        },
        required: T::REQUIRED && var.default.is_none(),
        choices,
        example: var.right(T::EXAMPLE),
        help: help.trim_ascii(),
    }
}

/// Declares a struct of settings.
///
/// ```
/// use std::time::Duration;
/// caracal_net::settings! {
///     /// What the follower needs.
///     pub struct FollowerConfig {
///         /// How long a replica answers from memory.
///         pub feed_max_lag: Duration = var("FEED_MAX_LAG").or("1s").within("100ms", "10s"),
///     }
/// }
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $help:literal])+ $fvis:vis $field:ident: $type:ty = $declared:expr),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis struct $name {
            $($(#[doc = $help])+ $fvis $field: $type,)+
        }

        impl $name {
            /// Reads every setting, and adds every mistake to `mistakes`.
            #[allow(dead_code, reason = "a table with rules of its own is read with them")]
            pub fn load(
                from: &dyn $crate::settings::Strings,
                mistakes: &mut $crate::settings::Mistakes,
            ) -> Option<Self> {
                Self::load_by(from, mistakes, |_, _| ())
            }

            /// Reads every setting, looks at `rules` that span several of them, also when single
            /// ones are wrong, and adds every mistake to `mistakes`; `None` when there is any.
            pub fn load_by(
                from: &dyn $crate::settings::Strings,
                mistakes: &mut $crate::settings::Mistakes,
                rules: impl FnOnce(&Self, &mut $crate::settings::Mistakes),
            ) -> Option<Self> {
                #[allow(unused_imports, reason = "a struct may declare with other helpers")]
                use $crate::settings::var;
                let mut right = true;
                $(let $field = <$type as $crate::settings::Setting>::read(
                    &$declared, from, mistakes,
                ).or_else(|| {
                    right = false;
                    <$type as $crate::settings::Setting>::stand_in(&$declared)
                });)+
                let read = Self { $($field: $field?,)+ };
                let before = mistakes.count();
                rules(&read, mistakes);
                (right && mistakes.count() == before).then_some(read)
            }

            /// Every setting, for the reference page and for `doctor`.
            pub fn describe() -> Vec<$crate::settings::Described> {
                #[allow(unused_imports, reason = "a struct may declare with other helpers")]
                use $crate::settings::var;
                vec![$($crate::settings::described::<$type>(
                    $declared,
                    concat!($($help),+),
                ),)+]
            }
        }
    };
}

#[cfg(test)]
mod tests;
