//! Reading a configuration field by field, and the rules for single fields.

use serde_json::{Map, Value, json};

use super::invalid;
use crate::failure::Failure;
use crate::fields::Body;

const RESERVED_HEADERS: [&str; 20] = [
    "baggage",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-real-ip",
    "x-request-id",
];
const RESERVED_HEADER_PREFIXES: [&str; 3] = ["x-caracal-", "x-forwarded-", "proxy-"];

const MOST_HOSTS: usize = 64;
const MOST_SCOPES: usize = 64;
const MOST_PARAMS: usize = 32;

/// A rule for a text: what it must be, when it is not.
pub type Rule = fn(&str) -> Option<&'static str>;

pub fn header_name(name: &str) -> Option<&'static str> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(token) {
        return Some("must be the name of an HTTP header");
    }
    let lower = name.to_ascii_lowercase();
    let reserved = RESERVED_HEADERS.contains(&lower.as_str())
        || RESERVED_HEADER_PREFIXES
            .iter()
            .any(|prefix| lower.starts_with(prefix));
    reserved.then_some("is a reserved header; choose another")
}

pub fn query_name(name: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
    let fits = (1..=128).contains(&name.len()) && name.bytes().all(legal);
    (!fits).then_some("must be letters, digits, `.`, `_`, `~` or `-`")
}

pub fn auth_scheme(name: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let fits = name.len() <= 64
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && name.bytes().all(legal);
    (!fits).then_some("must be a letter, then letters, digits or `-`")
}

/// A colon would end it (RFC 7617 §2).
pub fn username(name: &str) -> Option<&'static str> {
    let fits = line(name).is_none() && !name.contains(':');
    (!fits).then_some("must be one line of text without `:`, and not empty")
}

pub fn line(text: &str) -> Option<&'static str> {
    let fits = (1..=2048).contains(&text.len()) && !text.chars().any(char::is_control);
    (!fits).then_some("must be one line of text and not empty")
}

pub fn https(text: &str) -> Option<&'static str> {
    let plain = url::Url::parse(text).is_ok_and(|url| {
        url.scheme() == "https"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
    });
    (!plain || text.len() > 2048).then_some("must be an https URL without credentials and fragment")
}

pub fn absolute(text: &str) -> Option<&'static str> {
    let absolute = url::Url::parse(text).is_ok_and(|url| url.fragment().is_none());
    (!absolute || text.len() > 2048).then_some("must be an absolute URI without a fragment")
}

pub fn starts_with_scheme(text: &str, scheme: &str) -> bool {
    text.split_once(' ')
        .is_some_and(|(first, _)| first.eq_ignore_ascii_case(scheme))
}

fn is_host(host: &str) -> bool {
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (1..=253).contains(&host.len())
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && end(host.bytes().next())
        && end(host.bytes().last())
        && !host.contains("..")
}

/// A configuration under reading; `null` is absent.
pub struct Reader<'c>(pub &'c Body);

impl Reader<'_> {
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("{name} must be a string"))),
        }
    }

    /// Takes the field over, if it is there; answers whether it was.
    pub fn put(
        &self,
        to: &mut Map<String, Value>,
        name: &str,
        rule: Rule,
    ) -> Result<bool, Failure> {
        let Some(text) = self.text(name)?.map(str::trim) else {
            return Ok(false);
        };
        if let Some(must) = rule(text) {
            return Err(invalid(format!("{name} {must}")));
        }
        to.insert(name.to_owned(), json!(text));
        Ok(true)
    }

    /// As [`Reader::put`], of a field that must be there.
    pub fn need(&self, to: &mut Map<String, Value>, name: &str, rule: Rule) -> Result<(), Failure> {
        if self.put(to, name, rule)? {
            return Ok(());
        }
        Err(invalid(format!("{name} is required")))
    }

    /// One of these words; the default is stored as well.
    pub fn word<'w>(
        &self,
        to: &mut Map<String, Value>,
        name: &str,
        words: &[&'w str],
        default: &'w str,
    ) -> Result<&'w str, Failure> {
        let word = match self.text(name)? {
            None => default,
            Some(text) => words
                .iter()
                .find(|word| **word == text)
                .copied()
                .ok_or_else(|| invalid(format!("{name} must be one of {}", words.join(", "))))?,
        };
        to.insert(name.to_owned(), json!(word));
        Ok(word)
    }

    pub fn flag(&self, to: &mut Map<String, Value>, name: &str) -> Result<(), Failure> {
        match self.value(name) {
            None => {}
            Some(Value::Bool(on)) => {
                to.insert(name.to_owned(), json!(on));
            }
            Some(_) => return Err(invalid(format!("{name} must be true or false"))),
        }
        Ok(())
    }

    pub fn hosts(&self, to: &mut Map<String, Value>) -> Result<(), Failure> {
        let must = format!("must be a list of at most {MOST_HOSTS} host names");
        self.list(to, "allowed_token_hosts", MOST_HOSTS, &must, |text| {
            let host = text.to_ascii_lowercase();
            is_host(&host).then_some(host)
        })
    }

    pub fn scopes(&self, to: &mut Map<String, Value>) -> Result<(), Failure> {
        let must = format!("must be a list of at most {MOST_SCOPES} scopes, each without a space");
        self.list(to, "scopes", MOST_SCOPES, &must, |text| {
            let fits =
                (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
            fits.then(|| text.to_owned())
        })
    }

    fn list(
        &self,
        to: &mut Map<String, Value>,
        name: &str,
        most: usize,
        must: &str,
        read: impl Fn(&str) -> Option<String>,
    ) -> Result<(), Failure> {
        let wrong = || invalid(format!("{name} {must}"));
        let Some(value) = self.value(name) else {
            return Ok(());
        };
        let list = value.as_array().filter(|list| list.len() <= most);
        let mut items: Vec<String> = Vec::new();
        for item in list.ok_or_else(wrong)? {
            let item = item.as_str().and_then(|text| read(text.trim()));
            let item = item.ok_or_else(wrong)?;
            if !items.contains(&item) {
                items.push(item);
            }
        }
        to.insert(name.to_owned(), json!(items));
        Ok(())
    }

    /// Parameters of a request; some names are the protocol's own.
    pub fn params(
        &self,
        to: &mut Map<String, Value>,
        name: &str,
        reserved: &[&str],
    ) -> Result<(), Failure> {
        let Some(value) = self.value(name) else {
            return Ok(());
        };
        let object = value
            .as_object()
            .filter(|params| params.len() <= MOST_PARAMS);
        let object = object.ok_or_else(|| {
            invalid(format!(
                "{name} must be an object of at most {MOST_PARAMS} texts"
            ))
        })?;
        for (key, value) in object {
            if let Some(must) = query_name(key) {
                return Err(invalid(format!("a name in {name} {must}")));
            }
            if reserved.contains(&key.to_ascii_lowercase().as_str()) {
                return Err(invalid(format!("{name} may not set {key}")));
            }
            let fits = value
                .as_str()
                .is_some_and(|text| text.len() <= 1024 && !text.chars().any(char::is_control));
            if !fits {
                return Err(invalid(format!("{key} in {name} must be one line of text")));
            }
        }
        to.insert(name.to_owned(), value.clone());
        Ok(())
    }

    /// A secret: trimmed, not empty, one line unless it is a key in PEM.
    pub fn secret(&self, name: &str) -> Result<Option<String>, Failure> {
        let Some(text) = self.text(name)?.map(str::trim) else {
            return Ok(None);
        };
        let is_pem = name == "private_key";
        let legal = |c: char| !c.is_control() || (is_pem && matches!(c, '\n' | '\r' | '\t'));
        if text.is_empty() || text.len() > 32 * 1024 || !text.chars().all(legal) {
            let must = if is_pem { "text" } else { "one line of text" };
            return Err(invalid(format!("{name} must be {must} and not empty")));
        }
        Ok(Some(text.to_owned()))
    }
}
