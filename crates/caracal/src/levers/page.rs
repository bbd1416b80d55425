//! The reference page, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Group, Lever, UNUSED, text};
use crate::roles::Role;

const HEAD: &str = "\
# Configuration

Made from the tables that the services read, by `caracal config explain --markdown`: change them, not
this page.

A setting comes from the environment of the process, else from the file that `CARACAL_ENV_FILE` names,
else from `caracal.env` in the data directory; the first that has it counts, and an empty value is no
value. `NAME_FILE` gives any secret by file; `NAME` wins over it. Durations are written `250ms`, `5s`,
`1m30s`; where a name says its unit, a plain number is meant. What is yes or no is written as 1/0, t/f,
true/false, yes/no or on/off. A setting with two names may be set under either; two values that differ
are a mistake.

A value that cannot be used keeps a process from starting, and every mistake is told at once.
`caracal config check` tells them without starting anything. Every replica of a service must have the
same values.
";

/// A setting, and the services that have it.
struct Shared<'l> {
    lever: &'l Lever,
    roles: Vec<Role>,
    defaults: Vec<Option<&'l str>>,
}

/// The page about these levers.
pub fn page(levers: &[Lever]) -> String {
    let mut page = HEAD.to_owned();
    for role in Role::ALL {
        let own: Vec<_> = levers
            .iter()
            .filter(|lever| lever.role == role && lever.group == Group::Own)
            .collect();
        if !own.is_empty() {
            let _ = write!(page, "\n## {}\n\n", title(role));
            page.push_str(&table(&shared(&own), &[role]));
        }
    }
    let common: Vec<_> = levers
        .iter()
        .filter(|lever| lever.group != Group::Own)
        .collect();
    let mut groups: BTreeMap<Group, Vec<&Lever>> = BTreeMap::new();
    for lever in common {
        groups.entry(lever.group).or_default().push(lever);
    }
    let told: Vec<Role> = Role::ALL
        .into_iter()
        .filter(|role| levers.iter().any(|lever| lever.role == *role))
        .collect();
    for (group, levers) in groups {
        let _ = write!(page, "\n## {}\n\n", group.title());
        page.push_str(&table(&shared(&levers), &told));
    }
    page.push_str(
        "\n## Set elsewhere, and moving nothing here\n\nA start with one of these set warns of it.\n\n\
         | Setting | Why |\n| --- | --- |\n",
    );
    for unused in UNUSED {
        let _ = writeln!(page, "| `{}` | {} |", unused.name, unused.why);
    }
    page
}

fn title(role: Role) -> &'static str {
    match role {
        Role::Api => "API",
        Role::Sts => "STS",
        Role::Gateway => "Gateway",
        Role::Coordinator => "Coordinator",
        Role::Audit => "Audit",
    }
}

/// Each setting once, in the order in which they are declared.
fn shared<'l>(levers: &[&'l Lever]) -> Vec<Shared<'l>> {
    let mut all: Vec<Shared<'l>> = Vec::new();
    for lever in levers {
        let name = lever.of.var.name;
        let told = all.iter_mut().find(|one| one.lever.of.var.name == name);
        let default = lever.default.as_deref();
        match told {
            Some(one) => {
                one.roles.push(lever.role);
                one.defaults.push(default);
            }
            None => all.push(Shared {
                lever,
                roles: vec![lever.role],
                defaults: vec![default],
            }),
        }
    }
    all
}

/// The rows, with the services where not all of `told` have the setting.
fn table(settings: &[Shared<'_>], told: &[Role]) -> String {
    let mut table =
        String::from("| Setting | Value | Default | What |\n| --- | --- | --- | --- |\n");
    for one in settings {
        let lever = one.lever;
        let var = lever.of.var;
        let mut names = format!("`{}`", var.name);
        if let Some(other) = lever.of.other() {
            let _ = write!(names, ", `{}`", other.name);
            if !other.same_unit
                && let Some(unit) = other.unit
            {
                let _ = write!(names, " ({unit})");
            }
        }
        let mut value = text::kind(lever);
        if !var.is_shown() {
            value.push_str(", secret");
        }
        if let Some((least, greatest)) = lever.bounds() {
            let _ = write!(value, ", {least} to {greatest}");
        }
        let mut help = lever.of.help.to_owned();
        if one.roles.len() < told.len() {
            let roles: Vec<_> = one.roles.iter().map(|role| title(*role)).collect();
            let _ = write!(help, " ({})", roles.join(", "));
        }
        let default = default(one);
        let _ = writeln!(
            table,
            "| {names} | {value} | {default} | {} |",
            escaped(&help)
        );
    }
    table
}

fn default(one: &Shared<'_>) -> String {
    let first = one.defaults.first().copied().flatten();
    if one.defaults.iter().any(|default| *default != first) {
        let each = one.roles.iter().zip(&one.defaults);
        let each =
            each.map(|(role, default)| format!("{} {}", title(*role), default.unwrap_or("none")));
        return each.collect::<Vec<_>>().join(", ");
    }
    let lever = one.lever;
    match (first, lever.of.required, &lever.needed) {
        (Some(default), _, _) => format!("`{default}`"),
        (None, true, _) => "required".to_owned(),
        (None, false, Some(needed)) => format!("required {needed}"),
        (None, false, None) => String::new(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
