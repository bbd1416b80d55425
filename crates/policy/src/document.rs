//! Which documents are accepted (spec: admin-api §8.1). The codes and their order are the wire's;
//! which rules a document defines is asked of the parser, so that no layout hides one.

use std::borrow::Cow;

use caracal_model::policy::SCHEMA_VERSION;
use serde::Serialize;
use serde_json::{Value, json};

use regorus::unstable::BUILTINS;

use crate::ast::{Head, Mention, Reading};
use crate::engine::{Documents, EngineError, PACKAGE};
use crate::limits::LOADING;
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
const UNBOUNDED: [&str; 7] = [
    "numbers.range",
    "numbers.range_step",
    "bits.lsh",
    "json.match_schema",
    "json.verify_schema",
    "strings.replace_n",
    "test.sleep",
];
/// Built-ins whose result is as long as one argument times another: allowed where what is put in is
/// a short literal.
const AMPLIFYING: [&str; 4] = ["sprintf", "concat", "replace", "regex.replace"];
/// Longest literal that such a call may put in, in bytes.
const MAX_PUT_IN: usize = 16;
/// Writes to the error stream of the process, where the question does not belong.
const PRINT: &str = "print";

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

    /// Parsed and refused by what evaluates it.
    pub(crate) fn unevaluable(error: EngineError) -> Self {
        Self {
            detail: Some(error.message),
            ..Self::new("data_document_does_not_evaluate", error.at)
        }
    }

    /// What is wrong, where, and what to do about it, for people.
    pub fn message(&self) -> String {
        let advice = self.advice();
        match self.at {
            Some((line, column)) => format!("line {line}, column {column}: {advice}"),
            None => advice,
        }
    }

    /// The entry for `details.issues` of an answer.
    pub fn issue(&self) -> Value {
        let mut issue = json!({
            "path": ["content"], "code": self.code, "message": self.message(),
        });
        if let (Some((line, column)), Some(members)) = (self.at, issue.as_object_mut()) {
            members.insert("line".to_owned(), line.into());
            members.insert("column".to_owned(), column.into());
        }
        issue
    }

    fn advice(&self) -> String {
        let (code, subject) = self.code.split_once(':').unwrap_or((&self.code, ""));
        match code {
            "empty_policy" => "the document is empty; begin it with `# caracal:data-document` and \
                               `package caracal.authz`"
                .to_owned(),
            "content_too_large" => {
                format!("a document has {MAX_UNITS} characters at most; split it into several")
            }
            "unterminated_string" => {
                "the string that starts here does not end; close it with the same quote, on the \
                 same line if it is `\"`"
                    .to_owned()
            }
            "unbalanced_delimiters" => "this bracket has no partner; close or remove it".to_owned(),
            "content_too_complex" => {
                "collections are nested too deeply here, or an expression joins too much: 16 levels \
                 and 64 operators are the most"
                    .to_owned()
            }
            "missing_package_declaration" => "add the line `package caracal.authz`".to_owned(),
            "invalid_package_name" => {
                "the package name cannot be read; write `package caracal.authz`".to_owned()
            }
            "forbidden_builtin" => forbidden(subject),
            "must_use_package_caracal_authz" => {
                "the package must be `caracal.authz`; write `package caracal.authz`".to_owned()
            }
            "must_be_data_document" => "add the comment line `# caracal:data-document`".to_owned(),
            "data_document_must_not_define_result" => {
                "remove the rule `result`: the platform's contract decides, documents hold the \
                 data that it decides by"
                    .to_owned()
            }
            "data_document_must_define_data" => {
                format!(
                    "the document defines nothing; define one of {}",
                    ROOTS.join(", ")
                )
            }
            "data_document_rule_not_allowed" => format!(
                "`{subject}` is not a rule of a data document; those are {}, none of them with \
                 arguments",
                ROOTS.join(", ")
            ),
            "data_document_two_defaults" => {
                format!("`{subject}` has a default already; keep one of them")
            }
            "unknown_function" => format!(
                "there is no function `{subject}`; correct its name, or write its result as data"
            ),
            "wrong_number_of_arguments" => {
                let takes = BUILTINS.get(subject).map_or(0, |(_, count)| *count);
                format!("`{subject}` is called with another number of arguments than {takes}")
            }
            "data_document_does_not_evaluate" => format!(
                "the document parses, and then fails whatever is asked: {}",
                self.detail.as_deref().unwrap_or("no reason is known")
            ),
            _ => self
                .detail
                .clone()
                .unwrap_or_else(|| "the document does not parse".to_owned()),
        }
    }
}

/// What to do instead of a call that is refused.
fn forbidden(name: &str) -> String {
    match name {
        "sprintf" => "`sprintf` needs its format as a literal, with widths of three digits at \
                      most"
            .to_owned(),
        "concat" | "replace" | "regex.replace" => format!(
            "`{name}` needs what it puts in as a literal of {MAX_PUT_IN} characters at most, \
             without references to groups, and what it replaces as a literal that is not empty"
        ),
        PRINT => {
            "`print` may not be used: it would write what was asked to the log of the process; \
                  remove it"
                .to_owned()
        }
        name if UNBOUNDED.contains(&name) => format!(
            "`{name}` may not be used: one call can take all memory or time; write its result out"
        ),
        _ => format!(
            "`{name}` may not be used: a document answers by its text and the question alone; \
             write its result as data"
        ),
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

/// Checks the text of one document. Whether it also evaluates, [`crate::validate_whole`] says.
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
    pub reading: Reading,
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
    let (package, package_at) = package(&scanned)?;
    let parsed = scanned
        .check_work()
        .map_err(InvalidPolicy::from)
        .and_then(|()| parse(content));
    match &parsed {
        Ok(reading) => forbidden_builtin(&reading.mentions)?,
        Err(_) => forbidden_word(&scanned)?,
    }
    if package != PACKAGE {
        let code = "must_use_package_caracal_authz";
        return Err(InvalidPolicy::new(code, Some(package_at)));
    }
    if !scanned.comments.contains(&DIRECTIVE) {
        return Err(InvalidPolicy::new("must_be_data_document", None));
    }
    let reading = parsed?;
    let rules = rules(&reading.heads)?;
    one_default_each(&reading.heads)?;
    calls_what_there_is(&reading.mentions)?;
    let reads = |word: &str| {
        let mut found: Vec<String> = Vec::new();
        for mention in reading.mentions.iter().filter(|m| m.starts_at(word)) {
            if !found.contains(&mention.name) {
                found.push(mention.name.clone());
            }
        }
        found
    };
    let preview = Preview {
        package: PACKAGE,
        rules,
        default_result: false,
        decisions: Vec::new(),
        inputs_referenced: reads("input"),
        data_referenced: reads("data"),
    };
    Ok(Inspected { preview, reading })
}

/// The name behind `package`, which stands first on its line and outside any bracket.
fn package(scanned: &Scan<'_>) -> Result<(String, Place), InvalidPolicy> {
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
            return dotted(&on_line)
                .map(|name| (name, token.at))
                .ok_or_else(invalid);
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
fn forbidden_builtin(mentions: &[Mention]) -> Result<(), InvalidPolicy> {
    let refused = |mention: &&Mention| {
        let name = mention.name.as_str();
        FORBIDDEN.contains(&name)
            || UNBOUNDED.contains(&name)
            || name == PRINT
            || (AMPLIFYING.contains(&name) && !is_modest(mention))
    };
    mentions.iter().find(refused).map_or(Ok(()), |mention| {
        let code = format!("forbidden_builtin:{}", mention.name);
        Err(InvalidPolicy::new(code, Some(mention.at)))
    })
}

/// The same for text that does not parse, so that its author hears of the call first.
fn forbidden_word(scanned: &Scan<'_>) -> Result<(), InvalidPolicy> {
    let paths = scanned.paths();
    let refused = |path: &&Path| {
        let name = path.name.as_str();
        FORBIDDEN.contains(&name) || UNBOUNDED.contains(&name) || name == PRINT
    };
    paths.iter().find(refused).map_or(Ok(()), |path| {
        let code = format!("forbidden_builtin:{}", path.name);
        Err(InvalidPolicy::new(code, Some(path.at)))
    })
}

/// Whether a call that can make much out of little is written so that it does not: what it puts in
/// is a short literal.
fn is_modest(mention: &Mention) -> bool {
    let Some(arguments) = &mention.call else {
        return false;
    };
    let literal = |at: usize| arguments.get(at).and_then(|argument| argument.0.as_deref());
    let short = |text: &str| text.len() <= MAX_PUT_IN;
    match mention.name.as_str() {
        "sprintf" => literal(0).is_some_and(is_plain_format),
        "concat" => literal(0).is_some_and(short),
        "replace" => literal(1).is_some_and(|old| !old.is_empty()) && literal(2).is_some_and(short),
        "regex.replace" => literal(2).is_some_and(|new| short(new) && !new.contains('$')),
        _ => false,
    }
}

/// Whether widths have three digits at most: a longer one fills memory with blanks.
fn is_plain_format(format: &str) -> bool {
    let mut digits = 0;
    format.chars().all(|character| {
        digits = if character.is_numeric() {
            digits + 1
        } else {
            0
        };
        digits <= 3
    })
}

fn parse(content: &str) -> Result<Reading, InvalidPolicy> {
    // For the parser the text ends there, and what a person reads behind it says nothing.
    if let Some((before, _)) = content.split_once('\0') {
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .map_or(0, |last| last.chars().count())
            + 1;
        let place = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        return Err(InvalidPolicy {
            code: "rego_parse_error".into(),
            at: Some((place(line), place(column))),
            detail: Some("a NUL character ends the text here: take it out".to_owned()),
        });
    }
    let mut parsed = Documents::new(LOADING.time);
    parsed
        .add("document", content)
        .map_err(|error| InvalidPolicy {
            code: "rego_parse_error".into(),
            at: error.at.map(|place| (place.line, place.column)),
            detail: Some(error.message),
        })?;
    Ok(parsed.read(&ROOTS))
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

/// The engine takes the first default of a rule and is silent about others.
fn one_default_each(heads: &[Head]) -> Result<(), InvalidPolicy> {
    let mut seen: Vec<&str> = Vec::new();
    for head in heads.iter().filter(|head| head.is_default) {
        if seen.contains(&head.name.as_str()) {
            let code = format!("data_document_two_defaults:{}", head.name);
            return Err(InvalidPolicy::new(code, Some(head.at)));
        }
        seen.push(&head.name);
    }
    Ok(())
}

/// A document has no functions of its own, so every call is of a built-in. The engine looks one up
/// when it gets there, which may be in the middle of somebody's request.
fn calls_what_there_is(mentions: &[Mention]) -> Result<(), InvalidPolicy> {
    for mention in mentions {
        let Some(arguments) = &mention.call else {
            continue;
        };
        let wrong = match BUILTINS.get(mention.name.as_str()) {
            None => "unknown_function",
            // One more receives the result: `count(x, n)`.
            Some((_, takes)) => {
                let takes = usize::from(*takes);
                if (takes..=takes.saturating_add(1)).contains(&arguments.len()) {
                    continue;
                }
                "wrong_number_of_arguments"
            }
        };
        let code = format!("{wrong}:{}", mention.name);
        return Err(InvalidPolicy::new(code, Some(mention.at)));
    }
    Ok(())
}
