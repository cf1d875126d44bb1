//! Expressions as SQL. Each comes out complete: put anywhere, it keeps its meaning.

use super::scalars::constant;
use super::{Naming, Writer};
use crate::bind::tree::{AggregateCall, Body, Expr, ExprKind, Query, RelId};
use crate::bind::walk::grow;
use dialect::Type;
use dialect::functions::resolve_aggregate;
use dialect::key::key_sql;
use dialect::physical::column_name;
use proto::{Value, WireError};

/// Whether a type's key form is its storage form.
pub(crate) fn is_plain(ty: Type) -> bool {
    key_sql(ty, "x") == "x"
}

impl Writer<'_, '_, '_> {
    /// An expression in storage form.
    pub(crate) fn expr(&mut self, expr: &Expr) -> Result<String, WireError> {
        grow(|| self.expr_here(expr))
    }

    /// An expression in key form.
    pub(crate) fn key(&mut self, expr: &Expr) -> Result<String, WireError> {
        Ok(key_sql(expr.ty.ty, &self.expr(expr)?))
    }

    fn exprs(&mut self, exprs: &[Expr]) -> Result<Vec<String>, WireError> {
        exprs.iter().map(|e| self.expr(e)).collect()
    }

    fn expr_here(&mut self, expr: &Expr) -> Result<String, WireError> {
        if let Some((_, sql)) = self.computed.iter().find(|(known, _)| known == expr) {
            return Ok(sql.clone());
        }
        Ok(match &expr.kind {
            ExprKind::Value(value) => self.value(value),
            ExprKind::Literal(literal) if self.inline => {
                let text = self.binder.literal_text(literal.slot);
                let value = constant(&text, expr.ty, literal.negated)?;
                self.value(&value)
            }
            ExprKind::Literal(_)
            | ExprKind::Parameter(_)
            | ExprKind::Environment(..)
            | ExprKind::NextValue(..) => {
                if self.inline {
                    return Err(WireError::unsupported(
                        "what a session or a statement decides, in stored expressions",
                    ));
                }
                let scalar = self.scalars.simple(expr, self.binder)?;
                let scalar = scalar.ok_or_else(|| WireError::internal("a scalar is none"))?;
                self.param(scalar)
            }
            ExprKind::Known(scalar) => self.param(*scalar),
            ExprKind::Column(rel, column) => self.column(*rel, *column),
            ExprKind::Excluded(column) => match self.target() {
                Some(table) => format!("excluded.{}", column_name(table.columns[*column as usize].id)),
                None => return Err(WireError::internal("excluded stands outside of ON CONFLICT")),
            },
            ExprKind::Call(operation, args) => {
                let sql = self.exprs(args)?;
                let zone = if operation.0.needs_zone() { self.zone()? } else { String::new() };
                operation
                    .0
                    .sql(&sql, &zone)
                    .ok_or_else(|| WireError::internal("the router's function in SQL"))?
            }
            ExprKind::Cast(conversion, inner) => {
                let sql = self.expr(inner)?;
                let zone = if conversion.cast.needs_zone() { self.zone()? } else { String::new() };
                conversion.cast.sql(&sql, &zone)
            }
            ExprKind::And(parts) => self.chain(parts, " AND ", "1")?,
            ExprKind::Or(parts) => self.chain(parts, " OR ", "0")?,
            ExprKind::Not(inner) => format!("(NOT {})", self.expr(inner)?),
            ExprKind::IsNull(inner, not) => {
                let test = if *not { "NOTNULL" } else { "ISNULL" };
                format!("({} {test})", self.expr(inner)?)
            }
            ExprKind::IsTruth(inner, value, not) => {
                let not = if *not { "NOT " } else { "" };
                let value = if *value { "TRUE" } else { "FALSE" };
                format!("({} IS {not}{value})", self.expr(inner)?)
            }
            ExprKind::Distinct(left, right, not) => {
                let op = if *not { "IS" } else { "IS NOT" };
                format!("({} {op} {})", self.key(left)?, self.key(right)?)
            }
            ExprKind::In(value, list, negated) => {
                let value = self.key(value)?;
                let list = list.iter().map(|e| self.key(e)).collect::<Result<Vec<_>, _>>()?;
                let not = if *negated { "NOT " } else { "" };
                format!("({value} {not}IN ({}))", list.join(", "))
            }
            ExprKind::InQuery(value, query, negated) => {
                let key = self.key(value)?;
                let inner = self.query(query)?;
                let ty = query.columns[0].ty.ty;
                let not = if *negated { "NOT " } else { "" };
                if is_plain(ty) {
                    format!("({key} {not}IN ({inner}))")
                } else {
                    format!("({key} {not}IN (SELECT {} FROM ({inner})))", key_sql(ty, "a0"))
                }
            }
            ExprKind::InArray(value, array, negated) => {
                let ty = value.ty.ty;
                let value = self.key(value)?;
                let array = self.expr(array)?;
                let not = if *negated { "NOT " } else { "" };
                let element = key_sql(ty, &element_sql(ty)?);
                // An array that is NULL makes the whole NULL, not an empty list.
                format!(
                    "(CASE WHEN {array} ISNULL THEN NULL ELSE {value} {not}IN \
                     (SELECT {element} FROM json_each(pg_array_json({array}))) END)"
                )
            }
            ExprKind::Case(branches, otherwise) => {
                let mut sql = "CASE".to_owned();
                for (condition, result) in branches {
                    let (condition, result) = (self.expr(condition)?, self.expr(result)?);
                    sql += &format!(" WHEN {condition} THEN {result}");
                }
                if let Some(otherwise) = otherwise {
                    sql += &format!(" ELSE {}", self.expr(otherwise)?);
                }
                sql + " END"
            }
            ExprKind::Coalesce(parts) => match parts.as_slice() {
                [one] => self.expr(one)?,
                parts => format!("coalesce({})", self.exprs(parts)?.join(", ")),
            },
            ExprKind::NullIf(left, right) => {
                if is_plain(left.ty.ty) {
                    format!("nullif({}, {})", self.expr(left)?, self.expr(right)?)
                } else {
                    let (shown, left, right) = (self.expr(left)?, self.key(left)?, self.key(right)?);
                    format!("CASE WHEN {left} = {right} THEN NULL ELSE {shown} END")
                }
            }
            ExprKind::Extreme(greatest, parts) => {
                let name = if *greatest { "max" } else { "min" };
                let parts = self.exprs(parts)?;
                let aggregate = match expr.ty.ty {
                    Type::Numeric => resolve_aggregate(name, &[Type::Numeric])?.sql(&["a0"], "", ""),
                    ty if is_plain(ty) => format!("{name}(a0)"),
                    _ => return Err(WireError::unsupported("GREATEST and LEAST of this type")),
                };
                let rows: Vec<_> = parts.iter().map(|part| format!("SELECT {part} AS a0")).collect();
                format!("(SELECT {aggregate} FROM ({}))", rows.join(" UNION ALL "))
            }
            ExprKind::Aggregate(call) => self.aggregate(call)?,
            ExprKind::Subquery(query) => {
                let sql = self.query(query)?;
                if at_most_one_row(query) {
                    format!("({sql})")
                } else {
                    format!(
                        "(SELECT CASE WHEN count(*) > 1 THEN pg_raise('21000', 'more than one row returned by a \
                         subquery used as an expression') ELSE max(a0) END FROM (SELECT a0 FROM ({sql}) LIMIT 2))"
                    )
                }
            }
            ExprKind::Exists(query) => format!("EXISTS ({})", self.query(query)?),
        })
    }

    /// `?n` of the session's time zone.
    fn zone(&mut self) -> Result<String, WireError> {
        if self.inline {
            return Err(WireError::unsupported(
                "an expression that depends on the time zone, in stored expressions",
            ));
        }
        let zone = self.scalars.zone();
        Ok(self.param(zone))
    }

    fn target(&self) -> Option<&proto::catalog::Table> {
        self.relations.values().find_map(|naming| match naming {
            Naming::Target(table) => Some(&**table),
            Naming::Table(_) | Naming::Source(..) => None,
        })
    }

    pub(crate) fn column(&self, rel: RelId, column: u32) -> String {
        match self.relations.get(&rel) {
            Some(Naming::Table(table)) => {
                format!("r{}.{}", rel.0, column_name(table.columns[column as usize].id))
            }
            Some(Naming::Target(table)) => column_name(table.columns[column as usize].id),
            Some(Naming::Source(_, places)) => {
                let place = places.get(column as usize).copied().flatten().unwrap_or(column);
                format!("r{}.a{place}", rel.0)
            }
            None => format!("r{}.a{column}", rel.0),
        }
    }

    /// A value written out.
    pub(crate) fn value(&self, value: &Value) -> String {
        match value {
            Value::Null => "NULL".to_owned(),
            Value::Int(i64::MIN) => "(-9223372036854775807 - 1)".to_owned(),
            Value::Int(value) if *value < 0 => format!("({value})"),
            Value::Int(value) => value.to_string(),
            Value::Real(value) if value.is_infinite() => {
                if *value > 0.0 {
                    "9e999".to_owned()
                } else {
                    "(-9e999)".to_owned()
                }
            }
            Value::Real(value) => format!("({value:?})"),
            Value::Text(value) => format!("'{}'", value.replace('\'', "''")),
            Value::Blob(value) => {
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("x'{hex}'")
            }
        }
    }

    /// A chain of AND or OR as a tree that is as flat as it can be: SQLite bounds the depth of expressions.
    fn chain(&mut self, parts: &[Expr], op: &str, none: &str) -> Result<String, WireError> {
        let parts = self.exprs(parts)?;
        Ok(balanced(&parts, op, none))
    }

    fn aggregate(&mut self, call: &AggregateCall) -> Result<String, WireError> {
        let args = self.exprs(&call.args)?;
        let filter = self.filter(call)?;
        if call.distinct {
            return call
                .resolved
                .distinct_sql(&args, &filter)
                .ok_or_else(|| WireError::unsupported("this aggregate with DISTINCT"));
        }
        let mut order = String::new();
        for (i, key) in call.order_by.iter().enumerate() {
            order += if i == 0 { " ORDER BY " } else { ", " };
            let sql = self.key(&key.expr)?;
            order += &super::query::sorted(&sql, key.descending, key.nulls_first, true);
        }
        Ok(call.resolved.sql(&args, &order, &filter))
    }

    /// An aggregate's FILTER.
    pub(crate) fn filter(&mut self, call: &AggregateCall) -> Result<String, WireError> {
        Ok(match &call.filter {
            Some(filter) => format!(" FILTER (WHERE {})", self.expr(filter)?),
            None => String::new(),
        })
    }
}

/// A chain of an associative operator as a balanced tree.
pub(crate) fn balanced(parts: &[String], op: &str, none: &str) -> String {
    match parts {
        [] => none.to_owned(),
        [one] => one.clone(),
        parts if parts.len() <= 8 => format!("({})", parts.join(op)),
        parts => {
            let groups: Vec<String> =
                parts.chunks(parts.len().div_ceil(8)).map(|group| balanced(group, op, none)).collect();
            format!("({})", groups.join(op))
        }
    }
}

fn element_sql(ty: Type) -> Result<String, WireError> {
    Ok(match ty {
        Type::Text | Type::Varchar | Type::Name | Type::Char => "value".to_owned(),
        Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid => "CAST(value AS INTEGER)".to_owned(),
        Type::Bool | Type::Float8 | Type::Numeric | Type::Uuid => format!("pg_input({}, value)", ty.oid()),
        _ => return Err(WireError::unsupported("an array of this type")),
    })
}

/// Whether a query can't have two rows.
fn at_most_one_row(query: &Query) -> bool {
    match &query.body {
        Body::Select(select) => select.grouped && select.group_by.is_empty() || select.from.is_empty(),
        Body::Values(rows) => rows.len() <= 1,
        Body::SetOperation { .. } => false,
    }
}
