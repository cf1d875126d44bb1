//! SELECT: its clauses, its list, and what PostgreSQL calls its columns.

use super::from::column_type;
use super::grouping::check_grouping;
use super::order::Output;
use super::scope::{Clause, CteNames, NamedColumn, Names, Scope};
use super::tree::{Body, Expr, ExprKind, OrderKey, Query, Select};
use super::types::{plain_name, type_keyword, type_of};
use super::{Binder, error, syntax};
use crate::plan::OutputColumn;
use dialect::Type;
use dialect::types::Typed;
use proto::{SqlState, WireError};
use sqlparser::ast::{self, SelectItem, SetExpr};

impl<'a> Binder<'a> {
    pub(super) fn select(
        &mut self,
        select: &ast::Select,
        order_by: &[ast::OrderByExpr],
        locks: &[ast::LockClause],
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        let ast::Select {
            select_token: _,
            optimizer_hints,
            distinct,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having,
            named_window,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        // A hint is a comment, and PostgreSQL doesn't look at it either.
        let _ = optimizer_hints;
        if into.is_some() {
            return Err(
                WireError::unsupported("SELECT INTO").with_hint("Use CREATE TABLE, then INSERT .. SELECT.")
            );
        }
        if !named_window.is_empty() {
            return Err(WireError::unsupported("WINDOW"));
        }
        if select_modifiers.is_some()
            || top.is_some()
            || exclude.is_some()
            || !lateral_views.is_empty()
            || prewhere.is_some()
            || !connect_by.is_empty()
            || !cluster_by.is_empty()
            || !distribute_by.is_empty()
            || !sort_by.is_empty()
            || qualify.is_some()
            || value_table_mode.is_some()
            || !matches!(flavor, ast::SelectFlavor::Standard)
        {
            return Err(WireError::unsupported("this clause of SELECT"));
        }
        let empty = Names::default();
        let outside = Scope { names: &empty, outer, ctes, clause: Clause::Select };
        let (from, names) = self.items_of(from, &outside)?;
        let scope = outside.with(&names, Clause::Select);
        let (mut projection, mut columns) = self.projection(projection, &scope)?;
        let mut output = Output { names: columns.iter().map(|c| c.name.clone()).collect() };
        let filter = match selection {
            Some(selection) => Some(self.predicate(selection, "WHERE", &scope.within(Clause::Where))?),
            None => None,
        };
        let having = match having {
            Some(having) => Some(self.predicate(having, "HAVING", &scope.within(Clause::Having))?),
            None => None,
        };
        let distinct = match distinct {
            None | Some(ast::Distinct::All) => false,
            Some(ast::Distinct::Distinct) => true,
            Some(ast::Distinct::On(_)) => return Err(WireError::unsupported("DISTINCT ON")),
        };
        let visible = projection.len();
        let mut keys = Vec::with_capacity(order_by.len());
        for key in order_by {
            let (column, descending, nulls_first) =
                self.order_key(key, &mut projection, visible, &mut output, &scope)?;
            if distinct && column >= visible {
                let message = "for SELECT DISTINCT, ORDER BY expressions must appear in select list";
                return Err(error(SqlState::INVALID_COLUMN_REFERENCE, message));
            }
            keys.push(OrderKey { column, descending, nulls_first });
        }
        let group_by = match group_by {
            ast::GroupByExpr::All(_) => return Err(WireError::unsupported("GROUP BY ALL")),
            ast::GroupByExpr::Expressions(_, modifiers) if !modifiers.is_empty() => {
                return Err(WireError::unsupported("this form of GROUP BY"));
            }
            ast::GroupByExpr::Expressions(keys, _) => {
                let mut bound: Vec<Expr> = Vec::with_capacity(keys.len());
                for key in keys {
                    let key = self.group_key(key, &projection[..visible], &output, &scope)?;
                    bound.push(key);
                }
                bound
            }
        };
        let grouped = !group_by.is_empty() || having.is_some() || projection.iter().any(Expr::has_aggregate);
        for (expr, column) in projection.iter_mut().zip(&mut columns) {
            column.ty = expr.ty;
        }
        let mut select =
            Select { from, filter, grouped, group_by, having, projection, distinct, locks: Vec::new() };
        if grouped {
            check_grouping(self, &select, &names)?;
        }
        select.locks = self.row_locks(locks, &select, &names)?;
        if distinct && columns.iter().any(|c| c.ty.ty == Type::Unknown) {
            // DISTINCT compares, so it must know as what.
            let mut query = self.finished(select, keys, columns);
            self.settle_query(&mut query)?;
            return Ok(query);
        }
        Ok(self.finished(select, keys, columns))
    }

    pub(super) fn finished(
        &self,
        select: Select,
        order_by: Vec<OrderKey>,
        columns: Vec<OutputColumn>,
    ) -> Query {
        let body = Body::Select(Box::new(select));
        Query { ctes: Vec::new(), body, order_by, limit: None, offset: None, columns }
    }

    /// A select list (or RETURNING): expressions, and what the columns are called.
    pub(crate) fn projection(
        &mut self,
        items: &[SelectItem],
        scope: &Scope<'_, 'a>,
    ) -> Result<(Vec<Expr>, Vec<OutputColumn>), WireError> {
        let mut exprs = Vec::with_capacity(items.len());
        let mut columns = Vec::with_capacity(items.len());
        let wildcard = |options: &ast::WildcardAdditionalOptions| {
            let ast::WildcardAdditionalOptions {
                wildcard_token: _,
                opt_ilike,
                opt_exclude,
                opt_except,
                opt_replace,
                opt_rename,
                opt_alias,
            } = options;
            if opt_ilike.is_some()
                || opt_exclude.is_some()
                || opt_except.is_some()
                || opt_replace.is_some()
                || opt_rename.is_some()
                || opt_alias.is_some()
            {
                return Err(WireError::unsupported("an option of *"));
            }
            Ok(())
        };
        let all = |named: &[NamedColumn<'a>], exprs: &mut Vec<Expr>, columns: &mut Vec<OutputColumn>| {
            for column in named {
                exprs.push(column.expr());
                columns.push(OutputColumn {
                    name: column.name.to_string(),
                    ty: column.ty,
                    origin: column.origin,
                });
            }
        };
        for item in items {
            match item {
                SelectItem::Wildcard(options) => {
                    wildcard(options)?;
                    if scope.names.tables.is_empty() && scope.names.columns.is_empty() {
                        return Err(syntax("SELECT * with no tables specified is not valid"));
                    }
                    all(&scope.names.columns, &mut exprs, &mut columns);
                }
                SelectItem::QualifiedWildcard(
                    ast::SelectItemQualifiedWildcardKind::ObjectName(name),
                    options,
                ) => {
                    wildcard(options)?;
                    let (_, table) = plain_name(name)?;
                    let Some(named) = self.find_table(table, scope) else {
                        return Err(self.missing_table(table, scope));
                    };
                    all(named, &mut exprs, &mut columns);
                }
                SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::Expr(_), _) => {
                    return Err(WireError::unsupported("the columns of an expression"));
                }
                SelectItem::UnnamedExpr(expr) => {
                    let bound = self.expr(expr, scope)?;
                    let name = output_name(expr).map_or("?column?".to_owned(), |(name, _)| name);
                    columns.push(OutputColumn { name, ty: bound.ty, origin: self.origin(&bound, scope) });
                    exprs.push(bound);
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    let bound = self.expr(expr, scope)?;
                    let name = alias.value.clone();
                    columns.push(OutputColumn { name, ty: bound.ty, origin: self.origin(&bound, scope) });
                    exprs.push(bound);
                }
                SelectItem::ExprWithAliases { expr: _, aliases: _ } => {
                    return Err(WireError::unsupported("several aliases of an expression"));
                }
            }
        }
        if columns.len() > 1664 {
            let message = "target lists can have at most 1664 entries";
            return Err(error(SqlState::TOO_MANY_COLUMNS, message));
        }
        Ok((exprs, columns))
    }

    fn origin(&self, expr: &Expr, scope: &Scope<'_, 'a>) -> Option<(proto::TableId, i16)> {
        let ExprKind::Column(rel, column) = expr.kind else { return None };
        let mut named = scope.names.tables.iter().flat_map(|(_, columns)| columns);
        named.find(|c| c.rel == rel && c.column == column && c.merged.is_none())?.origin
    }

    /// The columns of a table by name, for lists of INSERT and COPY. 42703 and 42701.
    pub(crate) fn column_list(
        &self,
        table: &'a proto::catalog::Table,
        list: &[&ast::Ident],
    ) -> Result<Vec<(usize, Typed)>, WireError> {
        let mut places: Vec<(usize, Typed)> = Vec::with_capacity(list.len());
        for ident in list {
            let name = &ident.value;
            let place = table
                .columns
                .iter()
                .position(|c| c.name == *name && c.id != proto::ColumnId::HIDDEN_KEY)
                .ok_or_else(|| {
                    let message = format!("column \"{name}\" of relation \"{}\" does not exist", table.name);
                    self.at(error(SqlState::UNDEFINED_COLUMN, message), ident.span)
                })?;
            if places.iter().any(|(known, _)| *known == place) {
                let message = format!("column \"{name}\" specified more than once");
                return Err(self.at(error(SqlState::DUPLICATE_COLUMN, message), ident.span));
            }
            places.push((place, column_type(table, &table.columns[place])?));
        }
        Ok(places)
    }
}

/// What PostgreSQL calls an output column (`FigureColname`), and how sure it is: 2 for a name of its own, 1 for a
/// type's.
fn output_name(expr: &ast::Expr) -> Option<(String, u8)> {
    use ast::Expr as Ast;
    let sure = |name: &str| Some((name.to_owned(), 2));
    match expr {
        Ast::Identifier(ident) => sure(&ident.value),
        Ast::CompoundIdentifier(parts) => sure(&parts.last()?.value),
        Ast::Nested(inner) | Ast::Collate { expr: inner, collation: _ } => output_name(inner),
        Ast::Function(call) => sure(plain_name(&call.name).ok()?.1),
        Ast::Cast { kind: _, expr, data_type, format: _ } => match output_name(expr) {
            Some((name, 2)) => Some((name, 2)),
            _ => type_of(data_type).ok().and_then(|ty| {
                let ty = super::types::element_of(ty.ty).unwrap_or(ty.ty);
                Some((type_keyword(ty)?.to_owned(), 1))
            }),
        },
        Ast::TypedString(typed) => {
            let ty = type_of(&typed.data_type).ok()?;
            Some((type_keyword(ty.ty)?.to_owned(), 1))
        }
        Ast::Case { case_token: _, end_token: _, operand: _, conditions: _, else_result } => {
            match else_result.as_deref().and_then(output_name) {
                Some((name, 2)) => Some((name, 2)),
                _ => Some(("case".to_owned(), 1)),
            }
        }
        Ast::Exists { subquery: _, negated: false } => sure("exists"),
        Ast::Subquery(query) => match &*query.body {
            SetExpr::Select(select) => match select.projection.as_slice() {
                [SelectItem::UnnamedExpr(expr)] => output_name(expr),
                [SelectItem::ExprWithAlias { expr: _, alias }] => sure(&alias.value),
                _ => None,
            },
            _ => None,
        },
        Ast::Extract { .. } => sure("extract"),
        Ast::Ceil { .. } => sure("ceil"),
        Ast::Floor { .. } => sure("floor"),
        Ast::Position { .. } => sure("position"),
        Ast::Substring { .. } => sure("substring"),
        Ast::Overlay { .. } => sure("overlay"),
        Ast::Trim { trim_where, .. } => sure(match trim_where {
            None | Some(ast::TrimWhereField::Both) => "btrim",
            Some(ast::TrimWhereField::Leading) => "ltrim",
            Some(ast::TrimWhereField::Trailing) => "rtrim",
        }),
        Ast::AtTimeZone { .. } => sure("timezone"),
        Ast::Array(_) => sure("array"),
        _ => None,
    }
}

/// A SELECT of these columns of a table.
pub(crate) fn all_columns(
    binder: &Binder<'_>,
    table: &std::sync::Arc<proto::catalog::Table>,
    rel: super::tree::RelId,
    targets: &[(usize, Typed)],
) -> Result<Query, WireError> {
    let types =
        table.columns.iter().map(|c| column_type(table, c).map(|ty| ty.ty)).collect::<Result<_, _>>()?;
    let source = super::tree::RelationSource::Table(std::sync::Arc::clone(table));
    let relation = super::tree::Relation { id: rel, source, types };
    let projection = targets
        .iter()
        .map(|(place, ty)| Expr { kind: ExprKind::Column(rel, *place as u32), ty: *ty })
        .collect();
    let columns = targets
        .iter()
        .map(|(place, ty)| OutputColumn { name: table.columns[*place].name.clone(), ty: *ty, origin: None })
        .collect();
    let select = Select {
        from: vec![super::tree::From::Relation(relation)],
        filter: None,
        grouped: false,
        group_by: Vec::new(),
        having: None,
        projection,
        distinct: false,
        locks: Vec::new(),
    };
    Ok(binder.finished(select, Vec::new(), columns))
}
