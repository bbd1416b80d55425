//! Where settings come from, in order: the process's environment, `CARACAL_ENV_FILE`, then
//! `caracal.env` in the data directory (operations specification §12). A `.env` in the working
//! directory is never read: whoever can write there must not configure an authorization server.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use caracal_net::settings::{Mistakes, Strings};

/// Settings by name. An empty value is no value.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process's environment, and the file that `CARACAL_ENV_FILE` names.
    pub fn of_process() -> anyhow::Result<Self> {
        let mut environment = Self::default();
        for (name, value) in std::env::vars_os() {
            // A name or value that is not UTF-8 is none of ours.
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                environment.offer(name, value);
            }
        }
        if let Some(file) = environment.get("CARACAL_ENV_FILE").map(str::to_owned) {
            environment.offer_file(Path::new(&file))?;
        }
        Ok(environment)
    }

    #[cfg(test)]
    pub fn of_pairs(pairs: &[(&str, &str)]) -> Self {
        let mut environment = Self::default();
        for (name, value) in pairs {
            environment.offer((*name).to_owned(), (*value).to_owned());
        }
        environment
    }

    /// The value of a setting, if it has one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Every name that is set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Sets what is not set yet.
    pub fn offer(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.entry(name.into()).or_insert(value);
        }
    }

    /// Sets what is not set yet from a file of `NAME=value` lines.
    pub fn offer_file(&mut self, file: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{} cannot be read", file.display()))?;
        for (name, value) in parse(&text).with_context(|| format!("in {}", file.display()))? {
            self.offer(name, value);
        }
        Ok(())
    }
}

impl Strings for Environment {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

/// Loads settings, and tells every mistake at once; a setting that several parts miss is told of
/// once.
pub fn load<T>(
    environment: &Environment,
    with: impl FnOnce(&dyn Strings, &mut Mistakes) -> Option<T>,
) -> anyhow::Result<T> {
    let mut mistakes = Mistakes::default();
    let loaded = with(environment, &mut mistakes);
    match loaded {
        Some(loaded) if mistakes.is_empty() => Ok(loaded),
        _ => bail!(complaint(&mistakes)),
    }
}

/// Every mistake, each setting once.
pub fn complaint(mistakes: &Mistakes) -> String {
    let told = told(mistakes).into_iter();
    let told: Vec<_> = told.map(|(name, why)| format!("{name}: {why}")).collect();
    format!("these settings need a look:\n{}", told.join("\n"))
}

/// What is wrong with each setting; what several parts miss is told of once.
pub fn told(mistakes: &Mistakes) -> BTreeMap<&str, &str> {
    let each = mistakes.iter();
    each.map(|one| (one.name.as_str(), one.why.as_str()))
        .collect()
}

/// `NAME=value` lines; blank lines, `#` comments and one pair of quotes around a value are allowed.
fn parse(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            bail!("line {} is not NAME=value", n + 1);
        };
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            bail!("line {} has no valid name before `=`", n + 1);
        }
        let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_pairs_comments_and_quotes() {
        let text = "# a comment\n\nA=1\n export B = \"two words\" \nC='3'\nD=\n";
        let pairs = parse(text).unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "3"), ("D", "")];
        assert_eq!(
            pairs,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn mistakes_are_named_by_line_and_never_quoted() {
        let error = parse("A=1\ncs_secret-without-a-name")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "line 2 is not NAME=value");
    }

    #[test]
    fn the_process_wins_over_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=file\nB=file\n").unwrap();
        let mut environment = Environment::of_pairs(&[("A", "process"), ("B", "")]);
        environment.offer_file(file.path()).unwrap();
        assert_eq!(environment.get("A"), Some("process"));
        assert_eq!(
            environment.get("B"),
            Some("file"),
            "an empty value is no value"
        );
    }
}
