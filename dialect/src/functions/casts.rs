//! The casts: `pg_cast` among Shoal's types, and I/O conversion to and from the string types.
//!
//! In comes a pair of types with their modifiers and the context, out goes the SQL. A cast has two steps, as in
//! PostgreSQL: to the type, then to its modifier (`varchar(n)`, `numeric(p, s)`, `timestamp(p)`). Casts that need the
//! catalog (text to `regclass`) aren't here: the planner makes them.

use super::Volatility;
use super::template::{Fill, fill};
use crate::types::{Type, Type::*, Typed};

/// Where a cast stands, and so which casts are allowed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CastContext {
    /// Nobody wrote it: an argument, a comparison, a UNION.
    Implicit,
    /// A value goes into a column.
    Assignment,
    /// `CAST(a AS b)`, `a::b`.
    Explicit,
}

/// A cast, ready to be written as SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    from: Type,
    to: Typed,
    /// How the type changes.
    step: Step,
    /// Whether the modifier must be applied after that.
    resize: bool,
    explicit: bool,
}

/// How a cast changes the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The storage form stays.
    Same,
    /// This template.
    Sql(&'static str),
    /// The target's input function over the text. It applies the modifier of an explicit cast or a literal, too.
    Input,
    /// The source's output function.
    Output,
    /// The same, cut to what fits into a `name`.
    OutputName,
}

/// The cast from one type to another that the context allows. `None` if there is none: 42846 or 42804.
///
/// The modifier of `from` is what is known of the value (-1 for an expression): a `varchar(5)` needs nothing to
/// become a `varchar(5)`.
pub fn find_cast(from: Typed, to: Typed, context: CastContext) -> Option<Cast> {
    let step = if from.ty == to.ty { Step::Same } else { step(from.ty, to.ty, context)? };
    let sized = to.modifier >= 0 && matches!(to.ty, Varchar | Bpchar | Numeric | Timestamp | Timestamptz);
    let known = from.ty == to.ty && from.modifier == to.modifier;
    let explicit = context == CastContext::Explicit;
    Some(Cast { from: from.ty, to, step, resize: sized && !known, explicit })
}

impl Cast {
    /// Whether the SQL is the argument itself.
    pub fn is_noop(&self) -> bool {
        self.step == Step::Same && !self.resize
    }

    /// Whether the SQL looks at the session's time zone. Such a cast is stable, not immutable.
    pub fn needs_zone(&self) -> bool {
        match self.step {
            Step::Same => false,
            Step::Sql(template) => template.contains("{zone}"),
            Step::Input => self.to.ty == Timestamptz,
            Step::Output | Step::OutputName => self.from == Timestamptz,
        }
    }

    /// What the result depends on beside the argument.
    pub fn volatility(&self) -> Volatility {
        if self.needs_zone() { Volatility::Stable } else { Volatility::Immutable }
    }

    /// The SQL that casts what `arg` yields. `zone` is an SQL expression, the session's time zone as text; only
    /// looked at if [`Cast::needs_zone`].
    pub fn sql(&self, arg: &str, zone: &str) -> String {
        let cast = match self.step {
            Step::Same => arg.to_owned(),
            Step::Sql(template) => {
                fill(template, &Fill { args: &[arg], types: &[self.from], zone, order: "", filter: "" })
            }
            Step::Input => input_sql(self.to.ty, arg, zone),
            Step::Output => output_sql(self.from, arg, zone),
            Step::OutputName => format!("pg_name({})", output_sql(self.from, arg, zone)),
        };
        if !self.resize {
            return cast;
        }
        let modifier = self.to.modifier;
        match (self.to.ty, self.explicit) {
            (Varchar, true) => format!("pg_varchar_cut({cast}, {})", modifier - 4),
            (Varchar, false) => format!("pg_varchar_fit({cast}, {})", modifier - 4),
            (Bpchar, true) => format!("pg_bpchar_cut({cast}, {})", modifier - 4),
            (Bpchar, false) => format!("pg_bpchar_fit({cast}, {})", modifier - 4),
            (Numeric, _) => format!("pg_numeric_fit({cast}, {modifier})"),
            (Timestamp | Timestamptz, _) => format!("pg_timestamp_round({cast}, {modifier})"),
            _ => cast,
        }
    }
}

/// SQL of the text that the type's output function makes of a value.
pub(super) fn output_sql(ty: Type, sql: &str, zone: &str) -> String {
    match ty {
        Text | Varchar | Name | Char | Unknown | Array(_) => sql.to_owned(),
        Int2 | Int4 | Int8 | Oid => format!("CAST({sql} AS TEXT)"),
        Timestamptz => format!("pg_output_zoned({}, {sql}, {zone})", ty.oid()),
        _ => format!("pg_output({}, {sql})", ty.oid()),
    }
}

/// SQL of the text that an explicit cast to text makes of a value.
pub(super) fn text_sql(ty: Type, sql: &str, zone: &str) -> String {
    match find_cast(Typed::plain(ty), Typed::plain(Text), CastContext::Explicit) {
        Some(cast) => cast.sql(sql, zone),
        None => output_sql(ty, sql, zone),
    }
}

/// SQL of the value that the type's input function reads from a text.
fn input_sql(ty: Type, sql: &str, zone: &str) -> String {
    match ty {
        Timestamptz => format!("pg_input_zoned({}, {sql}, {zone})", ty.oid()),
        _ => format!("pg_input({}, {sql})", ty.oid()),
    }
}

/// Whether an implicit cast leads from one type to the other.
pub(super) fn is_implicit(from: Type, to: Type) -> bool {
    from == to || step(from, to, CastContext::Implicit).is_some()
}

fn step(from: Type, to: Type, context: CastContext) -> Option<Step> {
    if let Some((needed, step)) = declared(from, to) {
        return (context >= needed).then_some(step);
    }
    let string = |ty| matches!(ty, Text | Varchar | Bpchar | Name);
    match (from, to) {
        // A text whose type isn't known is read by the input function, whatever the context.
        (Unknown, Text | Varchar | Name) => Some(Step::Same),
        (Unknown, Regclass) | (_, Unknown) => None,
        (Unknown, _) => Some(Step::Input),
        // I/O conversion: to a string on assignment, from one when asked for.
        (_, Regclass) | (Regclass, _) => None,
        (_, Name) if context >= CastContext::Assignment => Some(Step::OutputName),
        (_, to) if string(to) && context >= CastContext::Assignment => Some(Step::Output),
        // The padding would become bytes, and isn't stored.
        (Bpchar, Bytea) => None,
        (from, _) if string(from) && context == CastContext::Explicit => Some(Step::Input),
        _ => None,
    }
}

/// `pg_cast`: the least context, and the SQL.
fn declared(from: Type, to: Type) -> Option<(CastContext, Step)> {
    use CastContext::{Assignment, Explicit, Implicit};
    use Step::{Same, Sql};
    Some(match (from, to) {
        (Bool, Int4) => (Explicit, Same),
        (Int4, Bool) => (Explicit, Sql("({0} <> 0)")),
        (Bool, Text | Varchar | Bpchar) => {
            (Assignment, Sql("CASE {0} WHEN 1 THEN 'true' WHEN 0 THEN 'false' END"))
        }

        (Int2, Int4 | Int8) | (Int4, Int8) => (Implicit, Same),
        (Int4 | Int8, Int2) => (Assignment, Sql("pg_int2({0})")),
        (Int8, Int4) => (Assignment, Sql("pg_int4({0})")),
        (Int2 | Int4, Oid | Regclass) => (Implicit, Sql("pg_oid({0})")),
        (Int8, Oid | Regclass) => (Implicit, Sql("pg_int8_oid({0})")),
        (Oid | Regclass, Int4) => (Assignment, Sql("pg_oid_int4({0})")),
        (Oid | Regclass, Int8) => (Assignment, Same),
        (Oid, Regclass) | (Regclass, Oid) => (Implicit, Same),

        (Int2 | Int4 | Int8, Float8) => (Implicit, Sql("CAST({0} AS REAL)")),
        (Int2, Float4) => (Implicit, Sql("CAST({0} AS REAL)")),
        (Int4 | Int8, Float4) => (Implicit, Sql("pg_int_float4({0})")),
        (Int2 | Int4 | Int8, Numeric) => (Implicit, Sql("pg_int_numeric({0})")),
        (Float4, Float8) => (Implicit, Same),
        (Float8, Float4) => (Assignment, Sql("pg_float4({0})")),
        (Float4 | Float8, Int2) => (Assignment, Sql("pg_float_int2({0})")),
        (Float4 | Float8, Int4) => (Assignment, Sql("pg_float_int4({0})")),
        (Float4 | Float8, Int8) => (Assignment, Sql("pg_float_int8({0})")),
        (Float4, Numeric) => (Assignment, Sql("pg_float4_numeric({0})")),
        (Float8, Numeric) => (Assignment, Sql("pg_float8_numeric({0})")),
        (Numeric, Float4) => (Implicit, Sql("pg_numeric_float4({0})")),
        (Numeric, Float8) => (Implicit, Sql("pg_numeric_float8({0})")),
        (Numeric, Int2) => (Assignment, Sql("pg_numeric_int2({0})")),
        (Numeric, Int4) => (Assignment, Sql("pg_numeric_int4({0})")),
        (Numeric, Int8) => (Assignment, Sql("pg_numeric_int8({0})")),

        (Text, Varchar) | (Varchar, Text) | (Bpchar, Text | Varchar) => (Implicit, Same),
        (Text | Varchar, Bpchar) => (Implicit, Sql("rtrim({0}, ' ')")),
        (Text | Varchar | Bpchar, Name) => (Implicit, Sql("pg_name({0})")),
        (Name, Text) => (Implicit, Same),
        (Name, Varchar) => (Assignment, Same),
        (Name, Bpchar) => (Assignment, Sql("rtrim({0}, ' ')")),
        (Text | Varchar | Bpchar, Char) => (Assignment, Sql("pg_char({0})")),
        (Char, Text) => (Implicit, Same),
        (Char, Varchar | Bpchar) => (Assignment, Same),
        (Char, Int4) => (Explicit, Sql("pg_char_int4({0})")),
        (Int4, Char) => (Explicit, Sql("pg_int4_char({0})")),

        (Date, Timestamp) => (Implicit, Sql("pg_date_timestamp({0})")),
        (Date, Timestamptz) => (Implicit, Sql("pg_date_timestamptz({0}, {zone})")),
        (Timestamp, Date) => (Assignment, Sql("pg_timestamp_date({0})")),
        (Timestamptz, Date) => (Assignment, Sql("pg_timestamptz_date({0}, {zone})")),
        (Timestamp, Timestamptz) => (Implicit, Sql("pg_timestamp_timestamptz({0}, {zone})")),
        (Timestamptz, Timestamp) => (Assignment, Sql("pg_timestamptz_timestamp({0}, {zone})")),
        _ => return None,
    })
}

/// Every declared cast: source, target, least context.
pub fn casts() -> impl Iterator<Item = (Type, Type, CastContext)> {
    Type::ALL.iter().flat_map(|from| {
        Type::ALL.iter().filter_map(|to| declared(*from, *to).map(|(context, _)| (*from, *to, context)))
    })
}
