//! FROM: tables, subqueries, joins, and the names that they give.

use super::scope::{Clause, CteNames, NamedColumn, Names, Scope};
use super::tree::{Expr, ExprKind, From, JoinKind, Query, RelId, Relation, RelationSource};
use super::types::plain_name;
use super::{Binder, error};
use dialect::types::Typed;
use proto::catalog::Table;
use proto::{ColumnId, SqlState, TableId, WireError};
use sqlparser::ast::{self, JoinConstraint, JoinOperator, TableFactor};
use std::borrow::Cow;
use std::sync::Arc;

/// More tables than this in one FROM are too many for SQLite's planner.
const MAX_TABLES: usize = 64;

impl<'a> Binder<'a> {
    /// FROM's items and the names they give. `scope` is what is outside.
    pub(crate) fn items_of(
        &mut self,
        items: &[ast::TableWithJoins],
        scope: &Scope<'_, 'a>,
    ) -> Result<(Vec<From>, Names<'a>), WireError> {
        let mut names = Names::default();
        let mut from = Vec::with_capacity(items.len());
        for item in items {
            let (item, more) = self.with_joins(item, scope)?;
            names.join(more)?;
            from.push(item);
        }
        if names.tables.len() > MAX_TABLES {
            let message = format!("more than {MAX_TABLES} tables in one FROM");
            return Err(error(SqlState::STATEMENT_TOO_COMPLEX, message));
        }
        Ok((from, names))
    }

    fn with_joins(
        &mut self,
        item: &ast::TableWithJoins,
        scope: &Scope<'_, 'a>,
    ) -> Result<(From, Names<'a>), WireError> {
        let ast::TableWithJoins { relation, joins } = item;
        let (mut from, mut names) = self.factor(relation, scope)?;
        for join in joins {
            let ast::Join { relation, global, join_operator } = join;
            if *global {
                return Err(WireError::unsupported("GLOBAL JOIN"));
            }
            let (right, right_names) = self.factor(relation, scope)?;
            let (kind, constraint) = match join_operator {
                JoinOperator::Join(constraint) | JoinOperator::Inner(constraint) => {
                    (JoinKind::Inner, constraint)
                }
                JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => {
                    (JoinKind::Left, constraint)
                }
                JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) => {
                    (JoinKind::Right, constraint)
                }
                JoinOperator::FullOuter(constraint) => (JoinKind::Full, constraint),
                JoinOperator::CrossJoin(constraint @ JoinConstraint::None) => (JoinKind::Inner, constraint),
                _ => return Err(WireError::unsupported("this kind of join")),
            };
            let cross = matches!(join_operator, JoinOperator::CrossJoin(_));
            (from, names) = self.join(kind, (from, names), (right, right_names), constraint, cross, scope)?;
        }
        Ok((from, names))
    }

    fn join(
        &mut self,
        kind: JoinKind,
        (left, mut left_names): (From, Names<'a>),
        (right, right_names): (From, Names<'a>),
        constraint: &JoinConstraint,
        cross: bool,
        scope: &Scope<'_, 'a>,
    ) -> Result<(From, Names<'a>), WireError> {
        let shared: Vec<String> = match constraint {
            JoinConstraint::Natural => {
                let both = |name: &str| right_names.columns.iter().any(|c| c.name == name);
                left_names.columns.iter().filter(|c| both(&c.name)).map(|c| c.name.to_string()).collect()
            }
            JoinConstraint::Using(columns) => {
                let mut shared = Vec::new();
                for column in columns {
                    let (None, name) = plain_name(column)? else {
                        return Err(super::syntax("USING takes column names alone"));
                    };
                    if shared.iter().any(|known| known == name) {
                        let message =
                            format!("column name \"{name}\" appears more than once in USING clause");
                        return Err(error(SqlState::DUPLICATE_COLUMN, message));
                    }
                    shared.push(name.to_owned());
                }
                shared
            }
            JoinConstraint::On(_) => Vec::new(),
            JoinConstraint::None if cross => Vec::new(),
            JoinConstraint::None => return Err(super::syntax("a join takes ON, USING or NATURAL")),
        };
        let mut merged = Vec::with_capacity(shared.len());
        let mut conditions = Vec::with_capacity(shared.len());
        for name in &shared {
            let find = |names: &Names<'a>, side: &str| {
                let mut found = names.columns.iter().filter(|c| c.name == *name);
                match (found.next(), found.next()) {
                    (Some(column), None) => Ok(column.clone()),
                    (Some(_), Some(_)) => {
                        let message =
                            format!("common column name \"{name}\" appears more than once in {side} table");
                        Err(error(SqlState::AMBIGUOUS_COLUMN, message))
                    }
                    (None, _) => {
                        let message = format!(
                            "column \"{name}\" specified in USING clause does not exist in {side} table"
                        );
                        Err(error(SqlState::UNDEFINED_COLUMN, message))
                    }
                }
            };
            let (a, b) = (find(&left_names, "left")?, find(&right_names, "right")?);
            conditions.push(self.operate("=", Some(a.expr()), b.expr())?);
            let mut column = match kind {
                JoinKind::Inner | JoinKind::Left if a.ty.ty == b.ty.ty => a.clone(),
                JoinKind::Right if a.ty.ty == b.ty.ty => b.clone(),
                _ => {
                    let (mut exprs, ty) = self.unify("JOIN/USING", vec![a.expr(), b.expr()])?;
                    let merged = match kind {
                        JoinKind::Inner | JoinKind::Left => exprs.swap_remove(0),
                        JoinKind::Right => exprs.swap_remove(1),
                        JoinKind::Full => Expr { kind: ExprKind::Coalesce(exprs), ty },
                    };
                    NamedColumn { merged: Some(Box::new(merged)), ty, origin: None, ..a.clone() }
                }
            };
            column.name = a.name.clone();
            merged.push(column);
        }
        let keep = |columns: Vec<NamedColumn<'a>>| {
            columns.into_iter().filter(|c| !shared.iter().any(|s| *s == c.name))
        };
        let left_columns = std::mem::take(&mut left_names.columns);
        let mut names = left_names;
        let mut right_names = right_names;
        let right_columns = std::mem::take(&mut right_names.columns);
        names.join(right_names)?;
        names.columns = merged;
        names.columns.extend(keep(left_columns));
        names.columns.extend(keep(right_columns));
        let on = match constraint {
            JoinConstraint::On(on) => {
                let scope = scope.with(&names, Clause::On);
                Some(self.predicate(on, "JOIN/ON", &scope)?)
            }
            _ if conditions.is_empty() => None,
            _ => Some(Expr::new(ExprKind::And(conditions), dialect::Type::Bool)),
        };
        Ok((From::Join { kind, left: Box::new(left), right: Box::new(right), on }, names))
    }

    fn factor(
        &mut self,
        factor: &TableFactor,
        scope: &Scope<'_, 'a>,
    ) -> Result<(From, Names<'a>), WireError> {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                if args.is_some() || *with_ordinality {
                    return Err(WireError::unsupported("a function in FROM"));
                }
                if sample.is_some() {
                    return Err(WireError::unsupported("TABLESAMPLE"));
                }
                if !with_hints.is_empty()
                    || version.is_some()
                    || !partitions.is_empty()
                    || json_path.is_some()
                    || !index_hints.is_empty()
                {
                    return Err(WireError::unsupported("this clause of a table in FROM"));
                }
                self.named_relation(name, alias.as_ref(), scope)
            }
            TableFactor::Derived { lateral, subquery, alias, sample } => {
                if *lateral {
                    return Err(WireError::unsupported("LATERAL"));
                }
                if sample.is_some() {
                    return Err(WireError::unsupported("TABLESAMPLE"));
                }
                let Some(alias) = alias else {
                    let what = match &*subquery.body {
                        ast::SetExpr::Values(_) => "VALUES in FROM must have an alias",
                        _ => "subquery in FROM must have an alias",
                    };
                    return Err(super::syntax(what).with_hint(match &*subquery.body {
                        ast::SetExpr::Values(_) => "For example, FROM (VALUES ...) [AS] foo.",
                        _ => "For example, FROM (SELECT ...) [AS] foo.",
                    }));
                };
                // A subquery of FROM sees what is outside, not what stands beside it.
                let mut query = self.query(subquery, scope.outer, scope.ctes)?;
                self.settle_query(&mut query)?;
                self.derived(query, alias)
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                let (from, names) = self.with_joins(table_with_joins, scope)?;
                match alias {
                    None => Ok((from, names)),
                    Some(alias) => {
                        let mut columns = names.columns;
                        let name = self.alias(alias, &mut columns)?;
                        let tables = vec![(name, columns.clone())];
                        Ok((from, Names { tables, columns, hidden: Vec::new() }))
                    }
                }
            }
            TableFactor::Function { .. } | TableFactor::TableFunction { .. } | TableFactor::UNNEST { .. } => {
                Err(WireError::unsupported("a function in FROM"))
            }
            _ => Err(WireError::unsupported("this item of FROM")),
        }
    }

    fn derived(&mut self, query: Query, alias: &ast::TableAlias) -> Result<(From, Names<'a>), WireError> {
        let id = self.new_relation();
        let types = query.columns.iter().map(|c| c.ty.ty).collect();
        let mut columns: Vec<NamedColumn<'a>> = query
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| NamedColumn {
                name: Cow::Owned(column.name.clone()),
                rel: id,
                column: i as u32,
                ty: column.ty,
                origin: None,
                merged: None,
            })
            .collect();
        let name = self.alias(alias, &mut columns)?;
        let from = From::Relation(Relation { id, source: RelationSource::Query(Box::new(query)), types });
        Ok((from, Names { tables: vec![(name, columns.clone())], columns, hidden: Vec::new() }))
    }

    /// An alias's name, its column names given to the columns.
    fn alias(
        &self,
        alias: &ast::TableAlias,
        columns: &mut [NamedColumn<'a>],
    ) -> Result<Cow<'a, str>, WireError> {
        let ast::TableAlias { explicit: _, name, columns: renamed, at } = alias;
        if at.is_some() {
            return Err(WireError::unsupported("AT in an alias"));
        }
        if renamed.len() > columns.len() {
            let message = format!(
                "table \"{}\" has {} columns available but {} columns specified",
                name.value,
                columns.len(),
                renamed.len()
            );
            return Err(error(SqlState::INVALID_COLUMN_REFERENCE, message));
        }
        for (column, new) in columns.iter_mut().zip(renamed) {
            let ast::TableAliasColumnDef { name, data_type } = new;
            if data_type.is_some() {
                return Err(WireError::unsupported("a column definition list"));
            }
            column.name = Cow::Owned(name.value.clone());
        }
        Ok(Cow::Owned(name.value.clone()))
    }

    fn named_relation(
        &mut self,
        name: &ast::ObjectName,
        alias: Option<&ast::TableAlias>,
        scope: &Scope<'_, 'a>,
    ) -> Result<(From, Names<'a>), WireError> {
        let (schema, bare) = plain_name(name)?;
        let id = self.new_relation();
        let (source, mut columns, types, own): (_, Vec<NamedColumn<'a>>, Vec<_>, Cow<'a, str>) = 'found: {
            if schema.is_none()
                && let Some(cte) = find_cte(scope.ctes, bare)
            {
                let types = cte.columns.iter().map(|(_, ty)| ty.ty).collect();
                let columns = named(id, cte.columns.iter().map(|(name, ty)| (Cow::Owned(name.clone()), *ty)));
                break 'found (RelationSource::Cte(cte.id), columns, types, Cow::Owned(bare.to_owned()));
            }
            if let Some(relation) = self.system_relation(schema, bare)? {
                let types = relation.columns.iter().map(|(_, ty)| *ty).collect();
                let columns =
                    relation.columns.iter().map(|(name, ty)| (Cow::Borrowed(*name), Typed::plain(*ty)));
                let columns = named(id, columns);
                break 'found (
                    RelationSource::System(relation.key),
                    columns,
                    types,
                    Cow::Owned(bare.to_owned()),
                );
            }
            let table = self.table(name)?;
            let (columns, types) = self.table_columns(id, table)?;
            (RelationSource::Table(Arc::clone(table)), columns, types, Cow::Borrowed(table.name.as_str()))
        };
        let mut hidden = Vec::new();
        let shown = match alias {
            Some(alias) => {
                let shown = self.alias(alias, &mut columns)?;
                if shown != own {
                    hidden.push((own, shown.clone()));
                }
                shown
            }
            None => own,
        };
        let from = From::Relation(Relation { id, source, types });
        Ok((from, Names { tables: vec![(shown, columns.clone())], columns, hidden }))
    }

    /// A table's visible columns under a relation's number, and the types of all.
    pub(crate) fn table_columns(
        &self,
        id: RelId,
        table: &'a Table,
    ) -> Result<(Vec<NamedColumn<'a>>, Vec<dialect::Type>), WireError> {
        let mut columns = Vec::with_capacity(table.columns.len());
        let mut types = Vec::with_capacity(table.columns.len());
        for (place, column) in table.columns.iter().enumerate() {
            let ty = column_type(table, column)?;
            types.push(ty.ty);
            if column.id == ColumnId::HIDDEN_KEY {
                continue;
            }
            let origin: Option<(TableId, i16)> =
                i16::try_from(column.id.0).ok().map(|number| (table.id, number));
            let name = Cow::Borrowed(column.name.as_str());
            columns.push(NamedColumn { name, rel: id, column: place as u32, ty, origin, merged: None });
        }
        Ok((columns, types))
    }

    /// The table of a name; 42P01, or 42809 for a name of something else.
    pub(crate) fn table(&self, name: &ast::ObjectName) -> Result<&'a Arc<Table>, WireError> {
        let (schema, bare) = plain_name(name)?;
        let span = match name.0.first() {
            Some(ast::ObjectNamePart::Identifier(ident)) => Some(ident.span),
            _ => None,
        };
        let place = |error: WireError| match span {
            Some(span) => self.at(error, span),
            None => error,
        };
        match schema {
            None | Some("public") => {}
            Some(schema) => {
                let message = format!("relation \"{schema}.{bare}\" does not exist");
                return Err(place(error(SqlState::UNDEFINED_TABLE, message)));
            }
        }
        if let Some(table) = self.context.catalog.table_named(bare) {
            return Ok(table);
        }
        if let [ast::ObjectNamePart::Identifier(ident)] = name.0.as_slice()
            && let Some(misplaced) = super::misplaced_keyword(ident)
        {
            return Err(place(misplaced));
        }
        let shown = schema.map_or_else(|| bare.to_owned(), |schema| format!("{schema}.{bare}"));
        Err(place(match self.context.catalog.resolve(bare) {
            Some(proto::catalog::Relation::Index(..)) => {
                error(SqlState::WRONG_OBJECT_TYPE, format!("cannot open relation \"{bare}\""))
                    .with_detail("This operation is not supported for indexes.")
            }
            Some(proto::catalog::Relation::Sequence(_)) => {
                WireError::unsupported(format!("reading the sequence \"{bare}\" as a table"))
            }
            Some(proto::catalog::Relation::Table(_)) | None => {
                error(SqlState::UNDEFINED_TABLE, format!("relation \"{shown}\" does not exist"))
            }
        }))
    }

    /// The relation that is made from the catalog, if the name means one. `pg_catalog` is searched before `public`.
    fn system_relation(
        &self,
        schema: Option<&str>,
        name: &str,
    ) -> Result<Option<&'static crate::system::Relation>, WireError> {
        match schema {
            Some("pg_catalog" | "information_schema") => {
                let found = crate::system::relation(schema, name);
                found.map(Some).ok_or_else(|| {
                    let schema = schema.unwrap_or_default();
                    let message = format!("relation \"{schema}.{name}\" does not exist");
                    error(SqlState::UNDEFINED_TABLE, message)
                        .with_hint("It may be a system relation of PostgreSQL's that Shoal doesn't have.")
                })
            }
            None if name.starts_with("pg_") || crate::system::OWN.contains(&name) => {
                Ok(crate::system::relation(None, name))
            }
            _ => Ok(None),
        }
    }
}

/// A column's type.
pub(crate) fn column_type(table: &Table, column: &proto::catalog::Column) -> Result<Typed, WireError> {
    Typed::from_ref(column.ty).ok_or_else(|| {
        WireError::internal(format!(
            "column {}.{} has a type that Shoal doesn't know",
            table.name, column.name
        ))
    })
}

fn named<'a>(id: RelId, columns: impl Iterator<Item = (Cow<'a, str>, Typed)>) -> Vec<NamedColumn<'a>> {
    columns
        .enumerate()
        .map(|(i, (name, ty))| NamedColumn {
            name,
            rel: id,
            column: i as u32,
            ty,
            origin: None,
            merged: None,
        })
        .collect()
}

fn find_cte<'s>(ctes: Option<&'s CteNames<'s>>, name: &str) -> Option<&'s CteNames<'s>> {
    let mut next = ctes;
    while let Some(cte) = next {
        if cte.name == name {
            return Some(cte);
        }
        next = cte.outer;
    }
    None
}
