//! The one table of operators, functions, aggregates and casts.
//!
//! In comes what a query says (a name and the types of what it is given), out goes the entry that PostgreSQL's rules
//! choose (`resolve`), the types that its arguments must be cast to, and the SQL that SQLite runs for it. Nothing
//! but what stands in this table ever reaches SQLite. The functions that the templates call are in
//! `native`; `crate::sqlite` registers them. This module must never know a table, a column or a session:
//! the time zone, where it matters, is the SQL expression that fills `{zone}`.

mod absent;
mod aggregates;
mod casts;
mod math;
mod moments;
mod operators;
mod resolve;
mod strings;
mod system;
mod template;

pub use aggregates::{Aggregate, Partial, PartialColumn, ResolvedAggregate, resolve_aggregate};
pub use casts::{Cast, CastContext, casts, find_cast};
pub use resolve::{Resolved, common_type, resolve_function, resolve_operator, type_name};

use crate::types::Type;

/// An operator or a function.
#[derive(Debug)]
pub struct Function {
    /// Its name: `+`, `lower`. An operator of one argument is a prefix operator.
    pub name: &'static str,
    /// What it takes.
    pub args: &'static [Arg],
    /// Whether the last argument may be repeated.
    pub variadic: bool,
    /// What it gives.
    pub result: Ret,
    /// What its result depends on.
    pub volatility: Volatility,
    /// Whether it is NULL when an argument is.
    pub strict: bool,
    /// What it becomes.
    pub emit: Emit,
}

/// What an argument can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// This type, or what has an implicit cast to it.
    Is(Type),
    /// `anynonarray`: any type but arrays. The function is given it cast to text.
    AnyNonArray,
    /// `anyelement`: any type. The function is given it cast to text.
    AnyElement,
    /// `anyarray`. The function is given its text form.
    AnyArray,
    /// `"any"`. The function is given its text, as the type's output function writes it.
    Any,
    /// A type that PostgreSQL has and Shoal doesn't. It takes part in the choice among overloads, for that can be
    /// ambiguous because of it; chosen, it is refused.
    Absent {
        /// The type's category.
        category: Category,
        /// Whether the type is preferred in its category.
        preferred: bool,
    },
}

/// What a function gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// This type.
    Is(Type),
    /// A type that Shoal doesn't have: the entry is refused.
    Absent,
}

/// `pg_type.typcategory`, as far as overloads need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are PostgreSQL's
pub enum Category {
    Array,
    Boolean,
    Composite,
    DateTime,
    Geometric,
    Network,
    Numeric,
    Range,
    String,
    Timespan,
    UserDefined,
    BitString,
    Unknown,
    Internal,
}

/// What a result depends on beside the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volatility {
    /// Nothing.
    Immutable,
    /// The session's settings and the moment, not more than once a statement.
    Stable,
    /// Each call is another.
    Volatile,
}

/// What an entry becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// SQL for SQLite: `{0}`, `{1}`, .. are the arguments, `{k0}` the argument's key form, `{*}` all of them, `{zone}`
    /// the session's time zone. [`Resolved::sql`] fills it in.
    Sql(&'static str),
    /// The router evaluates it, under this name.
    Router(&'static str),
    /// PostgreSQL has it, Shoal doesn't: `0A000`. Resolution never hands it out.
    Refused,
}

/// Every function, for `pg_proc` and tests: those that Shoal refuses ([`Emit::Refused`]) included.
pub fn functions() -> impl Iterator<Item = &'static Function> {
    [math::TABLE, strings::TABLE, moments::TABLE, system::TABLE, absent::FUNCTIONS].into_iter().flatten()
}

/// Every operator, refused ones included.
pub fn operators() -> impl Iterator<Item = &'static Function> {
    operators::TABLE.iter().copied().flatten().chain(absent::OPERATORS)
}

/// Every aggregate.
pub fn aggregates() -> impl Iterator<Item = &'static Aggregate> {
    aggregates::TABLE.iter().filter(|a| !a.sql.is_empty())
}

/// Whether a name is an aggregate's, whatever its arguments.
pub fn is_aggregate(name: &str) -> bool {
    aggregates::REFUSED.contains(&name) || aggregates::TABLE.iter().any(|a| a.name == name)
}

impl Function {
    /// An immutable, strict function.
    const fn new(name: &'static str, args: &'static [Arg], result: Type, sql: &'static str) -> Self {
        Self {
            name,
            args,
            variadic: false,
            result: Ret::Is(result),
            volatility: Volatility::Immutable,
            strict: true,
            emit: Emit::Sql(sql),
        }
    }

    const fn stable(self) -> Self {
        Self { volatility: Volatility::Stable, ..self }
    }

    /// The last argument may be repeated.
    const fn variadic(self) -> Self {
        Self { variadic: true, ..self }
    }

    const fn called_on_null(self) -> Self {
        Self { strict: false, ..self }
    }

    /// An overload that PostgreSQL has and Shoal doesn't.
    const fn refused(name: &'static str, args: &'static [Arg]) -> Self {
        Self { result: Ret::Absent, emit: Emit::Refused, ..Self::new(name, args, Type::Unknown, "") }
    }
}

impl Arg {
    /// An argument of a type that isn't preferred in its category, and that Shoal doesn't have.
    const fn absent(category: Category) -> Self {
        Arg::Absent { category, preferred: false }
    }
}
