//! UPDATE and DELETE.

use super::Binder;
use super::insert::Returning;
use super::scope::{Clause, Names, Scope};
use super::tree::{Expr, RelId};
use proto::WireError;
use proto::catalog::Table;
use sqlparser::ast::{self, TableFactor};
use std::borrow::Cow;
use std::sync::Arc;

/// An UPDATE or DELETE, bound.
pub(crate) struct Modify {
    pub table: Arc<Table>,
    pub rel: RelId,
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
    ) -> Result<Option<Expr>, WireError> {
        let scope = Scope { names, outer: None, ctes: None, clause: Clause::Where };
        selection.map(|selection| self.predicate(selection, "WHERE", &scope)).transpose()
    }

    pub(crate) fn update(&mut self, update: &ast::Update) -> Result<Modify, WireError> {
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
        if from.is_some() {
            return Err(WireError::unsupported("UPDATE .. FROM")
                .with_hint("Use a subquery in WHERE, or several statements."));
        }
        if output.is_some() || or.is_some() || !order_by.is_empty() || limit.is_some() {
            return Err(WireError::unsupported("this clause of UPDATE"));
        }
        let (table, rel, names) = self.target(table, "UPDATE")?;
        let sets = self.sets(assignments, table, &names)?;
        let filter = self.filter(selection.as_ref(), &names)?;
        let returning = self.returning(returning.as_deref(), &names)?;
        Ok(Modify { table: Arc::clone(table), rel, sets: Some(sets), filter, returning })
    }

    pub(crate) fn delete(&mut self, delete: &ast::Delete) -> Result<Modify, WireError> {
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
        if using.is_some() {
            return Err(WireError::unsupported("DELETE .. USING").with_hint("Use a subquery in WHERE."));
        }
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
        let filter = self.filter(selection.as_ref(), &names)?;
        let returning = self.returning(returning.as_deref(), &names)?;
        Ok(Modify { table: Arc::clone(table), rel, sets: None, filter, returning })
    }
}
