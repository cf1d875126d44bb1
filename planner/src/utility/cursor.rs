//! Reads a command's tokens by PostgreSQL's grammar.
//!
//! Words are compared as text, so sqlparser's list of keywords has no say here; expressions, types and whole
//! statements within a command are sqlparser's, under `ShoalDialect`. Every token is asked for by the one who reads
//! it: what nobody reads is a syntax error, never ignored.

use crate::text::{self, Category, ShoalDialect, Text, Tree};
use proto::{SqlState, WireError};
use sqlparser::ast;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Span, Token, TokenWithSpan};

/// A name with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Name {
    /// The name, folded.
    pub value: String,
    /// Where it stands, for an error's position.
    pub position: Option<u32>,
}

/// A name that may have a schema before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Qualified {
    /// The schema.
    pub schema: Option<String>,
    /// The name itself.
    pub name: String,
    /// Where it begins.
    pub position: Option<u32>,
}

/// A place in a command's tokens.
pub(crate) struct Cursor<'a> {
    text: &'a Text,
    parser: Parser<'a>,
}

impl<'a> Cursor<'a> {
    /// Begins at the first token.
    pub fn new(text: &'a Text, parser: Parser<'a>) -> Self {
        Self { text, parser }
    }

    fn token(&self, nth: usize) -> &TokenWithSpan {
        self.parser.peek_nth_token_ref(nth)
    }

    /// The place of the next token.
    pub fn span(&self) -> Span {
        self.token(0).span
    }

    /// The place of the next token, for an error.
    pub fn position(&self) -> Option<u32> {
        self.text.position(self.span())
    }

    /// The byte of the text where the next token begins.
    pub fn offset(&self) -> usize {
        (self.span().start.column as usize).checked_sub(1).unwrap_or(self.text.source.len())
    }

    /// PostgreSQL's error for the next token.
    pub fn error(&self) -> WireError {
        let token = self.token(0);
        text::syntax_error(self.text, (token.token != Token::EOF).then_some(token.span))
    }

    /// Whether the nth token from here is this word.
    pub fn is_nth(&self, nth: usize, word: &str) -> bool {
        matches!(&self.token(nth).token, Token::Word(w) if w.quote_style.is_none() && w.value == word)
    }

    /// Whether the next token is this word.
    pub fn is(&self, word: &str) -> bool {
        self.is_nth(0, word)
    }

    /// Whether the nth token from here is a word that begins no query: an option in parentheses.
    pub fn is_nth_option(&self, nth: usize) -> bool {
        match &self.token(nth).token {
            Token::Word(w) => w.quote_style.is_some() || !text::begins_statement(&w.value),
            _ => false,
        }
    }

    /// Reads a word if it is next.
    pub fn accept(&mut self, word: &str) -> bool {
        let found = self.is(word);
        if found {
            self.parser.advance_token();
        }
        found
    }

    /// Reads words if they are next, all of them.
    pub fn accept_all(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(nth, word)| self.is_nth(nth, word));
        if found {
            words.iter().for_each(|_| self.parser.advance_token());
        }
        found
    }

    /// Reads one of some words; which.
    pub fn accept_one(&mut self, words: &[&'static str]) -> Option<&'static str> {
        words.iter().copied().find(|word| self.accept(word))
    }

    /// Reads a word.
    pub fn expect(&mut self, word: &str) -> Result<(), WireError> {
        if self.accept(word) { Ok(()) } else { Err(self.error()) }
    }

    /// Reads words.
    pub fn expect_all(&mut self, words: &[&str]) -> Result<(), WireError> {
        words.iter().try_for_each(|word| self.expect(word))
    }

    /// Whether the next token is this symbol.
    pub fn is_symbol(&self, symbol: &Token) -> bool {
        self.token(0).token == *symbol
    }

    /// Whether the nth token from here is this symbol.
    pub fn is_nth_symbol(&self, nth: usize, symbol: &Token) -> bool {
        self.token(nth).token == *symbol
    }

    /// Reads a symbol if it is next.
    pub fn accept_symbol(&mut self, symbol: &Token) -> bool {
        let found = self.is_symbol(symbol);
        if found {
            self.parser.advance_token();
        }
        found
    }

    /// Reads a symbol.
    pub fn expect_symbol(&mut self, symbol: &Token) -> Result<(), WireError> {
        if self.accept_symbol(symbol) { Ok(()) } else { Err(self.error()) }
    }

    /// Whether nothing is left.
    pub fn at_end(&self) -> bool {
        self.is_symbol(&Token::EOF)
    }

    /// Makes sure that nothing is left.
    pub fn end(&self) -> Result<(), WireError> {
        if self.at_end() { Ok(()) } else { Err(self.error()) }
    }

    /// `(a, b, ..)`
    pub fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        self.expect_symbol(&Token::LParen)?;
        let items = self.commas(&mut item)?;
        self.expect_symbol(&Token::RParen)?;
        Ok(items)
    }

    /// `a, b, ..`
    pub fn commas<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let mut items = vec![item(self)?];
        while self.accept_symbol(&Token::Comma) {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn word(&mut self, fits: impl Fn(Category) -> bool) -> Result<Name, WireError> {
        let position = self.position();
        match &self.token(0).token {
            Token::Word(w) if w.quote_style.is_some() || fits(text::category(&w.value)) => {
                let value = w.value.clone();
                self.parser.advance_token();
                Ok(Name { value, position })
            }
            _ => Err(self.error()),
        }
    }

    /// A name of a column, table, ..: gram.y's ColId.
    pub fn name(&mut self) -> Result<Name, WireError> {
        self.word(|category| matches!(category, Category::Free | Category::Column))
    }

    /// Any word: gram.y's ColLabel.
    pub fn label(&mut self) -> Result<Name, WireError> {
        self.word(|_| true)
    }

    /// Whether an unquoted or quoted name could be read here.
    pub fn at_name(&self) -> bool {
        match &self.token(0).token {
            Token::Word(w) => {
                w.quote_style.is_some()
                    || matches!(text::category(&w.value), Category::Free | Category::Column)
            }
            _ => false,
        }
    }

    /// `name` or `schema.name`.
    pub fn qualified(&mut self) -> Result<Qualified, WireError> {
        let first = self.name()?;
        self.qualified_after(first)
    }

    /// The same where any word is a name: COLLATE's `pg_catalog.default`.
    pub fn qualified_label(&mut self) -> Result<Qualified, WireError> {
        let first = self.label()?;
        self.qualified_after(first)
    }

    fn qualified_after(&mut self, first: Name) -> Result<Qualified, WireError> {
        let mut parts = vec![first.value];
        while self.accept_symbol(&Token::Period) {
            parts.push(self.label()?.value);
        }
        let position = first.position;
        let name = parts.pop().unwrap_or_default();
        match (parts.len(), parts.pop()) {
            (0, _) => Ok(Qualified { schema: None, name, position }),
            (1, schema) => Ok(Qualified { schema, name, position }),
            (_, _) => {
                let error = WireError::unsupported("a name of more than two parts");
                Err(match position {
                    Some(position) => error.at(position),
                    None => error,
                })
            }
        }
    }

    /// A string.
    pub fn string(&mut self) -> Result<String, WireError> {
        match &self.token(0).token {
            Token::EscapedStringLiteral(value) => {
                let value = value.clone();
                self.parser.advance_token();
                Ok(value)
            }
            _ => Err(self.error()),
        }
    }

    /// A number, with its sign, as it is written.
    pub fn number(&mut self) -> Result<String, WireError> {
        let mut sign = "";
        if self.accept_symbol(&Token::Minus) {
            sign = "-";
        } else if self.accept_symbol(&Token::Plus) {
            sign = "";
        }
        match &self.token(0).token {
            Token::Number(digits, _) => {
                let value = format!("{sign}{digits}");
                self.parser.advance_token();
                Ok(value)
            }
            _ => Err(self.error()),
        }
    }

    /// A whole number.
    pub fn integer(&mut self) -> Result<i64, WireError> {
        let position = self.position();
        let digits = self.number()?;
        digits.parse().map_err(|_| {
            let range = digits.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            let error = if range {
                WireError::new(
                    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                    format!("value \"{digits}\" is out of range for type bigint"),
                )
            } else {
                WireError::new(SqlState::SYNTAX_ERROR, format!("syntax error at or near \"{digits}\""))
            };
            match position {
                Some(position) => error.at(position),
                None => error,
            }
        })
    }

    /// A word, string or number: what settings and options take.
    pub fn value(&mut self) -> Result<String, WireError> {
        match &self.token(0).token {
            Token::EscapedStringLiteral(_) => self.string(),
            Token::Word(_) => Ok(self.label()?.value),
            _ => self.number(),
        }
    }

    fn tree<T>(&self, root: T) -> Tree<T> {
        Tree::new(root, self.text.depth())
    }

    /// An expression.
    pub fn expression(&mut self) -> Result<Tree<ast::Expr>, WireError> {
        let parsed = self.parser.parse_expr();
        parsed.map(|root| self.tree(root)).map_err(|error| text::parse_error(self.text, error))
    }

    /// An expression that ends where a column's next constraint could begin: gram.y's b_expr.
    pub fn restricted_expression(&mut self) -> Result<Tree<ast::Expr>, WireError> {
        let parsed = self.parser.parse_subexpr(ShoalDialect::RESTRICTED);
        parsed.map(|root| self.tree(root)).map_err(|error| text::parse_error(self.text, error))
    }

    /// A type.
    pub fn data_type(&mut self) -> Result<(ast::DataType, Option<u32>), WireError> {
        let position = self.position();
        if !self.at_name() {
            return Err(self.error());
        }
        let parsed = self.parser.parse_data_type();
        parsed.map(|ty| (ty, position)).map_err(|error| text::parse_error(self.text, error))
    }

    /// A query or a change of rows.
    pub fn statement(&mut self) -> Result<Tree<ast::Statement>, WireError> {
        let begins = match &self.token(0).token {
            Token::LParen => true,
            Token::Word(w) => w.quote_style.is_none() && text::begins_statement(&w.value),
            _ => false,
        };
        if !begins {
            return Err(self.error());
        }
        // The parser's own index is that of the token before the next one, or of the first.
        let index = self.parser.get_current_index();
        let start = if self.parser.token_at(index).span == self.span() { index } else { index + 1 };
        text::check(self.text, |nth| {
            Some(self.parser.token_at(start + nth)).filter(|token| token.token != Token::EOF)
        })?;
        let parsed = if self.is("table") {
            self.parser.parse_query().map(ast::Statement::Query)
        } else {
            self.parser.parse_statement()
        };
        parsed.map(|root| self.tree(root)).map_err(|error| text::parse_error(self.text, error))
    }
}
