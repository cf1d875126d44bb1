//! Operators, and what is written like them.

use super::coerce::type_name;
use super::scope::Scope;
use super::tree::{Expr, ExprKind, Operation};
use super::types::{array_of, element_of};
use super::{Binder, error};
use dialect::Type;
use dialect::functions::resolve_operator;
use proto::{SqlState, WireError};
use sqlparser::ast::{self, BinaryOperator, UnaryOperator};

/// The most columns of rows that are compared by order: each nests in the one before it.
const MAX_ORDERED_ROW: usize = 32;

/// PostgreSQL's name of an operator; `None` for AND and OR, and for what isn't PostgreSQL's.
pub(crate) fn operator_name(op: &BinaryOperator) -> Result<&str, WireError> {
    Ok(match op {
        BinaryOperator::Plus => "+",
        BinaryOperator::Minus => "-",
        BinaryOperator::Multiply => "*",
        BinaryOperator::Divide => "/",
        BinaryOperator::Modulo => "%",
        BinaryOperator::StringConcat => "||",
        BinaryOperator::Gt => ">",
        BinaryOperator::Lt => "<",
        BinaryOperator::GtEq => ">=",
        BinaryOperator::LtEq => "<=",
        BinaryOperator::Eq => "=",
        BinaryOperator::NotEq => "<>",
        BinaryOperator::BitwiseOr => "|",
        BinaryOperator::BitwiseAnd => "&",
        BinaryOperator::PGBitwiseXor => "#",
        BinaryOperator::PGBitwiseShiftLeft => "<<",
        BinaryOperator::PGBitwiseShiftRight => ">>",
        BinaryOperator::PGExp | BinaryOperator::BitwiseXor => "^",
        BinaryOperator::PGRegexMatch => "~",
        BinaryOperator::PGRegexIMatch => "~*",
        BinaryOperator::PGRegexNotMatch => "!~",
        BinaryOperator::PGRegexNotIMatch => "!~*",
        BinaryOperator::PGLikeMatch => "~~",
        BinaryOperator::PGILikeMatch => "~~*",
        BinaryOperator::PGNotLikeMatch => "!~~",
        BinaryOperator::PGNotILikeMatch => "!~~*",
        BinaryOperator::PGStartsWith => "^@",
        BinaryOperator::PGCustomBinaryOperator(parts) => match parts.as_slice() {
            [name] => name,
            [schema, name] if schema == "pg_catalog" => name,
            [schema, _] => {
                let message = format!("schema \"{schema}\" does not exist");
                return Err(error(SqlState::INVALID_SCHEMA_NAME, message));
            }
            _ => return Err(WireError::unsupported("this operator")),
        },
        other => return Err(WireError::unsupported(format!("operator {other}"))),
    })
}

impl<'a> Binder<'a> {
    /// An operator over bound operands.
    pub(crate) fn operate(&mut self, name: &str, left: Option<Expr>, right: Expr) -> Result<Expr, WireError> {
        let resolved = resolve_operator(name, left.as_ref().map(|e| e.ty.ty), right.ty.ty)?;
        let operands = left.into_iter().chain([right]);
        let args = operands
            .zip(&resolved.args)
            .map(|(expr, ty)| self.implicit(expr, *ty))
            .collect::<Result<Vec<_>, _>>()?;
        let result = resolved.result;
        Ok(Expr::new(ExprKind::Call(Operation(resolved), args), result))
    }

    /// A chain of one left-associative operator, without recursion along it.
    pub(crate) fn binary(
        &mut self,
        left: &ast::Expr,
        op: &BinaryOperator,
        right: &ast::Expr,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        if matches!(op, BinaryOperator::And | BinaryOperator::Or) {
            let mut operands = vec![right];
            let mut rest = left;
            // AND and OR are associative, so the whole chain is one node; only its left spine can be long.
            while let ast::Expr::BinaryOp { left, op: inner, right } = rest
                && inner == op
            {
                operands.push(right);
                rest = left;
            }
            operands.push(rest);
            let word = if *op == BinaryOperator::And { "AND" } else { "OR" };
            let mut bound = Vec::with_capacity(operands.len());
            for operand in operands.into_iter().rev() {
                let operand = self.expr(operand, scope)?;
                bound.push(self.condition(operand, word)?);
            }
            let kind = if *op == BinaryOperator::And { ExprKind::And(bound) } else { ExprKind::Or(bound) };
            return Ok(Expr::new(kind, Type::Bool));
        }
        let name = operator_name(op)?;
        if let (Some(left), Some(right)) = (row(left), row(right)) {
            return self.rows(left, name, right, scope);
        }
        let left = self.expr(left, scope)?;
        let right = self.expr(right, scope)?;
        self.operate(name, Some(left), right)
    }

    /// `(a, b) = (c, d)`, and in order: the first columns that differ decide.
    fn rows(
        &mut self,
        left: &[ast::Expr],
        name: &str,
        right: &[ast::Expr],
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        if left.len() != right.len() {
            return Err(super::syntax("unequal number of entries in row expressions"));
        }
        // The operator of all columns but the last.
        let strict = match name {
            "<" | "<=" => "<",
            ">" | ">=" => ">",
            _ => name,
        };
        if !matches!(strict, "=" | "<>" | "<" | ">") || left.len() > MAX_ORDERED_ROW {
            return Err(WireError::unsupported(format!("comparing rows by {name}"))
                .with_hint("Compare the columns one by one."));
        }
        let mut parts = Vec::with_capacity(left.len());
        for (left, right) in left.iter().zip(right) {
            parts.push((self.expr(left, scope)?, self.expr(right, scope)?));
        }
        if strict == "=" || strict == "<>" {
            let parts = parts
                .into_iter()
                .map(|(left, right)| self.operate(name, Some(left), right))
                .collect::<Result<_, _>>()?;
            let kind = if name == "=" { ExprKind::And(parts) } else { ExprKind::Or(parts) };
            return Ok(Expr::new(kind, Type::Bool));
        }
        let mut rest: Option<Expr> = None;
        for (left, right) in parts.into_iter().rev() {
            rest = Some(match rest {
                None => self.operate(name, Some(left), right)?,
                Some(rest) => {
                    let decides = self.operate(strict, Some(left.clone()), right.clone())?;
                    let equal = self.operate("=", Some(left), right)?;
                    let equal = Expr::new(ExprKind::And(vec![equal, rest]), Type::Bool);
                    Expr::new(ExprKind::Or(vec![decides, equal]), Type::Bool)
                }
            });
        }
        rest.ok_or_else(|| super::syntax("a row without columns"))
    }

    pub(crate) fn unary(
        &mut self,
        op: &UnaryOperator,
        operand: &ast::Expr,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let name = match op {
            UnaryOperator::Not => {
                let operand = self.expr(operand, scope)?;
                let operand = self.condition(operand, "NOT")?;
                return Ok(Expr::new(ExprKind::Not(Box::new(operand)), Type::Bool));
            }
            UnaryOperator::Minus => {
                if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(_, _), span }) =
                    operand
                {
                    return self.number(*span, true);
                }
                "-"
            }
            UnaryOperator::Plus => "+",
            UnaryOperator::BitwiseNot => "~",
            UnaryOperator::PGAbs => "@",
            UnaryOperator::PGSquareRoot => "|/",
            UnaryOperator::PGCubeRoot => "||/",
            other => return Err(WireError::unsupported(format!("operator {other}"))),
        };
        let operand = self.expr(operand, scope)?;
        self.operate(name, None, operand)
    }

    /// IN with a list.
    pub(crate) fn in_list(
        &mut self,
        value: &ast::Expr,
        list: &[ast::Expr],
        negated: bool,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        if let Some(value) = row(value) {
            let mut any = Vec::with_capacity(list.len());
            for item in list {
                let item = row(item)
                    .ok_or_else(|| WireError::unsupported("comparing a row with what is not a row"))?;
                any.push(self.rows(value, "=", item, scope)?);
            }
            let any = Expr::new(ExprKind::Or(any), Type::Bool);
            return Ok(if negated { Expr::new(ExprKind::Not(Box::new(any)), Type::Bool) } else { any });
        }
        let value = self.expr(value, scope)?;
        let list = list.iter().map(|item| self.expr(item, scope)).collect::<Result<Vec<_>, _>>()?;
        self.in_exprs(value, list, negated)
    }

    fn in_exprs(&mut self, value: Expr, list: Vec<Expr>, negated: bool) -> Result<Expr, WireError> {
        let mut types: Vec<Type> = list.iter().map(|e| e.ty.ty).collect();
        types.push(value.ty.ty);
        types.sort_by_key(|ty| ty.oid());
        types.dedup();
        let common = dialect::functions::common_type("IN", &types).ok();
        // One type whose own `=` compares them all: one IN. Otherwise each item has an operator of its own.
        if let Some(ty) = common
            && let Ok(resolved) = resolve_operator("=", Some(ty), ty)
            && let [a, b] = resolved.args.as_slice()
            && a == b
        {
            let ty = *a;
            let value = Box::new(self.implicit(value, ty)?);
            let list = list.into_iter().map(|e| self.implicit(e, ty)).collect::<Result<Vec<_>, _>>()?;
            return Ok(Expr::new(ExprKind::In(value, list, negated), Type::Bool));
        }
        let name = if negated { "<>" } else { "=" };
        let parts = list
            .into_iter()
            .map(|item| self.operate(name, Some(value.clone()), item))
            .collect::<Result<Vec<_>, _>>()?;
        let kind = if negated { ExprKind::And(parts) } else { ExprKind::Or(parts) };
        Ok(Expr::new(kind, Type::Bool))
    }

    /// `left op ANY (right)` and ALL.
    pub(crate) fn quantified(
        &mut self,
        left: &ast::Expr,
        op: &BinaryOperator,
        right: &ast::Expr,
        all: bool,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let name = operator_name(op)?;
        if !matches!((name, all), ("=", false) | ("<>", true)) {
            let word = if all { "ALL" } else { "ANY" };
            return Err(
                WireError::unsupported(format!("{name} {word}")).with_hint("Shoal has = ANY and <> ALL.")
            );
        }
        let mut inner = right;
        while let ast::Expr::Nested(nested) = inner {
            inner = nested;
        }
        if let ast::Expr::Subquery(query) = inner {
            return self.in_query(left, query, all, scope);
        }
        if let ast::Expr::Array(ast::Array { elem, named: _ }) = inner {
            return self.in_list(left, elem, all, scope);
        }
        let value = self.expr(left, scope)?;
        let array = self.expr(inner, scope)?;
        let ty = match (value.ty.ty, element_of(array.ty.ty)) {
            (Type::Unknown, None) => Type::Text,
            (ty, None) if array.ty.ty == Type::Unknown => ty,
            (_, None) => {
                let message = "op ANY/ALL (array) requires array on right side";
                return Err(error(SqlState::WRONG_OBJECT_TYPE, message));
            }
            (Type::Unknown, Some(element)) => element,
            (ty, Some(element)) => {
                let types = [ty, element];
                dialect::functions::common_type("ANY", &types).map_err(|_| {
                    let message =
                        format!("operator does not exist: {} {name} {}", type_name(ty), type_name(element));
                    error(SqlState::UNDEFINED_FUNCTION, message).with_hint(
                        "No operator matches the given name and argument types. \
                         You might need to add explicit type casts.",
                    )
                })?
            }
        };
        let resolved = resolve_operator("=", Some(ty), ty)?;
        let ty = if matches!(ty, Type::Varchar) { Type::Text } else { resolved.args[0] };
        let Some(wanted) = array_of(ty) else {
            return Err(WireError::unsupported(format!("an array of {}", type_name(ty)))
                .with_hint("Write the values as a list: IN (..)."));
        };
        let value = self.implicit(value, ty)?;
        // Arrays are kept as text: those of integers look the same, and so do those of strings.
        let array = match (element_of(array.ty.ty), ty) {
            (
                Some(Type::Int2 | Type::Int4 | Type::Int8),
                Type::Int2 | Type::Int4 | Type::Int8 | Type::Numeric,
            )
            | (Some(Type::Text | Type::Varchar | Type::Name), Type::Text) => array,
            _ => self.implicit(array, wanted)?,
        };
        Ok(Expr::new(ExprKind::InArray(Box::new(value), Box::new(array), all), Type::Bool))
    }
}

/// A row written out, of more than one column.
fn row(expr: &ast::Expr) -> Option<&[ast::Expr]> {
    match expr {
        ast::Expr::Tuple(parts) => Some(parts),
        ast::Expr::Nested(inner) => row(inner),
        _ => None,
    }
}
