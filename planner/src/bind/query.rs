//! Queries: WITH, set operations, VALUES, LIMIT, and subqueries. SELECT itself is in `select`.

use super::lock::{lock_name, locked_with};
use super::scope::{Clause, CteNames, NamedColumn, Names, Scope};
use super::tree::{Body, Cte, Expr, ExprKind, Query, Select, SetOp};
use super::types::common_storage;
use super::walk::grow;
use super::{Binder, error, syntax};
use crate::plan::OutputColumn;
use dialect::Type;
use dialect::types::Typed;
use proto::{SqlState, WireError};
use sqlparser::ast::{self, SetExpr, SetOperator, SetQuantifier};

/// What a clause that comes after a query's body says.
struct Tail<'t> {
    order_by: &'t [ast::OrderByExpr],
    limit: Option<&'t ast::Expr>,
    offset: Option<&'t ast::Expr>,
    fetch_one: bool,
    locks: &'t [ast::LockClause],
}

fn tail(query: &ast::Query) -> Result<Tail<'_>, WireError> {
    let ast::Query {
        with: _,
        body: _,
        order_by,
        limit_clause,
        fetch,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    if for_clause.is_some() || settings.is_some() || format_clause.is_some() || !pipe_operators.is_empty() {
        return Err(WireError::unsupported("this clause of a query"));
    }
    let order_by = match order_by {
        None => &[][..],
        Some(ast::OrderBy { kind: ast::OrderByKind::Expressions(keys), interpolate: None }) => keys,
        Some(ast::OrderBy { kind: _, interpolate: _ }) => {
            return Err(WireError::unsupported("this form of ORDER BY"));
        }
    };
    let (mut limit, offset) = match limit_clause {
        None => (None, None),
        Some(ast::LimitClause::LimitOffset { limit, offset, limit_by }) => {
            if !limit_by.is_empty() {
                return Err(WireError::unsupported("LIMIT .. BY"));
            }
            let offset = offset.as_ref().map(|ast::Offset { value, rows: _ }| value);
            (limit.as_ref(), offset)
        }
        Some(ast::LimitClause::OffsetCommaLimit { offset: _, limit: _ }) => {
            return Err(syntax("LIMIT #,# syntax is not supported")
                .with_hint("Use separate LIMIT and OFFSET clauses."));
        }
    };
    let mut fetch_one = false;
    if let Some(ast::Fetch { with_ties, percent, quantity }) = fetch {
        if *with_ties {
            return Err(WireError::unsupported("FETCH .. WITH TIES"));
        }
        if *percent {
            return Err(syntax("syntax error at or near \"PERCENT\""));
        }
        if limit.is_some() {
            return Err(syntax("multiple LIMIT clauses not allowed"));
        }
        match quantity {
            Some(quantity) => limit = Some(quantity),
            None => fetch_one = true,
        }
    }
    Ok(Tail { order_by, limit, offset, fetch_one, locks })
}

/// What is bound where WITH's queries are seen.
type Bound<'f, 'a, R> = &'f mut dyn FnMut(&mut Binder<'a>, Option<&CteNames<'_>>) -> Result<R, WireError>;

impl<'a> Binder<'a> {
    /// A query within a statement. Columns of unknown type stay unknown: its context settles them.
    pub(crate) fn query(
        &mut self,
        query: &ast::Query,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        grow(|| {
            let (mut bound, made) = self.with(query.with.as_ref(), outer, ctes, &mut |binder, ctes| {
                binder.query_body(query, outer, ctes)
            })?;
            bound.ctes = made;
            Ok(bound)
        })
    }

    /// Binds WITH's queries, and then what sees them.
    pub(crate) fn with<R>(
        &mut self,
        with: Option<&ast::With>,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
        body: Bound<'_, 'a, R>,
    ) -> Result<(R, Vec<Cte>), WireError> {
        let Some(ast::With { with_token: _, recursive, cte_tables }) = with else {
            return Ok((body(self, ctes)?, Vec::new()));
        };
        if *recursive {
            return Err(WireError::unsupported("WITH RECURSIVE"));
        }
        self.with_ctes(cte_tables, Vec::new(), outer, ctes, body)
    }

    fn with_ctes<R>(
        &mut self,
        tables: &[ast::Cte],
        mut bound: Vec<Cte>,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
        body: Bound<'_, 'a, R>,
    ) -> Result<(R, Vec<Cte>), WireError> {
        let Some((first, rest)) = tables.split_first() else {
            return Ok((body(self, ctes)?, bound));
        };
        let ast::Cte { alias, query: inner, from, materialized: _, closing_paren_token: _ } = first;
        let ast::TableAlias { explicit: _, name, columns, at } = alias;
        if from.is_some() || at.is_some() {
            return Err(WireError::unsupported("this form of WITH"));
        }
        if rest.iter().any(|other| other.alias.name.value == name.value) {
            let message = format!("WITH query name \"{}\" specified more than once", name.value);
            return Err(error(SqlState::DUPLICATE_ALIAS, message));
        }
        let mut inner = self.query(inner, outer, ctes)?;
        self.settle_query(&mut inner)?;
        if columns.len() > inner.columns.len() {
            let message = format!(
                "WITH query \"{}\" has {} columns available but {} columns specified",
                name.value,
                inner.columns.len(),
                columns.len()
            );
            return Err(error(SqlState::INVALID_COLUMN_REFERENCE, message));
        }
        for (column, new) in inner.columns.iter_mut().zip(columns) {
            let ast::TableAliasColumnDef { name, data_type: _ } = new;
            column.name = name.value.clone();
        }
        let shape: Vec<(String, Typed)> = inner.columns.iter().map(|c| (c.name.clone(), c.ty)).collect();
        let id = self.new_cte();
        bound.push(Cte { id, query: inner });
        let names = CteNames { name: &name.value, id, columns: &shape, outer: ctes };
        self.with_ctes(rest, bound, outer, Some(&names), body)
    }

    /// A subquery of an expression.
    pub(crate) fn subquery(&mut self, query: &ast::Query, scope: &Scope<'_, 'a>) -> Result<Query, WireError> {
        match scope.clause {
            Clause::Default => {
                Err(error(SqlState::FEATURE_NOT_SUPPORTED, "cannot use subquery in DEFAULT expression"))
            }
            Clause::Check => {
                Err(error(SqlState::FEATURE_NOT_SUPPORTED, "cannot use subquery in check constraint"))
            }
            _ => self.query(query, Some(scope), scope.ctes),
        }
    }

    /// `value IN (query)`.
    pub(crate) fn in_query(
        &mut self,
        value: &ast::Expr,
        query: &ast::Query,
        negated: bool,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let mut query = self.subquery(query, scope)?;
        if matches!(value, ast::Expr::Tuple(_)) {
            return Err(WireError::unsupported("a row IN a subquery").with_hint("Use EXISTS."));
        }
        match query.columns.len() {
            1 => {}
            0 => return Err(syntax("subquery has too few columns")),
            _ => return Err(syntax("subquery has too many columns")),
        }
        let value = self.expr(value, scope)?;
        self.settle_query(&mut query)?;
        let inner = query.columns[0].ty.ty;
        let resolved = dialect::functions::resolve_operator("=", Some(value.ty.ty), inner)?;
        let common = common_storage(resolved.args[0], resolved.args[1])?;
        let value = self.implicit(value, common.unwrap_or(resolved.args[0]))?;
        let wanted = common.unwrap_or(resolved.args[1]);
        if wanted != inner {
            query = self.converted(query, &[Typed::plain(wanted)])?;
        }
        Ok(Expr::new(ExprKind::InQuery(Box::new(value), Box::new(query), negated), Type::Bool))
    }

    fn query_body(
        &mut self,
        query: &ast::Query,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        let tail = tail(query)?;
        let mut bound = match &*query.body {
            SetExpr::Select(select) => self.select(select, tail.order_by, tail.locks, outer, ctes)?,
            body => {
                if let Some(name) = locked_with(query)? {
                    return Err(not_lockable(body, name));
                }
                let mut bound = self.set_expr(body, outer, ctes)?;
                if !tail.order_by.is_empty() {
                    // (SELECT ..) ORDER BY ..: the inner query keeps its own order and cut.
                    if !bound.order_by.is_empty() || bound.limit.is_some() || bound.offset.is_some() {
                        self.settle_query(&mut bound)?;
                        bound = self.wrap(bound);
                    }
                    self.order_output(&mut bound, tail.order_by)?;
                }
                bound
            }
        };
        if tail.limit.is_none() && tail.offset.is_none() && !tail.fetch_one {
            return Ok(bound);
        }
        if bound.limit.is_some() || bound.offset.is_some() {
            self.settle_query(&mut bound)?;
            bound = self.wrap(bound);
        }
        let empty = Names::default();
        for (expr, clause, word) in
            [(tail.limit, Clause::Limit, "LIMIT"), (tail.offset, Clause::Offset, "OFFSET")]
        {
            let Some(expr) = expr else { continue };
            if let ast::Expr::Identifier(ident) = expr
                && ident.quote_style.is_none()
                && ident.value == "all"
            {
                continue;
            }
            let scope = Scope { names: &empty, outer: None, ctes, clause };
            let expr = self.expr(expr, &scope).map_err(|missing| match expr {
                ast::Expr::Identifier(ident) if has_column(&bound, &ident.value) => {
                    let message = format!("argument of {word} must not contain variables");
                    self.at(error(SqlState::INVALID_COLUMN_REFERENCE, message), ident.span)
                }
                _ => missing,
            })?;
            if expr.has_query() {
                return Err(WireError::unsupported(format!("a subquery in {word}")));
            }
            let expr = self.row_count(expr, word)?;
            if clause == Clause::Limit { bound.limit = Some(expr) } else { bound.offset = Some(expr) }
        }
        if tail.fetch_one {
            bound.limit = Some(Expr::new(ExprKind::Value(proto::Value::Int(1)), Type::Int8));
        }
        Ok(bound)
    }

    /// `SELECT * FROM (query)`.
    pub(crate) fn wrap(&mut self, query: Query) -> Query {
        let types: Vec<Typed> = query.columns.iter().map(|c| c.ty).collect();
        self.projected(query, |expr, _| expr, &types)
    }

    /// The query with its columns cast.
    fn converted(&mut self, mut query: Query, to: &[Typed]) -> Result<Query, WireError> {
        for (i, to) in to.iter().enumerate() {
            if query.columns[i].ty.ty == Type::Unknown {
                self.coerce_column(&mut query, i, *to)?;
            }
        }
        if query.columns.iter().zip(to).all(|(column, to)| column.ty.ty == to.ty) {
            for (column, to) in query.columns.iter_mut().zip(to) {
                column.ty = *to;
            }
            return Ok(query);
        }
        let mut failed = None;
        let mut casts: Vec<Option<Expr>> = Vec::new();
        let types: Vec<Typed> = query.columns.iter().map(|c| c.ty).collect();
        let mut query = self.projected(query, |expr, _| expr, &types);
        if let Body::Select(select) = &mut query.body {
            for (i, to) in to.iter().enumerate() {
                let expr = std::mem::replace(&mut select.projection[i], Expr::null(to.ty));
                match self.implicit(expr, to.ty) {
                    Ok(expr) => casts.push(Some(expr)),
                    Err(error) => {
                        failed.get_or_insert(error);
                        casts.push(None);
                    }
                }
            }
            for (i, cast) in casts.into_iter().enumerate() {
                if let Some(cast) = cast {
                    select.projection[i] = cast;
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        for (column, to) in query.columns.iter_mut().zip(to) {
            column.ty = *to;
        }
        Ok(query)
    }

    fn projected(&mut self, query: Query, map: impl Fn(Expr, usize) -> Expr, types: &[Typed]) -> Query {
        let id = self.new_relation();
        let columns: Vec<OutputColumn> =
            query.columns.iter().map(|c| OutputColumn { origin: None, ..c.clone() }).collect();
        let projection = types
            .iter()
            .enumerate()
            .map(|(i, ty)| map(Expr { kind: ExprKind::Column(id, i as u32), ty: *ty }, i))
            .collect();
        let relation = super::tree::Relation {
            id,
            source: super::tree::RelationSource::Query(Box::new(query)),
            types: types.iter().map(|ty| ty.ty).collect(),
        };
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
        Query {
            ctes: Vec::new(),
            body: Body::Select(Box::new(select)),
            order_by: Vec::new(),
            limit: None,
            offset: None,
            columns,
        }
    }

    /// A body that isn't a plain SELECT's.
    fn set_expr(
        &mut self,
        body: &SetExpr,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        match body {
            SetExpr::Select(select) => self.select(select, &[], &[], outer, ctes),
            SetExpr::Query(query) => self.query(query, outer, ctes),
            SetExpr::Values(values) => self.values(values, outer, ctes),
            SetExpr::Table(table) => {
                let ast::Table { table_name, schema_name } = &**table;
                let name = table_name.clone().ok_or_else(|| syntax("TABLE takes a name"))?;
                let parts = schema_name
                    .iter()
                    .chain([&name])
                    .map(|part| ast::Ident::new(part.clone()))
                    .collect::<Vec<_>>();
                self.whole_table(&ast::ObjectName::from(parts), outer, ctes)
            }
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                self.set_operation(left, *op, *set_quantifier, right, outer, ctes)
            }
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                Err(WireError::unsupported("a writing statement within a query"))
            }
        }
    }

    fn whole_table(
        &mut self,
        name: &ast::ObjectName,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        let relation = ast::TableFactor::Table {
            name: name.clone(),
            alias: None,
            args: None,
            with_hints: Vec::new(),
            version: None,
            with_ordinality: false,
            partitions: Vec::new(),
            json_path: None,
            sample: None,
            index_hints: Vec::new(),
        };
        let empty = Names::default();
        let scope = Scope { names: &empty, outer, ctes, clause: Clause::Select };
        let (from, names) = self.items_of(&[ast::TableWithJoins { relation, joins: Vec::new() }], &scope)?;
        let projection = names.columns.iter().map(NamedColumn::expr).collect();
        let columns = names
            .columns
            .iter()
            .map(|c| OutputColumn { name: c.name.to_string(), ty: c.ty, origin: c.origin })
            .collect();
        let select = Select {
            from,
            filter: None,
            grouped: false,
            group_by: Vec::new(),
            having: None,
            projection,
            distinct: false,
            locks: Vec::new(),
        };
        let body = Body::Select(Box::new(select));
        Ok(Query { ctes: Vec::new(), body, order_by: Vec::new(), limit: None, offset: None, columns })
    }

    fn set_operation(
        &mut self,
        left: &SetExpr,
        op: SetOperator,
        quantifier: SetQuantifier,
        right: &SetExpr,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        let (op, word) = match op {
            SetOperator::Union => (SetOp::Union, "UNION"),
            SetOperator::Intersect => (SetOp::Intersect, "INTERSECT"),
            SetOperator::Except => (SetOp::Except, "EXCEPT"),
            SetOperator::Minus => return Err(syntax("syntax error at or near \"MINUS\"")),
        };
        let all = match quantifier {
            SetQuantifier::All => true,
            SetQuantifier::Distinct | SetQuantifier::None => false,
            SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName => {
                return Err(WireError::unsupported("BY NAME"));
            }
        };
        let mut left = grow(|| self.set_expr(left, outer, ctes))?;
        let mut right = grow(|| self.set_expr(right, outer, ctes))?;
        for side in [&left, &right] {
            if let Body::Select(select) = &side.body
                && let Some(lock) = select.locks.first()
            {
                let message = format!("{} is not allowed with UNION/INTERSECT/EXCEPT", lock_name(lock.mode));
                return Err(error(SqlState::FEATURE_NOT_SUPPORTED, message));
            }
        }
        if left.columns.len() != right.columns.len() {
            return Err(syntax(format!("each {word} query must have the same number of columns")));
        }
        let mut types = Vec::with_capacity(left.columns.len());
        for (a, b) in left.columns.iter().zip(&right.columns) {
            let ty = dialect::functions::common_type(word, &[a.ty.ty, b.ty.ty])?;
            let modifier = if a.ty == b.ty { a.ty.modifier } else { -1 };
            types.push(Typed { ty, modifier });
        }
        left = self.converted(left, &types)?;
        right = self.converted(right, &types)?;
        let columns = left
            .columns
            .iter()
            .zip(&types)
            .map(|(c, ty)| OutputColumn { name: c.name.clone(), ty: *ty, origin: None })
            .collect();
        let body = Body::SetOperation { op, all, left: Box::new(left), right: Box::new(right) };
        Ok(Query { ctes: Vec::new(), body, order_by: Vec::new(), limit: None, offset: None, columns })
    }

    fn values(
        &mut self,
        values: &ast::Values,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        let ast::Values { explicit_row, value_keyword, rows } = values;
        if *explicit_row || *value_keyword {
            return Err(WireError::unsupported("this form of VALUES"));
        }
        let empty = Names::default();
        let scope = Scope { names: &empty, outer, ctes, clause: Clause::Values };
        let width = rows.first().map_or(0, |row| row.content.len());
        let mut columns: Vec<Vec<Expr>> = (0..width).map(|_| Vec::with_capacity(rows.len())).collect();
        for row in rows {
            let ast::Parens { opening_token: _, content, closing_token: _ } = row;
            if content.len() != width {
                return Err(syntax("VALUES lists must all be the same length"));
            }
            for (column, value) in columns.iter_mut().zip(content) {
                column.push(self.expr(value, &scope)?);
            }
        }
        let mut output = Vec::with_capacity(width);
        let mut rows: Vec<Vec<Expr>> = (0..rows.len()).map(|_| Vec::with_capacity(width)).collect();
        for (i, column) in columns.into_iter().enumerate() {
            let (column, ty) = if column.iter().all(|e| e.ty.ty == Type::Unknown) {
                (column, Typed::plain(Type::Unknown))
            } else {
                self.unify("VALUES", column)?
            };
            output.push(OutputColumn { name: format!("column{}", i + 1), ty, origin: None });
            for (row, value) in rows.iter_mut().zip(column) {
                row.push(value);
            }
        }
        let body = Body::Values(rows);
        Ok(Query { ctes: Vec::new(), body, order_by: Vec::new(), limit: None, offset: None, columns: output })
    }
}

/// A body that isn't a SELECT's has no rows to lock.
fn not_lockable(body: &SetExpr, name: &str) -> WireError {
    let what = match body {
        SetExpr::SetOperation { .. } => "is not allowed with UNION/INTERSECT/EXCEPT",
        SetExpr::Values(_) => "cannot be applied to VALUES",
        _ => {
            return WireError::unsupported(format!("{name} behind this form of a query"))
                .with_hint("Write it as SELECT .. FROM the table.");
        }
    };
    error(SqlState::FEATURE_NOT_SUPPORTED, format!("{name} {what}"))
}

/// Whether a SELECT's tables have a column of this name.
fn has_column(query: &Query, name: &str) -> bool {
    let Body::Select(select) = &query.body else { return false };
    let mut found = false;
    for from in &select.from {
        from.each_relation(&mut |relation| {
            if let super::tree::RelationSource::Table(table) = &relation.source {
                found |= table.column_named(name).is_some();
            }
        });
    }
    found
}
