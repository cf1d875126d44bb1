//! What a grouped query may say of columns that it doesn't group by.

use super::scope::Names;
use super::tree::{Expr, ExprKind, From, RelId, RelationSource, Select};
use super::walk::grow;
use super::{Binder, error};
use proto::{SqlState, WireError};
use std::collections::HashSet;

struct Grouping<'s> {
    group_by: &'s [Expr],
    /// Relations whose every column is determined, because their primary key is grouped by.
    determined: HashSet<RelId>,
    local: HashSet<RelId>,
    /// Group keys and what was found equal to them: the plan depends on the literals in both.
    matched: Vec<Expr>,
}

/// Checks that every column outside of aggregates is grouped by, or depends on a primary key that is.
pub(crate) fn check_grouping(
    binder: &mut Binder<'_>,
    select: &Select,
    names: &Names<'_>,
) -> Result<(), WireError> {
    let mut local = HashSet::new();
    let mut determined = HashSet::new();
    for from in &select.from {
        relations(from, &mut |relation| {
            local.insert(relation.id);
            if let RelationSource::Table(table) = &relation.source
                && !table.has_hidden_key()
                && table.primary_key.iter().all(|key| {
                    let place = table.columns.iter().position(|c| c.id == *key);
                    select.group_by.iter().any(|group| match group.kind {
                        ExprKind::Column(rel, column) => rel == relation.id && Some(column as usize) == place,
                        _ => false,
                    })
                })
            {
                determined.insert(relation.id);
            }
        });
    }
    let mut grouping = Grouping { group_by: &select.group_by, determined, local, matched: Vec::new() };
    for expr in select.projection.iter().chain(&select.having) {
        grouping.check(expr, names)?;
    }
    let matched = grouping.matched;
    matched.iter().for_each(|expr| binder.pin_literals(expr));
    Ok(())
}

fn relations<'a>(from: &'a From, f: &mut dyn FnMut(&'a super::tree::Relation)) {
    from.each_relation(f);
}

impl Grouping<'_> {
    fn check(&mut self, expr: &Expr, names: &Names<'_>) -> Result<(), WireError> {
        grow(|| {
            if let Some(group) = self.group_by.iter().find(|group| *group == expr) {
                if !matches!(expr.kind, ExprKind::Column(..)) {
                    self.matched.extend([group.clone(), expr.clone()]);
                }
                return Ok(());
            }
            match &expr.kind {
                ExprKind::Aggregate(_) => return Ok(()),
                ExprKind::Column(rel, column) => return self.column(*rel, *column, false, names),
                _ => {}
            }
            let mut result = Ok(());
            if let Some(query) = expr.query() {
                query.each_expr(&mut |inner| {
                    if let ExprKind::Column(rel, column) = inner.kind
                        && result.is_ok()
                    {
                        result = self.column(rel, column, true, names);
                    }
                });
            }
            expr.each_part(&mut |part| {
                if result.is_ok() {
                    result = self.check(part, names);
                }
            });
            result
        })
    }

    fn column(&self, rel: RelId, column: u32, inner: bool, names: &Names<'_>) -> Result<(), WireError> {
        let grouped = |group: &Expr| match group.kind {
            ExprKind::Column(r, c) => r == rel && c == column,
            _ => false,
        };
        if !self.local.contains(&rel) || self.determined.contains(&rel) || self.group_by.iter().any(grouped) {
            return Ok(());
        }
        let found = names.tables.iter().find_map(|(table, columns)| {
            let column = columns.iter().find(|c| c.rel == rel && c.column == column)?;
            Some(format!("{table}.{}", column.name))
        });
        let name = found.unwrap_or_default();
        let message = if inner {
            format!("subquery uses ungrouped column \"{name}\" from outer query")
        } else {
            format!(
                "column \"{name}\" must appear in the GROUP BY clause or be used in an aggregate function"
            )
        };
        Err(error(SqlState::GROUPING_ERROR, message))
    }
}
