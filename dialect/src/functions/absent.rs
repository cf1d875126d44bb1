//! Overloads that PostgreSQL has and Shoal doesn't, of names that Shoal has.
//!
//! They take part in the choice among overloads: `'1' * '2'` is ambiguous in PostgreSQL because there are operators
//! on money and geometry, and must not mean a product of floats here. Recorded from PostgreSQL 15's `pg_operator` and
//! `pg_proc`, types that Shoal lacks being known by their category alone.

use super::{Arg, Arg::Is, Category, Function};
use crate::types::Type::*;

pub(super) static OPERATORS: &[Function] = &[
    Function::refused("#", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("#", &[Arg::absent(Category::Geometric)]),
    Function::refused("#", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused(
        "&",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused("&", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("&", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused("*", &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Float8)]),
    Function::refused("*", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("*", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("*", &[Arg::absent(Category::Numeric), Is(Float4)]),
    Function::refused("*", &[Arg::absent(Category::Numeric), Is(Float8)]),
    Function::refused("*", &[Arg::absent(Category::Numeric), Is(Int2)]),
    Function::refused("*", &[Arg::absent(Category::Numeric), Is(Int4)]),
    Function::refused("*", &[Arg::absent(Category::Numeric), Is(Int8)]),
    Function::refused("*", &[Is(Float4), Arg::absent(Category::Numeric)]),
    Function::refused("*", &[Is(Float8), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("*", &[Is(Float8), Arg::absent(Category::Numeric)]),
    Function::refused("*", &[Is(Int2), Arg::absent(Category::Numeric)]),
    Function::refused("*", &[Is(Int4), Arg::absent(Category::Numeric)]),
    Function::refused("*", &[Is(Int8), Arg::absent(Category::Numeric)]),
    Function::refused("+", &[Arg::Absent { category: Category::Network, preferred: true }, Is(Int8)]),
    Function::refused(
        "+",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused(
        "+",
        &[Arg::Absent { category: Category::Timespan, preferred: true }, Arg::absent(Category::DateTime)],
    ),
    Function::refused("+", &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Date)]),
    Function::refused("+", &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Timestamp)]),
    Function::refused("+", &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Timestamptz)]),
    Function::refused("+", &[Arg::absent(Category::Array), Arg::absent(Category::UserDefined)]),
    Function::refused(
        "+",
        &[Arg::absent(Category::DateTime), Arg::Absent { category: Category::Timespan, preferred: true }],
    ),
    Function::refused("+", &[Arg::absent(Category::DateTime), Is(Date)]),
    Function::refused("+", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("+", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("+", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("+", &[Arg::absent(Category::UserDefined), Is(Numeric)]),
    Function::refused("+", &[Is(Date), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("+", &[Is(Date), Arg::absent(Category::DateTime)]),
    Function::refused("+", &[Is(Int8), Arg::Absent { category: Category::Network, preferred: true }]),
    Function::refused("+", &[Is(Numeric), Arg::absent(Category::UserDefined)]),
    Function::refused("+", &[Is(Timestamp), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("+", &[Is(Timestamptz), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused(
        "-",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused("-", &[Arg::Absent { category: Category::Network, preferred: true }, Is(Int8)]),
    Function::refused("-", &[Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused(
        "-",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused("-", &[Arg::absent(Category::Array), Arg::absent(Category::UserDefined)]),
    Function::refused(
        "-",
        &[Arg::absent(Category::DateTime), Arg::Absent { category: Category::Timespan, preferred: true }],
    ),
    Function::refused("-", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused("-", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("-", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("-", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("-", &[Arg::absent(Category::UserDefined), Arg::absent(Category::Array)]),
    Function::refused("-", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused("-", &[Arg::absent(Category::UserDefined), Is(Int4)]),
    Function::refused("-", &[Arg::absent(Category::UserDefined), Is(Numeric)]),
    Function::refused("-", &[Arg::absent(Category::UserDefined), Is(Text)]),
    Function::refused("-", &[Is(Date), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("-", &[Is(Timestamp), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("-", &[Is(Timestamp), Is(Timestamp)]),
    Function::refused("-", &[Is(Timestamptz), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("-", &[Is(Timestamptz), Is(Timestamptz)]),
    Function::refused("/", &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Float8)]),
    Function::refused("/", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("/", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("/", &[Arg::absent(Category::Numeric), Is(Float4)]),
    Function::refused("/", &[Arg::absent(Category::Numeric), Is(Float8)]),
    Function::refused("/", &[Arg::absent(Category::Numeric), Is(Int2)]),
    Function::refused("/", &[Arg::absent(Category::Numeric), Is(Int4)]),
    Function::refused("/", &[Arg::absent(Category::Numeric), Is(Int8)]),
    Function::refused(
        "<",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused(
        "<",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(
        "<",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused("<", &[Arg::absent(Category::Array), Arg::absent(Category::Array)]),
    Function::refused("<", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("<", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused("<", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("<", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("<", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("<", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused(
        "<<",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused("<<", &[Arg::absent(Category::BitString), Is(Int4)]),
    Function::refused("<<", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("<<", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused(
        "<=",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused(
        "<=",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(
        "<=",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused("<=", &[Arg::absent(Category::Array), Arg::absent(Category::Array)]),
    Function::refused("<=", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("<=", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused("<=", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("<=", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("<=", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("<=", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused(
        "<>",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused(
        "<>",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(
        "<>",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused("<>", &[Arg::absent(Category::Array), Arg::absent(Category::Array)]),
    Function::refused("<>", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("<>", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused("<>", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("<>", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("<>", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("<>", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused("<>", &[Arg::absent(Category::UserDefined), Is(Int4)]),
    Function::refused(
        "=",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused(
        "=",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(
        "=",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused("=", &[Arg::absent(Category::Array), Arg::absent(Category::Array)]),
    Function::refused("=", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("=", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused("=", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused("=", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("=", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused("=", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused("=", &[Arg::absent(Category::UserDefined), Is(Int4)]),
    Function::refused(
        ">",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused(
        ">",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(
        ">",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused(">", &[Arg::absent(Category::Array), Arg::absent(Category::Array)]),
    Function::refused(">", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused(">", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused(">", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused(">", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused(">", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused(">", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused(
        ">=",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused(
        ">=",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(
        ">=",
        &[
            Arg::Absent { category: Category::Timespan, preferred: true },
            Arg::Absent { category: Category::Timespan, preferred: true },
        ],
    ),
    Function::refused(">=", &[Arg::absent(Category::Array), Arg::absent(Category::Array)]),
    Function::refused(">=", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused(">=", &[Arg::absent(Category::DateTime), Arg::absent(Category::DateTime)]),
    Function::refused(">=", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused(">=", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused(">=", &[Arg::absent(Category::Numeric), Arg::absent(Category::Numeric)]),
    Function::refused(">=", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused(
        ">>",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused(">>", &[Arg::absent(Category::BitString), Is(Int4)]),
    Function::refused(">>", &[Arg::absent(Category::Geometric), Arg::absent(Category::Geometric)]),
    Function::refused(">>", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused(
        "|",
        &[
            Arg::Absent { category: Category::Network, preferred: true },
            Arg::Absent { category: Category::Network, preferred: true },
        ],
    ),
    Function::refused("|", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("|", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused(
        "||",
        &[
            Arg::Absent { category: Category::BitString, preferred: true },
            Arg::Absent { category: Category::BitString, preferred: true },
        ],
    ),
    Function::refused("||", &[Arg::absent(Category::Internal), Arg::absent(Category::Internal)]),
    Function::refused("||", &[Arg::absent(Category::UserDefined), Arg::absent(Category::UserDefined)]),
    Function::refused("~", &[Arg::Absent { category: Category::Network, preferred: true }]),
    Function::refused("~", &[Arg::absent(Category::BitString)]),
    Function::refused("~", &[Arg::absent(Category::UserDefined)]),
    Function::refused("~<=~", &[Is(Bpchar), Is(Bpchar)]),
    Function::refused("~<~", &[Is(Bpchar), Is(Bpchar)]),
    Function::refused("~>=~", &[Is(Bpchar), Is(Bpchar)]),
    Function::refused("~>~", &[Is(Bpchar), Is(Bpchar)]),
];

pub(super) static FUNCTIONS: &[Function] = &[
    Function::refused("bit_count", &[Arg::absent(Category::BitString)]),
    Function::refused("bit_length", &[Arg::absent(Category::BitString)]),
    Function::refused(
        "date_part",
        &[Is(Text), Arg::Absent { category: Category::Timespan, preferred: true }],
    ),
    Function::refused("date_part", &[Is(Text), Arg::absent(Category::DateTime)]),
    Function::refused(
        "date_trunc",
        &[Is(Text), Arg::Absent { category: Category::Timespan, preferred: true }],
    ),
    Function::refused("extract", &[Is(Text), Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("extract", &[Is(Text), Arg::absent(Category::DateTime)]),
    Function::refused("isfinite", &[Arg::Absent { category: Category::Timespan, preferred: true }]),
    Function::refused("length", &[Arg::absent(Category::BitString)]),
    Function::refused("length", &[Arg::absent(Category::Geometric)]),
    Function::refused("length", &[Arg::absent(Category::UserDefined)]),
    Function::refused("length", &[Is(Bytea), Is(Name)]),
    Function::refused("like", &[Is(Bytea), Is(Bytea)]),
    Function::refused("like", &[Is(Name), Is(Text)]),
    Function::refused("like_escape", &[Is(Bytea), Is(Bytea)]),
    Function::refused("lower", &[Arg::absent(Category::Internal)]),
    Function::refused("notlike", &[Is(Bytea), Is(Bytea)]),
    Function::refused("notlike", &[Is(Name), Is(Text)]),
    Function::refused("octet_length", &[Arg::absent(Category::BitString)]),
    Function::refused(
        "overlay",
        &[Arg::absent(Category::BitString), Arg::absent(Category::BitString), Is(Int4)],
    ),
    Function::refused(
        "overlay",
        &[Arg::absent(Category::BitString), Arg::absent(Category::BitString), Is(Int4), Is(Int4)],
    ),
    Function::refused("pg_get_expr", &[Arg::absent(Category::Internal), Is(Oid)]),
    Function::refused("pg_get_expr", &[Arg::absent(Category::Internal), Is(Oid), Is(Bool)]),
    Function::refused("position", &[Arg::absent(Category::BitString), Arg::absent(Category::BitString)]),
    Function::refused("string_to_array", &[Is(Text), Is(Text), Is(Text)]),
    Function::refused("substring", &[Arg::absent(Category::BitString), Is(Int4)]),
    Function::refused("substring", &[Arg::absent(Category::BitString), Is(Int4), Is(Int4)]),
    Function::refused(
        "timezone",
        &[Arg::Absent { category: Category::Timespan, preferred: true }, Arg::absent(Category::DateTime)],
    ),
    Function::refused(
        "timezone",
        &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Timestamp)],
    ),
    Function::refused(
        "timezone",
        &[Arg::Absent { category: Category::Timespan, preferred: true }, Is(Timestamptz)],
    ),
    Function::refused("timezone", &[Is(Text), Arg::absent(Category::DateTime)]),
    Function::refused("to_timestamp", &[Is(Text), Is(Text)]),
    Function::refused("trunc", &[Arg::absent(Category::UserDefined)]),
    Function::refused("upper", &[Arg::absent(Category::Internal)]),
];
