//! Regular expressions: PostgreSQL's advanced ones (`regex/regcomp.c`, `regc_lex.c`) matched by the `regex` crate.
//!
//! In comes a pattern, out goes one that the crate matches with the same meaning, or an error: 2201B for what
//! PostgreSQL refuses, 0A000 for what can't be carried over (back references, lookaround, collating elements). Only
//! whether a text matches is asked, so that the longest match and the first are the same.

use super::Answer;
use super::alphabetic::ALPHABETIC;
use super::letters::{lower, upper};
use crate::sqlite::error::raise;
use crate::sqlite::value;
use proto::{SqlState, ValueRef, WireError};
use regex::{Regex, RegexBuilder};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value as Out;
use std::iter::Peekable;
use std::str::Chars;

pub(super) fn register(connection: &Connection, flags: FunctionFlags) -> rusqlite::Result<()> {
    for (name, insensitive) in [("pg_regex", false), ("pg_iregex", true)] {
        connection.create_scalar_function(name, 2, flags, move |context| {
            let arg = |i: usize| value::value_ref(context.get_raw(i)).map_err(raise);
            let (ValueRef::Text(text), ValueRef::Text(pattern)) = (arg(0)?, arg(1)?) else {
                return Ok(Out::Null);
            };
            // SQLite keeps it with the statement while the pattern is constant.
            let compiled = match context.get_aux::<Compiled>(1)? {
                Some(compiled) => compiled,
                None => context.set_aux(1, Compiled::new(pattern, insensitive).map_err(raise)?)?,
            };
            compiled.matches(text).map(|found| Out::Integer(found.into())).map_err(raise)
        })?;
    }
    Ok(())
}

struct Compiled {
    regex: Regex,
    /// It names a class whose members beyond ASCII aren't known here.
    ascii_only: bool,
}

impl Compiled {
    fn new(pattern: &str, insensitive: bool) -> Answer<Self> {
        let (pattern, ascii_only) = translate(pattern, insensitive)?;
        let regex = RegexBuilder::new(&pattern).build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "regular expression is too complex")
            }
            _ => WireError::unsupported("this regular expression"),
        })?;
        Ok(Compiled { regex, ascii_only })
    }

    fn matches(&self, text: &str) -> Answer<bool> {
        if self.ascii_only && !text.is_ascii() {
            return Err(WireError::unsupported(
                "a word boundary or a class such as [[:upper:]] in a regular expression over text beyond ASCII",
            ));
        }
        Ok(self.regex.is_match(text))
    }
}

fn invalid(what: &str) -> WireError {
    WireError::new(SqlState::INVALID_REGULAR_EXPRESSION, format!("invalid regular expression: {what}"))
}

fn refused(what: &str) -> WireError {
    WireError::unsupported(format!("{what} in a regular expression"))
}

/// The pattern for the `regex` crate, and whether it holds for ASCII texts only.
fn translate(pattern: &str, insensitive: bool) -> Answer<(String, bool)> {
    let mut parser = Parser {
        rest: pattern.chars().peekable(),
        out: String::new(),
        insensitive,
        ascii_only: false,
        depth: 0,
    };
    if let Some(literal) = pattern.strip_prefix("***=") {
        literal.chars().for_each(|c| parser.literal(c));
        return Ok((parser.out, false));
    }
    if let Some(advanced) = pattern.strip_prefix("***:") {
        parser.rest = advanced.chars().peekable();
    } else if pattern.starts_with("***") {
        return Err(invalid("quantifier operand invalid"));
    }
    parser.options()?;
    parser.alternatives()?;
    match parser.rest.next() {
        None => Ok((parser.out, parser.ascii_only)),
        Some(_) => Err(invalid("parentheses () not balanced")),
    }
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
    insensitive: bool,
    ascii_only: bool,
    depth: usize,
}

/// What was just read, as to whether a quantifier may follow.
enum Atom {
    Quantifiable,
    Constraint,
}

/// What an escape stands for.
enum Escape {
    Literal(char),
    Class(Vec<(char, char)>, bool),
    Constraint(&'static str, bool),
}

const DIGITS: &[(char, char)] = &[('0', '9')];
const SPACES: &[(char, char)] = &[
    ('\t', '\r'),
    (' ', ' '),
    ('\u{1680}', '\u{1680}'),
    ('\u{2000}', '\u{2006}'),
    ('\u{2008}', '\u{200a}'),
    ('\u{2028}', '\u{2029}'),
    ('\u{205f}', '\u{205f}'),
    ('\u{3000}', '\u{3000}'),
];

impl Parser<'_> {
    /// `(?i)` and its like, at the beginning.
    fn options(&mut self) -> Answer<()> {
        let mut ahead = self.rest.clone();
        if (ahead.next(), ahead.next()) != (Some('('), Some('?'))
            || !ahead.peek().is_some_and(char::is_ascii_alphabetic)
        {
            return Ok(());
        }
        self.rest = ahead;
        loop {
            match self.rest.next() {
                Some(')') => return Ok(()),
                Some('i') => self.insensitive = true,
                Some('c') => self.insensitive = false,
                Some('s' | 't') => {}
                Some('b' | 'e' | 'm' | 'n' | 'p' | 'q' | 'w' | 'x') => {
                    return Err(refused("an embedded option"));
                }
                _ => return Err(invalid("invalid embedded option")),
            }
        }
    }

    fn alternatives(&mut self) -> Answer<()> {
        self.depth += 1;
        if self.depth > 200 {
            return Err(WireError::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                "regular expression is too complex",
            ));
        }
        loop {
            match self.rest.peek() {
                None | Some(')') => break,
                Some('|') => {
                    self.rest.next();
                    self.out.push('|');
                }
                Some(_) => self.piece()?,
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn piece(&mut self) -> Answer<()> {
        let start = self.out.len();
        let atom = self.atom()?;
        let Some(quantifier) = self.quantifier()? else { return Ok(()) };
        if matches!(atom, Atom::Constraint) {
            return Err(invalid("quantifier operand invalid"));
        }
        // One item, whatever the atom became.
        self.out.insert_str(start, "(?:");
        self.out.push(')');
        self.out.push_str(&quantifier);
        if matches!(self.rest.peek(), Some('*' | '+' | '?')) || self.at_bound() {
            return Err(invalid("quantifier operand invalid"));
        }
        Ok(())
    }

    /// Whether a `{` begins a bound: a digit follows.
    fn at_bound(&self) -> bool {
        let mut ahead = self.rest.clone();
        ahead.next() == Some('{') && ahead.next().is_some_and(|c| c.is_ascii_digit())
    }

    fn quantifier(&mut self) -> Answer<Option<String>> {
        let mut quantifier = match self.rest.peek().copied() {
            Some(sign @ ('*' | '+' | '?')) => {
                self.rest.next();
                String::from(sign)
            }
            Some('{') if self.at_bound() => {
                self.rest.next();
                self.bound()?
            }
            _ => return Ok(None),
        };
        if self.rest.peek() == Some(&'?') {
            self.rest.next();
            quantifier.push('?');
        }
        Ok(Some(quantifier))
    }

    fn bound(&mut self) -> Answer<String> {
        const MOST: u32 = 255;
        let low = self.number()?;
        let mut bound = format!("{{{low}");
        if self.rest.peek() == Some(&',') {
            self.rest.next();
            bound.push(',');
            if self.rest.peek().is_some_and(char::is_ascii_digit) {
                let high = self.number()?;
                if high < low || high > MOST {
                    return Err(invalid("invalid repetition count(s)"));
                }
                bound.push_str(&high.to_string());
            }
        }
        match self.rest.next() {
            _ if low > MOST => Err(invalid("invalid repetition count(s)")),
            Some('}') => {
                bound.push('}');
                Ok(bound)
            }
            Some(_) => Err(invalid("invalid repetition count(s)")),
            None => Err(invalid("braces {} not balanced")),
        }
    }

    fn number(&mut self) -> Answer<u32> {
        let mut number = 0u32;
        while let Some(digit) = self.rest.peek().and_then(|c| c.to_digit(10)) {
            self.rest.next();
            number = (number * 10 + digit).min(9_999);
        }
        Ok(number)
    }

    fn atom(&mut self) -> Answer<Atom> {
        if self.at_bound() {
            return Err(invalid("quantifier operand invalid"));
        }
        match self.rest.next() {
            Some('(') => return self.group(),
            Some('[') => self.bracket()?,
            Some('.') => self.out.push_str("(?s:.)"),
            Some('^') => {
                self.out.push_str(r"\A");
                return Ok(Atom::Constraint);
            }
            Some('$') => {
                self.out.push_str(r"\z");
                return Ok(Atom::Constraint);
            }
            Some('*' | '+' | '?') => return Err(invalid("quantifier operand invalid")),
            Some('\\') => match self.escape(false)? {
                Escape::Literal(c) => self.literal(c),
                Escape::Class(ranges, negated) => self.set(&ranges, negated),
                Escape::Constraint(sql, ascii_only) => {
                    self.out.push_str(sql);
                    self.ascii_only |= ascii_only;
                    return Ok(Atom::Constraint);
                }
            },
            Some(c) => self.literal(c),
            None => return Err(invalid("quantifier operand invalid")),
        }
        Ok(Atom::Quantifiable)
    }

    fn group(&mut self) -> Answer<Atom> {
        if self.rest.peek() == Some(&'?') {
            self.rest.next();
            match self.rest.next() {
                Some(':') => {}
                Some('=' | '!' | '<') => return Err(refused("lookaround")),
                _ => return Err(invalid("quantifier operand invalid")),
            }
        }
        self.out.push_str("(?:");
        self.alternatives()?;
        self.out.push(')');
        match self.rest.next() {
            Some(')') => Ok(Atom::Quantifiable),
            _ => Err(invalid("parentheses () not balanced")),
        }
    }

    fn literal(&mut self, c: char) {
        let ranges = self.cased(c, c).unwrap_or_else(|_| vec![(c, c)]);
        self.set(&ranges, false);
    }

    /// The range, and the other cases of its letters if case doesn't matter.
    fn cased(&self, first: char, last: char) -> Answer<Vec<(char, char)>> {
        let mut ranges = vec![(first, last)];
        if self.insensitive {
            if u32::from(last) - u32::from(first) > 5_000 {
                return Err(refused("so wide a range without regard to case"));
            }
            ranges.extend((first..=last).flat_map(|c| [lower(c), upper(c)]).map(|c| (c, c)));
        }
        Ok(ranges)
    }

    fn set(&mut self, ranges: &[(char, char)], negated: bool) {
        self.out.push_str(if negated { "[^" } else { "[" });
        for (first, last) in ranges {
            self.out.push_str(&format!(r"\x{{{:X}}}", u32::from(*first)));
            if last > first {
                self.out.push_str(&format!(r"-\x{{{:X}}}", u32::from(*last)));
            }
        }
        self.out.push(']');
    }

    fn escape(&mut self, in_bracket: bool) -> Answer<Escape> {
        let Some(c) = self.rest.next() else { return Err(invalid("invalid escape \\ sequence")) };
        let constraint = |sql, ascii_only| {
            if in_bracket {
                Err(invalid("invalid escape \\ sequence"))
            } else {
                Ok(Escape::Constraint(sql, ascii_only))
            }
        };
        Ok(match c {
            'd' => Escape::Class(DIGITS.to_vec(), false),
            'D' => Escape::Class(DIGITS.to_vec(), true),
            's' => Escape::Class(SPACES.to_vec(), false),
            'S' => Escape::Class(SPACES.to_vec(), true),
            'w' => Escape::Class(words(), false),
            'W' => Escape::Class(words(), true),
            'A' => return constraint(r"\A", false),
            'Z' => return constraint(r"\z", false),
            'm' => return constraint(r"\b{start}", true),
            'M' => return constraint(r"\b{end}", true),
            'y' => return constraint(r"\b", true),
            'Y' => return constraint(r"\B", true),
            'a' => Escape::Literal('\u{7}'),
            'b' => Escape::Literal('\u{8}'),
            'B' => Escape::Literal('\\'),
            'e' => Escape::Literal('\u{1b}'),
            'f' => Escape::Literal('\u{c}'),
            'n' => Escape::Literal('\n'),
            'r' => Escape::Literal('\r'),
            't' => Escape::Literal('\t'),
            'v' => Escape::Literal('\u{b}'),
            '1'..='9' => return Err(refused("a back reference")),
            '0' | 'c' | 'u' | 'U' | 'x' => return Err(refused("a numeric escape")),
            c if c.is_ascii_alphanumeric() => return Err(invalid("invalid escape \\ sequence")),
            c => Escape::Literal(c),
        })
    }

    fn bracket(&mut self) -> Answer<()> {
        let unbalanced = || invalid("brackets [] not balanced");
        let negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        let mut first = true;
        loop {
            let c = self.rest.next().ok_or_else(unbalanced)?;
            let start = match c {
                ']' if !first => break,
                '[' if matches!(self.rest.peek(), Some(':')) => {
                    self.rest.next();
                    ranges.extend(self.class()?);
                    first = false;
                    continue;
                }
                '[' if matches!(self.rest.peek(), Some('.' | '=')) => {
                    return Err(refused("a collating element"));
                }
                '\\' => match self.escape(true)? {
                    Escape::Literal(c) => c,
                    Escape::Class(class, false) => {
                        ranges.extend(class);
                        first = false;
                        continue;
                    }
                    Escape::Class(_, true) | Escape::Constraint(..) => {
                        return Err(refused("a negated class within brackets"));
                    }
                },
                // A minus is itself at either end; elsewhere it makes a range.
                '-' if !first && self.rest.peek() != Some(&']') => {
                    return Err(invalid("invalid character range"));
                }
                c => c,
            };
            first = false;
            let mut ahead = self.rest.clone();
            let end = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(end)) if end != ']' => {
                    self.rest = ahead;
                    match end {
                        '[' if matches!(self.rest.peek(), Some(':')) => {
                            return Err(invalid("invalid character range"));
                        }
                        '[' if matches!(self.rest.peek(), Some('.' | '=')) => {
                            return Err(refused("a collating element"));
                        }
                        '\\' => match self.escape(true)? {
                            Escape::Literal(c) => c,
                            _ => return Err(invalid("invalid character range")),
                        },
                        end => end,
                    }
                }
                _ => start,
            };
            if end < start {
                return Err(invalid("invalid character range"));
            }
            ranges.extend(self.cased(start, end)?);
        }
        self.set(&ranges, negated);
        Ok(())
    }

    /// `[:name:]`, after its opening.
    fn class(&mut self) -> Answer<Vec<(char, char)>> {
        let mut name = String::new();
        loop {
            match self.rest.next() {
                Some(':') if self.rest.peek() == Some(&']') => {
                    self.rest.next();
                    break;
                }
                Some(c) if c.is_ascii_alphabetic() => name.push(c),
                Some('<' | '>') => return Err(refused("a word boundary in brackets")),
                Some(_) => return Err(invalid("invalid character class")),
                None => return Err(invalid("brackets [] not balanced")),
            }
        }
        let (ranges, ascii_only): (Vec<(char, char)>, bool) = match name.as_str() {
            "digit" => (DIGITS.to_vec(), false),
            "space" => (SPACES.to_vec(), false),
            "xdigit" => (vec![('0', '9'), ('A', 'F'), ('a', 'f')], false),
            "alpha" => (letters(), false),
            "upper" | "lower" if self.insensitive => (letters(), false),
            "alnum" => (letters().into_iter().chain(DIGITS.iter().copied()).collect(), false),
            "word" => (words(), false),
            "ascii" => (vec![('\0', '\u{7f}')], false),
            "upper" => (vec![('A', 'Z')], true),
            "lower" => (vec![('a', 'z')], true),
            "punct" => (vec![('!', '/'), (':', '@'), ('[', '`'), ('{', '~')], true),
            "graph" => (vec![('!', '~')], true),
            "print" => (vec![(' ', '~')], true),
            "cntrl" => (vec![('\0', '\u{1f}'), ('\u{7f}', '\u{7f}')], true),
            "blank" => (vec![('\t', '\t'), (' ', ' ')], true),
            _ => return Err(invalid("invalid character class")),
        };
        self.ascii_only |= ascii_only;
        Ok(ranges)
    }
}

fn letters() -> Vec<(char, char)> {
    let end = |code| char::from_u32(code).expect("the table's code points are characters");
    ALPHABETIC.iter().map(|(first, last)| (end(*first), end(*last))).collect()
}

fn words() -> Vec<(char, char)> {
    letters().into_iter().chain(DIGITS.iter().copied()).chain([('_', '_')]).collect()
}
