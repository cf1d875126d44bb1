//! Queries: SELECT, VALUES, set operations, WITH, ORDER BY and LIMIT.

use super::from::column_type;
use super::grouping::check_grouping;
use super::scope::{Clause, CteNames, NamedColumn, Names, Scope};
use super::tree::{Body, Cte, Expr, ExprKind, OrderKey, Query, Select, SetOp};
use super::types::{plain_name, type_keyword, type_of};
use super::walk::grow;
use super::{Binder, error, syntax};
use crate::plan::OutputColumn;
use crate::text::LiteralKind;
use dialect::Type;
use dialect::types::Typed;
use proto::{SqlState, WireError};
use sqlparser::ast::{self, SelectItem, SetExpr, SetOperator, SetQuantifier};

/// What a clause that comes after a query's body says.
struct Tail<'t> {
    order_by: &'t [ast::OrderByExpr],
    limit: Option<&'t ast::Expr>,
    offset: Option<&'t ast::Expr>,
    fetch_one: bool,
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
    if !locks.is_empty() {
        return Err(WireError::unsupported("SELECT .. FOR UPDATE or SHARE")
            .with_hint("Row locks come with transactions over several statements."));
    }
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
    Ok(Tail { order_by, limit, offset, fetch_one })
}

/// The names that ORDER BY can see of a SELECT's output, beside its FROM.
struct Output {
    names: Vec<String>,
}

impl<'a> Binder<'a> {
    /// A query. Columns of unknown type stay unknown: its context settles them.
    pub(crate) fn query(
        &mut self,
        query: &ast::Query,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        grow(|| match &query.with {
            None => self.query_body(query, outer, ctes),
            Some(ast::With { with_token: _, recursive, cte_tables }) => {
                if *recursive {
                    return Err(WireError::unsupported("WITH RECURSIVE"));
                }
                self.with_ctes(query, cte_tables, Vec::new(), outer, ctes)
            }
        })
    }

    fn with_ctes(
        &mut self,
        query: &ast::Query,
        tables: &[ast::Cte],
        mut bound: Vec<Cte>,
        outer: Option<&Scope<'_, 'a>>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Query, WireError> {
        let Some((first, rest)) = tables.split_first() else {
            let mut query = self.query_body(query, outer, ctes)?;
            query.ctes = bound;
            return Ok(query);
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
        self.with_ctes(query, rest, bound, outer, Some(&names))
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
        let (a, b) = (resolved.args[0], resolved.args[1]);
        let value = self.implicit(value, a)?;
        if b != inner {
            query = self.converted(query, &[Typed::plain(b)])?;
        }
        let integers = |ty| matches!(ty, Type::Int2 | Type::Int4 | Type::Int8);
        let floats = |ty| matches!(ty, Type::Float4 | Type::Float8);
        let strings = |ty| matches!(ty, Type::Text | Type::Varchar | Type::Name);
        if a != b && !(integers(a) && integers(b) || floats(a) && floats(b) || strings(a) && strings(b)) {
            return Err(WireError::unsupported("IN over two types"));
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
            SetExpr::Select(select) => self.select(select, tail.order_by, outer, ctes)?,
            body => {
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
            SetExpr::Select(select) => self.select(select, &[], outer, ctes),
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

    fn select(
        &mut self,
        select: &ast::Select,
        order_by: &[ast::OrderByExpr],
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
        let select = Select { from, filter, grouped, group_by, having, projection, distinct };
        if grouped {
            check_grouping(self, &select, &names)?;
        }
        if distinct && columns.iter().any(|c| c.ty.ty == Type::Unknown) {
            // DISTINCT compares, so it must know as what.
            let mut query = self.finished(select, keys, columns);
            self.settle_query(&mut query)?;
            return Ok(query);
        }
        Ok(self.finished(select, keys, columns))
    }

    fn finished(&self, select: Select, order_by: Vec<OrderKey>, columns: Vec<OutputColumn>) -> Query {
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

    /// A key of ORDER BY: an output column's name or place, or an expression over FROM.
    fn order_key(
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
    fn output_place(
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

    fn group_key(
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
    fn order_output(&mut self, query: &mut Query, order_by: &[ast::OrderByExpr]) -> Result<(), WireError> {
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
    };
    Ok(binder.finished(select, Vec::new(), columns))
}
