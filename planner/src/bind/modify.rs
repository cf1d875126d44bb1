//! UPDATE and DELETE.

use super::Binder;
use super::insert::Returning;
use super::scope::{Clause, CteNames, Names, Scope};
use super::tree::{Cte, Expr, From, RelId};
use proto::WireError;
use proto::catalog::Table;
use sqlparser::ast::{self, TableFactor};
use std::borrow::Cow;
use std::sync::Arc;

/// An UPDATE or DELETE, bound.
pub(crate) struct Modify {
    pub table: Arc<Table>,
    pub rel: RelId,
    /// What stands beside it: UPDATE's FROM, DELETE's USING.
    pub from: Vec<From>,
    /// WITH.
    pub ctes: Vec<Cte>,
    /// SET; `None` for a DELETE.
    pub sets: Option<Vec<(usize, Expr)>>,
    pub filter: Option<Expr>,
    pub returning: Option<Returning>,
}

impl<'a> Binder<'a> {
    /// The one table that an UPDATE or DELETE names.
    fn target(
        &mut self,
        item: &ast::TableWithJoins,
        what: &str,
    ) -> Result<(&'a Arc<Table>, RelId, Names<'a>), WireError> {
        let ast::TableWithJoins { relation, joins } = item;
        if !joins.is_empty() {
            return Err(WireError::unsupported(format!("{what} of a join")));
        }
        let TableFactor::Table {
            name,
            alias,
            args: None,
            with_hints,
            version: None,
            with_ordinality: false,
            partitions,
            json_path: None,
            sample: None,
            index_hints,
        } = relation
        else {
            return Err(WireError::unsupported(format!("{what} of what is not a table")));
        };
        if !with_hints.is_empty() || !partitions.is_empty() || !index_hints.is_empty() {
            return Err(WireError::unsupported(format!("this form of {what}")));
        }
        let table = self.table(name)?;
        let rel = self.new_relation();
        let (columns, _) = self.table_columns(rel, table)?;
        let own = Cow::Borrowed(table.name.as_str());
        let (shown, hidden) = match alias {
            None => (own, Vec::new()),
            Some(ast::TableAlias { explicit: _, name, columns, at: None }) if columns.is_empty() => {
                let shown: Cow<'a, str> = Cow::Owned(name.value.clone());
                let hidden = if shown == own { Vec::new() } else { vec![(own, shown.clone())] };
                (shown, hidden)
            }
            Some(_) => return Err(WireError::unsupported("this form of an alias")),
        };
        let names = Names { tables: vec![(shown, columns.clone())], columns, hidden };
        Ok((table, rel, names))
    }

    fn filter(
        &mut self,
        selection: Option<&ast::Expr>,
        names: &Names<'a>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Option<Expr>, WireError> {
        let scope = Scope { names, outer: None, ctes, clause: Clause::Where };
        selection.map(|selection| self.predicate(selection, "WHERE", &scope)).transpose()
    }

    /// What stands beside the table, and the names of both.
    fn beside(
        &mut self,
        items: &[ast::TableWithJoins],
        names: &Names<'a>,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<(Vec<From>, Names<'a>), WireError> {
        let empty = Names::default();
        let outside = Scope { names: &empty, outer: None, ctes, clause: Clause::Where };
        let (from, more) = self.items_of(items, &outside)?;
        let mut all = names.clone();
        all.join(more)?;
        Ok((from, all))
    }

    /// RETURNING, of the table's own columns.
    fn returned(
        &mut self,
        items: Option<&[ast::SelectItem]>,
        rel: RelId,
        names: &Names<'a>,
    ) -> Result<Option<Returning>, WireError> {
        let returning = self.returning(items, names)?;
        let exprs = returning.iter().flat_map(|returning| &returning.exprs);
        if exprs.flat_map(Expr::relations).any(|other| other != rel) {
            return Err(WireError::unsupported("RETURNING of another table's columns")
                .with_hint("Return the changed table's columns, for example as t.*."));
        }
        Ok(returning)
    }

    pub(crate) fn update(
        &mut self,
        update: &ast::Update,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Modify, WireError> {
        let ast::Update {
            update_token: _,
            optimizer_hints: _,
            table,
            assignments,
            from,
            selection,
            returning,
            output,
            or,
            order_by,
            limit,
        } = update;
        if output.is_some() || or.is_some() || !order_by.is_empty() || limit.is_some() {
            return Err(WireError::unsupported("this clause of UPDATE"));
        }
        let (table, rel, names) = self.target(table, "UPDATE")?;
        let (from, names) = match from {
            None => (Vec::new(), names),
            Some(ast::UpdateTableFromKind::AfterSet(items)) => self.beside(items, &names, ctes)?,
            Some(ast::UpdateTableFromKind::BeforeSet(_)) => {
                return Err(super::syntax("FROM stands behind SET"));
            }
        };
        let sets = self.sets(assignments, table, &names, ctes)?;
        let filter = self.filter(selection.as_ref(), &names, ctes)?;
        let returning = self.returned(returning.as_deref(), rel, &names)?;
        let table = Arc::clone(table);
        Ok(Modify { table, rel, from, ctes: Vec::new(), sets: Some(sets), filter, returning })
    }

    pub(crate) fn delete(
        &mut self,
        delete: &ast::Delete,
        ctes: Option<&CteNames<'_>>,
    ) -> Result<Modify, WireError> {
        let ast::Delete {
            delete_token: _,
            optimizer_hints: _,
            tables,
            from,
            using,
            selection,
            returning,
            output,
            order_by,
            limit,
        } = delete;
        let ast::FromTable::WithFromKeyword(from) = from else {
            return Err(super::syntax("DELETE takes FROM"));
        };
        if !tables.is_empty() || output.is_some() || !order_by.is_empty() || limit.is_some() {
            return Err(WireError::unsupported("this clause of DELETE"));
        }
        let [item] = from.as_slice() else {
            return Err(super::syntax("DELETE takes one table"));
        };
        let (table, rel, names) = self.target(item, "DELETE")?;
        let (beside, names) = match using {
            None => (Vec::new(), names),
            Some(items) => self.beside(items, &names, ctes)?,
        };
        let filter = self.filter(selection.as_ref(), &names, ctes)?;
        let returning = self.returned(returning.as_deref(), rel, &names)?;
        let (table, from) = (Arc::clone(table), beside);
        Ok(Modify { table, rel, from, ctes: Vec::new(), sets: None, filter, returning })
    }
}
