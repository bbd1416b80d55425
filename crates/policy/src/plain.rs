//! Which rules the bytecode path may answer.
//!
//! **Forces.** The bytecode machine is several times faster than the interpreter, and forgives what
//! the interpreter reports: when a built-in fails inside a rule, or two bodies of a rule contradict
//! each other, its answer is "undefined" and no error. For us that is the wrong direction: an
//! undefined `restrict` restricts nothing, an undefined `risk` asks for no approval.
//!
//! **Choice.** A rule goes to the machine only when nothing in it can fail and it can have one value
//! only: comparisons for equality, membership, loops over collections, literals, references into
//! the question, and the few built-ins whose arguments the schema of the question types. Everything
//! else goes to the interpreter, which is counted.
//!
//! **Consequence.** INVARIANT (plain): on a plain rule machine and interpreter agree. A property
//! test asks both.

use std::collections::HashMap;

use regorus::unstable::{AssignOp, BoolOp, Expr, Literal, Query, Ref, Rule, RuleHead};

use crate::ast::{path, text};

/// What is known of a value without the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Texts,
    /// Written out, or a comprehension.
    Collection,
    Number,
    Other,
}

/// Members of the question that are text.
const TEXTS: [&str; 22] = [
    "input.schema_version",
    "input.principal.type",
    "input.principal.id",
    "input.principal.zone_id",
    "input.principal.registration_method",
    "input.principal.agent_session_id",
    "input.principal.lifecycle",
    "input.resource.type",
    "input.resource.id",
    "input.resource.identifier",
    "input.action.id",
    "input.action.method",
    "input.action.path",
    "input.session.id",
    "input.delegation_edge.id",
    "input.delegation_edge.source_session_id",
    "input.delegation_edge.target_session_id",
    "input.delegation_edge.issuer_application_id",
    "input.delegation_edge.receiver_application_id",
    "input.context.trace_id",
    "input.context.agent_session_id",
    "input.context.delegation_edge_id",
];
/// Members of the question that are lists of text.
const LISTS: [&str; 5] = [
    "input.principal.labels",
    "input.resource.scopes",
    "input.delegation_edge.scopes",
    "input.delegation_edge.path",
    "input.context.requested_scopes",
];

/// Most variables of one rule that goes to the machine: each comprehension takes a copy of them.
const MAX_BOUND: usize = 64;

/// Variables that are bound, and to what.
#[derive(Clone, Default)]
struct Known<'a> {
    variables: HashMap<&'a str, Kind>,
    /// Whether this is a condition. The machine does not get out of some comprehensions there, so
    /// they are plain in the value of a rule only.
    in_condition: bool,
}

/// Whether the machine answers this rule as the interpreter does.
pub(crate) fn is_plain(rule: &Rule) -> bool {
    checked(rule).is_some()
}

/// `None` as soon as anything is not plain.
fn checked(rule: &Rule) -> Option<()> {
    match rule {
        Rule::Default { args, value, .. } => {
            let literal = args.is_empty() && value_kind(value, &Known::default()).is_some();
            literal.then_some(())
        }
        Rule::Spec { head, bodies, .. } => {
            let body = match bodies.as_slice() {
                [] => None,
                [body] if body.assign.is_none() && !body.is_else => Some(&body.query),
                _ => return None,
            };
            let known = match body {
                Some(query) => query_binds(query, Known::default())?,
                None => Known::default(),
            };
            match head {
                RuleHead::Compr { refr, assign, .. } => {
                    named(refr)?;
                    // One value only: it must not depend on what a loop is at.
                    let value = assign.as_ref().map(|assign| &assign.value);
                    value.map_or(Some(()), |value| {
                        value_kind(value, &Known::default()).map(drop)
                    })
                }
                RuleHead::Set { refr, key, .. } => {
                    named(refr)?;
                    value_kind(key.as_ref()?, &known).map(drop)
                }
                RuleHead::Func { .. } => None,
            }
        }
    }
}

/// The name of a rule or variable without path.
fn named(expr: &Ref<Expr>) -> Option<&str> {
    match &**expr {
        Expr::Var { span, .. } => Some(span.text()),
        _ => None,
    }
}

fn query_binds<'a>(query: &'a Ref<Query>, mut known: Known<'a>) -> Option<Known<'a>> {
    known.in_condition = true;
    for statement in &query.stmts {
        if !statement.with_mods.is_empty() {
            return None;
        }
        match &statement.literal {
            Literal::SomeIn {
                key: None,
                value,
                collection,
                ..
            } => {
                let item = item_kind(value_kind(collection, &known)?)?;
                bind(&mut known, named(value)?, item)?;
            }
            Literal::Expr { expr, .. } => match &**expr {
                Expr::AssignExpr {
                    op: AssignOp::ColEq,
                    lhs,
                    rhs,
                    ..
                } => {
                    let kind = value_kind(rhs, &known)?;
                    bind(&mut known, named(lhs)?, kind)?;
                }
                _ => condition(expr, &known)?,
            },
            Literal::NotExpr { expr, .. } => condition(expr, &known)?,
            Literal::SomeIn { .. } | Literal::SomeVars { .. } | Literal::Every { .. } => {
                return None;
            }
        }
    }
    known.in_condition = false;
    Some(known)
}

/// What kind the items of a collection are; `None` for what may not be one.
const fn item_kind(collection: Kind) -> Option<Kind> {
    match collection {
        Kind::Texts => Some(Kind::Text),
        Kind::Collection => Some(Kind::Other),
        Kind::Text | Kind::Number | Kind::Other => None,
    }
}

/// A name that is bound twice, or has a meaning already, is not plain.
fn bind<'a>(known: &mut Known<'a>, name: &'a str, kind: Kind) -> Option<()> {
    let free = name != "_" && name != "input" && name != "data";
    let few = known.variables.len() < MAX_BOUND;
    let fresh = free && few && !known.variables.contains_key(name);
    fresh.then(|| known.variables.insert(name, kind)).map(drop)
}

fn condition(expr: &Ref<Expr>, known: &Known<'_>) -> Option<()> {
    match &**expr {
        Expr::BoolExpr { op, lhs, rhs, .. } => {
            let kinds = (value_kind(lhs, known)?, value_kind(rhs, known)?);
            let ordered = !matches!(op, BoolOp::Eq | BoolOp::Ne);
            (!ordered || kinds == (Kind::Number, Kind::Number)).then_some(())
        }
        Expr::Membership {
            key: None,
            value,
            collection,
            ..
        } => {
            value_kind(value, known)?;
            item_kind(value_kind(collection, known)?).map(drop)
        }
        Expr::Call { fcn, params, .. } => {
            let texts = params
                .iter()
                .all(|param| value_kind(param, known) == Some(Kind::Text));
            let total = matches!(named(fcn)?, "startswith" | "endswith" | "contains");
            (total && texts && params.len() == 2).then_some(())
        }
        _ => value_kind(expr, known).map(drop),
    }
}

/// What kind of value an expression has; `None` when it is not plain.
fn value_kind(expr: &Ref<Expr>, known: &Known<'_>) -> Option<Kind> {
    match &**expr {
        Expr::String { .. } | Expr::RawString { .. } => Some(Kind::Text),
        Expr::Number { .. } => Some(Kind::Number),
        Expr::Bool { .. } | Expr::Null { .. } => Some(Kind::Other),
        Expr::Var { span, .. } => match span.text() {
            "input" => Some(Kind::Other),
            name => known.variables.get(name).copied(),
        },
        Expr::RefDot { .. } | Expr::RefBrack { .. } => reference(expr),
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            let all = items.iter().all(|item| value_kind(item, known).is_some());
            all.then_some(Kind::Collection)
        }
        Expr::Object { fields, .. } => {
            let mut names = Vec::with_capacity(fields.len());
            for (_, name, value) in fields {
                names.push(text(name)?);
                value_kind(value, known)?;
            }
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            (names.len() == count).then_some(Kind::Other)
        }
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
            if known.in_condition {
                return None;
            }
            let known = query_binds(query, known.clone())?;
            value_kind(term, &known).map(|_| Kind::Collection)
        }
        Expr::Call { fcn, params, .. } => {
            let [list] = params.as_slice() else {
                return None;
            };
            let counts = named(fcn)? == "count" && value_kind(list, known)? == Kind::Texts;
            counts.then_some(Kind::Number)
        }
        _ => None,
    }
}

/// A path into the question whose every part is written out.
fn reference(expr: &Ref<Expr>) -> Option<Kind> {
    let mut at = expr;
    while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = &**at {
        if let Expr::RefBrack { index, .. } = &**at {
            text(index)?;
        }
        at = refr;
    }
    (named(at)? == "input").then_some(())?;
    let (name, _) = path(expr)?;
    Some(match name.as_str() {
        name if TEXTS.contains(&name) => Kind::Text,
        name if LISTS.contains(&name) => Kind::Texts,
        _ => Kind::Other,
    })
}
