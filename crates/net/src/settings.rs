//! Settings: each declared once, all mistakes told at once.
//!
//! Name, type, default, bounds and help stand together in [`settings!`](crate::settings!); loading,
//! `caracal doctor` and the reference page come from that line. Values arrive through [`Strings`],
//! so a test is a map. An empty value means unset (spec: operations §2). A secret may also come
//! from the file that `NAME_FILE` names, and is never shown.

mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

pub use value::{Mode, Unit, Value};

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

/// The declaration of one setting.
#[derive(Clone, Copy, Debug)]
pub struct Var {
    /// Its name in the environment.
    pub name: &'static str,
    /// Used when unset.
    pub default: Option<&'static str>,
    /// Least and greatest value.
    pub bounds: Option<(&'static str, &'static str)>,
    /// What a bare number of a duration counts.
    pub unit: Unit,
    /// Never shown, and `NAME_FILE` is honoured.
    pub secret: bool,
}

/// A setting of that name.
pub const fn var(name: &'static str) -> Var {
    Var {
        name,
        default: None,
        bounds: None,
        unit: Unit::Suffixed,
        secret: false,
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
    /// Adds one, for rules that span several settings.
    pub fn add(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.0.push(Mistake {
            name: name.into(),
            why: why.into(),
        });
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
}

impl<T: Value> Setting for T {
    fn read(var: &Var, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        match text_of(var, from) {
            Ok(Some(text)) => checked(var, &text, mistakes),
            Ok(None) => {
                mistakes.add(var.name, format!("is required, for example {}", T::EXAMPLE));
                None
            }
            Err(why) => {
                mistakes.add(var.name, why);
                None
            }
        }
    }
}

impl<T: Value> Setting for Option<T> {
    fn read(var: &Var, from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        match text_of(var, from) {
            Ok(Some(text)) => checked(var, &text, mistakes).map(Some),
            Ok(None) => Some(None),
            Err(why) => {
                mistakes.add(var.name, why);
                None
            }
        }
    }
}

/// The text of a setting: the variable, the file that `NAME_FILE` names, or the default.
fn text_of(var: &Var, from: &dyn Strings) -> Result<Option<String>, String> {
    if let Some(text) = from.get(var.name).filter(|text| !text.trim().is_empty()) {
        return Ok(Some(text));
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
        return Ok(Some(text.to_owned()));
    }
    Ok(var.default.map(str::to_owned))
}

fn checked<T: Value>(var: &Var, text: &str, mistakes: &mut Mistakes) -> Option<T> {
    let shown = if var.secret { "the value" } else { text };
    let value = match T::parse(text.trim(), var.unit) {
        Ok(value) => value,
        Err(why) => {
            mistakes.add(
                var.name,
                format!("{shown}: {why}, for example {}", T::EXAMPLE),
            );
            return None;
        }
    };
    let Some((least, greatest)) = var.bounds else {
        return Some(value);
    };
    let bound = |text| T::parse(text, var.unit).ok();
    let inside = bound(least).is_none_or(|least| !value.is_below(&least))
        && bound(greatest).is_none_or(|greatest| !greatest.is_below(&value));
    if !inside {
        mistakes.add(
            var.name,
            format!("{shown} is not within {least} and {greatest}"),
        );
        return None;
    }
    Some(value)
}

/// What the reference page and `doctor` say of a setting.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its declaration.
    pub var: Var,
    /// An example of its type.
    pub example: &'static str,
    /// Its help.
    pub help: &'static str,
}

/// The example of a setting's type, for the reference page.
pub trait Exampled {
    /// The example.
    const EXAMPLE: &'static str;
}

impl<T: Value> Exampled for T {
    const EXAMPLE: &'static str = <T as Value>::EXAMPLE;
}

impl<T: Value> Exampled for Option<T> {
    const EXAMPLE: &'static str = T::EXAMPLE;
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
            pub fn load(
                from: &dyn $crate::settings::Strings,
                mistakes: &mut $crate::settings::Mistakes,
            ) -> Option<Self> {
                #[allow(unused_imports, reason = "a struct may declare with other helpers")]
                use $crate::settings::var;
                $(let $field = <$type as $crate::settings::Setting>::read(
                    &$declared, from, mistakes,
                );)+
                Some(Self { $($field: $field?,)+ })
            }

            /// Every setting, for the reference page and for `doctor`.
            pub fn describe() -> Vec<$crate::settings::Described> {
                #[allow(unused_imports, reason = "a struct may declare with other helpers")]
                use $crate::settings::var;
                vec![$($crate::settings::Described {
                    var: $declared,
                    example: <$type as $crate::settings::Exampled>::EXAMPLE,
                    help: concat!($($help),+).trim_ascii(),
                },)+]
            }
        }
    };
}

#[cfg(test)]
mod tests;
