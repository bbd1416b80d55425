//! The types that settings have, and how their text reads (spec: operations §2).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use caracal_crypto::mac::HmacKey;
use caracal_model::Secret;
use url::Url;

/// What a bare number of a duration counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nothing: the text carries its unit (`1m30s`).
    Suffixed,
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
}

/// A type with a text form.
pub trait Value: Sized {
    /// Its name, in a word or two.
    const KIND: &'static str;
    /// A right value, for messages.
    const EXAMPLE: &'static str;
    /// The only values, when there are few.
    const CHOICES: &'static [&'static str] = &[];

    /// Reads trimmed, non-empty text.
    ///
    /// # Errors
    /// What is wrong with the text, without repeating it.
    fn parse(text: &str, unit: Unit) -> Result<Self, String>;

    /// Whether this is less than `other`; types without an order have no bounds.
    fn is_below(&self, _other: &Self) -> bool {
        false
    }
}

macro_rules! numbers {
    ($($type:ty)+) => {$(
        impl Value for $type {
            const KIND: &'static str = "integer";
            const EXAMPLE: &'static str = "100";

            fn parse(text: &str, _: Unit) -> Result<Self, String> {
                text.parse().map_err(|_| "is not a whole number in range".to_owned())
            }

            fn is_below(&self, other: &Self) -> bool {
                self < other
            }
        }
    )+};
}

numbers! { u16 u32 u64 usize i64 }

impl Value for bool {
    const KIND: &'static str = "boolean";
    const EXAMPLE: &'static str = "true";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "yes" | "on" => Ok(true),
            "0" | "f" | "false" | "no" | "off" => Ok(false),
            _ => Err("is neither true nor false".to_owned()),
        }
    }
}

impl Value for String {
    const KIND: &'static str = "text";
    const EXAMPLE: &'static str = "text";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Value for Secret<String> {
    const KIND: &'static str = "text";
    const EXAMPLE: &'static str = "a long random text";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        Ok(Self::new(text.to_owned()))
    }
}

/// Comma-separated, trimmed, lower case, empty entries dropped.
impl Value for Vec<String> {
    const KIND: &'static str = "list";
    const EXAMPLE: &'static str = "one,two";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        let entries = text.split(',').map(|entry| entry.trim().to_lowercase());
        Ok(entries.filter(|entry| !entry.is_empty()).collect())
    }
}

impl Value for PathBuf {
    const KIND: &'static str = "path";
    const EXAMPLE: &'static str = "/var/lib/caracal";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        Ok(Self::from(text))
    }
}

impl Value for Url {
    const KIND: &'static str = "URL";
    const EXAMPLE: &'static str = "https://sts.example";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
        let plain = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        if plain {
            Ok(url)
        } else {
            Err("is not an absolute http(s) URL without credentials, query or fragment".to_owned())
        }
    }
}

impl Value for SocketAddr {
    const KIND: &'static str = "address";
    const EXAMPLE: &'static str = "127.0.0.1:8081";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        text.parse()
            .map_err(|_| "is not an address and a port".to_owned())
    }
}

impl Value for IpAddr {
    const KIND: &'static str = "address";
    const EXAMPLE: &'static str = "127.0.0.1";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        text.parse().map_err(|_| "is not an IP address".to_owned())
    }
}

impl Value for HmacKey {
    const KIND: &'static str = "hex key";
    const EXAMPLE: &'static str = "64 hex digits or more";

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        HmacKey::from_hex(text).map_err(|error| error.to_string())
    }
}

/// `CARACAL_MODE` (spec: operations §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For development: conveniences that a deployment must not have.
    Dev,
    /// Published, release candidate.
    Rc,
    /// Published.
    Stable,
}

impl Mode {
    /// Whether the posture is that of a deployment.
    pub fn is_published(self) -> bool {
        self != Self::Dev
    }
}

impl Value for Mode {
    const KIND: &'static str = "choice";
    const EXAMPLE: &'static str = "stable";
    const CHOICES: &'static [&'static str] = &["dev", "rc", "stable"];

    fn parse(text: &str, _: Unit) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "dev" => Ok(Self::Dev),
            "rc" => Ok(Self::Rc),
            "stable" => Ok(Self::Stable),
            _ => Err("is not dev, rc or stable".to_owned()),
        }
    }
}

impl Value for Duration {
    const KIND: &'static str = "duration";
    const EXAMPLE: &'static str = "1m30s";

    fn parse(text: &str, unit: Unit) -> Result<Self, String> {
        let number = || text.parse().map_err(|_| "is not a whole number".to_owned());
        match unit {
            Unit::Millis => number().map(Self::from_millis),
            Unit::Seconds => number().map(Self::from_secs),
            Unit::Suffixed => suffixed(text),
        }
    }

    fn is_below(&self, other: &Self) -> bool {
        self < other
    }
}

/// `250ms`, `1.5h`, `1m30s`: numbers with their units, and more than nothing in sum.
fn suffixed(text: &str) -> Result<Duration, String> {
    let wrong = || "is not a duration above zero".to_owned();
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        sum = sum.checked_add(part).ok_or_else(wrong)?;
        rest = after;
    }
    if sum.is_zero() { Err(wrong()) } else { Ok(sum) }
}
