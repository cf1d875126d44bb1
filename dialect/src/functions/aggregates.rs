//! The aggregates, and how each is put together from partial results of several shards.

use super::template::{Fill, fill};
use super::{Arg, Category, resolve};
use crate::types::Type::{self, *};
use Arg::Is;
use proto::WireError;

/// An aggregate function. Its templates are filled by [`ResolvedAggregate`].
#[derive(Debug)]
pub struct Aggregate {
    /// Its name.
    pub name: &'static str,
    /// What it takes; nothing for `count(*)`.
    pub args: &'static [Arg],
    /// What it gives.
    pub result: Type,
    /// The SQL over all rows of a group.
    pub sql: &'static str,
    /// The same with DISTINCT. `None` where Shoal can't: 0A000.
    pub distinct: Option<&'static str>,
    /// How it is computed in two steps. `None` if the rows must come together (order matters).
    pub partial: Option<Partial>,
}

/// An aggregate in two steps: each shard computes the columns over its rows, then those of one group are merged.
#[derive(Debug)]
pub struct Partial {
    /// What a shard computes.
    pub columns: &'static [PartialColumn],
    /// The result, over the merged columns `{0}`, `{1}`, ..
    pub finish: &'static str,
}

/// A column of a partial result.
#[derive(Debug)]
pub struct PartialColumn {
    /// The aggregate that the shard runs, over the aggregate's arguments.
    pub sql: &'static str,
    /// The column's type.
    pub ty: Type,
    /// The aggregate that merges the shards' columns, over the column `{0}`.
    pub merge: &'static str,
}

/// The aggregate that a call means.
#[derive(Clone, Debug)]
pub struct ResolvedAggregate {
    /// The aggregate.
    pub aggregate: &'static Aggregate,
    /// What each argument must be cast to.
    pub args: Vec<Type>,
    /// The type of its result.
    pub result: Type,
}

impl ResolvedAggregate {
    /// The call in one step. `filter` is empty or ` FILTER (WHERE ..)`; `order` (for aggregates that mind it) empty or
    /// ` ORDER BY ..`.
    pub fn sql<S: AsRef<str>>(&self, args: &[S], order: &str, filter: &str) -> String {
        self.fill(self.aggregate.sql, args, order, filter)
    }

    /// The call with DISTINCT, in one step. `None` where Shoal has none.
    pub fn distinct_sql<S: AsRef<str>>(&self, args: &[S], filter: &str) -> Option<String> {
        Some(self.fill(self.aggregate.distinct?, args, "", filter))
    }

    /// What a shard computes for `column` of the aggregate's partial result.
    pub fn partial_sql<S: AsRef<str>>(&self, column: &PartialColumn, args: &[S], filter: &str) -> String {
        self.fill(column.sql, args, "", filter)
    }

    fn fill<S: AsRef<str>>(&self, template: &str, args: &[S], order: &str, filter: &str) -> String {
        fill(template, &Fill { args, types: &self.args, zone: "", order, filter })
    }
}

impl PartialColumn {
    /// The aggregate that merges the shards' values, which `column` is.
    pub fn merge_sql(&self, column: &str) -> String {
        fill(self.merge, &Fill { args: &[column], types: &[self.ty], zone: "", order: "", filter: "" })
    }
}

impl Partial {
    /// The result, from the merged columns.
    pub fn finish_sql<S: AsRef<str>>(&self, merged: &[S]) -> String {
        let types: Vec<Type> = self.columns.iter().map(|c| c.ty).collect();
        fill(self.finish, &Fill { args: merged, types: &types, zone: "", order: "", filter: "" })
    }
}

/// The aggregate of this name for arguments of these types. `count(*)` is `count` of nothing.
///
/// # Errors
/// 42883 and 42725, as PostgreSQL words them; 0A000 for what Shoal doesn't have.
pub fn resolve_aggregate(name: &str, types: &[Type]) -> Result<ResolvedAggregate, WireError> {
    if REFUSED.contains(&name) {
        return Err(WireError::unsupported(format!("aggregate function {name}")));
    }
    let candidates: Vec<&'static Aggregate> = TABLE.iter().filter(|a| a.name == name).collect();
    let chosen = resolve::choose(resolve::Call::Function(name), types, &candidates)?;
    Ok(ResolvedAggregate { aggregate: chosen.entry, args: chosen.args, result: chosen.entry.result })
}

impl resolve::Candidate for Aggregate {
    fn args(&self) -> &'static [Arg] {
        self.args
    }

    fn variadic(&self) -> bool {
        false
    }
}

/// An aggregate of one argument that is one SQLite aggregate, merged by another. DISTINCT goes inside: only for types
/// whose storage form is their key form.
macro_rules! simple {
    ($name:literal, $ty:expr, $result:expr, $function:literal, $merge:literal) => {
        Aggregate {
            name: $name,
            args: &[Is($ty)],
            result: $result,
            sql: concat!($function, "({0}){filter}"),
            distinct: Some(concat!($function, "(DISTINCT {0}){filter}")),
            partial: Some(Partial {
                columns: &[PartialColumn {
                    sql: concat!($function, "({0}){filter}"),
                    ty: $result,
                    merge: concat!($merge, "({0})"),
                }],
                finish: "{0}",
            }),
        }
    };
}

/// `min` or `max`: DISTINCT changes nothing.
macro_rules! extreme {
    ($name:literal, $ty:expr, $function:literal) => {
        Aggregate {
            distinct: Some(concat!($function, "({0}){filter}")),
            ..simple!($name, $ty, $ty, $function, $function)
        }
    };
}

/// `avg`: a sum and a count.
macro_rules! avg {
    ($ty:expr, $result:expr, $function:literal, $distinct:literal, $sum:literal, $merge:literal, $finish:literal) => {
        Aggregate {
            name: "avg",
            args: &[Is($ty)],
            result: $result,
            sql: concat!($function, "({0}){filter}"),
            distinct: Some(concat!($distinct, "{filter}")),
            partial: Some(Partial {
                columns: &[
                    PartialColumn {
                        sql: concat!($sum, "({0}){filter}"),
                        ty: $result,
                        merge: concat!($merge, "({0})"),
                    },
                    PartialColumn { sql: "count({0}){filter}", ty: Int8, merge: COUNT },
                ],
                finish: concat!($finish, "({0}, {1})"),
            }),
        }
    };
}

/// An overload that PostgreSQL has and Shoal doesn't. It is never chosen for good: no argument can be cast to it.
const fn absent(name: &'static str, args: &'static [Arg]) -> Aggregate {
    Aggregate { name, args, result: Unknown, sql: "", distinct: None, partial: None }
}

/// Merged counts: 0, not NULL, when no shard was asked.
const COUNT: &str = "coalesce(sum({0}), 0)";

/// All aggregates.
pub(super) static TABLE: &[Aggregate] = &[
    Aggregate {
        name: "count",
        args: &[],
        result: Int8,
        sql: "count(*){filter}",
        distinct: None,
        partial: Some(Partial {
            columns: &[PartialColumn { sql: "count(*){filter}", ty: Int8, merge: COUNT }],
            finish: "{0}",
        }),
    },
    Aggregate {
        name: "count",
        args: &[Arg::Any],
        result: Int8,
        sql: "count({0}){filter}",
        distinct: Some("count(DISTINCT {k0}){filter}"),
        partial: Some(Partial {
            columns: &[PartialColumn { sql: "count({0}){filter}", ty: Int8, merge: COUNT }],
            finish: "{0}",
        }),
    },
    // 2^32 rows of the widest int4 still fit into SQLite's own int8 sum.
    simple!("sum", Int2, Int8, "sum", "sum"),
    simple!("sum", Int4, Int8, "sum", "sum"),
    simple!("sum", Int8, Numeric, "pg_int8_sum", "pg_numeric_sum"),
    simple!("sum", Float4, Float4, "pg_float4_sum", "pg_float4_sum"),
    simple!("sum", Float8, Float8, "pg_float8_sum", "pg_float8_sum"),
    Aggregate {
        distinct: Some("pg_numeric_sum_distinct({0}){filter}"),
        ..simple!("sum", Numeric, Numeric, "pg_numeric_sum", "pg_numeric_sum")
    },
    avg!(
        Int2,
        Numeric,
        "pg_int8_avg",
        "pg_int8_avg(DISTINCT {0})",
        "pg_int8_sum",
        "pg_numeric_sum",
        "pg_numeric_avg_of"
    ),
    avg!(
        Int4,
        Numeric,
        "pg_int8_avg",
        "pg_int8_avg(DISTINCT {0})",
        "pg_int8_sum",
        "pg_numeric_sum",
        "pg_numeric_avg_of"
    ),
    avg!(
        Int8,
        Numeric,
        "pg_int8_avg",
        "pg_int8_avg(DISTINCT {0})",
        "pg_int8_sum",
        "pg_numeric_sum",
        "pg_numeric_avg_of"
    ),
    avg!(
        Numeric,
        Numeric,
        "pg_numeric_avg",
        "pg_numeric_avg_distinct({0})",
        "pg_numeric_sum",
        "pg_numeric_sum",
        "pg_numeric_avg_of"
    ),
    avg!(
        Float4,
        Float8,
        "pg_float8_avg",
        "pg_float8_avg(DISTINCT {0})",
        "pg_float8_sum",
        "pg_float8_sum",
        "pg_float8_avg_of"
    ),
    avg!(
        Float8,
        Float8,
        "pg_float8_avg",
        "pg_float8_avg(DISTINCT {0})",
        "pg_float8_sum",
        "pg_float8_sum",
        "pg_float8_avg_of"
    ),
    extreme!("min", Int2, "min"),
    extreme!("min", Int4, "min"),
    extreme!("min", Int8, "min"),
    extreme!("min", Oid, "min"),
    extreme!("min", Float4, "min"),
    extreme!("min", Float8, "min"),
    extreme!("min", Numeric, "pg_numeric_min"),
    extreme!("min", Text, "min"),
    extreme!("min", Bpchar, "min"),
    extreme!("min", Date, "min"),
    extreme!("min", Timestamp, "min"),
    extreme!("min", Timestamptz, "min"),
    extreme!("max", Int2, "max"),
    extreme!("max", Int4, "max"),
    extreme!("max", Int8, "max"),
    extreme!("max", Oid, "max"),
    extreme!("max", Float4, "max"),
    extreme!("max", Float8, "max"),
    extreme!("max", Numeric, "pg_numeric_max"),
    extreme!("max", Text, "max"),
    extreme!("max", Bpchar, "max"),
    extreme!("max", Date, "max"),
    extreme!("max", Timestamp, "max"),
    extreme!("max", Timestamptz, "max"),
    extreme!("bool_and", Bool, "min"),
    extreme!("every", Bool, "min"),
    extreme!("bool_or", Bool, "max"),
    // Of an interval: `sum('1')` is ambiguous because of them.
    absent("sum", &[Arg::absent(Category::Timespan)]),
    absent("avg", &[Arg::absent(Category::Timespan)]),
    Aggregate {
        name: "string_agg",
        args: &[Is(Text), Is(Text)],
        result: Text,
        sql: "pg_string_agg({0}, {1}{order}){filter}",
        distinct: None,
        partial: None,
    },
    Aggregate {
        name: "string_agg",
        args: &[Is(Bytea), Is(Bytea)],
        result: Bytea,
        sql: "pg_bytes_agg({0}, {1}{order}){filter}",
        distinct: None,
        partial: None,
    },
];

/// Aggregates that PostgreSQL has and Shoal doesn't, whatever their arguments.
pub(super) const REFUSED: &[&str] = &[
    "array_agg",
    "json_agg",
    "jsonb_agg",
    "json_object_agg",
    "jsonb_object_agg",
    "xmlagg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "range_agg",
    "range_intersect_agg",
    "corr",
    "covar_pop",
    "covar_samp",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "variance",
    "var_pop",
    "var_samp",
    "mode",
    "percentile_cont",
    "percentile_disc",
    "rank",
    "dense_rank",
    "percent_rank",
    "cume_dist",
];
