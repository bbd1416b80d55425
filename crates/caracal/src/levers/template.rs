//! A file of settings in which every one is told, and none is set.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Group, Lever, text};

const HEAD: &str = "\
# Settings of Caracal, one NAME=value a line. All are at their defaults: remove the # before those that
# you want to set. Secrets are better given as NAME_FILE. `caracal config check` looks at them.
";

/// The file for these levers.
pub fn template(levers: &[Lever]) -> String {
    let mut file = HEAD.to_owned();
    let mut told = BTreeSet::new();
    let mut heading = String::new();
    // What all services have comes first, then what each has of its own.
    let own = |lever: &&Lever| lever.group == Group::Own;
    let common = levers.iter().filter(|lever| !own(lever));
    for lever in common.chain(levers.iter().filter(own)) {
        if !told.insert(lever.of.var.name) {
            continue;
        }
        let title = match lever.group {
            Group::Own => format!("{}, of its own", lever.role.name()),
            group => group.title(),
        };
        if title != heading {
            let _ = write!(file, "\n## {title}\n");
            heading = title;
        }
        file.push_str(&one(lever));
    }
    file
}

fn one(lever: &Lever) -> String {
    let var = lever.of.var;
    let mut facts = vec![text::kind(lever)];
    if let Some((least, greatest)) = lever.bounds() {
        facts.push(format!("{least} to {greatest}"));
    }
    facts.extend(lever.needed.iter().map(|when| format!("required {when}")));
    let name = if lever.has_file() {
        format!("{}_FILE", var.name)
    } else {
        var.name.to_owned()
    };
    // Of the table: what depends on the service is best left to it.
    let default = var.default.map(str::trim);
    let default = match (default, lever.has_file()) {
        (Some(default), false) => default,
        (_, true) => "/run/secrets/…",
        (None, false) => "",
    };
    format!(
        "\n# {}\n# {}\n#{name}={default}\n",
        lever.of.help,
        facts.join("; ")
    )
}
