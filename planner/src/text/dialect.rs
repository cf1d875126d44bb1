//! The grammar that sqlparser is asked to follow: PostgreSQL's.
//!
//! Operators bind as in PostgreSQL's `gram.y`, and expressions begin as there. What sqlparser would read otherwise:
//! `-2^2` is `(-2)^2`, `~1+1` is `~(1+1)`, `a ~ b || c` is `(a ~ b) || c`, `a < b < c` is an error, any type may stand
//! before a string, and reserved words name nothing.

use super::keywords::{self, Category};
use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArguments, ObjectName, TypedString, UnaryOperator, Value,
    ValueWithSpan,
};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan};

/// PostgreSQL's dialect, with sqlparser's differences mended.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShoalDialect;

/// What sqlparser thinks PostgreSQL is.
const POSTGRES: PostgreSqlDialect = PostgreSqlDialect {};

// From weakest to strongest: gram.y's order, on sqlparser's scale.
const OR: u8 = 10;
const AND: u8 = 20;
const NOT: u8 = 30;
const IS: u8 = 40;
const COMPARISON: u8 = 50;
const LIKE: u8 = 60;
const OPERATOR: u8 = 70;
const SUM: u8 = 80;
const PRODUCT: u8 = 90;
const POWER: u8 = 100;
const AT_TIME_ZONE: u8 = 110;
const COLLATE: u8 = 120;
const SIGN: u8 = 125;
const CAST: u8 = 140;

impl ShoalDialect {
    /// What binds more strongly than this is all that a column's DEFAULT may have without parentheses.
    pub(crate) const RESTRICTED: u8 = IS;
}

macro_rules! as_postgres {
    ($($name:ident)*) => {
        $(fn $name(&self) -> bool {
            POSTGRES.$name()
        })*
    };
}

impl Dialect for ShoalDialect {
    fn dialect(&self) -> std::any::TypeId {
        // sqlparser asks which dialect it is here and there.
        POSTGRES.dialect()
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        POSTGRES.identifier_quote_style(identifier)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        POSTGRES.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        POSTGRES.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        POSTGRES.is_reserved_for_identifier(keyword)
    }

    fn is_column_alias(&self, keyword: &Keyword, _parser: &mut Parser) -> bool {
        keywords::is_bare_label(*keyword)
    }

    fn is_table_alias(&self, keyword: &Keyword, _parser: &mut Parser) -> bool {
        keywords::is_table_alias(*keyword)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        POSTGRES.prec_value(precedence)
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        Some(Ok(binding(parser)))
    }

    fn parse_prefix(&self, parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        prefix(parser)
    }

    fn parse_infix(
        &self,
        parser: &mut Parser,
        left: &Expr,
        _precedence: u8,
    ) -> Option<Result<Expr, ParserError>> {
        infix(parser, left)
    }

    as_postgres! {
        supports_unicode_string_literal
        supports_filter_during_aggregation
        supports_group_by_expr
        allow_extract_custom
        allow_extract_single_quotes
        supports_bitwise_shift_operators
        supports_named_fn_args_with_colon_operator
        supports_named_fn_args_with_expr_name
        supports_empty_projections
        supports_array_typedef_with_brackets
        supports_order_by_using_operator
        supports_left_associative_joins_without_parens
        supports_notnull_operator
        supports_interval_options
        supports_insert_table_alias
        supports_comma_separated_trim
    }
}

/// How strongly the next token binds what stands before it; 0 if it doesn't.
fn binding(parser: &Parser) -> u8 {
    let keyword_after = |n: usize| match &parser.peek_nth_token_ref(n).token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    };
    match &parser.peek_token_ref().token {
        Token::Word(word) => match word.keyword {
            Keyword::OR => OR,
            Keyword::AND => AND,
            Keyword::IS | Keyword::NOTNULL => IS,
            Keyword::IN | Keyword::BETWEEN | Keyword::LIKE | Keyword::ILIKE | Keyword::SIMILAR => LIKE,
            Keyword::OVERLAPS => LIKE,
            Keyword::NOT => match keyword_after(1) {
                Keyword::IN | Keyword::BETWEEN | Keyword::LIKE | Keyword::ILIKE | Keyword::SIMILAR => LIKE,
                _ => 0,
            },
            Keyword::OPERATOR if parser.peek_nth_token_ref(1).token == Token::LParen => OPERATOR,
            Keyword::AT if keyword_after(1) == Keyword::TIME && keyword_after(2) == Keyword::ZONE => {
                AT_TIME_ZONE
            }
            Keyword::COLLATE => COLLATE,
            _ => 0,
        },
        Token::Eq | Token::Neq | Token::Lt | Token::Gt | Token::LtEq | Token::GtEq => COMPARISON,
        Token::Plus | Token::Minus => SUM,
        Token::Mul | Token::Div | Token::Mod => PRODUCT,
        Token::Caret => POWER,
        Token::DoubleColon => CAST,
        Token::StringConcat
        | Token::Ampersand
        | Token::Pipe
        | Token::Sharp
        | Token::Tilde
        | Token::TildeAsterisk
        | Token::ExclamationMarkTilde
        | Token::ExclamationMarkTildeAsterisk
        | Token::DoubleTilde
        | Token::DoubleTildeAsterisk
        | Token::ExclamationMarkDoubleTilde
        | Token::ExclamationMarkDoubleTildeAsterisk
        | Token::ShiftLeft
        | Token::ShiftRight
        | Token::Overlap
        | Token::CaretAt
        | Token::Arrow
        | Token::LongArrow
        | Token::HashArrow
        | Token::HashLongArrow
        | Token::AtArrow
        | Token::ArrowAt
        | Token::HashMinus
        | Token::AtQuestion
        | Token::AtAt
        | Token::Question
        | Token::QuestionAnd
        | Token::QuestionPipe
        | Token::CustomBinaryOperator(_) => OPERATOR,
        _ => 0,
    }
}

/// Begins an expression. `None` leaves it to sqlparser.
fn prefix(parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
    let unary = |parser: &mut Parser, op: UnaryOperator, strength: u8| {
        parser.advance_token();
        let operand = parser.parse_subexpr(strength);
        Some(operand.map(|expr| Expr::UnaryOp { op, expr: Box::new(expr) }))
    };
    match &parser.peek_token_ref().token {
        Token::Minus => unary(parser, UnaryOperator::Minus, SIGN),
        Token::Plus => unary(parser, UnaryOperator::Plus, SIGN),
        Token::Tilde => unary(parser, UnaryOperator::BitwiseNot, OPERATOR),
        Token::AtSign => unary(parser, UnaryOperator::PGAbs, OPERATOR),
        Token::PGSquareRoot => unary(parser, UnaryOperator::PGSquareRoot, OPERATOR),
        Token::PGCubeRoot => unary(parser, UnaryOperator::PGCubeRoot, OPERATOR),
        Token::Number(..) | Token::Placeholder(_) => Some(parser.parse_value().map(Expr::Value)),
        Token::EscapedStringLiteral(_) => Some(string(parser).map(Expr::Value)),
        Token::CustomBinaryOperator(operator) if operator == "!!" => {
            unary(parser, UnaryOperator::PGPrefixFactorial, OPERATOR)
        }
        Token::LParen => None,
        Token::Word(word) if word.quote_style.is_some() => Some(name(parser)),
        Token::Word(word) => match word.keyword {
            Keyword::NOT => unary(parser, UnaryOperator::Not, NOT),
            Keyword::NULL | Keyword::TRUE | Keyword::FALSE => Some(parser.parse_value().map(Expr::Value)),
            Keyword::CURRENT_USER
            | Keyword::CURRENT_ROLE
            | Keyword::SESSION_USER
            | Keyword::USER
            | Keyword::CURRENT_CATALOG => Some(nullary(parser)),
            // Only where INSERT and UPDATE take it; the binder knows.
            Keyword::DEFAULT => Some(parser.parse_identifier().map(Expr::Identifier)),
            Keyword::CASE
            | Keyword::CAST
            | Keyword::ARRAY
            | Keyword::CURRENT_DATE
            | Keyword::CURRENT_TIME
            | Keyword::CURRENT_TIMESTAMP
            | Keyword::LOCALTIME
            | Keyword::LOCALTIMESTAMP => None,
            _ => match keywords::category(&word.value) {
                Category::Free => Some(name(parser)),
                Category::Column => match word.keyword {
                    Keyword::COALESCE | Keyword::ROW | Keyword::GROUPING | Keyword::VALUES => {
                        Some(name(parser))
                    }
                    Keyword::NoKeyword => Some(name(parser)),
                    Keyword::INTERVAL => match parser.peek_nth_token_ref(1).token {
                        Token::EscapedStringLiteral(_) | Token::LParen => None,
                        _ => Some(name(parser)),
                    },
                    Keyword::EXISTS
                    | Keyword::EXTRACT
                    | Keyword::OVERLAY
                    | Keyword::POSITION
                    | Keyword::SUBSTRING
                    | Keyword::TRIM => None,
                    // The types of the grammar: `timestamp with time zone '..'`, `numeric(5, 2) '..'`.
                    _ => match parser.maybe_parse(typed_string) {
                        Ok(Some(expr)) => Some(Ok(expr)),
                        Ok(None) => Some(name(parser)),
                        Err(error) => Some(Err(error)),
                    },
                },
                Category::Function if word.value == "current_schema" => Some(nullary(parser)),
                Category::Function if parser.peek_nth_token_ref(1).token == Token::LParen => {
                    Some(name(parser))
                }
                Category::Function => Some(parser.expected_ref("(", parser.peek_nth_token_ref(1))),
                Category::Reserved => {
                    let found = parser.peek_token_ref();
                    Some(parser.expected_ref("an expression", found))
                }
            },
        },
        _ => {
            let found = parser.peek_token_ref();
            match found.token {
                Token::LBracket | Token::SingleQuotedByteStringLiteral(_) | Token::HexStringLiteral(_) => {
                    None
                }
                _ => Some(parser.expected_ref("an expression", found)),
            }
        }
    }
}

/// A column's first name, a function call, or a type before a string.
fn name(parser: &mut Parser) -> Result<Expr, ParserError> {
    match parser.peek_nth_token_ref(1).token {
        Token::EscapedStringLiteral(_) => typed_string(parser),
        Token::LParen => {
            let name = parser.parse_identifier()?;
            parser.parse_function(ObjectName::from(vec![name]))
        }
        // `pg_catalog.int4 '5'`
        Token::Period if matches!(parser.peek_nth_token_ref(3).token, Token::EscapedStringLiteral(_)) => {
            typed_string(parser)
        }
        // `double precision '1.5'`
        Token::Word(ref next) if next.keyword == Keyword::PRECISION && next.quote_style.is_none() => {
            typed_string(parser)
        }
        _ => parser.parse_identifier().map(Expr::Identifier),
    }
}

/// A string, as the trees have it.
fn string(parser: &mut Parser) -> Result<ValueWithSpan, ParserError> {
    let TokenWithSpan { token, span } = parser.next_token();
    match token {
        Token::EscapedStringLiteral(value) => Ok(Value::SingleQuotedString(value).with_span(span)),
        token => parser.expected("a string", TokenWithSpan { token, span }),
    }
}

/// A type before a string.
fn typed_string(parser: &mut Parser) -> Result<Expr, ParserError> {
    let data_type = parser.parse_data_type()?;
    let value = string(parser)?;
    Ok(Expr::TypedString(TypedString { data_type, value, uses_odbc_syntax: false }))
}

/// A function that is called without parentheses.
fn nullary(parser: &mut Parser) -> Result<Expr, ParserError> {
    let name = parser.parse_identifier()?;
    if parser.peek_token_ref().token == Token::LParen {
        return parser.parse_function(ObjectName::from(vec![name]));
    }
    Ok(Expr::Function(Function {
        name: ObjectName::from(vec![name]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::None,
        null_treatment: None,
        filter: None,
        over: None,
        within_group: Vec::new(),
    }))
}

fn is_comparison(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
    )
}

/// Goes on after an operand. `None` leaves it to sqlparser.
fn infix(parser: &mut Parser, left: &Expr) -> Option<Result<Expr, ParserError>> {
    let next = parser.peek_token_ref();
    match &next.token {
        // Comparisons don't associate.
        Token::Eq | Token::Neq | Token::Lt | Token::Gt | Token::LtEq | Token::GtEq => match left {
            Expr::BinaryOp { op, .. } if is_comparison(op) => {
                Some(parser.expected_ref("end of expression", next))
            }
            _ => None,
        },
        Token::Word(word) => match word.keyword {
            Keyword::LIKE | Keyword::ILIKE | Keyword::SIMILAR | Keyword::BETWEEN => match left {
                Expr::Like { .. } | Expr::ILike { .. } | Expr::SimilarTo { .. } | Expr::Between { .. } => {
                    Some(parser.expected_ref("end of expression", next))
                }
                _ => None,
            },
            Keyword::COLLATE => {
                parser.advance_token();
                let collation = parser.parse_object_name(false);
                Some(collation.map(|collation| Expr::Collate { expr: Box::new(left.clone()), collation }))
            }
            _ => None,
        },
        _ => None,
    }
}
