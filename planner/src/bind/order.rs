//! What ORDER BY and GROUP BY name: output columns by name or place, or expressions over FROM.

use super::scope::{Clause, Scope};
use super::tree::{Expr, ExprKind, OrderKey, Query};
use super::{Binder, error, syntax};
use crate::text::LiteralKind;
use dialect::Type;
use proto::{SqlState, WireError};
use sqlparser::ast;

/// The names that ORDER BY can see of a SELECT's output, beside its FROM.
pub(super) struct Output {
    pub names: Vec<String>,
}

/// DESC, and where NULLs go: last unless DESC, as in PostgreSQL.
pub(crate) fn direction(options: &ast::OrderByOptions) -> Result<(bool, bool), WireError> {
    let ast::OrderByOptions { sort, nulls_first } = options;
    let descending = match sort {
        None | Some(ast::OrderBySort::Asc) => false,
        Some(ast::OrderBySort::Desc) => true,
        Some(ast::OrderBySort::Using(_)) => return Err(WireError::unsupported("ORDER BY .. USING")),
    };
    Ok((descending, nulls_first.unwrap_or(descending)))
}

impl<'a> Binder<'a> {
    /// A key of ORDER BY: an output column's name or place, or an expression over FROM.
    pub(super) fn order_key(
        &mut self,
        key: &ast::OrderByExpr,
        projection: &mut Vec<Expr>,
        visible: usize,
        output: &mut Output,
        scope: &Scope<'_, 'a>,
    ) -> Result<(usize, bool, bool), WireError> {
        let ast::OrderByExpr { expr, options, with_fill } = key;
        if with_fill.is_some() {
            return Err(WireError::unsupported("WITH FILL"));
        }
        let (descending, nulls_first) = direction(options)?;
        let column = match self.output_place(expr, &projection[..visible], output, "ORDER BY")? {
            Some(column) => column,
            None => {
                let bound = self.expr(expr, &scope.within(Clause::OrderBy))?;
                let bound = self.settle(bound)?;
                match projection.iter().position(|known| *known == bound) {
                    Some(column) => {
                        self.pin_literals(&bound);
                        let known = projection[column].clone();
                        self.pin_literals(&known);
                        column
                    }
                    None => {
                        projection.push(bound);
                        projection.len() - 1
                    }
                }
            }
        };
        if projection[column].ty.ty == Type::Unknown {
            let expr = std::mem::replace(&mut projection[column], Expr::null(Type::Unknown));
            projection[column] = self.settle(expr)?;
        }
        Ok((column, descending, nulls_first))
    }

    /// The output column that a bare name or an integer stands for.
    pub(super) fn output_place(
        &mut self,
        expr: &ast::Expr,
        projection: &[Expr],
        output: &Output,
        clause: &str,
    ) -> Result<Option<usize>, WireError> {
        match expr {
            ast::Expr::Identifier(ident) => {
                let mut found: Option<usize> = None;
                for (i, name) in output.names.iter().enumerate() {
                    if *name != ident.value {
                        continue;
                    }
                    match found {
                        Some(known) if projection[known] != projection[i] => {
                            let message = format!("{clause} \"{name}\" is ambiguous");
                            return Err(self.at(error(SqlState::AMBIGUOUS_COLUMN, message), ident.span));
                        }
                        Some(_) => {}
                        None => found = Some(i),
                    }
                }
                Ok(found)
            }
            ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(_, _), span }) => {
                let (literal, kind) = self.literal(*span)?;
                let text = self.pinned_text(literal.slot).into_owned();
                if kind != LiteralKind::Int4 {
                    let message = format!("non-integer constant in {clause}");
                    return Err(self.at(syntax(message), *span));
                }
                let place = text.parse::<usize>().unwrap_or(0);
                if !(1..=projection.len()).contains(&place) {
                    let message = format!("{clause} position {text} is not in select list");
                    return Err(self.at(error(SqlState::INVALID_COLUMN_REFERENCE, message), *span));
                }
                Ok(Some(place - 1))
            }
            ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::SingleQuotedString(_), span }) => {
                Err(self.at(syntax(format!("non-integer constant in {clause}")), *span))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn group_key(
        &mut self,
        key: &ast::Expr,
        projection: &[Expr],
        output: &Output,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        if matches!(
            key,
            ast::Expr::GroupingSets(_) | ast::Expr::Cube(_) | ast::Expr::Rollup(_) | ast::Expr::Tuple(_)
        ) {
            return Err(WireError::unsupported("GROUPING SETS, CUBE, ROLLUP and rows in GROUP BY"));
        }
        // A bare name is a column of FROM first, an output column's name second.
        let input = match key {
            ast::Expr::Identifier(ident) => {
                scope.names.columns.iter().any(|c| c.name == ident.value.as_str())
            }
            _ => false,
        };
        let place = if input { None } else { self.output_place(key, projection, output, "GROUP BY")? };
        let bound = match place {
            Some(place) => {
                let expr = projection[place].clone();
                if expr.has_aggregate() {
                    return Err(error(
                        SqlState::GROUPING_ERROR,
                        "aggregate functions are not allowed in GROUP BY",
                    ));
                }
                expr
            }
            None => self.expr(key, &scope.within(Clause::GroupBy))?,
        };
        if place.is_some() && bound.ty.ty == Type::Unknown {
            // Grouping by a constant: it makes one group, whatever the constant is.
            return Ok(bound);
        }
        self.settle(bound)
    }

    /// ORDER BY after a set operation or VALUES: output columns alone.
    pub(super) fn order_output(
        &mut self,
        query: &mut Query,
        order_by: &[ast::OrderByExpr],
    ) -> Result<(), WireError> {
        self.settle_query(query)?;
        let output = Output { names: query.columns.iter().map(|c| c.name.clone()).collect() };
        let id = self.new_relation();
        let columns: Vec<Expr> = query
            .columns
            .iter()
            .enumerate()
            .map(|(i, c)| Expr { kind: ExprKind::Column(id, i as u32), ty: c.ty })
            .collect();
        for key in order_by {
            let ast::OrderByExpr { expr, options, with_fill } = key;
            if with_fill.is_some() {
                return Err(WireError::unsupported("WITH FILL"));
            }
            let (descending, nulls_first) = direction(options)?;
            let Some(column) = self.output_place(expr, &columns, &output, "ORDER BY")? else {
                if let ast::Expr::Identifier(ident) = expr {
                    let message = format!("column \"{}\" does not exist", ident.value);
                    return Err(self.at(error(SqlState::UNDEFINED_COLUMN, message), ident.span));
                }
                let message = "invalid UNION/INTERSECT/EXCEPT ORDER BY clause";
                return Err(error(SqlState::FEATURE_NOT_SUPPORTED, message)
                    .with_detail("Only result column names can be used, not expressions or functions.")
                    .with_hint(
                        "Add the expression/function to every SELECT, or move the UNION into a FROM clause.",
                    ));
            };
            query.order_by.push(OrderKey { column, descending, nulls_first });
        }
        Ok(())
    }
}
