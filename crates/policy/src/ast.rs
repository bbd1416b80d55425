//! What a parsed document says, read from the parser's tree: the heads of its rules, the names that
//! it mentions, and what its rules depend on.
//!
//! **Forces.** Text can be laid out to hide a rule or a call (`numbers["range"](1, 9)`); the tree
//! cannot. The tree of a hostile document may be deep.
//!
//! **Choice.** Everything is walked with a stack of our own, never by recursion.

use regorus::unstable::{Expr, Literal, Module, Query, Ref, Rule, RuleHead};

use crate::scan::Place;

/// What stands before the value of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its name, or the first part of its path.
    pub name: String,
    /// Whether it takes arguments.
    pub is_function: bool,
    /// Whether it is a default.
    pub is_default: bool,
    /// Whether it adds a member to a set; otherwise it says what the value is.
    pub is_part: bool,
    /// Where it stands.
    pub at: Place,
    /// Whether its value depends on the question, or on chance.
    pub is_dynamic: bool,
    /// Whether the bytecode path answers it as the interpreter does.
    pub is_plain: bool,
}

/// A name as it is used: `input.principal.id`, `http.send`, up to its first part that is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    pub name: String,
    pub at: Place,
    /// Whether it is called, and with what.
    pub call: Option<Vec<Argument>>,
}

impl Mention {
    /// Whether the name starts with this word.
    pub(crate) fn starts_at(&self, word: &str) -> bool {
        self.name.split('.').next() == Some(word)
    }
}

/// An argument of a call: its text when it is a literal string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Argument(pub Option<String>);

/// A document as its tree has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    pub heads: Vec<Head>,
    pub mentions: Vec<Mention>,
    /// Whether a rule reads another root, or `data`: then no root can be answered on its own.
    pub is_entangled: bool,
}

/// Reads a module; `roots` are the names that documents may define.
pub(crate) fn read(module: &Module, roots: &[&str]) -> Reading {
    let mut reading = Reading::default();
    // An import gives `input` or `data` another name, which is not followed: the document counts
    // as dynamic and entangled.
    let imports: Vec<Mention> = module
        .imports
        .iter()
        .flat_map(|import| mentions_in(vec![Work::Expr(&import.refr)]))
        .filter(|mention| mention.starts_at("input") || mention.starts_at("data"))
        .collect();
    reading.is_entangled = !imports.is_empty();
    for rule in &module.policy {
        let mentions = mentions_in(rule_parts(rule));
        let is_dynamic = !imports.is_empty() || mentions.iter().any(is_dynamic);
        let mut head = head(rule);
        head.is_dynamic = is_dynamic;
        head.is_plain = imports.is_empty() && crate::plain::is_plain(rule);
        reading.is_entangled |= mentions.iter().any(|mention| {
            mention.starts_at("data") || roots.iter().any(|root| mention.starts_at(root))
        });
        reading.heads.push(head);
        reading.mentions.extend(mentions);
    }
    reading.mentions.extend(imports);
    reading
}

fn is_dynamic(mention: &Mention) -> bool {
    mention.starts_at("input") || mention.starts_at("uuid")
}

fn place(span: &regorus::unstable::Span) -> Place {
    Place {
        line: span.line,
        column: span.col,
    }
}

fn head(rule: &Rule) -> Head {
    let (refr, is_function, is_default) = match rule {
        Rule::Default { refr, args, .. } => (refr, !args.is_empty(), true),
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. } => (refr, false, false),
            RuleHead::Func { refr, .. } => (refr, true, false),
        },
    };
    let name = path(refr).map_or_else(String::new, |(name, _)| name);
    Head {
        // No root is called so: a rule whose name cannot be read is refused.
        name: name
            .split('.')
            .next()
            .filter(|n| !n.is_empty())
            .unwrap_or("?")
            .to_owned(),
        is_function,
        is_default,
        is_part: matches!(
            rule,
            Rule::Spec {
                head: RuleHead::Set { .. },
                ..
            }
        ),
        at: place(rule.span()),
        is_dynamic: true,
        is_plain: false,
    }
}

/// A part of the tree that is still to be walked.
enum Work<'a> {
    Expr(&'a Ref<Expr>),
    Query(&'a Ref<Query>),
}

/// Everything in a rule but the name in its head.
fn rule_parts(rule: &Rule) -> Vec<Work<'_>> {
    let mut work = Vec::new();
    match rule {
        Rule::Default {
            refr, args, value, ..
        } => {
            indices(refr, &mut work);
            work.extend(args.iter().map(Work::Expr));
            work.push(Work::Expr(value));
        }
        Rule::Spec { head, bodies, .. } => {
            let (refr, assign) = match head {
                RuleHead::Compr { refr, assign, .. } => (refr, assign.as_ref()),
                RuleHead::Set { refr, key, .. } => {
                    work.extend(key.iter().map(Work::Expr));
                    (refr, None)
                }
                RuleHead::Func {
                    refr, args, assign, ..
                } => {
                    work.extend(args.iter().map(Work::Expr));
                    (refr, assign.as_ref())
                }
            };
            indices(refr, &mut work);
            work.extend(assign.map(|assign| Work::Expr(&assign.value)));
            for body in bodies {
                work.extend(body.assign.as_ref().map(|assign| Work::Expr(&assign.value)));
                work.push(Work::Query(&body.query));
            }
        }
    }
    work
}

/// What stands in brackets along a reference.
fn indices<'a>(reference: &'a Ref<Expr>, work: &mut Vec<Work<'a>>) {
    let mut at = reference;
    loop {
        match &**at {
            Expr::RefDot { refr, .. } => at = refr,
            Expr::RefBrack { refr, index, .. } => {
                work.push(Work::Expr(index));
                at = refr;
            }
            _ => return,
        }
    }
}

/// The dotted name of a reference up to its first computed part, and the expression at its start.
pub(crate) fn path(reference: &Ref<Expr>) -> Option<(String, &Ref<Expr>)> {
    let mut parts: Vec<Option<&str>> = Vec::new();
    let mut at = reference;
    loop {
        match &**at {
            Expr::RefDot { refr, field, .. } => {
                parts.push(Some(field.0.text()));
                at = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                parts.push(text(index));
                at = refr;
            }
            Expr::Var { span, .. } => {
                parts.push(Some(span.text()));
                break;
            }
            _ => return None,
        }
    }
    let name: Vec<&str> = parts.into_iter().rev().map_while(|part| part).collect();
    Some((name.join("."), at))
}

/// The text of a literal string.
pub(crate) fn text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::String { value, .. } | Expr::RawString { value, .. } => {
            value.as_string().ok().map(|text| &**text)
        }
        _ => None,
    }
}

fn mentions_in(mut work: Vec<Work<'_>>) -> Vec<Mention> {
    let mut found = Vec::new();
    while let Some(part) = work.pop() {
        match part {
            Work::Query(query) => statements(query, &mut work),
            Work::Expr(expr) => expression(expr, &mut work, &mut found),
        }
    }
    // The stack yields the last part first; whoever reads a message wants the first mistake.
    found.sort_by_key(|mention: &Mention| (mention.at.line, mention.at.column));
    found
}

fn statements<'a>(query: &'a Ref<Query>, work: &mut Vec<Work<'a>>) {
    for statement in &query.stmts {
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                work.extend(key.iter().map(Work::Expr));
                work.extend([value, collection].map(Work::Expr));
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                work.push(Work::Expr(expr));
            }
            Literal::Every { domain, query, .. } => {
                work.push(Work::Expr(domain));
                work.push(Work::Query(query));
            }
        }
        for modifier in &statement.with_mods {
            work.extend([&modifier.refr, &modifier.r#as].map(Work::Expr));
        }
    }
}

fn expression<'a>(expr: &'a Ref<Expr>, work: &mut Vec<Work<'a>>, found: &mut Vec<Mention>) {
    match &**expr {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. } => {}
        Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
            reference(expr, None, work, found);
        }
        Expr::Call { fcn, params, .. } => {
            let argument = |param: &Ref<Expr>| Argument(text(param).map(str::to_owned));
            let arguments = params.iter().map(argument).collect();
            reference(fcn, Some(arguments), work, found);
            work.extend(params.iter().map(Work::Expr));
        }
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            work.extend(items.iter().map(Work::Expr));
        }
        Expr::Object { fields, .. } => {
            for (_, key, value) in fields {
                work.extend([key, value].map(Work::Expr));
            }
        }
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
            work.push(Work::Expr(term));
            work.push(Work::Query(query));
        }
        Expr::ObjectCompr {
            key, value, query, ..
        } => {
            work.extend([key, value].map(Work::Expr));
            work.push(Work::Query(query));
        }
        Expr::UnaryExpr { expr, .. } => work.push(Work::Expr(expr)),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => work.extend([lhs, rhs].map(Work::Expr)),
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => {
            work.extend(key.iter().map(Work::Expr));
            work.extend([value, collection].map(Work::Expr));
        }
    }
}

fn reference<'a>(
    expr: &'a Ref<Expr>,
    call: Option<Vec<Argument>>,
    work: &mut Vec<Work<'a>>,
    found: &mut Vec<Mention>,
) {
    indices(expr, work);
    match path(expr) {
        Some((name, start)) => found.push(Mention {
            name,
            at: place(start.span()),
            call,
        }),
        // `[1, 2][0]`, `{"a": input}.a`: what it starts from is walked as any expression.
        None => {
            let mut at = expr;
            while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = &**at {
                at = refr;
            }
            if !std::ptr::eq(&**at, &**expr) {
                work.push(Work::Expr(at));
            }
        }
    }
}
