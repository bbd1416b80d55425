//! Names that stand for something: slugs made of names, and prefixes that are kept for the platform
//! (spec: admin-api §5, §7.1).

use crate::admission::Actor;
use crate::failure::Failure;

/// Lower case, runs of anything else as one `-`; `fallback` when nothing is left.
pub fn slug(name: &str, fallback: &str) -> String {
    let mut slug = String::with_capacity(name.len());
    for letter in name.to_lowercase().chars() {
        if letter.is_ascii_lowercase() || letter.is_ascii_digit() {
            slug.push(letter);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() {
        fallback.to_owned()
    } else {
        slug.to_owned()
    }
}

/// The candidates for a name that must be unique: itself, `-2` to `-999`, then with a random end.
pub fn candidates<'s>(base: &'s str, random: &'s str) -> impl Iterator<Item = String> + 's {
    let numbered = (2..=999).map(move |n| format!("{base}-{n}"));
    let random = random.replace('-', "");
    std::iter::once(base.to_owned())
        .chain(numbered)
        .chain(std::iter::once_with(move || format!("{base}-{random}")))
}

/// A prefix that only the bootstrap token may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Names of zones, applications and policies.
    Name,
    /// Slugs of zones.
    Slug,
    /// Identifiers of resources.
    Resource,
    /// Identifiers of providers.
    Provider,
}

impl Namespace {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Name => "caracal.sys/",
            Self::Slug => "caracal-sys-",
            Self::Resource => "caracal-sys://",
            Self::Provider => "provider://caracal-sys-",
        }
    }

    /// Whether the platform keeps this value for itself.
    pub fn holds(self, value: &str) -> bool {
        value.trim().to_lowercase().starts_with(self.prefix())
    }

    /// Lets only the bootstrap token use a reserved value.
    ///
    /// # Errors
    /// 409 `reserved_namespace`.
    pub fn admit(self, actor: &Actor, value: &str) -> Result<(), Failure> {
        if actor.is_bootstrap() || !self.holds(value) {
            return Ok(());
        }
        let prefix = self.prefix();
        Err(Failure::conflict(
            "reserved_namespace",
            format!("names that start with {prefix} are reserved; choose another"),
        ))
    }
}

/// Whether a zone is reserved: by its name or by its slug.
pub fn zone_is_reserved(name: &str, slug: &str) -> bool {
    Namespace::Name.holds(name) || Namespace::Slug.holds(slug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_derived() {
        for (name, expected) in [
            ("Prod", "prod"),
            ("  Sales & Ops (EU) ", "sales-ops-eu"),
            ("Zürich", "z-rich"),
            ("***", "zone"),
        ] {
            assert_eq!(slug(name, "zone"), expected);
        }
    }

    #[test]
    fn candidates_never_run_out() {
        let all: Vec<_> = candidates("a", "0-1").collect();
        assert_eq!(
            (all[0].as_str(), all[1].as_str(), all[999].as_str()),
            ("a", "a-2", "a-01")
        );
    }

    #[test]
    fn reserved_prefixes_ignore_case_and_space() {
        assert!(Namespace::Name.holds(" Caracal.SYS/x"));
        assert!(!Namespace::Name.holds("caracal.system"));
        assert!(zone_is_reserved("ordinary", "caracal-sys-internal"));
    }
}
