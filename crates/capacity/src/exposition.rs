//! Prometheus text 0.0.4 and OpenMetrics, read strictly: what is not understood is an error with its
//! line, because a capacity verdict on half of the numbers would be worse than none.
//!
//! **Choice.** A parser of our own: the crates for this are unmaintained, or lenient where it
//! matters here (they skip lines that they do not know).

use std::collections::BTreeMap;

/// One number of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its whole name, such as `caracal_audit_dlq_size` or `…_bucket`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value; may be infinite or not a number.
    pub value: f64,
}

impl Sample {
    /// Whether it has all of these labels.
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(name, value)| self.labels.get(*name).is_some_and(|has| has == value))
    }
}

/// What is wrong with an exposition, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics: {why}")]
pub struct ExpositionError {
    /// Counted from 1.
    pub line: usize,
    /// What was expected.
    pub why: &'static str,
}

/// Reads a whole exposition. An answer that is cut off in a line is an error.
pub fn parse(text: &str) -> Result<Vec<Sample>, ExpositionError> {
    if !text.is_empty() && !text.ends_with('\n') {
        let line = text.lines().count();
        let why = "the last line has no end: the answer was cut off";
        return Err(ExpositionError { line, why });
    }
    let mut samples = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let sample = sample(line).map_err(|why| ExpositionError { line: n + 1, why })?;
        samples.push(sample);
    }
    Ok(samples)
}

fn sample(line: &str) -> Result<Sample, &'static str> {
    let end = line
        .find(|c: char| !is_of_name(c))
        .ok_or("a name without a value")?;
    let (name, rest) = line.split_at(end);
    if !starts_name(name) {
        return Err("a name starts with a letter, `_` or `:`");
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    if !rest.starts_with([' ', '\t']) {
        return Err("a blank between name and value");
    }
    // An exemplar of OpenMetrics follows a `#`; it is no part of the sample.
    let rest = rest.split_once(" # ").map_or(rest, |(sample, _)| sample);
    let mut fields = rest.split_ascii_whitespace();
    let value = fields.next().ok_or("a name without a value")?;
    let value = number(value).ok_or("the value is not a number")?;
    if fields.next().is_some_and(|time| number(time).is_none()) {
        return Err("the time behind the value is not a number");
    }
    if fields.next().is_some() {
        return Err("more than a value and a time");
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The labels behind `{`, and what follows `}`.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), &'static str> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, behind) = rest.split_once('=').ok_or("a label without a value")?;
        let name = name.trim_matches([' ', '\t']);
        if !starts_name(name) || !name.chars().all(is_of_name) {
            return Err("a label's name has other characters than letters, digits and `_`");
        }
        let behind = behind.trim_start_matches([' ', '\t']);
        let behind = behind
            .strip_prefix('"')
            .ok_or("a label's value in quotes")?;
        let (value, behind) = quoted(behind)?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err("a label twice");
        }
        rest = behind.trim_start_matches([' ', '\t']);
        match rest.strip_prefix(',') {
            Some(behind) => rest = behind,
            None if rest.starts_with('}') => {}
            None => return Err("`,` or `}` behind a label"),
        }
    }
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err("an escape is one of \\\\, \\\" and \\n"),
            },
            c => value.push(c),
        }
    }
    Err("a label's value without its closing quote")
}

/// A number as Prometheus writes it.
pub(crate) fn number(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        // Rust also reads `inf`, `infinity` and `nan`, which are no numbers here.
        _ if text
            .chars()
            .all(|c| c.is_ascii_digit() || "+-.eE".contains(c)) =>
        {
            text.parse().ok()
        }
        _ => None,
    }
}

fn starts_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':')
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Result<Sample, &'static str> {
        match parse(&format!("{line}\n")) {
            Ok(samples) => Ok(samples.into_iter().next().unwrap()),
            Err(error) => Err(error.why),
        }
    }

    #[test]
    fn samples_have_names_labels_and_values() {
        let text = "# HELP a About a.\n# TYPE a counter\na 3\n\nb{x=\"1\",y=\"a \\\"b\\\" \\\\ \\n\",} 2.5e-3 1700000000000\n\
                    c_bucket{le=\"+Inf\"} 4 # {trace_id=\"t\"} 0.5\nd NaN\n# EOF\n";
        let samples = parse(text).unwrap();
        let values: Vec<_> = samples.iter().map(|s| (s.name.as_str(), s.value)).collect();
        assert_eq!(values[..3], [("a", 3.0), ("b", 0.0025), ("c_bucket", 4.0)]);
        assert!(samples[3].value.is_nan());
        assert_eq!(samples[1].labels["y"], "a \"b\" \\ \n");
        assert!(samples[1].has(&[("x", "1")]));
        assert!(!samples[1].has(&[("x", "2")]));
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (line, why) in [
            ("a", "a name without a value"),
            ("a ", "a name without a value"),
            ("1a 2", "a name starts with a letter, `_` or `:`"),
            ("a nan", "the value is not a number"),
            ("a infinity", "the value is not a number"),
            ("a 1 2 3", "more than a value and a time"),
            ("a 1 soon", "the time behind the value is not a number"),
            ("a{x=\"1\"}2", "a blank between name and value"),
            ("a{x=1} 2", "a label's value in quotes"),
            ("a{x=\"1\" y=\"2\"} 2", "`,` or `}` behind a label"),
            ("a{x=\"1} 2", "a label's value without its closing quote"),
            ("a{x=\"1\",x=\"2\"} 2", "a label twice"),
            ("a{x=\"\\t\"} 2", "an escape is one of \\\\, \\\" and \\n"),
            ("<html>", "a name starts with a letter, `_` or `:`"),
        ] {
            assert_eq!(one(line), Err(why), "{line}");
        }
        let error = parse("a 1\nb{ 2\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(parse("a 1\nb 2").unwrap_err().why.contains("cut off"));
    }

    proptest! {
        /// Whatever a server sends, there is an answer and no panic.
        #[test]
        fn nothing_makes_it_panic(text in "[a-z{}=\",\\\\#\n 0-9.+]{0,80}") {
            drop(parse(&text));
        }
    }
}
