//! The levers for people, on a terminal.

use std::fmt::Write as _;

use super::{Group, Lever, UNUSED};
use crate::config::Environment;
use crate::roles::Role;
use crate::term;

/// The levers of one service, with what is set.
pub fn service(role: Role, levers: &[Lever], environment: &Environment) -> String {
    let mut text = format!("{}\n", term::bold(role.name()));
    let mut group = None;
    for lever in levers {
        if group.replace(lever.group) != Some(lever.group) && lever.group != Group::Own {
            text.push_str(&format!("\n{}\n", term::bold(&lever.group.title())));
        }
        text.push_str(&one(lever, environment));
    }
    text
}

/// What moves nothing, for these roles.
pub fn unused(roles: &[Role]) -> String {
    let mut text = format!(
        "\n{}\n",
        term::bold("Set elsewhere, and moving nothing here")
    );
    let meant =
        |services: &str| services == "all" || roles.iter().any(|role| services == role.name());
    for unused in UNUSED.iter().filter(|unused| meant(unused.services)) {
        let _ = writeln!(text, "  {}  {}", unused.name, term::dim(unused.why));
    }
    text
}

fn one(lever: &Lever, environment: &Environment) -> String {
    let var = lever.of.var;
    let mut facts = vec![kind(lever)];
    if let Some((least, greatest)) = lever.bounds() {
        facts.push(format!("{least} to {greatest}"));
    }
    match (&lever.default, lever.of.required, &lever.needed) {
        (Some(default), _, _) => facts.push(format!("default {default}")),
        (None, true, _) => facts.push("required".to_owned()),
        (None, false, Some(needed)) => facts.push(format!("required {needed}")),
        (None, false, None) => {}
    }
    if let Some(other) = lever.of.other() {
        facts.push(format!("also {}", other.name));
    }
    if lever.has_file() {
        facts.push(format!("also {}_FILE", var.name));
    }
    let mut text = format!("  {}  {}\n", var.name, term::dim(&facts.join("; ")));
    if let Some(value) = environment.get(var.name) {
        let value = if var.is_shown() { value } else { "set" };
        let _ = writeln!(text, "      {}", term::green(&format!("= {value}")));
    }
    let _ = writeln!(text, "      {}", lever.of.help);
    text
}

/// The type, with its unit or its only values.
pub fn kind(lever: &Lever) -> String {
    match (lever.of.choices, lever.of.unit()) {
        ([], None) => lever.of.kind.to_owned(),
        ([], Some(unit)) => format!("{}, {unit}", lever.of.kind),
        (choices, _) => choices.join(", "),
    }
}
