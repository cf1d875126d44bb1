//! PostgreSQL's lexical rules (`scan.l` of PostgreSQL 15, `standard_conforming_strings` on).
//!
//! In comes text, out come tokens as ranges of it, one at a time and without allocation: the same pass serves the
//! plan cache's key, where a microsecond counts, and the parser. It must never know what a token means.

use proto::{SqlState, WireError};
use std::borrow::Cow;

/// The greatest length of an identifier, in bytes. PostgreSQL's NAMEDATALEN - 1.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lexeme {
    /// An unquoted identifier or keyword.
    Word,
    /// A quoted identifier.
    Quoted,
    /// Digits alone.
    Integer,
    /// A number with a point or an exponent.
    Decimal,
    /// A string, of the form that its first bytes tell. It may be continued on further lines.
    Text(Quote),
    /// `B'..'` or `X'..'`.
    Bits,
    /// `$1`.
    Parameter,
    /// Anything of `,()[].;:` and the operators.
    Symbol,
}

/// The forms of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quote {
    /// `'..'`, and `N'..'` after its first letter.
    Plain,
    /// `E'..'`.
    Escaped,
    /// `$tag$..$tag$`; the length of `$tag$`.
    Dollar(u32),
}

/// A token: its bytes in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub lexeme: Lexeme,
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// An error at a byte of the text.
#[derive(Debug)]
pub(crate) struct LexError {
    /// What is wrong.
    pub error: Box<WireError>,
    /// Where, in bytes.
    pub at: usize,
}

/// Reads tokens one by one.
pub(crate) struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// The last comment that begins with `/*+`: what is in it.
    pub hint: Option<(usize, usize)>,
}

const fn is_identifier_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

const fn is_identifier_part(byte: u8) -> bool {
    is_identifier_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

const fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

impl<'a> Lexer<'a> {
    /// Begins at a byte of a text.
    pub fn new(text: &'a str, at: usize) -> Self {
        Self { text, bytes: text.as_bytes(), at, hint: None }
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn fail(&self, message: impl Into<String>, at: usize) -> LexError {
        LexError { error: Box::new(WireError::new(SqlState::SYNTAX_ERROR, message)), at }
    }

    /// As PostgreSQL words an error that the rest of the text shows: it quotes all of it.
    fn fail_near(&self, what: &str, at: usize, end: usize) -> LexError {
        self.fail(format!("{what} at or near \"{}\"", &self.text[at..end]), at)
    }

    /// The next token; `None` at the end.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Token>, LexError> {
        self.skip_space()?;
        let start = self.at;
        let Some(&first) = self.bytes.get(start) else {
            return Ok(None);
        };
        let lexeme = match first {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => {
                if self.byte(start + 1) == b'\'' && matches!(first | 0x20, b'e' | b'b' | b'x' | b'n') {
                    self.at += 2;
                    match first | 0x20 {
                        b'e' => self.escaped(start)?,
                        b'n' => self.plain(start)?,
                        _ => self.bits(start)?,
                    }
                } else if first | 0x20 == b'u'
                    && self.byte(start + 1) == b'&'
                    && matches!(self.byte(start + 2), b'\'' | b'"')
                {
                    let error = WireError::unsupported("a Unicode escape form U&")
                        .with_hint("Write the characters themselves, or use E'\\uXXXX' for a string.");
                    return Err(LexError { error: Box::new(error), at: start });
                } else {
                    self.at += 1;
                    while is_identifier_part(self.byte(self.at)) {
                        self.at += 1;
                    }
                    Lexeme::Word
                }
            }
            b'0'..=b'9' => self.number(start)?,
            b'.' if self.byte(start + 1).is_ascii_digit() => self.number(start)?,
            b'\'' => {
                self.at += 1;
                self.plain(start)?
            }
            b'"' => self.quoted(start)?,
            b'$' => self.dollar(start)?,
            b',' | b'(' | b')' | b'[' | b']' | b';' => {
                self.at += 1;
                Lexeme::Symbol
            }
            b'.' => {
                self.at += if self.byte(start + 1) == b'.' { 2 } else { 1 };
                Lexeme::Symbol
            }
            b':' => {
                self.at += if matches!(self.byte(start + 1), b':' | b'=') { 2 } else { 1 };
                Lexeme::Symbol
            }
            _ if is_operator(first) => self.operator(start)?,
            _ => {
                let end = start + self.text[start..].chars().next().map_or(1, char::len_utf8);
                return Err(self.fail_near("syntax error", start, end));
            }
        };
        Ok(Some(Token { lexeme, start, end: self.at }))
    }

    fn skip_space(&mut self) -> Result<(), LexError> {
        loop {
            match self.byte(self.at) {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0c => self.at += 1,
                b'-' if self.byte(self.at + 1) == b'-' => {
                    while self.at < self.bytes.len() && !matches!(self.bytes[self.at], b'\n' | b'\r') {
                        self.at += 1;
                    }
                }
                b'/' if self.byte(self.at + 1) == b'*' => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), LexError> {
        let start = self.at;
        let mut depth = 0u32;
        while self.at < self.bytes.len() {
            match (self.bytes[self.at], self.byte(self.at + 1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        if self.byte(start + 2) == b'+' {
                            self.hint = Some((start + 3, self.at - 2));
                        }
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Err(self.fail_near("unterminated /* comment", start, self.bytes.len()))
    }

    /// Where the identifier that begins here ends.
    fn identifier_end(&self) -> usize {
        let rest = &self.bytes[self.at..];
        self.at + rest.iter().position(|byte| !is_identifier_part(*byte)).unwrap_or(rest.len())
    }

    fn number(&mut self, start: usize) -> Result<Lexeme, LexError> {
        let digits = |lexer: &mut Self| {
            while lexer.byte(lexer.at).is_ascii_digit() {
                lexer.at += 1;
            }
        };
        digits(self);
        let mut lexeme = Lexeme::Integer;
        if self.byte(self.at) == b'.' && self.byte(self.at + 1) != b'.' {
            self.at += 1;
            digits(self);
            lexeme = Lexeme::Decimal;
        }
        if self.byte(self.at) | 0x20 == b'e' {
            let sign = usize::from(matches!(self.byte(self.at + 1), b'+' | b'-'));
            if self.byte(self.at + 1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                digits(self);
                lexeme = Lexeme::Decimal;
            }
        }
        if is_identifier_start(self.byte(self.at)) {
            return Err(self.fail_near("trailing junk after numeric literal", start, self.identifier_end()));
        }
        Ok(lexeme)
    }

    /// After the closing quote: whether the string goes on after white space with a newline in it. Moves behind the
    /// next opening quote if so.
    fn continued(&mut self) -> bool {
        let mut at = self.at;
        let mut newline = false;
        loop {
            match self.byte(at) {
                b'\n' | b'\r' => newline = true,
                b' ' | b'\t' | 0x0c => {}
                b'-' if newline && self.byte(at + 1) == b'-' => {
                    while at < self.bytes.len() && !matches!(self.bytes[at], b'\n' | b'\r') {
                        at += 1;
                    }
                    continue;
                }
                b'\'' if newline => {
                    self.at = at + 1;
                    return true;
                }
                _ => return false,
            }
            at += 1;
        }
    }

    fn plain(&mut self, start: usize) -> Result<Lexeme, LexError> {
        loop {
            match self.bytes.get(self.at) {
                None => return Err(self.fail_near("unterminated quoted string", start, self.bytes.len())),
                Some(b'\'') if self.byte(self.at + 1) == b'\'' => self.at += 2,
                Some(b'\'') => {
                    self.at += 1;
                    if !self.continued() {
                        return Ok(Lexeme::Text(Quote::Plain));
                    }
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn escaped(&mut self, start: usize) -> Result<Lexeme, LexError> {
        loop {
            match self.bytes.get(self.at) {
                None => return Err(self.fail_near("unterminated quoted string", start, self.bytes.len())),
                Some(b'\\') => self.at += 2,
                Some(b'\'') if self.byte(self.at + 1) == b'\'' => self.at += 2,
                Some(b'\'') => {
                    self.at += 1;
                    if !self.continued() {
                        // What can't be decoded is an error here, so that later readers need not fail.
                        unescape(&self.text[start..self.at]).map_err(|mut error| {
                            error.at += start;
                            error
                        })?;
                        return Ok(Lexeme::Text(Quote::Escaped));
                    }
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn bits(&mut self, start: usize) -> Result<Lexeme, LexError> {
        loop {
            match self.bytes.get(self.at) {
                None => {
                    let what = if self.bytes[start] | 0x20 == b'b' { "bit" } else { "hexadecimal" };
                    let what = format!("unterminated {what} string literal");
                    return Err(self.fail_near(&what, start, self.bytes.len()));
                }
                Some(b'\'') => {
                    self.at += 1;
                    if !self.continued() {
                        return Ok(Lexeme::Bits);
                    }
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn quoted(&mut self, start: usize) -> Result<Lexeme, LexError> {
        self.at += 1;
        loop {
            match self.bytes.get(self.at) {
                None => {
                    return Err(self.fail_near("unterminated quoted identifier", start, self.bytes.len()));
                }
                Some(b'"') if self.byte(self.at + 1) == b'"' => self.at += 2,
                Some(b'"') => {
                    self.at += 1;
                    if self.at == start + 2 {
                        return Err(self.fail_near("zero-length delimited identifier", start, self.at));
                    }
                    return Ok(Lexeme::Quoted);
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn dollar(&mut self, start: usize) -> Result<Lexeme, LexError> {
        if self.byte(start + 1).is_ascii_digit() {
            self.at += 1;
            while self.byte(self.at).is_ascii_digit() {
                self.at += 1;
            }
            if is_identifier_start(self.byte(self.at)) {
                return Err(self.fail_near("trailing junk after parameter", start, self.identifier_end()));
            }
            return Ok(Lexeme::Parameter);
        }
        let mut at = start + 1;
        if is_identifier_start(self.byte(at)) {
            while is_identifier_part(self.byte(at)) && self.byte(at) != b'$' {
                at += 1;
            }
        }
        if self.byte(at) != b'$' {
            return Err(self.fail_near("syntax error", start, start + 1));
        }
        let tag = &self.text[start..=at];
        match self.text[at + 1..].find(tag) {
            Some(length) => {
                self.at = at + 1 + length + tag.len();
                Ok(Lexeme::Text(Quote::Dollar(tag.len() as u32)))
            }
            None => Err(self.fail_near("unterminated dollar-quoted string", start, self.bytes.len())),
        }
    }

    fn operator(&mut self, start: usize) -> Result<Lexeme, LexError> {
        let mut end = start;
        while is_operator(self.byte(end)) {
            // A comment ends an operator.
            if matches!((self.byte(end), self.byte(end + 1)), (b'-', b'-') | (b'/', b'*')) {
                break;
            }
            end += 1;
        }
        // `a*-1` is `a * (-1)`: an operator ends in + or - only if it has one of the characters that SQL's own lack.
        let special = |bytes: &[u8]| {
            bytes
                .iter()
                .any(|b| matches!(b, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%'))
        };
        if end - start > 1
            && matches!(self.bytes[end - 1], b'+' | b'-')
            && !special(&self.bytes[start..end - 1])
        {
            while end - start > 1 && matches!(self.bytes[end - 1], b'+' | b'-') {
                end -= 1;
            }
        }
        if end - start > MAX_IDENTIFIER_BYTES {
            return Err(self.fail("operator too long", start));
        }
        self.at = end;
        Ok(Lexeme::Symbol)
    }
}

/// An identifier as PostgreSQL knows it: unquoted ones in lower case (ASCII letters alone), 63 bytes at most.
pub(crate) fn identifier<'a>(token: Token, text: &'a str) -> Cow<'a, str> {
    let raw = &text[token.start..token.end];
    let folded = match token.lexeme {
        Lexeme::Quoted => {
            let inner = &raw[1..raw.len() - 1];
            if inner.contains('"') { Cow::Owned(inner.replace("\"\"", "\"")) } else { Cow::Borrowed(inner) }
        }
        _ if raw.bytes().any(|b| b.is_ascii_uppercase()) => Cow::Owned(raw.to_ascii_lowercase()),
        _ => Cow::Borrowed(raw),
    };
    if folded.len() <= MAX_IDENTIFIER_BYTES {
        return folded;
    }
    let mut end = MAX_IDENTIFIER_BYTES;
    while !folded.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(folded[..end].to_owned())
}

/// What a string token says. Its escapes were checked when it was read.
pub(crate) fn string<'a>(quote: Quote, raw: &'a str) -> Cow<'a, str> {
    match quote {
        Quote::Dollar(tag) => Cow::Borrowed(&raw[tag as usize..raw.len() - tag as usize]),
        Quote::Escaped => Cow::Owned(unescape(raw).expect("checked by the lexer")),
        Quote::Plain => {
            let raw = raw.strip_prefix(['n', 'N']).unwrap_or(raw);
            let inner = &raw[1..raw.len() - 1];
            if !inner.contains('\'') {
                return Cow::Borrowed(inner);
            }
            let mut out = String::with_capacity(inner.len());
            for (piece, _) in pieces(raw, false) {
                out.push_str(&piece.replace("''", "'"));
            }
            Cow::Owned(out)
        }
    }
}

/// The parts of a string that may be continued on further lines, between their quotes, with their places.
fn pieces(raw: &str, escapes: bool) -> Vec<(&str, usize)> {
    let bytes = raw.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' => {
                let start = at + 1;
                at = start;
                while at < bytes.len() {
                    match bytes[at] {
                        b'\\' if escapes => at += 2,
                        b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
                        b'\'' => break,
                        _ => at += 1,
                    }
                }
                found.push((&raw[start..at.min(raw.len())], start));
                at += 1;
            }
            b'-' => {
                while at < bytes.len() && !matches!(bytes[at], b'\n' | b'\r') {
                    at += 1;
                }
            }
            _ => at += 1,
        }
    }
    found
}

fn unescape(raw: &str) -> Result<String, LexError> {
    let fail = |sqlstate: SqlState, message: &str, at: usize| LexError {
        error: Box::new(WireError::new(sqlstate, message)),
        at,
    };
    let encoding = |at: usize| {
        fail(SqlState::CHARACTER_NOT_IN_REPERTOIRE, "invalid byte sequence for encoding \"UTF8\"", at)
    };
    let escape = SqlState::INVALID_ESCAPE_SEQUENCE;
    let mut out: Vec<u8> = Vec::with_capacity(raw.len());
    let mut high: Option<u32> = None;
    for (piece, offset) in pieces(&raw[1..], true) {
        let bytes = piece.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let place = offset + at + 1;
            let surrogate = |at: usize| fail(SqlState::SYNTAX_ERROR, "invalid Unicode surrogate pair", at);
            if bytes[at] != b'\\' {
                if high.is_some() {
                    return Err(surrogate(place));
                }
                at += if bytes[at] == b'\'' { 2 } else { 1 };
                out.push(bytes[at - 1]);
                continue;
            }
            let letter = bytes.get(at + 1).copied().unwrap_or(b'\\');
            at += 2;
            if high.is_some() && !matches!(letter, b'u' | b'U') {
                return Err(surrogate(place));
            }
            match letter {
                b'b' => out.push(0x08),
                b'f' => out.push(0x0c),
                b'n' => out.push(b'\n'),
                b'r' => out.push(b'\r'),
                b't' => out.push(b'\t'),
                b'v' => out.push(0x0b),
                b'0'..=b'7' => {
                    let mut value = u32::from(letter - b'0');
                    for _ in 0..2 {
                        match bytes.get(at) {
                            Some(digit @ b'0'..=b'7') => {
                                value = value * 8 + u32::from(digit - b'0');
                                at += 1;
                            }
                            _ => break,
                        }
                    }
                    out.push((value & 0xff) as u8);
                }
                b'x' => {
                    let mut value = None;
                    for _ in 0..2 {
                        match bytes.get(at).and_then(|b| char::from(*b).to_digit(16)) {
                            Some(digit) => {
                                value = Some(value.unwrap_or(0) * 16 + digit);
                                at += 1;
                            }
                            None => break,
                        }
                    }
                    out.push(value.map_or(b'x', |value| value as u8));
                }
                b'u' | b'U' => {
                    let digits = if letter == b'u' { 4 } else { 8 };
                    let hex = bytes.get(at..at + digits).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
                    let Some(code) = hex
                        .and_then(|hex| std::str::from_utf8(hex).ok())
                        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
                    else {
                        return Err(LexError {
                            error: Box::new(
                                WireError::new(escape, "invalid Unicode escape")
                                    .with_hint("Unicode escapes must be \\uXXXX or \\UXXXXXXXX."),
                            ),
                            at: place,
                        });
                    };
                    at += digits;
                    let code = match (high.take(), code) {
                        (None, 0xd800..=0xdbff) => {
                            high = Some(code);
                            continue;
                        }
                        (None, 0xdc00..=0xdfff) => return Err(surrogate(place)),
                        (None, _) => code,
                        (Some(high), 0xdc00..=0xdfff) => 0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00),
                        (Some(_), _) => return Err(surrogate(place)),
                    };
                    match char::from_u32(code) {
                        Some(c) if code != 0 => {
                            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                        }
                        _ => {
                            return Err(fail(SqlState::SYNTAX_ERROR, "invalid Unicode escape value", place));
                        }
                    }
                }
                other => out.push(other),
            }
        }
    }
    let end = raw.len();
    if high.is_some() {
        return Err(fail(SqlState::SYNTAX_ERROR, "invalid Unicode surrogate pair", end - 1));
    }
    if out.contains(&0) {
        return Err(fail(
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\": 0x00",
            0,
        ));
    }
    String::from_utf8(out).map_err(|_| encoding(0))
}
