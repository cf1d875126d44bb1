//! Which entry a call means: PostgreSQL's rules (chapter 10, `parse_func.c`, `parse_oper.c`, `parse_coerce.c`).
//!
//! In comes a name and argument types, `Unknown` for literals that have none yet; out goes the entry and what each
//! argument must be cast to, or PostgreSQL's error.

use super::template::{Fill, fill};
use super::{Arg, Category, Emit, Function, Ret, Volatility, casts};
use crate::types::Type;
use proto::{SqlState, WireError};

/// The operator or function that a call means.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The entry.
    pub function: &'static Function,
    /// What each argument must be cast to. Implicit casts are enough.
    pub args: Vec<Type>,
    /// The type of its result.
    pub result: Type,
}

impl Resolved {
    /// The SQL for arguments that were cast as [`Resolved::args`] says. `zone` is an SQL expression: the session's
    /// time zone as text; only looked at if [`Resolved::needs_zone`]. `None` if the router evaluates it
    /// ([`Emit::Router`]).
    pub fn sql<S: AsRef<str>>(&self, args: &[S], zone: &str) -> Option<String> {
        let Emit::Sql(template) = self.function.emit else { return None };
        let declared = |i: usize| self.function.args.get(i).or(self.function.args.last()).copied();
        let args: Vec<String> = args
            .iter()
            .enumerate()
            .map(|(i, arg)| match declared(i) {
                Some(Arg::Any) => casts::output_sql(self.args[i], arg.as_ref(), zone),
                Some(Arg::AnyNonArray | Arg::AnyElement) => casts::text_sql(self.args[i], arg.as_ref(), zone),
                _ => arg.as_ref().to_owned(),
            })
            .collect();
        Some(fill(template, &Fill { args: &args, types: &self.args, zone, order: "", filter: "" }))
    }

    /// Whether the SQL looks at the session's time zone. Such a call is stable, not immutable.
    pub fn needs_zone(&self) -> bool {
        let Emit::Sql(template) = self.function.emit else { return false };
        let shown =
            self.function.args.iter().any(|a| matches!(a, Arg::Any | Arg::AnyNonArray | Arg::AnyElement));
        template.contains("{zone}") || shown && self.args.contains(&Type::Timestamptz)
    }

    /// What the result depends on beside the arguments.
    pub fn volatility(&self) -> Volatility {
        let zone = if self.needs_zone() { Volatility::Stable } else { Volatility::Immutable };
        self.function.volatility.max(zone)
    }
}

/// The function of this name for arguments of these types.
///
/// # Errors
/// 42883 and 42725 as PostgreSQL words them; 0A000 if what is meant is an overload that Shoal doesn't have.
pub fn resolve_function(name: &str, types: &[Type]) -> Result<Resolved, WireError> {
    let candidates: Vec<_> = super::functions().filter(|f| f.name == name).collect();
    if candidates.is_empty() && REFUSED.contains(&name) {
        return Err(WireError::unsupported(format!("function {name}")));
    }
    resolve(Call::Function(name), types, &candidates)
}

/// The operator of this name; without a left argument, the prefix operator.
///
/// # Errors
/// As for [`resolve_function`].
pub fn resolve_operator(name: &str, left: Option<Type>, right: Type) -> Result<Resolved, WireError> {
    // `!=` is `<>` from the lexer on.
    let name = if name == "!=" { "<>" } else { name };
    let types: Vec<Type> = left.into_iter().chain([right]).collect();
    let candidates: Vec<_> =
        super::operators().filter(|f| f.name == name && f.args.len() == types.len()).collect();
    resolve(Call::Operator(name), &types, &candidates)
}

/// Functions that PostgreSQL has and Shoal doesn't, whatever their arguments: those that users ask for. They are
/// refused rather than unknown.
const REFUSED: &[&str] = &[
    "regexp_count",
    "regexp_instr",
    "regexp_like",
    "regexp_match",
    "regexp_matches",
    "regexp_replace",
    "regexp_split_to_array",
    "regexp_split_to_table",
    "regexp_substr",
    "similar_to_escape",
    "string_to_table",
    "to_char",
    "to_date",
    "to_number",
    "age",
    "date_bin",
    "justify_days",
    "justify_hours",
    "justify_interval",
    "make_interval",
    "make_time",
    "make_timestamptz",
    "width_bucket",
    "setseed",
    "acosd",
    "asind",
    "atand",
    "atan2d",
    "cosd",
    "cotd",
    "sind",
    "tand",
    "asinh",
    "acosh",
    "atanh",
    "get_bit",
    "set_bit",
    "normalize",
    "unistr",
    "to_ascii",
    "parse_ident",
    "pg_typeof",
    "num_nulls",
    "num_nonnulls",
    "unnest",
    "generate_series",
    "generate_subscripts",
    "array_append",
    "array_prepend",
    "array_cat",
    "array_position",
    "array_positions",
    "array_remove",
    "array_replace",
    "array_fill",
    "array_dims",
    "array_ndims",
    "trim_array",
    "to_json",
    "to_jsonb",
    "row_to_json",
    "array_to_json",
    "json_build_object",
    "jsonb_build_object",
    "json_build_array",
    "jsonb_build_array",
    "jsonb_set",
    "jsonb_path_query",
    "row_number",
    "rank",
    "dense_rank",
    "percent_rank",
    "cume_dist",
    "ntile",
    "lag",
    "lead",
    "first_value",
    "last_value",
    "nth_value",
    "to_tsvector",
    "to_tsquery",
    "pg_sleep",
    "txid_current",
    "pg_current_xact_id",
    "pg_advisory_lock",
    "pg_advisory_xact_lock",
    "pg_try_advisory_lock",
    "pg_advisory_unlock",
    "pg_notify",
    "lo_import",
    "lo_export",
    "timeofday",
    "currval",
    "lastval",
    "setval",
    "current_setting",
    "set_config",
    "pg_get_serial_sequence",
    "to_regclass",
    "to_regtype",
    "pg_cancel_backend",
    "pg_terminate_backend",
    "pg_relation_size",
    "pg_total_relation_size",
    "pg_size_pretty",
    "has_table_privilege",
    "inet_client_addr",
    "current_timestamp",
    "localtimestamp",
    "row",
];

fn resolve(call: Call<'_>, types: &[Type], candidates: &[&'static Function]) -> Result<Resolved, WireError> {
    let Chosen { entry, args } = choose(call, types, candidates)?;
    match (entry.result, entry.emit) {
        (Ret::Is(result), Emit::Sql(_) | Emit::Router(_)) => Ok(Resolved { function: entry, args, result }),
        _ => Err(WireError::unsupported(call.text(types))),
    }
}

/// How a call is named in messages.
#[derive(Clone, Copy)]
pub(super) enum Call<'a> {
    Function(&'a str),
    Operator(&'a str),
}

impl Call<'_> {
    fn text(self, types: &[Type]) -> String {
        let names: Vec<&str> = types.iter().map(|t| type_name(*t)).collect();
        match (self, names.as_slice()) {
            (Call::Operator(name), [right]) => format!("operator {name} {right}"),
            (Call::Operator(name), [left, right]) => format!("operator {left} {name} {right}"),
            (Call::Function(name) | Call::Operator(name), names) => {
                format!("function {name}({})", names.join(", "))
            }
        }
    }

    fn missing(self, types: &[Type]) -> WireError {
        let text = self.text(types);
        let (message, hint) = match self {
            Call::Function(_) => (
                format!("{text} does not exist"),
                "No function matches the given name and argument types. You might need to add explicit type casts.",
            ),
            Call::Operator(_) => (
                format!("operator does not exist: {}", text.trim_start_matches("operator ")),
                "No operator matches the given name and argument types. You might need to add explicit type casts.",
            ),
        };
        WireError::new(SqlState::UNDEFINED_FUNCTION, message).with_hint(hint)
    }

    fn ambiguous(self, types: &[Type]) -> WireError {
        let text = self.text(types);
        let (message, hint) = match self {
            Call::Function(_) => (
                format!("{text} is not unique"),
                "Could not choose a best candidate function. You might need to add explicit type casts.",
            ),
            Call::Operator(_) => (
                format!("operator is not unique: {}", text.trim_start_matches("operator ")),
                "Could not choose a best candidate operator. You might need to add explicit type casts.",
            ),
        };
        WireError::new(SqlState::AMBIGUOUS_FUNCTION, message).with_hint(hint)
    }
}

/// What can be chosen.
pub(super) trait Candidate {
    /// What it takes.
    fn args(&self) -> &'static [Arg];
    /// Whether the last argument may be repeated.
    fn variadic(&self) -> bool;
}

impl Candidate for Function {
    fn args(&self) -> &'static [Arg] {
        self.args
    }

    fn variadic(&self) -> bool {
        self.variadic
    }
}

/// The entry of choice.
pub(super) struct Chosen<C: 'static> {
    pub entry: &'static C,
    pub args: Vec<Type>,
}

/// Chooses among the candidates of one name.
pub(super) fn choose<C: Candidate>(
    call: Call<'_>,
    types: &[Type],
    candidates: &[&'static C],
) -> Result<Chosen<C>, WireError> {
    let mut candidates: Vec<Row<C>> =
        candidates.iter().copied().filter_map(|c| Row::new(c, types.len())).collect();
    let exact = |types: &[Type]| {
        candidates.iter().find(|c| c.args.iter().zip(types).all(|(arg, ty)| *arg == Arg::Is(*ty)))
    };
    if let Some(row) = exact(types) {
        return row.chosen(call, types);
    }
    // A binary operator with one literal: the literal is assumed to be of the other side's type.
    if let (Call::Operator(_), [left, right]) = (call, types) {
        let assumed = match (left, right) {
            (Type::Unknown, other) | (other, Type::Unknown) if *other != Type::Unknown => Some(*other),
            _ => None,
        };
        // varchar has no operators of its own: PostgreSQL looks for its base's, text's.
        for ty in assumed
            .into_iter()
            .flat_map(|ty| [Some(ty), (ty == Type::Varchar).then_some(Type::Text)])
            .flatten()
        {
            if let Some(row) = exact(&[ty, ty]) {
                return row.chosen(call, types);
            }
        }
    }
    candidates.retain(|c| c.accepts(types));
    match candidates.as_slice() {
        [] => Err(call.missing(types)),
        [row] => row.chosen(call, types),
        _ => match select(candidates, types) {
            Some(row) => row.chosen(call, types),
            None => Err(call.ambiguous(types)),
        },
    }
}

/// A candidate with one argument for each of the call's.
struct Row<C: 'static> {
    entry: &'static C,
    args: Vec<Arg>,
}

impl<C: Candidate> Row<C> {
    fn new(entry: &'static C, count: usize) -> Option<Self> {
        let mut args = entry.args().to_vec();
        if entry.variadic() && count > args.len() {
            args.resize(count, *args.last()?);
        }
        (args.len() == count).then_some(Self { entry, args })
    }

    /// Whether every argument can be cast to what is wanted, implicitly.
    fn accepts(&self, types: &[Type]) -> bool {
        self.args.iter().zip(types).all(|(arg, ty)| match arg {
            Arg::Is(want) => ty == want || *ty == Type::Unknown || casts::is_implicit(*ty, *want),
            Arg::AnyNonArray => !matches!(ty, Type::Array(_)),
            Arg::AnyArray => matches!(ty, Type::Array(_) | Type::Unknown),
            Arg::Any | Arg::AnyElement => true,
            Arg::Absent { .. } => *ty == Type::Unknown,
        })
    }

    fn chosen(&self, call: Call<'_>, types: &[Type]) -> Result<Chosen<C>, WireError> {
        let args =
            self.args
                .iter()
                .zip(types)
                .map(|(arg, ty)| match (arg, ty) {
                    (Arg::Is(want), _) => Ok(*want),
                    (Arg::AnyNonArray | Arg::Any, Type::Unknown) => Ok(Type::Text),
                    (Arg::AnyArray | Arg::AnyElement, Type::Unknown) => Err(WireError::new(
                        SqlState::DATATYPE_MISMATCH,
                        "could not determine polymorphic type because input has type unknown",
                    )),
                    // Blank-padded for show; the width isn't known here.
                    (Arg::Any, Type::Bpchar) if call.shows() => Err(WireError::unsupported(call.text(types))
                        .with_hint("Cast the character value to text.")),
                    (Arg::AnyNonArray | Arg::AnyElement | Arg::Any | Arg::AnyArray, ty) => Ok(*ty),
                    (Arg::Absent { .. }, _) => Err(WireError::unsupported(call.text(types))),
                })
                .collect::<Result<_, _>>()?;
        Ok(Chosen { entry: self.entry, args })
    }

    fn exact_matches(&self, types: &[Type]) -> usize {
        self.args.iter().zip(types).filter(|(arg, ty)| **arg == Arg::Is(**ty)).count()
    }

    fn exact_or_preferred(&self, types: &[Type]) -> usize {
        self.args
            .iter()
            .zip(types)
            .filter(|(arg, ty)| {
                **ty != Type::Unknown
                    && (**arg == Arg::Is(**ty) || arg_category(**arg) == (category(**ty), true))
            })
            .count()
    }
}

impl Call<'_> {
    /// Whether an argument of any type is shown as text (`concat`), and not just looked at (`count`).
    fn shows(self) -> bool {
        !matches!(self, Call::Function("count" | "pg_typeof" | "num_nulls" | "num_nonnulls"))
    }
}

/// `func_select_candidate`.
fn select<C: Candidate>(mut rows: Vec<Row<C>>, types: &[Type]) -> Option<Row<C>> {
    keep_best(&mut rows, |row| row.exact_matches(types));
    if rows.len() == 1 {
        return rows.pop();
    }
    keep_best(&mut rows, |row| row.exact_or_preferred(types));
    if rows.len() == 1 {
        return rows.pop();
    }
    let unknown: Vec<usize> = (0..types.len()).filter(|i| types[*i] == Type::Unknown).collect();
    if unknown.is_empty() {
        return None;
    }
    // Each literal's category: string if any candidate takes one there, else what all agree on.
    let mut wanted: Vec<(usize, Category, bool)> = Vec::new();
    let mut resolved = true;
    for &i in &unknown {
        let options: Vec<(Category, bool)> = rows.iter().map(|r| arg_category(r.args[i])).collect();
        let first = options[0].0;
        let category = if options.iter().any(|o| o.0 == Category::String) {
            Category::String
        } else if options.iter().all(|o| o.0 == first) {
            first
        } else {
            resolved = false;
            break;
        };
        wanted.push((i, category, options.contains(&(category, true))));
    }
    if resolved {
        let fits = |row: &Row<C>| {
            wanted.iter().all(|(i, category, preferred)| {
                let (have, is_preferred) = arg_category(row.args[*i]);
                have == *category && (!preferred || is_preferred)
            })
        };
        if rows.iter().any(fits) {
            rows.retain(fits);
        }
        if rows.len() == 1 {
            return rows.pop();
        }
    }
    // All known arguments of one type: literals are assumed to be of it, too.
    let mut known = types.iter().filter(|t| **t != Type::Unknown);
    let first = *known.next()?;
    if known.all(|t| *t == first) {
        let assumed = vec![first; types.len()];
        let mut fitting: Vec<Row<C>> = rows.into_iter().filter(|r| r.accepts(&assumed)).collect();
        if fitting.len() == 1 {
            return fitting.pop();
        }
    }
    None
}

fn keep_best<C>(rows: &mut Vec<Row<C>>, score: impl Fn(&Row<C>) -> usize) {
    let best = rows.iter().map(&score).max().unwrap_or(0);
    rows.retain(|row| score(row) == best);
}

fn arg_category(arg: Arg) -> (Category, bool) {
    match arg {
        Arg::Is(ty) => (category(ty), is_preferred(ty)),
        Arg::Absent { category, preferred } => (category, preferred),
        Arg::AnyNonArray | Arg::AnyElement | Arg::AnyArray | Arg::Any => (Category::Internal, false),
    }
}

/// `pg_type.typcategory`.
pub(super) fn category(ty: Type) -> Category {
    match ty {
        Type::Bool => Category::Boolean,
        Type::Int2 | Type::Int4 | Type::Int8 | Type::Float4 | Type::Float8 | Type::Numeric => {
            Category::Numeric
        }
        Type::Oid | Type::Regclass => Category::Numeric,
        Type::Text | Type::Varchar | Type::Bpchar | Type::Name => Category::String,
        Type::Char => Category::Internal,
        Type::Bytea | Type::Uuid => Category::UserDefined,
        Type::Date | Type::Timestamp | Type::Timestamptz => Category::DateTime,
        Type::Array(_) => Category::Array,
        Type::Unknown => Category::Unknown,
    }
}

fn is_preferred(ty: Type) -> bool {
    matches!(ty, Type::Bool | Type::Float8 | Type::Oid | Type::Text | Type::Timestamptz)
}

/// A type's name in messages.
pub fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::Bool => "boolean",
        Type::Int2 => "smallint",
        Type::Int4 => "integer",
        Type::Int8 => "bigint",
        Type::Float4 => "real",
        Type::Float8 => "double precision",
        Type::Numeric => "numeric",
        Type::Text => "text",
        Type::Varchar => "character varying",
        Type::Bpchar => "character",
        Type::Char => "\"char\"",
        Type::Name => "name",
        Type::Bytea => "bytea",
        Type::Date => "date",
        Type::Timestamp => "timestamp without time zone",
        Type::Timestamptz => "timestamp with time zone",
        Type::Uuid => "uuid",
        Type::Oid => "oid",
        Type::Regclass => "regclass",
        Type::Unknown => "unknown",
        Type::Array(element) => {
            use crate::types::Element;
            match element {
                Element::Bool => "boolean[]",
                Element::Int2 => "smallint[]",
                Element::Int4 => "integer[]",
                Element::Int8 => "bigint[]",
                Element::Float8 => "double precision[]",
                Element::Numeric => "numeric[]",
                Element::Text => "text[]",
                Element::Varchar => "character varying[]",
                Element::Name => "name[]",
                Element::Char => "\"char\"[]",
                Element::Oid => "oid[]",
                Element::Uuid => "uuid[]",
            }
        }
    }
}

/// The type that values of these types get in one column: UNION, CASE, COALESCE, VALUES, GREATEST, IN.
/// `what` is the clause, for the message: `CASE`.
///
/// # Errors
/// 42804 if they have none, 0 types included.
pub fn common_type(what: &str, types: &[Type]) -> Result<Type, WireError> {
    let mismatch = |a: Type, b: Type| {
        let message = format!("{what} types {} and {} cannot be matched", type_name(a), type_name(b));
        WireError::new(SqlState::DATATYPE_MISMATCH, message)
    };
    let Some(first) = types.first() else {
        return Err(WireError::new(SqlState::DATATYPE_MISMATCH, format!("{what} has no values")));
    };
    if types.iter().all(|t| t == first) {
        return Ok(if *first == Type::Unknown { Type::Text } else { *first });
    }
    let mut best = *first;
    for &ty in &types[1..] {
        if ty == Type::Unknown || ty == best {
            continue;
        }
        if best == Type::Unknown {
            best = ty;
        } else if category(ty) != category(best) {
            return Err(mismatch(best, ty));
        } else if !is_preferred(best) && casts::is_implicit(best, ty) && !casts::is_implicit(ty, best) {
            best = ty;
        }
    }
    if best == Type::Unknown {
        best = Type::Text;
    }
    match types.iter().find(|t| **t != Type::Unknown && **t != best && !casts::is_implicit(**t, best)) {
        Some(ty) => {
            let message = format!("{what} could not convert type {} to {}", type_name(*ty), type_name(best));
            Err(WireError::new(SqlState::CANNOT_COERCE, message))
        }
        None => Ok(best),
    }
}
