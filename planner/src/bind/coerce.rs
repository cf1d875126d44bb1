//! Types for what has none yet, and casts for what has another.
//!
//! In comes an expression and the type that its context wants, out goes an expression of that type. Literals and
//! parameters become what they are wanted as; everything else is cast by the dialect's table.

use super::tree::{Body, Conversion, Expr, ExprKind, Query};
use super::{Binder, error};
use dialect::Type;
use dialect::functions::{CastContext, common_type, find_cast};
use dialect::types::Typed;
use proto::{SqlState, WireError};

/// A type's name as PostgreSQL's messages have it, with its modifier.
pub(crate) fn type_name(ty: Type) -> &'static str {
    dialect::functions::type_name(ty)
}

impl Binder<'_> {
    /// The expression as this type; `None` if the context allows no such cast.
    pub(crate) fn try_coerce(
        &mut self,
        expr: Expr,
        to: Typed,
        context: CastContext,
    ) -> Result<Option<Expr>, WireError> {
        let from = expr.ty;
        if from == to {
            return Ok(Some(expr));
        }
        match expr.kind {
            ExprKind::Value(proto::Value::Null) if from.ty == Type::Unknown => {
                return Ok(Some(Expr { kind: expr.kind, ty: to }));
            }
            ExprKind::Literal(_) if from.ty == Type::Unknown => {
                if to.ty == Type::Regclass {
                    return self.regclass(expr).map(Some);
                }
                let cut = context == CastContext::Explicit && matches!(to.ty, Type::Varchar | Type::Bpchar);
                if !cut || to.modifier < 0 {
                    return Ok(Some(Expr { kind: expr.kind, ty: to }));
                }
                let plain = Expr { kind: expr.kind, ty: Typed::plain(to.ty) };
                return self.try_coerce(plain, to, context);
            }
            ExprKind::Literal(literal) if self.reads_the_same(from.ty, to.ty, literal.negated) => {
                return Ok(Some(Expr { kind: expr.kind, ty: to }));
            }
            ExprKind::Parameter(number) if from.ty == Type::Unknown => {
                let slot = &mut self.parameters[number as usize];
                match *slot {
                    None | Some(Type::Unknown) => *slot = Some(to.ty),
                    Some(known) if known == to.ty => {}
                    Some(known) => {
                        let message = format!("inconsistent types deduced for parameter ${}", number + 1);
                        let detail = format!("{} versus {}", type_name(known), type_name(to.ty));
                        return Err(error(SqlState::AMBIGUOUS_PARAMETER, message).with_detail(detail));
                    }
                }
                let plain = Expr { kind: expr.kind, ty: Typed::plain(to.ty) };
                return self.try_coerce(plain, to, context);
            }
            _ => {}
        }
        if from.ty == to.ty && (to.modifier < 0 || from.modifier == to.modifier) {
            return Ok(Some(expr));
        }
        let from_cast = if from.ty == Type::Unknown { Typed::plain(Type::Text) } else { from };
        let Some(cast) = find_cast(from_cast, to, context) else { return Ok(None) };
        let explicit = context == CastContext::Explicit;
        let conversion = Conversion { cast, from: from_cast, to, explicit };
        Ok(Some(Expr { kind: ExprKind::Cast(conversion, Box::new(expr)), ty: to }))
    }

    /// Whether a number's digits mean the same to the other type's input function as the cast of the number would.
    fn reads_the_same(&self, from: Type, to: Type, negated: bool) -> bool {
        match (from, to) {
            (Type::Int4 | Type::Int8 | Type::Numeric, Type::Numeric) | (Type::Int4, Type::Int8) => true,
            // Not `-0`: the integer has no negative zero, the float has.
            (Type::Int4 | Type::Int8 | Type::Numeric, Type::Float4 | Type::Float8) => !negated,
            _ => false,
        }
    }

    /// The expression as what an operator, function or CASE wants. Its choice made sure that there is a cast.
    pub(crate) fn implicit(&mut self, expr: Expr, to: Type) -> Result<Expr, WireError> {
        if expr.ty.ty == to {
            return Ok(expr);
        }
        let from = expr.ty.ty;
        let copy = expr.clone();
        if let Some(expr) = self.try_coerce(expr, Typed::plain(to), CastContext::Implicit)? {
            return Ok(expr);
        }
        // Functions of "any" take the text of what they are given.
        match self.try_coerce(copy, Typed::plain(to), CastContext::Explicit)? {
            Some(expr) => Ok(expr),
            None => Err(cannot_cast(from, to)),
        }
    }

    /// What `CAST (expr AS to)` is.
    pub(crate) fn explicit(&mut self, expr: Expr, to: Typed) -> Result<Expr, WireError> {
        let from = expr.ty.ty;
        match self.try_coerce(expr, to, CastContext::Explicit)? {
            Some(expr) => Ok(expr),
            None => Err(cannot_cast(from, to.ty)),
        }
    }

    /// The expression as a column's value; 42804 if there is no assignment cast.
    pub(crate) fn assign(&mut self, expr: Expr, column: &str, to: Typed) -> Result<Expr, WireError> {
        let from = expr.ty.ty;
        match self.try_coerce(expr, to, CastContext::Assignment)? {
            Some(expr) => Ok(expr),
            None => {
                let (from, to) = (type_name(from), type_name(to.ty));
                let message = format!("column \"{column}\" is of type {to} but expression is of type {from}");
                Err(error(SqlState::DATATYPE_MISMATCH, message)
                    .with_hint("You will need to rewrite or cast the expression."))
            }
        }
    }

    /// The expression as a condition. `what` is PostgreSQL's word for the place: `WHERE`, `AND`.
    pub(crate) fn condition(&mut self, expr: Expr, what: &str) -> Result<Expr, WireError> {
        let from = expr.ty.ty;
        match self.try_coerce(expr, Typed::plain(Type::Bool), CastContext::Implicit)? {
            Some(expr) => Ok(expr),
            None => {
                let message =
                    format!("argument of {what} must be type boolean, not type {}", type_name(from));
                Err(error(SqlState::DATATYPE_MISMATCH, message))
            }
        }
    }

    /// The expression as LIMIT's or OFFSET's number.
    pub(crate) fn row_count(&mut self, expr: Expr, what: &str) -> Result<Expr, WireError> {
        let from = expr.ty.ty;
        match self.try_coerce(expr, Typed::plain(Type::Int8), CastContext::Assignment)? {
            Some(expr) => Ok(expr),
            None => {
                let message = format!("argument of {what} must be type bigint, not type {}", type_name(from));
                Err(error(SqlState::DATATYPE_MISMATCH, message))
            }
        }
    }

    /// The expressions as their common type. `what` is PostgreSQL's word for the construct: `CASE`, `COALESCE`.
    pub(crate) fn unify(&mut self, what: &str, exprs: Vec<Expr>) -> Result<(Vec<Expr>, Typed), WireError> {
        let types: Vec<Type> = exprs.iter().map(|e| e.ty.ty).collect();
        let ty = common_type(what, &types)?;
        // NULL fits any modifier.
        let null =
            |e: &Expr| e.ty.ty == Type::Unknown && matches!(e.kind, ExprKind::Value(proto::Value::Null));
        let first = exprs.iter().find(|e| !null(e)).map_or(-1, |e| e.ty.modifier);
        let same = exprs.iter().all(|e| null(e) || e.ty == Typed { ty, modifier: first });
        let exprs = exprs.into_iter().map(|e| self.implicit(e, ty)).collect::<Result<_, _>>()?;
        Ok((exprs, Typed { ty, modifier: if same { first } else { -1 } }))
    }

    /// What is still unknown when a result is made of it is text.
    pub(crate) fn settle(&mut self, expr: Expr) -> Result<Expr, WireError> {
        if expr.ty.ty == Type::Unknown { self.implicit(expr, Type::Text) } else { Ok(expr) }
    }

    /// Settles the columns of a query.
    pub(crate) fn settle_query(&mut self, query: &mut Query) -> Result<(), WireError> {
        for i in 0..query.columns.len() {
            if query.columns[i].ty.ty == Type::Unknown {
                self.coerce_column(query, i, Typed::plain(Type::Text))?;
            }
        }
        Ok(())
    }

    /// Casts a column of a query within the query. For columns of unknown type: what they are can't matter to
    /// anything else of it.
    pub(crate) fn coerce_column(
        &mut self,
        query: &mut Query,
        column: usize,
        to: Typed,
    ) -> Result<(), WireError> {
        match &mut query.body {
            Body::Select(select) => {
                let expr = std::mem::replace(&mut select.projection[column], Expr::null(to.ty));
                select.projection[column] = self.implicit(expr, to.ty)?;
            }
            Body::Values(rows) => {
                for row in rows {
                    let expr = std::mem::replace(&mut row[column], Expr::null(to.ty));
                    row[column] = self.implicit(expr, to.ty)?;
                }
            }
            Body::SetOperation { op: _, all: _, left, right } => {
                self.coerce_column(left, column, to)?;
                self.coerce_column(right, column, to)?;
            }
        }
        query.columns[column].ty = to;
        Ok(())
    }

    fn regclass(&mut self, expr: Expr) -> Result<Expr, WireError> {
        let ExprKind::Literal(literal) = expr.kind else { return Ok(expr) };
        let name = self.pinned_text(literal.slot).into_owned();
        let oid = match name.parse::<u32>() {
            Ok(oid) => oid,
            Err(_) => self.relation_oid(&name)?,
        };
        let kind = ExprKind::Value(proto::Value::Int(oid.into()));
        Ok(Expr { kind, ty: Typed::plain(Type::Regclass) })
    }
}

fn cannot_cast(from: Type, to: Type) -> WireError {
    let message = format!("cannot cast type {} to {}", type_name(from), type_name(to));
    error(SqlState::CANNOT_COERCE, message)
}
