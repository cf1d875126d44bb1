//! SQL text to statements, cache keys and trees.
//!
//! In comes what a client sent. The life of it:
//! 1. [`split`] reads it once, by PostgreSQL's lexical rules, and cuts it at semicolons into [`Text`]s. On the way it
//!    lifts the literals out, writes the rest down as the statement's **key** (white space, comments and the case of
//!    unquoted identifiers gone), and bounds its length and depth.
//!    A hint before it ([`ReadHint`]) is kept beside the key.
//! 2. [`Text::parse`] makes the tree of one statement. sqlparser sees tokens that were made here, under
//!    `ShoalDialect`, which makes it agree with PostgreSQL's grammar.
//!
//! In the trees, identifiers are what PostgreSQL makes of them (folded, cut to 63 bytes), however they were written;
//! strings of every form are `Value::SingleQuotedString` with their escapes undone; and a span's `column` is the
//! byte of the statement's text that a token begins at, plus one (its `line` is always 1). [`Text::slot`] finds the
//! lifted literal of a place, [`Text::position`] what an error's position field should say.
//!
//! Nothing here knows a catalog, a type, or what a statement does.

mod dialect;
mod hint;
pub(crate) mod keywords;
mod lexer;
mod mend;
mod tokens;

pub use dialect::ShoalDialect;
pub use hint::ReadHint;
pub(crate) use keywords::{Category, category};
pub use lexer::MAX_IDENTIFIER_BYTES;
pub(crate) use mend::{check, lock_clause};
pub(crate) use tokens::{begins_statement, parse_error, syntax_error};

use crate::utility;
use lexer::{LexError, Lexeme, Lexer, Token};
use proto::{SqlState, WireError};
use sqlparser::ast;
use sqlparser::tokenizer::{Location, Span};
use std::borrow::Cow;
use std::ops::Deref;

/// The longest statement, in bytes. A literal may be nearly as long.
pub const MAX_STATEMENT_BYTES: usize = 256 << 20;

/// The most tokens of a statement.
pub const MAX_TOKENS: u32 = 4_000_000;

/// The deepest nesting of parentheses.
pub const MAX_NESTING: usize = 500;

/// The deepest tree: nesting, plus the operators between two commas on each level that is open at once. So a chain of
/// ORs may have this many.
pub const MAX_DEPTH: u32 = 10_000;

/// One statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// The statement, without the semicolon.
    pub source: Box<str>,
    /// What the plan cache is keyed by: equal for statements that differ in literals' values, white space, comments
    /// and the case of unquoted identifiers alone.
    pub key: Box<[u8]>,
    /// The literals, in order.
    pub literals: Vec<Literal>,
    /// How fresh what it reads must be, by the hint before it. No part of the key: its plan is the same.
    hint: Option<Result<ReadHint, Box<WireError>>>,
    /// Characters of the client's string before `source`.
    base: u32,
    depth: u32,
}

/// A literal that was lifted out of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Literal {
    /// What it is.
    pub kind: LiteralKind,
    start: u32,
    end: u32,
    quote: lexer::Quote,
}

/// What a literal is, as far as the key tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiteralKind {
    /// Digits that fit `integer`.
    Int4,
    /// Digits that fit `bigint` and not `integer`.
    Int8,
    /// Any other number: `numeric`, also with an exponent.
    Numeric,
    /// A string of any form, its type unknown.
    Text,
    /// `B'..'` or `X'..'`.
    Bits,
}

/// A statement's tree.
#[derive(Debug)]
pub enum Parsed {
    /// SELECT, VALUES, TABLE, WITH, INSERT, UPDATE or DELETE: sqlparser's own tree.
    Statement(Tree<ast::Statement>),
    /// EXPLAIN of one of those. Options that ask for what Shoal can't show are refused already.
    Explain {
        /// Whether it is run, too.
        analyze: bool,
        /// The statement.
        statement: Tree<ast::Statement>,
    },
    /// COPY.
    Copy(utility::Copy),
    /// Everything else: [`utility::plan`] binds it.
    Utility(utility::Command),
}

/// A tree, which can be deep: it's dropped on a stack that is big enough. Whoever walks it recursively does that in
/// [`with_stack`], too.
#[derive(Debug)]
pub struct Tree<T> {
    /// `None` only while it is dropped.
    root: Option<Box<T>>,
    depth: u32,
}

impl<T> Tree<T> {
    pub(crate) fn new(root: T, depth: u32) -> Self {
        Self { root: Some(Box::new(root)), depth }
    }

    /// How deep it can be: for [`with_stack`].
    pub fn depth(&self) -> u32 {
        self.depth
    }
}

impl<T> Deref for Tree<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.root.as_ref().expect("taken by drop alone")
    }
}

impl<T> Drop for Tree<T> {
    fn drop(&mut self) {
        let root = self.root.take();
        with_stack(self.depth, || drop(root));
    }
}

/// Stack that a recursive walk may need for each level of a tree, in bytes. A build without optimisation needs most.
const STACK_PER_LEVEL: usize = 24 << 10;

/// Runs `walk` on a stack that a recursion of this depth can't overflow. Shallow ones run where they are.
pub fn with_stack<R>(depth: u32, walk: impl FnOnce() -> R) -> R {
    let needed = 256 << 10 | (depth as usize).saturating_mul(STACK_PER_LEVEL);
    stacker::maybe_grow(needed, needed * 2, walk)
}

/// Cuts a client's string into statements. Empty ones are left out; none at all is an empty query.
pub fn split(sql: &str) -> Result<Vec<Text>, WireError> {
    let place = |LexError { error, at }: LexError| match error.position {
        Some(_) => *error,
        None => error.at(characters(&sql[..at.min(sql.len())]) + 1),
    };
    let mut texts = Vec::with_capacity(1);
    let mut lexer = Lexer::new(sql, 0);
    let mut scan = Scan::new(sql);
    loop {
        match lexer.next().map_err(place)? {
            None => {
                texts.extend(scan.finish(sql.len()));
                return Ok(texts);
            }
            Some(token) if token.lexeme == Lexeme::Symbol && sql.as_bytes()[token.start] == b';' => {
                texts.extend(scan.finish(token.start));
                lexer.hint = None;
            }
            Some(token) => {
                if scan.start.is_none()
                    && let Some((start, end)) = lexer.hint
                {
                    scan.hint = hint::parse(&sql[start..end]);
                }
                scan.take(token).map_err(place)?;
            }
        }
    }
}

/// An identifier as SQL has to write it: quoted unless it reads as itself.
pub fn quoted(name: &str) -> Cow<'_, str> {
    let plain = name.bytes().enumerate().all(|(i, byte)| match byte {
        b'a'..=b'z' | b'_' => true,
        b'0'..=b'9' | b'$' => i > 0,
        _ => false,
    });
    if plain && !name.is_empty() && category(name) == Category::Free {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(format!("\"{}\"", name.replace('"', "\"\"")))
    }
}

/// An expression's text with one identifier in place of another. Names of functions stay.
pub(crate) fn rename_identifier(expression: &str, from: &str, to: &str) -> Result<String, WireError> {
    let mut tokens = Vec::new();
    let mut lexer = Lexer::new(expression, 0);
    while let Some(token) = lexer.next().map_err(|e| *e.error)? {
        tokens.push(token);
    }
    let mut renamed = String::with_capacity(expression.len());
    let mut copied = 0;
    for (i, token) in tokens.iter().enumerate() {
        let name = matches!(token.lexeme, Lexeme::Word | Lexeme::Quoted)
            && lexer::identifier(*token, expression) == from;
        let called = tokens.get(i + 1).is_some_and(|next| &expression[next.start..next.end] == "(");
        if name && !called {
            renamed.push_str(&expression[copied..token.start]);
            renamed.push_str(&quoted(to));
            copied = token.end;
        }
    }
    renamed.push_str(&expression[copied..]);
    Ok(renamed)
}

fn characters(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX - 1)
}

/// One statement in the making.
struct Scan<'a> {
    sql: &'a str,
    /// Where the statement begins: its first token.
    start: Option<usize>,
    end: usize,
    /// Characters before `counted`, a byte.
    base: u32,
    counted: usize,
    key: Vec<u8>,
    literals: Vec<Literal>,
    hint: Option<Result<ReadHint, Box<WireError>>>,
    tokens: u32,
    /// The weight of each level of parentheses outside the current one.
    outer: Vec<u32>,
    /// Operators on the current level since the last comma.
    chain: u32,
    /// The sum of `outer`.
    below: u32,
    depth: u32,
}

/// Tags of a key's tokens. Words and symbols have no byte below 0x20, so a tag ends the token before it.
mod tag {
    pub const WORD: u8 = 1;
    pub const QUOTED: u8 = 2;
    pub const SYMBOL: u8 = 3;
    pub const INT4: u8 = 4;
    pub const INT8: u8 = 5;
    pub const NUMERIC: u8 = 6;
    pub const TEXT: u8 = 7;
    pub const BITS: u8 = 8;
    pub const PARAMETER: u8 = 9;
}

impl<'a> Scan<'a> {
    fn new(sql: &'a str) -> Self {
        Scan {
            sql,
            start: None,
            end: 0,
            base: 0,
            counted: 0,
            key: Vec::with_capacity(sql.len().min(1 << 12)),
            literals: Vec::new(),
            hint: None,
            tokens: 0,
            outer: Vec::new(),
            chain: 0,
            below: 0,
            depth: 0,
        }
    }

    fn finish(&mut self, _end: usize) -> Option<Text> {
        let start = self.start.take()?;
        if self.counted < start {
            self.base += characters(&self.sql[self.counted..start]);
            self.counted = start;
        }
        let text = Text {
            source: self.sql[start..self.end].into(),
            key: std::mem::take(&mut self.key).into_boxed_slice(),
            literals: std::mem::take(&mut self.literals),
            hint: self.hint.take(),
            base: self.base,
            depth: self.depth,
        };
        self.tokens = 0;
        self.outer.clear();
        (self.chain, self.below, self.depth) = (0, 0, 0);
        Some(text)
    }

    fn too_complex(&self, what: &str, token: Token) -> LexError {
        let error = WireError::new(SqlState::STATEMENT_TOO_COMPLEX, what)
            .with_hint("Use fewer or shallower expressions, for example = ANY ($1) instead of many ORs.");
        LexError { error: Box::new(error), at: token.start }
    }

    #[inline]
    fn take(&mut self, token: Token) -> Result<(), LexError> {
        let start = *self.start.get_or_insert(token.start);
        self.end = token.end;
        self.tokens += 1;
        if self.tokens > MAX_TOKENS || token.end - start > MAX_STATEMENT_BYTES {
            return Err(self.too_complex("statement is too long", token));
        }
        let raw = &self.sql.as_bytes()[token.start..token.end];
        match token.lexeme {
            Lexeme::Word => {
                self.key.push(tag::WORD);
                let kept = if raw.len() <= MAX_IDENTIFIER_BYTES {
                    raw
                } else {
                    &raw[..lexer::identifier(token, self.sql).len()]
                };
                self.key.extend(kept.iter().map(u8::to_ascii_lowercase));
                if keywords::chains(raw) {
                    self.chain(token)?;
                }
            }
            Lexeme::Quoted => {
                let name = lexer::identifier(token, self.sql);
                self.key.extend_from_slice(&[tag::QUOTED, name.len() as u8]);
                self.key.extend_from_slice(name.as_bytes());
            }
            Lexeme::Integer => {
                let digits = &self.sql[token.start..token.end];
                let (kind, tag) = match digits.parse::<i64>() {
                    Ok(value) if i32::try_from(value).is_ok() => (LiteralKind::Int4, tag::INT4),
                    Ok(_) => (LiteralKind::Int8, tag::INT8),
                    Err(_) => (LiteralKind::Numeric, tag::NUMERIC),
                };
                self.literal(token, start, kind, tag, lexer::Quote::Plain);
            }
            Lexeme::Decimal => {
                self.literal(token, start, LiteralKind::Numeric, tag::NUMERIC, lexer::Quote::Plain);
            }
            Lexeme::Text(quote) => self.literal(token, start, LiteralKind::Text, tag::TEXT, quote),
            Lexeme::Bits => self.literal(token, start, LiteralKind::Bits, tag::BITS, lexer::Quote::Plain),
            Lexeme::Parameter => {
                self.key.push(tag::PARAMETER);
                self.key.extend_from_slice(raw);
            }
            Lexeme::Symbol => {
                self.key.push(tag::SYMBOL);
                self.key.extend_from_slice(raw);
                match raw[0] {
                    b'(' | b'[' => {
                        self.chain(token)?;
                        if self.outer.len() >= MAX_NESTING {
                            return Err(self.too_complex("statement is nested too deeply", token));
                        }
                        self.outer.push(self.chain);
                        self.below += self.chain;
                        self.chain = 0;
                    }
                    b')' | b']' => {
                        if let Some(chain) = self.outer.pop() {
                            self.chain = chain;
                            self.below -= chain;
                        }
                    }
                    b',' => self.chain = 0,
                    _ => self.chain(token)?,
                }
            }
        }
        Ok(())
    }

    fn chain(&mut self, token: Token) -> Result<(), LexError> {
        self.chain += 1;
        self.depth = self.depth.max(self.below + self.chain);
        if self.depth > MAX_DEPTH {
            return Err(self.too_complex("statement's expressions are too long or nested too deeply", token));
        }
        Ok(())
    }

    fn literal(&mut self, token: Token, start: usize, kind: LiteralKind, tag: u8, quote: lexer::Quote) {
        self.key.push(tag);
        if self.literals.is_empty() {
            self.literals.reserve(4);
        }
        let place = |at: usize| u32::try_from(at - start).expect("a statement is bounded");
        self.literals.push(Literal { kind, start: place(token.start), end: place(token.end), quote });
    }
}

impl Text {
    /// What a literal says: digits as they are written, a string with its escapes undone, a bit string as it is
    /// written. `None` for a slot that the statement doesn't have.
    pub fn literal(&self, slot: u32) -> Option<Cow<'_, str>> {
        let literal = self.literals.get(slot as usize)?;
        let raw = &self.source[literal.start as usize..literal.end as usize];
        Some(match literal.kind {
            LiteralKind::Text => lexer::string(literal.quote, raw),
            LiteralKind::Int4 | LiteralKind::Int8 | LiteralKind::Numeric | LiteralKind::Bits => {
                Cow::Borrowed(raw)
            }
        })
    }

    /// The slot of the literal that begins at a place of the tree.
    pub fn slot(&self, place: Location) -> Option<u32> {
        let start = u32::try_from(place.column.checked_sub(1)?).ok()?;
        self.literals.binary_search_by_key(&start, |literal| literal.start).ok().map(|slot| slot as u32)
    }

    /// What an error's position field says of a place of the tree: characters from the start of what the client
    /// sent, from 1. `None` for a node without a place.
    pub fn position(&self, span: Span) -> Option<u32> {
        self.position_of_byte(usize::try_from(span.start.column.checked_sub(1)?).ok()?)
    }

    fn position_of_byte(&self, at: usize) -> Option<u32> {
        Some(self.base + characters(self.source.get(..at)?) + 1)
    }

    /// Whether an INSERT says OVERRIDING SYSTEM VALUE (`true`) or USER VALUE, which its tree doesn't tell.
    pub fn overriding(&self) -> Option<bool> {
        let says = |what: &[u8]| self.key.windows(what.len()).any(|part| part == what);
        if !self.key.starts_with(b"\x01insert") && !self.key.starts_with(b"\x01with") {
            return None;
        }
        if says(b"\x01overriding\x01system\x01value") {
            return Some(true);
        }
        says(b"\x01overriding\x01user\x01value").then_some(false)
    }

    /// How deep the statement's tree can be: for [`with_stack`].
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// How fresh what it reads must be, if a hint says so; an error if there is one that says nothing.
    pub fn read_hint(&self) -> Result<Option<ReadHint>, WireError> {
        match &self.hint {
            None => Ok(None),
            Some(Ok(hint)) => Ok(Some(*hint)),
            Some(Err(error)) => Err(WireError::clone(error)),
        }
    }

    /// The same text with this hint, whatever it has.
    pub fn with_read_hint(self, hint: ReadHint) -> Text {
        Text { hint: Some(Ok(hint)), ..self }
    }

    /// The statement's tree.
    pub fn parse(&self) -> Result<Parsed, WireError> {
        with_stack(self.depth, || tokens::parse(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoke() {
        let texts = split("SELECT a, 'x' FROM T WHERE b = 12;; INSERT INTO t VALUES (1.5, E'\\n')").unwrap();
        assert_eq!(texts.len(), 2);
        assert_eq!(texts[0].literal(0).unwrap(), "x");
        assert_eq!(texts[1].literal(1).unwrap(), "\n");
        for text in &texts {
            text.parse().unwrap();
        }
        let deep = format!("SELECT 1 WHERE {}true", "true OR ".repeat(9_000));
        drop(split(&deep).unwrap()[0].parse().unwrap());
        let deep = format!("SELECT 1 WHERE {}true", "true OR ".repeat(40_000));
        assert_eq!(split(&deep).unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
        let deep = format!("SELECT {}1{}", "(".repeat(450), ")".repeat(450));
        drop(split(&deep).unwrap()[0].parse().unwrap());
    }
    #[test]
    fn a_hint_is_of_the_statement_that_it_stands_before() {
        let session = Ok(Some(ReadHint::Session));
        for (sql, hints) in [
            ("/*+ read(session) */ SELECT 1", vec![session]),
            ("SELECT 1; /*+ read(session) */ SELECT 1; SELECT 1", vec![Ok(None), session, Ok(None)]),
            ("/*+ read(eventual) */ -- x\n/* y */ /*+ read(session) */SELECT 1", vec![session]),
            ("/*+ read(session) */; SELECT 1", vec![Ok(None)]),
            ("SELECT /*+ read(session) */ 1; SELECT 2", vec![Ok(None), Ok(None)]),
            ("/* + read(session) */ SELECT '/*+ read(session) */'", vec![Ok(None)]),
            ("/*+ a /* b */ read(session) */ SELECT 1", vec![session]),
            ("/*+*/ SELECT 1 /*+", vec![]),
        ] {
            let texts = split(sql);
            let found: Vec<_> =
                texts.iter().flatten().map(|text| text.read_hint().map_err(|error| error.sqlstate)).collect();
            assert_eq!(found, hints, "{sql}");
        }
        let plain = split("SELECT 1").unwrap().remove(0);
        let hinted = split("/*+ read(x) */ SELECT 1").unwrap().remove(0);
        assert_eq!((plain.key, hinted.read_hint().is_err()), (hinted.key, true));
    }
}
