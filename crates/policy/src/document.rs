//! Which documents are accepted (spec: admin-api §8.1). The codes and their order are the wire's;
//! which rules a document defines is asked of the parser, so that no layout hides one.

use std::borrow::Cow;
use std::time::Duration;

use caracal_model::policy::SCHEMA_VERSION;
use serde::Serialize;
use serde_json::{Value, json};

use crate::engine::{Documents, Head, PACKAGE};
use crate::scan::{Fault, Kind, Path, Place, Scan, Token, scan};

/// The rules that a document may define.
pub(crate) const ROOTS: [&str; 6] = [
    "app_ids",
    "grants",
    "confinement",
    "restrict",
    "risk",
    "approval_tiers",
];
/// Longest document, in UTF-16 units.
const MAX_UNITS: usize = 262_144;
const DIRECTIVE: &str = "caracal:data-document";

/// Built-ins that no document may call: they look at the world, or answer differently each time.
const FORBIDDEN: [&str; 9] = [
    "http.send",
    "net.lookup_ip_addr",
    "net.cidr_contains",
    "net.cidr_intersects",
    "net.cidr_expand",
    "net.cidr_merge",
    "opa.runtime",
    "rand.intn",
    "time.now_ns",
];
/// Built-ins of which a single call can take all memory or time there is, before any limit of ours
/// is looked at.
const UNBOUNDED: [&str; 5] = [
    "numbers.range",
    "numbers.range_step",
    "bits.lsh",
    "json.match_schema",
    "json.verify_schema",
];

/// Why a document is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}")]
pub struct InvalidPolicy {
    /// The code of the wire.
    pub code: Cow<'static, str>,
    /// Line and column, from 1, when known.
    pub at: Option<(u32, u32)>,
    /// What the parser says.
    pub detail: Option<String>,
}

impl InvalidPolicy {
    fn new(code: impl Into<Cow<'static, str>>, at: Option<Place>) -> Self {
        let at = at.map(|place| (place.line, place.column));
        Self {
            code: code.into(),
            at,
            detail: None,
        }
    }

    /// `{"line", "column"}`, when known.
    pub fn place(&self) -> Option<Value> {
        self.at
            .map(|(line, column)| json!({"line": line, "column": column}))
    }
}

impl From<Fault> for InvalidPolicy {
    fn from(fault: Fault) -> Self {
        let (code, at) = match fault {
            Fault::UnterminatedString(at) => ("unterminated_string", at),
            Fault::Unbalanced(at) => ("unbalanced_delimiters", at),
            Fault::TooComplex(at) => ("content_too_complex", at),
        };
        Self::new(code, Some(at))
    }
}

/// What an accepted document defines: the member `preview` of `POST /v1/policies/validate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Its package.
    pub package: &'static str,
    /// The roots that it defines, in order.
    pub rules: Vec<String>,
    /// Always false: a document decides nothing.
    pub default_result: bool,
    /// Always empty, for the same reason.
    pub decisions: Vec<String>,
    /// Paths into `input` that it reads.
    pub inputs_referenced: Vec<String>,
    /// Paths into `data` that it reads.
    pub data_referenced: Vec<String>,
}

impl Preview {
    /// The whole answer of `POST /v1/policies/validate`.
    pub fn answer(&self) -> Value {
        json!({
            "valid": true,
            "schema_version": SCHEMA_VERSION,
            "input_schema_version": SCHEMA_VERSION,
            "output_contract": {
                "package": PACKAGE,
                "rule": "result",
                "decision": ["allow", "deny"],
                "evaluation_status": ["complete"],
            },
            "preview": self,
        })
    }
}

/// Checks one document.
///
/// # Errors
/// [`InvalidPolicy`] with the first code that applies.
pub fn validate(content: &str) -> Result<Preview, InvalidPolicy> {
    inspect(content).map(|inspected| inspected.preview)
}

/// A document that was checked, and what compilation needs to know of it.
#[derive(Clone, Debug)]
pub(crate) struct Inspected {
    pub preview: Preview,
    pub heads: Vec<Head>,
    /// Whether its values depend on anything but its text.
    pub is_constant: bool,
}

pub(crate) fn inspect(content: &str) -> Result<Inspected, InvalidPolicy> {
    if content.trim().is_empty() {
        return Err(InvalidPolicy::new("empty_policy", None));
    }
    if content.encode_utf16().count() > MAX_UNITS {
        return Err(InvalidPolicy::new("content_too_large", None));
    }
    let scanned = scan(content)?;
    scanned.check_balance()?;
    let package = package(&scanned)?;
    let paths = scanned.paths();
    forbidden_builtin(&paths)?;
    if package != PACKAGE {
        return Err(InvalidPolicy::new("must_use_package_caracal_authz", None));
    }
    if !scanned.comments.contains(&DIRECTIVE) {
        return Err(InvalidPolicy::new("must_be_data_document", None));
    }
    scanned.check_work()?;
    let heads = heads(content)?;
    let rules = rules(&heads)?;
    let reads = |word: &str| {
        let mut found: Vec<String> = Vec::new();
        for path in paths.iter().filter(|path| path.starts_at(word)) {
            if !found.contains(&path.name) {
                found.push(path.name.clone());
            }
        }
        found
    };
    let inputs_referenced = reads("input");
    let is_constant =
        inputs_referenced.is_empty() && !paths.iter().any(|path| path.starts_at("uuid"));
    let preview = Preview {
        package: PACKAGE,
        rules,
        default_result: false,
        decisions: Vec::new(),
        inputs_referenced,
        data_referenced: reads("data"),
    };
    Ok(Inspected {
        preview,
        heads,
        is_constant,
    })
}

/// The name behind `package`, which stands first on its line and outside any bracket.
fn package(scanned: &Scan<'_>) -> Result<String, InvalidPolicy> {
    let mut last_line = 0;
    let mut tokens = scanned.tokens.as_slice();
    while let Some((token, rest)) = tokens.split_first() {
        let starts_line = token.at.line > last_line;
        last_line = token.at.line;
        if starts_line && token.kind == Kind::Word("package") {
            let on_line: Vec<&Token<'_>> = rest
                .iter()
                .take_while(|next| next.at.line == token.at.line)
                .collect();
            let invalid = || InvalidPolicy::new("invalid_package_name", Some(token.at));
            return dotted(&on_line).ok_or_else(invalid);
        }
        tokens = rest;
    }
    Err(InvalidPolicy::new("missing_package_declaration", None))
}

/// Words with dots between them, and nothing else.
fn dotted(tokens: &[&Token<'_>]) -> Option<String> {
    let mut name = String::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Word(word) if at % 2 == 0 && !word.starts_with(|c: char| c.is_ascii_digit()) => {
                name.push_str(word);
            }
            Kind::Sign('.') if at % 2 == 1 => name.push('.'),
            _ => return None,
        }
    }
    (tokens.len() % 2 == 1).then_some(name)
}

/// Any mention is refused, not only a call: `with` can put one built-in in the place of another.
fn forbidden_builtin(paths: &[Path<'_, '_>]) -> Result<(), InvalidPolicy> {
    let refused = |path: &&Path<'_, '_>| {
        let name = path.name.as_str();
        FORBIDDEN.contains(&name)
            || UNBOUNDED.contains(&name)
            || (name == "sprintf" && !has_plain_format(path.rest))
    };
    paths.iter().find(refused).map_or(Ok(()), |path| {
        Err(InvalidPolicy::new(
            format!("forbidden_builtin:{}", path.name),
            Some(path.at),
        ))
    })
}

/// Whether `sprintf` is called with a literal format whose widths have three digits at most: a
/// longer one fills memory with blanks.
fn has_plain_format(call: &[Token<'_>]) -> bool {
    let [
        open,
        Token {
            kind: Kind::Text(format),
            ..
        },
        ..,
    ] = call
    else {
        return false;
    };
    let mut digits = 0;
    let narrow = format.chars().all(|character| {
        digits = if character.is_numeric() {
            digits + 1
        } else {
            0
        };
        digits <= 3
    });
    open.is_sign('(') && narrow && !format.contains('\\')
}

fn heads(content: &str) -> Result<Vec<Head>, InvalidPolicy> {
    // Nothing is evaluated here, so the time limit does not matter.
    let mut parsed = Documents::new(Duration::from_secs(1));
    parsed
        .add("document", content)
        .map_err(|error| InvalidPolicy {
            code: "rego_parse_error".into(),
            at: error.at.map(|place| (place.line, place.column)),
            detail: Some(error.message),
        })?;
    Ok(parsed.heads())
}

/// The roots that the document defines. A function is not data, whatever its name.
fn rules(heads: &[Head]) -> Result<Vec<String>, InvalidPolicy> {
    if let Some(result) = heads.iter().find(|head| head.name == "result") {
        let code = "data_document_must_not_define_result";
        return Err(InvalidPolicy::new(code, Some(result.at)));
    }
    if heads.is_empty() {
        return Err(InvalidPolicy::new("data_document_must_define_data", None));
    }
    let mut rules = Vec::new();
    for head in heads {
        if head.is_function || !ROOTS.contains(&head.name.as_str()) {
            let code = format!("data_document_rule_not_allowed:{}", head.name);
            return Err(InvalidPolicy::new(code, Some(head.at)));
        }
        if !rules.contains(&head.name) {
            rules.push(head.name.clone());
        }
    }
    Ok(rules)
}
