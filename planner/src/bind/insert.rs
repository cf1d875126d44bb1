//! INSERT.

use super::from::column_type;
use super::scope::{Clause, CteNames, NamedColumn, Names, Scope};
use super::tree::{Body, Expr, ExprKind, Query, RelId};
use super::types::plain_name;
use super::{Binder, error, syntax};
use crate::plan::{Environment, OutputColumn};
use dialect::Type;
use dialect::types::Typed;
use proto::catalog::{ColumnDefault, Table};
use proto::{ColumnId, SqlState, WireError};
use sqlparser::ast::{self, SetExpr};
use std::borrow::Cow;
use std::sync::Arc;

/// An INSERT, bound.
pub(crate) struct Insert {
    pub table: Arc<Table>,
    pub rel: RelId,
    pub rows: Rows,
    pub conflict: Option<Conflict>,
    pub returning: Option<Returning>,
}

/// RETURNING.
pub(crate) struct Returning {
    pub exprs: Vec<Expr>,
    pub columns: Vec<OutputColumn>,
}

/// Where an INSERT's rows come from. A row has a value for each column of the table, in the table's order.
pub(crate) enum Rows {
    /// Written out.
    Values(Vec<Vec<Expr>>),
    /// A query's, whose columns have the types of the table's columns that take them. For each column of the table,
    /// the query's column or a default.
    Query(Box<Query>, Vec<Filler>),
}

/// What a column of a row that comes from elsewhere is filled with.
pub(crate) enum Filler {
    /// The input's column.
    Input(usize),
    /// A default.
    Default(Expr),
}

/// ON CONFLICT.
pub(crate) struct Conflict {
    /// The columns of the unique index that decides; none for any.
    pub columns: Vec<ColumnId>,
    /// DO UPDATE; `None` for DO NOTHING.
    pub update: Option<Update>,
}

/// DO UPDATE.
pub(crate) struct Update {
    pub sets: Vec<(usize, Expr)>,
    pub filter: Option<Expr>,
}

/// What a value of VALUES or SET is.
enum Given<'t> {
    Default,
    Expr(&'t ast::Expr),
}

fn given(expr: &ast::Expr) -> Given<'_> {
    match expr {
        ast::Expr::Identifier(ident) if is_default(ident) => Given::Default,
        expr => Given::Expr(expr),
    }
}

/// Whether an identifier is the keyword DEFAULT. (A column of that name must be quoted.)
fn is_default(ident: &ast::Ident) -> bool {
    ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default")
}

impl<'a> Binder<'a> {
    pub(crate) fn insert(
        &mut self,
        insert: &ast::Insert,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Insert, WireError> {
        let ast::Insert {
            insert_token: _,
            optimizer_hints: _,
            or,
            ignore,
            into: _,
            table,
            table_alias,
            columns,
            overwrite,
            source,
            assignments,
            partitioned,
            after_columns,
            has_table_keyword,
            on,
            returning,
            output,
            replace_into,
            priority,
            insert_alias,
            settings,
            format_clause,
            multi_table_insert_type,
            multi_table_into_clauses,
            multi_table_when_clauses,
            multi_table_else_clause,
        } = insert;
        if or.is_some()
            || *ignore
            || *overwrite
            || !assignments.is_empty()
            || partitioned.is_some()
            || !after_columns.is_empty()
            || *has_table_keyword
            || output.is_some()
            || *replace_into
            || priority.is_some()
            || insert_alias.is_some()
            || settings.is_some()
            || format_clause.is_some()
            || multi_table_insert_type.is_some()
            || !multi_table_into_clauses.is_empty()
            || !multi_table_when_clauses.is_empty()
            || multi_table_else_clause.is_some()
        {
            return Err(WireError::unsupported("this form of INSERT"));
        }
        let ast::TableObject::TableName(name) = table else {
            return Err(WireError::unsupported("INSERT into what is not a table"));
        };
        let table = self.table(name)?;
        let rel = self.new_relation();
        let (named, _) = self.table_columns(rel, table)?;
        let alias = match table_alias {
            Some(ast::TableAliasWithoutColumns { explicit: _, alias }) => Cow::Owned(alias.value.clone()),
            None => Cow::Borrowed(table.name.as_str()),
        };
        let idents: Vec<&ast::Ident> = columns
            .iter()
            .map(|name| match name.0.as_slice() {
                [ast::ObjectNamePart::Identifier(ident)] => Ok(ident),
                _ => Err(WireError::unsupported("a part of a column as INSERT's target")),
            })
            .collect::<Result<_, _>>()?;
        let explicit = !idents.is_empty();
        let targets: Vec<(usize, Typed)> = if explicit {
            self.column_list(table, &idents)?
        } else {
            named.iter().map(|c| (c.column as usize, c.ty)).collect()
        };
        let rows = match source {
            None => Rows::Values(vec![self.insert_row(table, &[], &[], false)?]),
            Some(query) => match plain_values(query) {
                Some(rows) => {
                    let width = rows.first().map_or(0, |row| row.content.len());
                    let mut bound = Vec::with_capacity(rows.len());
                    let mut defaults = Defaults::default();
                    for row in rows {
                        let ast::Parens { opening_token: _, content, closing_token: _ } = row;
                        if content.len() != width {
                            return Err(syntax("VALUES lists must all be the same length"));
                        }
                        bound.push(self.insert_row_with(
                            table,
                            &targets,
                            content,
                            explicit,
                            &mut defaults,
                        )?);
                    }
                    Rows::Values(bound)
                }
                None => {
                    let mut query = self.query(query, None, ctes)?;
                    self.check_width(query.columns.len(), targets.len(), explicit)?;
                    let mut to = Vec::with_capacity(query.columns.len());
                    let mut fillers: Vec<Option<usize>> = vec![None; table.columns.len()];
                    for (i, (place, ty)) in targets.iter().take(query.columns.len()).enumerate() {
                        if self.may_assign(table, *place)? {
                            fillers[*place] = Some(i);
                        }
                        to.push((*ty, table.columns[*place].name.as_str()));
                    }
                    query = self.assigned(query, &to)?;
                    let mut filled = Vec::with_capacity(fillers.len());
                    for (place, filler) in fillers.into_iter().enumerate() {
                        filled.push(match filler {
                            Some(input) => Filler::Input(input),
                            None => Filler::Default(self.default_value(table, place)?),
                        });
                    }
                    Rows::Query(Box::new(query), filled)
                }
            },
        };
        let conflict = match on {
            None => None,
            Some(ast::OnInsert::DuplicateKeyUpdate(_)) => {
                return Err(syntax("syntax error at or near \"DUPLICATE\""));
            }
            Some(ast::OnInsert::OnConflict(conflict)) => {
                Some(self.conflict(conflict, table, alias.clone(), &named)?)
            }
            Some(_) => return Err(WireError::unsupported("this form of INSERT")),
        };
        let names = Names { tables: vec![(alias, named.clone())], columns: named, hidden: Vec::new() };
        let returning = self.returning(returning.as_deref(), &names)?;
        Ok(Insert { table: Arc::clone(table), rel, rows, conflict, returning })
    }

    /// RETURNING over a table's names.
    pub(crate) fn returning(
        &mut self,
        items: Option<&[ast::SelectItem]>,
        names: &Names<'a>,
    ) -> Result<Option<Returning>, WireError> {
        let Some(items) = items else { return Ok(None) };
        let scope = Scope { names, outer: None, ctes: None, clause: Clause::Returning };
        let (exprs, mut columns) = self.projection(items, &scope)?;
        let exprs = exprs.into_iter().map(|e| self.settle(e)).collect::<Result<Vec<_>, _>>()?;
        for (column, expr) in columns.iter_mut().zip(&exprs) {
            column.ty = expr.ty;
            if expr.has_query() {
                return Err(WireError::unsupported("a subquery in RETURNING"));
            }
        }
        Ok(Some(Returning { exprs, columns }))
    }

    fn check_width(&self, given: usize, targets: usize, explicit: bool) -> Result<(), WireError> {
        if given > targets {
            return Err(syntax("INSERT has more expressions than target columns"));
        }
        if explicit && given < targets {
            return Err(syntax("INSERT has more target columns than expressions"));
        }
        Ok(())
    }

    /// Whether a column takes the value that it's given (OVERRIDING USER VALUE: an identity column gets its own).
    fn may_assign(&self, table: &Table, place: usize) -> Result<bool, WireError> {
        let column = &table.columns[place];
        if let Some(ColumnDefault::Sequence { id: _, identity_always: Some(_) }) = column.default
            && let Some(system) = self.overriding()
        {
            return Ok(system);
        }
        if let Some(ColumnDefault::Sequence { id: _, identity_always: Some(true) }) = column.default {
            let message = format!("cannot insert a non-DEFAULT value into column \"{}\"", column.name);
            return Err(error(SqlState::GENERATED_ALWAYS, message)
                .with_detail(format!(
                    "Column \"{}\" is an identity column defined as GENERATED ALWAYS.",
                    column.name
                ))
                .with_hint("Use OVERRIDING SYSTEM VALUE to override."));
        }
        Ok(true)
    }

    fn insert_row(
        &mut self,
        table: &Table,
        targets: &[(usize, Typed)],
        values: &[ast::Expr],
        explicit: bool,
    ) -> Result<Vec<Expr>, WireError> {
        self.insert_row_with(table, targets, values, explicit, &mut Defaults::default())
    }

    fn insert_row_with(
        &mut self,
        table: &Table,
        targets: &[(usize, Typed)],
        values: &[ast::Expr],
        explicit: bool,
        defaults: &mut Defaults,
    ) -> Result<Vec<Expr>, WireError> {
        self.check_width(values.len(), targets.len(), explicit)?;
        let names = Names::default();
        let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Values };
        let mut row: Vec<Option<Expr>> = Vec::new();
        row.resize_with(table.columns.len(), || None);
        for ((place, ty), value) in targets.iter().zip(values) {
            let Given::Expr(value) = given(value) else { continue };
            if !self.may_assign(table, *place)? {
                continue;
            }
            let bound = self.expr(value, &scope)?;
            if bound.has_query() {
                return Err(WireError::unsupported("a subquery in VALUES").with_hint("Use INSERT .. SELECT."));
            }
            row[*place] = Some(self.assign(bound, &table.columns[*place].name, *ty)?);
        }
        let filled = row.into_iter().enumerate().map(|(place, value)| match value {
            Some(value) => Ok(value),
            None => self.default_again(table, place, defaults),
        });
        filled.collect()
    }

    /// A column's default, bound anew only if each row needs its own.
    fn default_again(
        &mut self,
        table: &Table,
        place: usize,
        known: &mut Defaults,
    ) -> Result<Expr, WireError> {
        if let Some((_, expr)) = known.0.iter().find(|(known, _)| *known == place) {
            return Ok(expr.clone());
        }
        let expr = self.default_value(table, place)?;
        let each = expr.any(&mut |e| match e.kind {
            ExprKind::NextValue(..) => true,
            ExprKind::Environment(fact, _) => {
                matches!(fact, Environment::Random | Environment::RandomUuid | Environment::ClockTime)
            }
            _ => false,
        });
        if !each {
            known.0.push((place, expr.clone()));
        }
        Ok(expr)
    }

    /// What a column of a row is that doesn't name it.
    pub(crate) fn default_value(&mut self, table: &Table, place: usize) -> Result<Expr, WireError> {
        let column = &table.columns[place];
        let ty = column_type(table, column)?;
        match &column.default {
            None => Ok(Expr { kind: ExprKind::Value(proto::Value::Null), ty }),
            Some(ColumnDefault::Expression(stored)) => self.bind_default(stored, &column.name, ty),
            Some(ColumnDefault::Sequence { id, identity_always: _ }) => {
                let number = self.new_use();
                let next = Expr::new(ExprKind::NextValue(*id, number), Type::Int8);
                // Sequences of int2 and int4 columns have no greater values than the column takes.
                Ok(Expr { kind: next.kind, ty })
            }
        }
    }

    /// The query with its columns as the table's columns take them.
    fn assigned(&mut self, mut query: Query, to: &[(Typed, &str)]) -> Result<Query, WireError> {
        for (i, (ty, _)) in to.iter().enumerate() {
            if query.columns[i].ty.ty == Type::Unknown {
                self.coerce_column(&mut query, i, Typed::plain(ty.ty))?;
            }
        }
        if query.columns.iter().zip(to).all(|(column, (ty, _))| column.ty == *ty) {
            return Ok(query);
        }
        let mut wrapped = self.wrap(query);
        if let Body::Select(select) = &mut wrapped.body {
            for (i, (ty, name)) in to.iter().enumerate() {
                let expr = std::mem::replace(&mut select.projection[i], Expr::null(ty.ty));
                select.projection[i] = self.assign(expr, name, *ty)?;
                wrapped.columns[i].ty = *ty;
            }
        }
        Ok(wrapped)
    }

    fn conflict(
        &mut self,
        conflict: &ast::OnConflict,
        table: &'a Table,
        alias: Cow<'a, str>,
        named: &[NamedColumn<'a>],
    ) -> Result<Conflict, WireError> {
        let ast::OnConflict { conflict_target, action } = conflict;
        let columns = match conflict_target {
            None => Vec::new(),
            Some(ast::ConflictTarget::Columns(idents)) => {
                let idents: Vec<&ast::Ident> = idents.iter().collect();
                let mut wanted = Vec::with_capacity(idents.len());
                for ident in idents {
                    let column = table.column_named(&ident.value).ok_or_else(|| {
                        let message = format!("column \"{}\" does not exist", ident.value);
                        self.at(error(SqlState::UNDEFINED_COLUMN, message), ident.span)
                    })?;
                    if !wanted.contains(&column.id) {
                        wanted.push(column.id);
                    }
                }
                arbiter(table, &wanted).ok_or_else(|| {
                    error(
                        SqlState::INVALID_COLUMN_REFERENCE,
                        "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                    )
                })?
            }
            Some(ast::ConflictTarget::OnConstraint(name)) => {
                let (_, name) = plain_name(name)?;
                if table.primary_key_name.as_deref() == Some(name) {
                    table.primary_key.clone()
                } else {
                    let index = table.indexes.iter().find(|i| i.name == name && i.constraint && i.unique);
                    let index = index.ok_or_else(|| {
                        let message =
                            format!("constraint \"{name}\" for table \"{}\" does not exist", table.name);
                        error(SqlState::UNDEFINED_OBJECT, message)
                    })?;
                    index.columns.iter().map(|c| c.column).collect()
                }
            }
        };
        let update = match action {
            ast::OnConflictAction::DoNothing => None,
            ast::OnConflictAction::DoUpdate(ast::DoUpdate { assignments, selection }) => {
                if conflict_target.is_none() {
                    return Err(syntax(
                        "ON CONFLICT DO UPDATE requires inference specification or constraint name",
                    )
                    .with_hint("For example, ON CONFLICT (column_name)."));
                }
                let excluded: Vec<NamedColumn<'a>> = named
                    .iter()
                    .map(|c| {
                        let kind = ExprKind::Excluded(c.column);
                        let merged = Some(Box::new(Expr { kind, ty: c.ty }));
                        NamedColumn { merged, origin: None, ..c.clone() }
                    })
                    .collect();
                let tables = vec![(alias, named.to_vec()), (Cow::Borrowed("excluded"), excluded)];
                // Bare names are the row's that is there; PostgreSQL finds them ambiguous, for SET's values alone.
                let both = tables.iter().flat_map(|(_, columns)| columns.iter().cloned()).collect();
                let names = Names { tables, columns: both, hidden: Vec::new() };
                let sets = self.sets(assignments, table, &names, None)?;
                let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Where };
                let filter = match selection {
                    Some(selection) => Some(self.predicate(selection, "WHERE", &scope)?),
                    None => None,
                };
                let exprs = sets.iter().map(|(_, e)| e).chain(&filter);
                if exprs.into_iter().any(Expr::has_query) {
                    return Err(WireError::unsupported("a subquery in ON CONFLICT"));
                }
                Some(Update { sets, filter })
            }
        };
        Ok(Conflict { columns, update })
    }

    /// SET's assignments: for each a column's place and its value.
    pub(crate) fn sets(
        &mut self,
        assignments: &[ast::Assignment],
        table: &'a Table,
        names: &Names<'a>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Vec<(usize, Expr)>, WireError> {
        let scope = Scope { names, outer: None, ctes, clause: Clause::Set };
        let mut sets: Vec<(usize, Expr)> = Vec::with_capacity(assignments.len());
        for assignment in assignments {
            let ast::Assignment { target, value } = assignment;
            let pairs: Vec<(&ast::ObjectName, &ast::Expr)> = match target {
                ast::AssignmentTarget::ColumnName(name) => vec![(name, value)],
                ast::AssignmentTarget::Tuple(columns) => {
                    let values: Vec<&ast::Expr> = match value {
                        ast::Expr::Tuple(values) => values.iter().collect(),
                        ast::Expr::Nested(value) if columns.len() == 1 => vec![value],
                        ast::Expr::Subquery(_) => {
                            return Err(WireError::unsupported("SET of several columns to a subquery"));
                        }
                        other => vec![other],
                    };
                    if values.len() != columns.len() {
                        return Err(syntax("number of columns does not match number of values"));
                    }
                    columns.iter().zip(values).collect()
                }
            };
            for (name, value) in pairs {
                let [ast::ObjectNamePart::Identifier(ident)] = name.0.as_slice() else {
                    return Err(WireError::unsupported("SET of a part of a column")
                        .with_hint("SET target columns cannot be qualified with the relation name."));
                };
                let (place, ty) = self.column_list(table, &[ident])?[0];
                let column = &table.columns[place];
                if sets.iter().any(|(known, _)| *known == place) {
                    return Err(syntax(format!("multiple assignments to same column \"{}\"", column.name)));
                }
                let value = match given(value) {
                    Given::Default => self.default_value(table, place)?,
                    Given::Expr(value) => {
                        if let Some(ColumnDefault::Sequence { id: _, identity_always: Some(true) }) =
                            column.default
                        {
                            let message =
                                format!("column \"{}\" can only be updated to DEFAULT", column.name);
                            return Err(error(SqlState::GENERATED_ALWAYS, message).with_detail(format!(
                                "Column \"{}\" is an identity column defined as GENERATED ALWAYS.",
                                column.name
                            )));
                        }
                        let bound = self.expr(value, &scope)?;
                        self.assign(bound, &column.name, ty)?
                    }
                };
                sets.push((place, value));
            }
        }
        Ok(sets)
    }
}

/// Defaults that are the same for every row.
#[derive(Default)]
struct Defaults(Vec<(usize, Expr)>);

/// The rows of a VALUES that stands alone.
fn plain_values(query: &ast::Query) -> Option<&[ast::Parens<Vec<ast::Expr>>]> {
    let SetExpr::Values(ast::Values { explicit_row: false, value_keyword: false, rows }) = &*query.body
    else {
        return None;
    };
    let ast::Query {
        with: None,
        body: _,
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks,
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators,
    } = query
    else {
        return None;
    };
    (locks.is_empty() && pipe_operators.is_empty()).then_some(rows)
}

/// The columns, in the index's order, of the unique index over exactly these.
fn arbiter(table: &Table, wanted: &[ColumnId]) -> Option<Vec<ColumnId>> {
    let same =
        |columns: &[ColumnId]| columns.len() == wanted.len() && columns.iter().all(|c| wanted.contains(c));
    if same(&table.primary_key) {
        return Some(table.primary_key.clone());
    }
    let unique = table.indexes.iter().filter(|i| i.unique);
    let mut columns = unique.map(|i| i.columns.iter().map(|c| c.column).collect::<Vec<_>>());
    columns.find(|columns| same(columns))
}
