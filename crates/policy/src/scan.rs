//! A scanner of Rego text: strings and comments apart from code, and where things stand.
//!
//! It decides what the parser cannot tell us in the codes of the wire (an unterminated string, an
//! unbalanced bracket), and it bounds what the parser is given: regorus reads a nested collection
//! literal again at each level, so its time doubles with every bracket; and it builds `1 + 1 + 1` as
//! a tree as deep as it is long, which whoever walks or drops it descends on the stack. A stack that
//! runs out ends the process, whatever is caught. What a document *means* is never decided here.

/// Deepest nesting of brackets that is given to the parser.
const MAX_DEPTH: u32 = 16;
/// Most parser work, in tokens weighted by 2 to the power of their depth. Two thousand granted
/// resources come to less than a million.
const MAX_WORK: u64 = 1 << 23;
/// Most signs and words that join operands, of one expression.
const MAX_JOINED: u32 = 64;

/// Where something stands; both numbers start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A name or a keyword.
    Word(&'a str),
    /// A string, quotes included.
    Text(&'a str),
    /// Anything else, one character each.
    Sign(char),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub kind: Kind<'a>,
    pub at: Place,
}

impl Token<'_> {
    pub(crate) fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }

    /// Whether this joins two operands: the expression goes on behind it, on another line as well.
    fn joins(&self) -> bool {
        const SIGNS: [char; 11] = ['+', '-', '*', '/', '%', '|', '&', '=', '<', '>', '!'];
        match self.kind {
            Kind::Sign(sign) => SIGNS.contains(&sign),
            Kind::Word(word) => matches!(word, "in" | "or"),
            Kind::Text(_) => false,
        }
    }
}

/// Why text cannot be scanned, or should not be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    UnterminatedString(Place),
    Unbalanced(Place),
    TooComplex(Place),
}

#[derive(Debug, Default)]
pub(crate) struct Scan<'a> {
    pub tokens: Vec<Token<'a>>,
    /// Comments without `#`, trimmed.
    pub comments: Vec<&'a str>,
}

struct Cursor<'a> {
    rest: &'a str,
    at: Place,
}

impl<'a> Cursor<'a> {
    /// Takes as many bytes as `length` says, which must end between two characters.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, ""));
        for character in taken.chars() {
            if character == '\n' {
                self.at = Place {
                    line: self.at.line.saturating_add(1),
                    column: 1,
                };
            } else {
                self.at.column = self.at.column.saturating_add(1);
            }
        }
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let length = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        self.take(length)
    }
}

/// The length of the string at the start of `text`; `None` when it does not end.
fn string_length(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next()?;
    let mut escaped = false;
    for (at, character) in characters {
        match character {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            '\n' if quote == '"' => return None,
            end if end == quote => return Some(at + end.len_utf8()),
            _ => {}
        }
    }
    None
}

const fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Splits text into tokens and comments.
pub(crate) fn scan(text: &str) -> Result<Scan<'_>, Fault> {
    let mut cursor = Cursor {
        rest: text,
        at: Place { line: 1, column: 1 },
    };
    let mut scan = Scan::default();
    loop {
        cursor.take_while(char::is_whitespace);
        let at = cursor.at;
        let Some(first) = cursor.rest.chars().next() else {
            break;
        };
        let kind = match first {
            '#' => {
                let comment = cursor.take_while(|c| c != '\n');
                scan.comments.push(comment.trim_start_matches('#').trim());
                continue;
            }
            '"' | '`' => {
                let length = string_length(cursor.rest);
                Kind::Text(cursor.take(length.ok_or(Fault::UnterminatedString(at))?))
            }
            _ if is_name(first) => Kind::Word(cursor.take_while(is_name)),
            _ => {
                cursor.take(first.len_utf8());
                Kind::Sign(first)
            }
        };
        scan.tokens.push(Token { kind, at });
    }
    Ok(scan)
}

impl Scan<'_> {
    /// Whether every bracket is closed by its own kind.
    pub(crate) fn check_balance(&self) -> Result<(), Fault> {
        let mut open = Vec::new();
        for token in &self.tokens {
            match token.kind {
                Kind::Sign('(') => open.push((')', token.at)),
                Kind::Sign('[') => open.push((']', token.at)),
                Kind::Sign('{') => open.push(('}', token.at)),
                Kind::Sign(close @ (')' | ']' | '}')) => match open.pop() {
                    Some((expected, _)) if expected == close => {}
                    _ => return Err(Fault::Unbalanced(token.at)),
                },
                _ => {}
            }
        }
        open.pop()
            .map_or(Ok(()), |(_, at)| Err(Fault::Unbalanced(at)))
    }

    /// Whether the parser can be given this text without holding up whoever waits for it.
    pub(crate) fn check_work(&self) -> Result<(), Fault> {
        self.check_expressions()?;
        let mut depth = 0u32;
        let mut work = 0u64;
        for token in &self.tokens {
            match token.kind {
                Kind::Sign('(' | '[' | '{') => depth = depth.saturating_add(1),
                Kind::Sign(')' | ']' | '}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(Fault::TooComplex(token.at));
            }
            work = work.saturating_add(1 << depth);
            if work > MAX_WORK {
                return Err(Fault::TooComplex(token.at));
            }
        }
        Ok(())
    }

    /// Whether no expression joins so much that its tree is deep. What stands in a bracket is an
    /// expression of its own, and the bracket an operand.
    fn check_expressions(&self) -> Result<(), Fault> {
        let mut joined = vec![0u32];
        let mut before: Option<&Token<'_>> = None;
        for token in &self.tokens {
            let joins = token.joins();
            let goes_on = before.is_some_and(|b| b.at.line == token.at.line || b.joins()) || joins;
            before = Some(token);
            let ends = !goes_on || token.is_sign(',') || token.is_sign(';');
            if let Some(count) = joined.last_mut().filter(|_| ends) {
                *count = 0;
            }
            match token.kind {
                Kind::Sign('(' | '[' | '{') => joined.push(0),
                Kind::Sign(')' | ']' | '}') => drop(joined.pop()),
                _ => {}
            }
            let Some(count) = joined.last_mut() else {
                // More is closed than was opened, which the balance reports.
                return Ok(());
            };
            *count = count.saturating_add(u32::from(joins));
            if *count > MAX_JOINED {
                return Err(Fault::TooComplex(token.at));
            }
        }
        Ok(())
    }

    /// Dotted names (`http.send`, `input.principal.id`). Names that follow a dot or stand in a
    /// string do not start one.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        let mut rest = self.tokens.as_slice();
        let mut after_dot = false;
        while let Some((token, after)) = rest.split_first() {
            rest = after;
            if let Kind::Word(first) = token.kind
                && !after_dot
            {
                let mut name = first.to_owned();
                while let [
                    dot,
                    Token {
                        kind: Kind::Word(next),
                        ..
                    },
                    after @ ..,
                ] = rest
                    && dot.is_sign('.')
                {
                    name.push('.');
                    name.push_str(next);
                    rest = after;
                }
                paths.push(Path { name, at: token.at });
            }
            after_dot = token.is_sign('.');
        }
        paths
    }
}

/// A dotted name.
#[derive(Debug)]
pub(crate) struct Path {
    pub name: String,
    pub at: Place,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let scanned = scan(text).unwrap();
        let word = |token: &Token<'_>| matches!(token.kind, Kind::Word(_));
        assert!(scanned.tokens.iter().any(word) || text.is_empty());
        let paths = scanned
            .tokens
            .into_iter()
            .filter_map(|token| match token.kind {
                Kind::Word(word) => Some(word),
                _ => None,
            });
        paths.collect()
    }

    #[test]
    fn strings_and_comments_hold_no_code() {
        let text = "a := \"b # \\\" c\" # d \"\ne := `f\n\\` g # `h";
        assert_eq!(words(text), ["a", "e", "g"]);
        assert_eq!(scan(text).unwrap().comments, ["d \"", "`h"]);
    }

    #[test]
    fn a_string_ends_where_it_should() {
        let fault = |text| scan(text).err();
        let at = |line, column| Some(Fault::UnterminatedString(Place { line, column }));
        assert_eq!(fault("a := \"b\nc\""), at(1, 6));
        assert_eq!(fault("a := 1\nb := `c"), at(2, 6));
        assert_eq!(fault("a := \"b\\\""), at(1, 6));
        assert_eq!(fault("a := `b\nc`"), None);
    }

    #[test]
    fn brackets_close_in_order() {
        let fault = |text| scan(text).unwrap().check_balance().err();
        let at = |line, column| Some(Fault::Unbalanced(Place { line, column }));
        assert_eq!(fault("a := {\"[\": (1)}"), None);
        assert_eq!(fault("a := [1}"), at(1, 8));
        assert_eq!(fault("a := {\n[1]"), at(1, 6));
        assert_eq!(fault("a := 1)"), at(1, 7));
    }

    #[test]
    fn nesting_is_bounded_because_the_parser_doubles_its_work_with_each_level() {
        let nested = |depth| format!("a := {}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(scan(&nested(16)).unwrap().check_work().is_ok());
        assert!(scan(&nested(17)).unwrap().check_work().is_err());
        let wide = format!("a := [[[[[[[[[[{}]]]]]]]]]]", "1,".repeat(5_000));
        assert!(scan(&wide).unwrap().check_work().is_err());
    }

    #[test]
    fn what_one_expression_joins_is_bounded_because_its_tree_is_as_deep() {
        let works = |text: &str| scan(text).unwrap().check_work().is_ok();
        for operator in [
            "+", "-", "*", "/", "%", "|", "&", "<", ">", " in ", "\n+\n", "+\n\n", " # c\n+",
        ] {
            let chain = |times: usize| format!("a := 1{}", format!("{operator}1").repeat(times));
            assert!(works(&chain(60)), "{operator}");
            assert!(!works(&chain(64)), "{operator}");
            assert!(!works(&format!("a := [{}]", chain(70))), "{operator}");
        }
        let brackets = format!("a := {{1, 2}}{}", "|{1, 2}".repeat(70));
        assert!(!works(&brackets), "operands may hold commas");
        for many in [
            "a := 1\n",
            "a == 1; ",
            "[1 + 1, 2]\n",
            "x in y\n",
            "[a, b] := c\n",
        ] {
            assert!(works(&many.repeat(1_000)), "{many}");
        }
        assert!(works(&format!("a := [{}]", "1 - 1, ".repeat(1_000))));
    }

    #[test]
    fn dotted_names_are_read_as_one() {
        let text = "a := http . send(input.x[\"y\"].z) + data.a.b";
        let scanned = scan(text).unwrap();
        let names: Vec<_> = scanned.paths().into_iter().map(|path| path.name).collect();
        assert_eq!(names, ["a", "http.send", "input.x", "data.a.b"]);
    }
}
