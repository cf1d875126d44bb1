//! From lexed tokens to sqlparser's, and from its errors to PostgreSQL's.

use super::dialect::ShoalDialect;
use super::lexer::{self, Lexeme, Lexer};
use super::{Parsed, Text, keywords, mend};
use crate::utility::{self, Cursor};
use proto::{SqlState, WireError};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Word};

/// How deep sqlparser may recurse. Parentheses take several of its levels each.
const RECURSION: usize = 4 * super::MAX_NESTING;

/// The tree of a statement.
pub(super) fn parse(text: &Text) -> Result<Parsed, WireError> {
    let parser =
        Parser::new(&ShoalDialect).with_recursion_limit(RECURSION).with_tokens_with_locations(tokens(text)?);
    utility::parse(&mut Cursor::new(text, parser))
}

/// Whether a word begins a query or a change of rows.
pub(crate) fn begins_statement(word: &str) -> bool {
    matches!(word, "select" | "values" | "table" | "with" | "insert" | "update" | "delete")
}

/// The statement's tokens as sqlparser's.
pub(super) fn tokens(text: &Text) -> Result<Vec<TokenWithSpan>, WireError> {
    let mut lexer = Lexer::new(&text.source, 0);
    let mut tokens = Vec::with_capacity(text.key.len() / 4);
    while let Some(token) = lexer.next().map_err(|e| *e.error)? {
        let raw = &text.source[token.start..token.end];
        let place = |at: usize| Location::new(1, at as u64 + 1);
        let span = Span::new(place(token.start), place(token.end));
        let kind = match token.lexeme {
            // sqlparser lacks it.
            Lexeme::Word if raw.eq_ignore_ascii_case("isnull") => {
                let word = |value: &str| {
                    let keyword = keywords::keyword(value);
                    Token::Word(Word { value: value.to_owned(), quote_style: None, keyword })
                };
                tokens.push(TokenWithSpan::new(word("is"), span));
                word("null")
            }
            Lexeme::Word => {
                let value = lexer::identifier(token, &text.source).into_owned();
                let keyword = keywords::keyword(&value);
                Token::Word(Word { value, quote_style: None, keyword })
            }
            Lexeme::Quoted => Token::Word(Word {
                value: lexer::identifier(token, &text.source).into_owned(),
                quote_style: Some('"'),
                keyword: Keyword::NoKeyword,
            }),
            Lexeme::Integer | Lexeme::Decimal => Token::Number(raw.to_owned(), false),
            Lexeme::Text(quote) => string(&tokens, lexer::string(quote, raw).into_owned()),
            Lexeme::Bits if raw.starts_with(['b', 'B']) => {
                Token::SingleQuotedByteStringLiteral(raw[2..raw.len() - 1].to_owned())
            }
            Lexeme::Bits => Token::HexStringLiteral(raw[2..raw.len() - 1].to_owned()),
            Lexeme::Parameter => Token::Placeholder(raw.to_owned()),
            Lexeme::Symbol => match symbol(raw) {
                Some(symbol) => symbol,
                None => Token::CustomBinaryOperator(raw.to_owned()),
            },
        };
        tokens.push(TokenWithSpan::new(kind, span));
    }
    mend::mend(&mut tokens);
    if text.overriding().is_some() {
        mend::drop_overriding(&mut tokens);
    }
    Ok(tokens)
}

/// A string's token. sqlparser takes its ordinary strings for names here and there (`SELECT 1 'a'`), so it is shown
/// others, and the trees get ordinary ones when `ShoalDialect` reads these. EXTRACT's field is a name.
fn string(before: &[TokenWithSpan], value: String) -> Token {
    let field = matches!(
        before,
        [.., TokenWithSpan { token: Token::Word(word), .. }, TokenWithSpan { token: Token::LParen, .. }]
            if word.keyword == Keyword::EXTRACT
    );
    if field { Token::SingleQuotedString(value) } else { Token::EscapedStringLiteral(value) }
}

fn symbol(raw: &str) -> Option<Token> {
    Some(match raw {
        "," => Token::Comma,
        "(" => Token::LParen,
        ")" => Token::RParen,
        "[" => Token::LBracket,
        "]" => Token::RBracket,
        ";" => Token::SemiColon,
        // Nothing takes it.
        ".." => Token::Char('.'),
        ":" => Token::Colon,
        "::" => Token::DoubleColon,
        ":=" => Token::Assignment,
        "." => Token::Period,
        "=>" => Token::RArrow,
        "=" => Token::Eq,
        "<>" | "!=" => Token::Neq,
        "<" => Token::Lt,
        ">" => Token::Gt,
        "<=" => Token::LtEq,
        ">=" => Token::GtEq,
        "+" => Token::Plus,
        "-" => Token::Minus,
        "*" => Token::Mul,
        "/" => Token::Div,
        "%" => Token::Mod,
        "^" => Token::Caret,
        "||" => Token::StringConcat,
        "&" => Token::Ampersand,
        "|" => Token::Pipe,
        "#" => Token::Sharp,
        "~" => Token::Tilde,
        "~*" => Token::TildeAsterisk,
        "!~" => Token::ExclamationMarkTilde,
        "!~*" => Token::ExclamationMarkTildeAsterisk,
        "~~" => Token::DoubleTilde,
        "~~*" => Token::DoubleTildeAsterisk,
        "!~~" => Token::ExclamationMarkDoubleTilde,
        "!~~*" => Token::ExclamationMarkDoubleTildeAsterisk,
        "<<" => Token::ShiftLeft,
        ">>" => Token::ShiftRight,
        "&&" => Token::Overlap,
        "@" => Token::AtSign,
        "^@" => Token::CaretAt,
        "|/" => Token::PGSquareRoot,
        "||/" => Token::PGCubeRoot,
        "->" => Token::Arrow,
        "->>" => Token::LongArrow,
        "#>" => Token::HashArrow,
        "#>>" => Token::HashLongArrow,
        "@>" => Token::AtArrow,
        "<@" => Token::ArrowAt,
        "#-" => Token::HashMinus,
        "@?" => Token::AtQuestion,
        "@@" => Token::AtAt,
        "?" => Token::Question,
        "?&" => Token::QuestionAnd,
        "?|" => Token::QuestionPipe,
        _ => return None,
    })
}

/// PostgreSQL's wording for a token that can't stand where it stands; `None` for the end of the text.
pub(crate) fn syntax_error(text: &Text, span: Option<Span>) -> WireError {
    let start = span.and_then(|span| usize::try_from(span.start.column).ok()?.checked_sub(1));
    let found = start.and_then(|start| {
        let token = Lexer::new(&text.source, start).next().ok()??;
        Some((start, &text.source[token.start..token.end]))
    });
    let (message, at) = match found {
        Some((start, found)) => (format!("syntax error at or near \"{found}\""), start),
        None => ("syntax error at end of input".to_owned(), text.source.len()),
    };
    let error = WireError::new(SqlState::SYNTAX_ERROR, message);
    match text.position_of_byte(at) {
        Some(position) => error.at(position),
        None => error,
    }
}

/// sqlparser's error as PostgreSQL would say it. It tells the place in its message alone.
pub(crate) fn parse_error(text: &Text, error: ParserError) -> WireError {
    match error {
        ParserError::RecursionLimitExceeded => {
            WireError::new(SqlState::STATEMENT_TOO_COMPLEX, "statement is nested too deeply")
                .with_hint("Use fewer or shallower expressions.")
        }
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => {
            let column =
                message.rsplit_once("Column: ").and_then(|(_, column)| column.trim().parse::<u64>().ok());
            let span = column.map(|column| Span::new(Location::new(1, column), Location::new(1, column)));
            if message.contains("found: EOF") {
                return syntax_error(text, None);
            }
            match span {
                Some(span) => syntax_error(text, Some(span)),
                None => WireError::new(SqlState::SYNTAX_ERROR, format!("syntax error: {message}")),
            }
        }
    }
}
