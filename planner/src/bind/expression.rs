//! Expressions.
//!
//! In comes a syntax tree, out goes a typed one. Operators are in [`super::operator`], calls in [`super::call`],
//! subqueries in [`super::query`].

use super::scope::{Clause, Names, Scope};
use super::tree::{Expr, ExprKind};
use super::types::{common_storage, one_storage, type_of};
use super::walk::grow;
use super::{Binder, error};
use crate::text::LiteralKind;
use dialect::Type;
use dialect::types::Typed;
use proto::{SqlState, WireError};
use sqlparser::ast::{self, CastKind, ValueWithSpan};
use sqlparser::tokenizer::Span;

impl<'a> Binder<'a> {
    /// An expression.
    pub(crate) fn expr(&mut self, expr: &ast::Expr, scope: &Scope<'_, 'a>) -> Result<Expr, WireError> {
        grow(|| self.expr_here(expr, scope))
    }

    /// An expression that must be a condition.
    pub(crate) fn predicate(
        &mut self,
        expr: &ast::Expr,
        what: &str,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let bound = self.expr(expr, scope)?;
        self.condition(bound, what)
    }

    fn expr_here(&mut self, expr: &ast::Expr, scope: &Scope<'_, 'a>) -> Result<Expr, WireError> {
        use ast::Expr as Ast;
        let test = |binder: &mut Self, part: &ast::Expr, value: bool, not: bool| {
            let word = match (value, not) {
                (true, false) => "IS TRUE",
                (true, true) => "IS NOT TRUE",
                (false, false) => "IS FALSE",
                (false, true) => "IS NOT FALSE",
            };
            let part = binder.predicate(part, word, scope)?;
            Ok(Expr::new(ExprKind::IsTruth(Box::new(part), value, not), Type::Bool))
        };
        let null = |binder: &mut Self, part: &ast::Expr, not: bool| {
            let part = binder.expr(part, scope)?;
            let part = binder.settle(part)?;
            Ok(Expr::new(ExprKind::IsNull(Box::new(part), not), Type::Bool))
        };
        match expr {
            Ast::Identifier(ident) => self.bare_column(ident, scope),
            Ast::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] => self.qualified_column(&table.value, column, table.span, scope),
                [schema, table, column] if schema.value == "public" || schema.value == "pg_catalog" => {
                    self.qualified_column(&table.value, column, schema.span, scope)
                }
                [schema, table, _] => {
                    let message =
                        format!("missing FROM-clause entry for table \"{}.{}\"", schema.value, table.value);
                    Err(self.at(error(SqlState::UNDEFINED_TABLE, message), schema.span))
                }
                _ => Err(super::syntax(format!("improper qualified name (too many dotted names): {expr}"))),
            },
            Ast::Value(ValueWithSpan { value, span }) => self.value(value, *span),
            Ast::Nested(inner) => self.expr(inner, scope),
            Ast::BinaryOp { left, op, right } => self.binary(left, op, right, scope),
            Ast::UnaryOp { op, expr } => self.unary(op, expr, scope),
            Ast::IsNull(part) => null(self, part, false),
            Ast::IsNotNull(part) => null(self, part, true),
            Ast::IsTrue(part) => test(self, part, true, false),
            Ast::IsNotTrue(part) => test(self, part, true, true),
            Ast::IsFalse(part) => test(self, part, false, false),
            Ast::IsNotFalse(part) => test(self, part, false, true),
            Ast::IsUnknown(part) => {
                let part = self.predicate(part, "IS UNKNOWN", scope)?;
                Ok(Expr::new(ExprKind::IsNull(Box::new(part), false), Type::Bool))
            }
            Ast::IsNotUnknown(part) => {
                let part = self.predicate(part, "IS NOT UNKNOWN", scope)?;
                Ok(Expr::new(ExprKind::IsNull(Box::new(part), true), Type::Bool))
            }
            Ast::IsDistinctFrom(left, right) => self.distinct_from(left, right, false, scope),
            Ast::IsNotDistinctFrom(left, right) => self.distinct_from(left, right, true, scope),
            Ast::InList { expr, list, negated } => self.in_list(expr, list, *negated, scope),
            Ast::InSubquery { expr, subquery, negated } => self.in_query(expr, subquery, *negated, scope),
            Ast::Between { expr, negated, low, high } => {
                let value = self.expr(expr, scope)?;
                let low = self.expr(low, scope)?;
                let high = self.expr(high, scope)?;
                let (over, under) = if *negated { ("<", ">") } else { (">=", "<=") };
                let low = self.operate(over, Some(value.clone()), low)?;
                let high = self.operate(under, Some(value), high)?;
                let parts = vec![low, high];
                let kind = if *negated { ExprKind::Or(parts) } else { ExprKind::And(parts) };
                Ok(Expr::new(kind, Type::Bool))
            }
            Ast::Like { negated, any: false, expr, pattern, escape_char } => {
                let name = if *negated { "!~~" } else { "~~" };
                self.like(name, expr, pattern, escape_char.as_deref(), scope)
            }
            Ast::ILike { negated, any: false, expr, pattern, escape_char } => {
                let name = if *negated { "!~~*" } else { "~~*" };
                self.like(name, expr, pattern, escape_char.as_deref(), scope)
            }
            Ast::AnyOp { left, compare_op, right, is_some: _ } => {
                self.quantified(left, compare_op, right, false, scope)
            }
            Ast::AllOp { left, compare_op, right } => self.quantified(left, compare_op, right, true, scope),
            Ast::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, format: None } => {
                let to = type_of(data_type)?;
                let bound = self.expr(expr, scope)?;
                self.explicit(bound, to)
            }
            Ast::TypedString(ast::TypedString { data_type, value, uses_odbc_syntax: false }) => {
                let to = type_of(data_type)?;
                let ValueWithSpan { value, span } = value;
                let bound = self.value(value, *span)?;
                self.explicit(bound, to)
            }
            Ast::AtTimeZone { timestamp, time_zone } => {
                let value = self.expr(timestamp, scope)?;
                let zone = self.expr(time_zone, scope)?;
                self.function("timezone", vec![zone, value])
            }
            Ast::Extract { field, syntax: ast::ExtractSyntax::From, expr } => {
                let value = self.expr(expr, scope)?;
                let field = Expr::new(ExprKind::Value(proto::Value::Text(field_name(field))), Type::Text);
                self.function("extract", vec![field, value])
            }
            Ast::Ceil { expr, field: ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime) } => {
                let value = self.expr(expr, scope)?;
                self.function("ceil", vec![value])
            }
            Ast::Floor { expr, field: ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime) } => {
                let value = self.expr(expr, scope)?;
                self.function("floor", vec![value])
            }
            Ast::Position { expr, r#in } => {
                let needle = self.expr(expr, scope)?;
                let hay = self.expr(r#in, scope)?;
                self.function("position", vec![hay, needle])
            }
            Ast::Substring { expr, substring_from, substring_for, special: _, shorthand: _ } => {
                let mut args = vec![self.expr(expr, scope)?];
                match (substring_from, substring_for) {
                    (Some(from), length) => {
                        args.push(self.expr(from, scope)?);
                        if let Some(length) = length {
                            args.push(self.expr(length, scope)?);
                        }
                    }
                    (None, Some(length)) => {
                        args.push(Expr::new(ExprKind::Value(proto::Value::Int(1)), Type::Int4));
                        let length = self.expr(length, scope)?;
                        args.push(self.implicit(length, Type::Int4)?);
                    }
                    (None, None) => {}
                }
                self.function("substring", args)
            }
            Ast::Trim { trim_where, trim_what, expr, trim_characters } => {
                let name = match trim_where {
                    None | Some(ast::TrimWhereField::Both) => "btrim",
                    Some(ast::TrimWhereField::Leading) => "ltrim",
                    Some(ast::TrimWhereField::Trailing) => "rtrim",
                };
                let mut args = vec![self.expr(expr, scope)?];
                for part in trim_what.iter().map(|part| &**part).chain(trim_characters.iter().flatten()) {
                    args.push(self.expr(part, scope)?);
                }
                self.function(name, args)
            }
            Ast::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
                let mut args = vec![
                    self.expr(expr, scope)?,
                    self.expr(overlay_what, scope)?,
                    self.expr(overlay_from, scope)?,
                ];
                if let Some(length) = overlay_for {
                    args.push(self.expr(length, scope)?);
                }
                self.function("overlay", args)
            }
            Ast::Collate { expr, collation } => {
                let (schema, name) = super::types::plain_name(collation)?;
                if !matches!(schema, None | Some("pg_catalog"))
                    || !matches!(name, "C" | "POSIX" | "C.UTF-8" | "default")
                {
                    return Err(WireError::unsupported(format!("collation {collation}"))
                        .with_hint("Shoal compares strings by their bytes, as collation \"C\" does."));
                }
                self.expr(expr, scope)
            }
            Ast::Function(call) => self.call(call, scope),
            Ast::Case { case_token: _, end_token: _, operand, conditions, else_result } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref(), scope)
            }
            Ast::Exists { subquery, negated } => {
                let query = self.subquery(subquery, scope)?;
                let exists = Expr::new(ExprKind::Exists(Box::new(query)), Type::Bool);
                Ok(if *negated { Expr::new(ExprKind::Not(Box::new(exists)), Type::Bool) } else { exists })
            }
            Ast::Subquery(query) => {
                let mut query = self.subquery(query, scope)?;
                let [column] = query.columns.as_slice() else {
                    return Err(super::syntax("subquery must return only one column"));
                };
                if column.ty.ty == Type::Unknown {
                    self.settle_query(&mut query)?;
                }
                let ty = query.columns[0].ty;
                Ok(Expr { kind: ExprKind::Subquery(Box::new(query)), ty })
            }
            Ast::Prefixed { prefix: _, value: _ } => Err(WireError::unsupported("this prefix of a string")),
            Ast::Array(_) => {
                Err(WireError::unsupported("an array").with_hint("Shoal has = ANY (array) alone."))
            }
            Ast::Tuple(_) => {
                Err(WireError::unsupported("a row as a value").with_hint("Compare the columns one by one."))
            }
            Ast::Wildcard(_) | Ast::QualifiedWildcard(..) => {
                Err(super::syntax("syntax error at or near \"*\""))
            }
            other => Err(WireError::unsupported(format!("the expression {}", short(other)))),
        }
    }

    /// A literal or parameter.
    pub(crate) fn value(&mut self, value: &ast::Value, span: Span) -> Result<Expr, WireError> {
        match value {
            ast::Value::Number(_, _) => self.number(span, false),
            ast::Value::SingleQuotedString(_) => {
                let (literal, _) = self.literal(span)?;
                Ok(Expr::new(ExprKind::Literal(literal), Type::Unknown))
            }
            ast::Value::Boolean(value) => Ok(Expr::truth(*value)),
            ast::Value::Null => Ok(Expr::null(Type::Unknown)),
            ast::Value::Placeholder(name) => {
                let missing = || {
                    let message = format!("there is no parameter {name}");
                    self.at(error(SqlState::UNDEFINED_PARAMETER, message), span)
                };
                let number =
                    name.strip_prefix('$').and_then(|n| n.parse::<u32>().ok()).ok_or_else(missing)?;
                if !(1..=65_535).contains(&number) {
                    return Err(missing());
                }
                let index = number as usize - 1;
                if self.parameters.len() <= index {
                    self.parameters.resize(index + 1, None);
                }
                let ty = self.parameters[index].unwrap_or(Type::Unknown);
                Ok(Expr::new(ExprKind::Parameter(number - 1), ty))
            }
            other => Err(WireError::unsupported(format!("the literal {other}"))),
        }
    }

    /// A number, perhaps after a minus sign.
    pub(crate) fn number(&mut self, span: Span, negated: bool) -> Result<Expr, WireError> {
        let (mut literal, kind) = self.literal(span)?;
        literal.negated = negated;
        let mut ty = match kind {
            LiteralKind::Int4 => Type::Int4,
            LiteralKind::Int8 => Type::Int8,
            LiteralKind::Numeric => Type::Numeric,
            LiteralKind::Text | LiteralKind::Bits => return Err(WireError::internal("a number isn't one")),
        };
        if negated {
            // PostgreSQL reads the least integers as integers, though their digits alone are too many.
            let wider = match (ty, &*self.literal_text(literal.slot)) {
                (Type::Int8, "2147483648") => Some(Type::Int4),
                (Type::Numeric, "9223372036854775808") => Some(Type::Int8),
                _ => None,
            };
            if let Some(wider) = wider {
                self.pinned_text(literal.slot);
                ty = wider;
            }
        }
        Ok(Expr::new(ExprKind::Literal(literal), ty))
    }

    fn distinct_from(
        &mut self,
        left: &ast::Expr,
        right: &ast::Expr,
        not: bool,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let left = self.expr(left, scope)?;
        let right = self.expr(right, scope)?;
        let resolved = dialect::functions::resolve_operator("=", Some(left.ty.ty), right.ty.ty)?;
        let ty = common_storage(resolved.args[0], resolved.args[1])?;
        let left = self.implicit(left, ty.unwrap_or(resolved.args[0]))?;
        let right = self.implicit(right, ty.unwrap_or(resolved.args[1]))?;
        Ok(Expr::new(ExprKind::Distinct(Box::new(left), Box::new(right), not), Type::Bool))
    }

    /// Both as one type that `=` compares.
    pub(crate) fn comparable(
        &mut self,
        what: &str,
        left: Expr,
        right: Expr,
    ) -> Result<(Expr, Expr), WireError> {
        let resolved = dialect::functions::resolve_operator("=", Some(left.ty.ty), right.ty.ty)?;
        let (a, b) = (resolved.args[0], resolved.args[1]);
        let left = self.implicit(left, a)?;
        let right = self.implicit(right, b)?;
        if one_storage(a, b) {
            Ok((left, right))
        } else {
            Err(WireError::unsupported(format!("{what} over two types"))
                .with_hint("Cast one of them to the other's type."))
        }
    }

    fn like(
        &mut self,
        name: &str,
        value: &ast::Expr,
        pattern: &ast::Expr,
        escape: Option<&ast::Expr>,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let value = self.expr(value, scope)?;
        let mut pattern = self.expr(pattern, scope)?;
        if let Some(escape) = escape {
            let escape = self.expr(escape, scope)?;
            pattern = self.function("like_escape", vec![pattern, escape])?;
        }
        self.operate(name, Some(value), pattern)
    }

    fn case(
        &mut self,
        operand: Option<&ast::Expr>,
        conditions: &[ast::CaseWhen],
        otherwise: Option<&ast::Expr>,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let operand = match operand {
            Some(operand) => {
                let bound = self.expr(operand, scope)?;
                Some(self.settle(bound)?)
            }
            None => None,
        };
        let mut tests = Vec::with_capacity(conditions.len());
        let mut results = Vec::with_capacity(conditions.len() + 1);
        for ast::CaseWhen { condition, result } in conditions {
            let test = self.expr(condition, scope)?;
            tests.push(match &operand {
                Some(operand) => self.operate("=", Some(operand.clone()), test)?,
                None => self.condition(test, "CASE/WHEN")?,
            });
            results.push(self.expr(result, scope)?);
        }
        // PostgreSQL looks at ELSE first when it chooses the type.
        let has_else = otherwise.is_some();
        if let Some(otherwise) = otherwise {
            results.insert(0, self.expr(otherwise, scope)?);
        }
        let (mut results, ty) = self.unify("CASE", results)?;
        let otherwise = has_else.then(|| Box::new(results.remove(0)));
        let branches = tests.into_iter().zip(results).collect();
        Ok(Expr { kind: ExprKind::Case(branches, otherwise), ty })
    }

    /// A column's default, cast to the column. It may look at nothing but constants.
    pub(crate) fn bind_default(&mut self, stored: &str, column: &str, to: Typed) -> Result<Expr, WireError> {
        self.with_stored(stored, |binder, expr| {
            let names = Names::default();
            let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Default };
            let bound = binder.expr(expr, &scope)?;
            binder.assign(bound, column, to)
        })
    }
}

/// What EXTRACT's field is called.
fn field_name(field: &ast::DateTimeField) -> String {
    match field {
        ast::DateTimeField::Custom(ident) => ident.value.to_lowercase(),
        other => other.to_string().to_lowercase(),
    }
}

fn short(expr: &ast::Expr) -> String {
    let text = expr.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("..".chars()).collect() }
}
