//! The bound tree: what a query means, typed and closed.
//!
//! Binding makes it out of sqlparser's syntax tree; planning and emission read it. Every node has one meaning that
//! this module's types spell out; nothing in it refers to a name of the user's text, and nothing of PostgreSQL that
//! Shoal doesn't have can be written in it.

use crate::plan::{Environment, OutputColumn, ScalarId};
use dialect::Type;
use dialect::functions::{Cast, Resolved, ResolvedAggregate};
use dialect::types::Typed;
use proto::catalog::Table;
use proto::services::{LockWait, RowLock};
use proto::{SequenceId, Value};
use std::sync::Arc;

/// An item of a FROM list (or the target of a write), numbered over the whole statement. Emission calls it `r<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelId(pub u32);

/// An expression and its type.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// What it gives. [`Type::Unknown`] until its context says what a literal or parameter is to be.
    pub ty: Typed,
}

/// A literal that was lifted out of the text.
#[derive(Clone, Copy, Debug)]
pub struct Literal {
    /// Its place among the text's literals.
    pub slot: u32,
    /// The same for literals of the same kind and text, so that `GROUP BY a + 1` finds `a + 1`.
    pub class: u32,
    /// A number after a minus sign.
    pub negated: bool,
}

impl PartialEq for Literal {
    fn eq(&self, other: &Self) -> bool {
        self.class == other.class && self.negated == other.negated
    }
}

/// What an expression is.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// A literal, read as the expression's type.
    Literal(Literal),
    /// A value that the text fixes: NULL, TRUE, FALSE, and what DDL keeps.
    Value(Value),
    /// `$n`, from 0.
    Parameter(u32),
    /// A fact of the session or the moment. Each use of a volatile one has a number of its own.
    Environment(Environment, u32),
    /// `nextval`. Each use has a number of its own.
    NextValue(SequenceId, u32),
    /// A column.
    Column(RelId, u32),
    /// An operator or function.
    Call(Operation, Vec<Expr>),
    /// A cast.
    Cast(Conversion, Box<Expr>),
    /// All of these.
    And(Vec<Expr>),
    /// Any of these.
    Or(Vec<Expr>),
    /// NOT.
    Not(Box<Expr>),
    /// IS [NOT] NULL.
    IsNull(Box<Expr>, bool),
    /// `IS [NOT] TRUE` or `FALSE`: the value, and whether NOT was there.
    IsTruth(Box<Expr>, bool, bool),
    /// IS DISTINCT FROM, over one type; `true` for IS NOT DISTINCT FROM.
    Distinct(Box<Expr>, Box<Expr>, bool),
    /// IN over one type; `true` for NOT IN.
    In(Box<Expr>, Vec<Expr>, bool),
    /// IN (subquery); `true` for NOT IN.
    InQuery(Box<Expr>, Box<Query>, bool),
    /// `= ANY (array)` (`false`) or `<> ALL (array)` (`true`): the value, the array, whose elements have its type.
    InArray(Box<Expr>, Box<Expr>, bool),
    /// CASE with conditions.
    Case(Vec<(Expr, Expr)>, Option<Box<Expr>>),
    /// COALESCE.
    Coalesce(Vec<Expr>),
    /// NULLIF, over one type. The third is the first as the result shows it.
    NullIf(Box<Expr>, Box<Expr>),
    /// GREATEST (`true`) or LEAST.
    Extreme(bool, Vec<Expr>),
    /// An aggregate of the query around it.
    Aggregate(Box<AggregateCall>),
    /// A scalar subquery.
    Subquery(Box<Query>),
    /// EXISTS.
    Exists(Box<Query>),
    /// What a query that is run first gave as its one value.
    Known(ScalarId),
    /// The column of a row that a RETURNING, SET or ON CONFLICT clause sees as proposed.
    Excluded(u32),
}

/// A resolved operator or function. Two are equal if they are the same entry of the table.
#[derive(Clone, Debug)]
pub struct Operation(pub Resolved);

impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0.function, other.0.function) && self.0.args == other.0.args
    }
}

/// A cast.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// How it is done.
    pub cast: Cast,
    /// From what.
    pub from: Typed,
    /// To what.
    pub to: Typed,
    /// Whether the user wrote it.
    pub explicit: bool,
}

impl PartialEq for Conversion {
    fn eq(&self, other: &Self) -> bool {
        self.from == other.from && self.to == other.to && self.explicit == other.explicit
    }
}

/// A call of an aggregate.
#[derive(Clone, Debug)]
pub struct AggregateCall {
    /// Which one.
    pub resolved: ResolvedAggregate,
    /// Its arguments, cast to what it takes.
    pub args: Vec<Expr>,
    /// DISTINCT.
    pub distinct: bool,
    /// ORDER BY within it.
    pub order_by: Vec<SortKey>,
    /// FILTER.
    pub filter: Option<Expr>,
}

impl PartialEq for AggregateCall {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.resolved.aggregate, other.resolved.aggregate)
            && self.args == other.args
            && self.distinct == other.distinct
            && self.order_by == other.order_by
            && self.filter == other.filter
    }
}

/// A key of an order, by expression.
#[derive(Clone, Debug, PartialEq)]
pub struct SortKey {
    /// What is sorted by.
    pub expr: Expr,
    /// DESC.
    pub descending: bool,
    /// NULLs first.
    pub nulls_first: bool,
}

/// A query.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// WITH, in order: each may use those before it.
    pub ctes: Vec<Cte>,
    /// What gives the rows.
    pub body: Body,
    /// ORDER BY, by the place of a column of the body (visible or not).
    pub order_by: Vec<OrderKey>,
    /// LIMIT: int8.
    pub limit: Option<Expr>,
    /// OFFSET: int8.
    pub offset: Option<Expr>,
    /// The visible columns. The body may have more after them, for the order.
    pub columns: Vec<OutputColumn>,
}

/// A query of a WITH clause.
#[derive(Clone, Debug, PartialEq)]
pub struct Cte {
    /// Its number within the statement. Emission calls it `w<n>`.
    pub id: u32,
    /// The query.
    pub query: Query,
}

/// What gives a query's rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// SELECT.
    Select(Box<Select>),
    /// VALUES.
    Values(Vec<Vec<Expr>>),
    /// UNION, INTERSECT or EXCEPT, over sides of the same types.
    SetOperation {
        /// Which.
        op: SetOp,
        /// ALL.
        all: bool,
        /// The left side.
        left: Box<Query>,
        /// The right side.
        right: Box<Query>,
    },
}

/// A set operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // SQL's names
pub enum SetOp {
    Union,
    Intersect,
    Except,
}

/// A key of an order, by the place of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderKey {
    /// The column.
    pub column: usize,
    /// DESC.
    pub descending: bool,
    /// NULLs first.
    pub nulls_first: bool,
}

/// A SELECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Select {
    /// FROM; empty for none.
    pub from: Vec<From>,
    /// WHERE.
    pub filter: Option<Expr>,
    /// Whether rows are grouped: GROUP BY, HAVING, or an aggregate.
    pub grouped: bool,
    /// GROUP BY.
    pub group_by: Vec<Expr>,
    /// HAVING.
    pub having: Option<Expr>,
    /// The columns, those that only the order needs last.
    pub projection: Vec<Expr>,
    /// DISTINCT.
    pub distinct: bool,
    /// The locks that its rows get, of each table one.
    pub locks: Vec<Lock>,
}

/// FOR UPDATE or one of its kin, about one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The table, among those of FROM.
    pub rel: RelId,
    /// How strong it is.
    pub mode: RowLock,
    /// What happens to who meets another's.
    pub wait: LockWait,
}

/// An item of FROM.
#[derive(Clone, Debug, PartialEq)]
pub enum From {
    /// A table, subquery, or other relation.
    Relation(Relation),
    /// A join.
    Join {
        /// Of which kind.
        kind: JoinKind,
        /// The left side.
        left: Box<From>,
        /// The right side.
        right: Box<From>,
        /// ON, or what USING and NATURAL stand for. `None` for CROSS JOIN.
        on: Option<Expr>,
    },
}

/// A kind of join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // SQL's names
pub enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
}

/// A relation of FROM.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation {
    /// Its number.
    pub id: RelId,
    /// What it is.
    pub source: RelationSource,
    /// The types of its columns.
    pub types: Vec<Type>,
}

/// What a relation is.
#[derive(Clone, Debug, PartialEq)]
pub enum RelationSource {
    /// A table. Its columns are the table's, the hidden key's included.
    Table(Arc<Table>),
    /// A relation that is made from the catalog.
    System(&'static str),
    /// A subquery.
    Query(Box<Query>),
    /// A query of a WITH clause.
    Cte(u32),
    /// The rows of a query that is run first.
    Rows(ScalarId),
}

impl Expr {
    /// An expression of a type without a modifier.
    pub fn new(kind: ExprKind, ty: Type) -> Self {
        Self { kind, ty: Typed::plain(ty) }
    }

    /// NULL of a type.
    pub fn null(ty: Type) -> Self {
        Self::new(ExprKind::Value(Value::Null), ty)
    }

    /// A truth value.
    pub fn truth(value: bool) -> Self {
        Self::new(ExprKind::Value(Value::Int(value.into())), Type::Bool)
    }
}
