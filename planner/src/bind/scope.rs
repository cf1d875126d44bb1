//! Names: which columns an expression can see, and by what names.
//!
//! In come FROM's items as they were bound; out go columns for names, or PostgreSQL's errors about them. Nothing
//! here knows what an expression does with a column.

use super::tree::{Expr, ExprKind, RelId};
use super::{Binder, error};
use dialect::types::Typed;
use proto::{SqlState, TableId, WireError};
use sqlparser::ast::Ident;
use std::borrow::Cow;

/// A column that a name stands for.
#[derive(Clone, Debug)]
pub(crate) struct NamedColumn<'a> {
    pub name: Cow<'a, str>,
    pub rel: RelId,
    pub column: u32,
    pub ty: Typed,
    /// The table's column that it is, and the column's attribute number.
    pub origin: Option<(TableId, i16)>,
    /// What it is instead of a column: a merged column of USING.
    pub merged: Option<Box<Expr>>,
}

impl NamedColumn<'_> {
    pub(crate) fn expr(&self) -> Expr {
        match &self.merged {
            Some(expr) => (**expr).clone(),
            None => Expr { kind: ExprKind::Column(self.rel, self.column), ty: self.ty },
        }
    }
}

/// The names that a FROM item gives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names<'a> {
    /// Tables that a qualified name can mean.
    pub tables: Vec<(Cow<'a, str>, Vec<NamedColumn<'a>>)>,
    /// Columns that a bare name can mean, and that `*` stands for.
    pub columns: Vec<NamedColumn<'a>>,
    /// Table names that an alias hides.
    pub hidden: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Names<'a> {
    /// These and those beside them.
    pub(crate) fn join(&mut self, other: Names<'a>) -> Result<(), WireError> {
        for (name, columns) in other.tables {
            if self.tables.iter().any(|(known, _)| *known == name) {
                let message = format!("table name \"{name}\" specified more than once");
                return Err(error(SqlState::DUPLICATE_ALIAS, message));
            }
            self.tables.push((name, columns));
        }
        self.columns.extend(other.columns);
        self.hidden.extend(other.hidden);
        Ok(())
    }
}

/// The clause that an expression stands in, as PostgreSQL names it in errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    Select,
    Where,
    On,
    GroupBy,
    Having,
    OrderBy,
    Limit,
    Offset,
    Values,
    Returning,
    Set,
    Filter,
    Default,
    Check,
    /// Within an aggregate's arguments.
    Aggregate,
}

impl Clause {
    /// What aggregates are refused with here; `None` where they may stand.
    pub(crate) fn aggregate_error(self) -> Option<&'static str> {
        Some(match self {
            Clause::Select | Clause::Having | Clause::OrderBy => return None,
            Clause::Where => "aggregate functions are not allowed in WHERE",
            Clause::On => "aggregate functions are not allowed in JOIN conditions",
            Clause::GroupBy => "aggregate functions are not allowed in GROUP BY",
            Clause::Limit => "aggregate functions are not allowed in LIMIT",
            Clause::Offset => "aggregate functions are not allowed in OFFSET",
            Clause::Values => "aggregate functions are not allowed in VALUES",
            Clause::Returning => "aggregate functions are not allowed in RETURNING",
            Clause::Set => "aggregate functions are not allowed in UPDATE",
            Clause::Filter => "aggregate functions are not allowed in FILTER",
            Clause::Default => "aggregate functions are not allowed in DEFAULT expressions",
            Clause::Check => "aggregate functions are not allowed in check constraints",
            Clause::Aggregate => "aggregate function calls cannot be nested",
        })
    }
}

/// Queries of WITH that can be named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CteNames<'s> {
    pub name: &'s str,
    pub id: u32,
    pub columns: &'s [(String, Typed)],
    pub outer: Option<&'s CteNames<'s>>,
}

/// What an expression can see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'s, 'a> {
    pub names: &'s Names<'a>,
    pub outer: Option<&'s Scope<'s, 'a>>,
    pub ctes: Option<&'s CteNames<'s>>,
    pub clause: Clause,
}

impl<'s, 'a> Scope<'s, 'a> {
    /// The same, for another clause.
    pub(crate) fn within(&self, clause: Clause) -> Scope<'s, 'a> {
        Scope { clause, ..*self }
    }

    /// Names of the same query that FROM brought up.
    pub(crate) fn with<'t>(&'t self, names: &'t Names<'a>, clause: Clause) -> Scope<'t, 'a> {
        Scope { names, outer: self.outer, ctes: self.ctes, clause }
    }
}

impl<'a> Binder<'a> {
    /// The column of a bare name; `None` if there is none.
    pub(crate) fn find_column<'s>(
        &self,
        name: &str,
        scope: &'s Scope<'_, 'a>,
    ) -> Result<Option<&'s NamedColumn<'a>>, WireError> {
        let mut scope = Some(scope);
        while let Some(here) = scope {
            let mut found = here.names.columns.iter().filter(|c| c.name == name);
            if let Some(column) = found.next() {
                if found.next().is_some() {
                    let message = format!("column reference \"{name}\" is ambiguous");
                    return Err(error(SqlState::AMBIGUOUS_COLUMN, message));
                }
                return Ok(Some(column));
            }
            scope = here.outer;
        }
        Ok(None)
    }

    /// The table of a name, as a qualified column names it.
    pub(crate) fn find_table<'s>(
        &self,
        name: &str,
        scope: &'s Scope<'_, 'a>,
    ) -> Option<&'s [NamedColumn<'a>]> {
        let mut scope = Some(scope);
        while let Some(here) = scope {
            if let Some((_, columns)) = here.names.tables.iter().find(|(table, _)| table == name) {
                return Some(columns);
            }
            scope = here.outer;
        }
        None
    }

    pub(crate) fn bare_column(&self, ident: &Ident, scope: &Scope<'_, 'a>) -> Result<Expr, WireError> {
        let Ident { value: name, quote_style: _, span } = ident;
        match self.find_column(name, scope) {
            Ok(Some(column)) => Ok(column.expr()),
            Ok(None) => {
                if let Some(misplaced) = super::misplaced_keyword(ident) {
                    return Err(self.at(misplaced, *span));
                }
                let mut missing =
                    error(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"));
                if let Some(hint) = self.similar(name, scope) {
                    missing = missing.with_hint(hint);
                }
                Err(self.at(missing, *span))
            }
            Err(error) => Err(self.at(error, *span)),
        }
    }

    pub(crate) fn qualified_column(
        &self,
        table: &str,
        ident: &Ident,
        span: sqlparser::tokenizer::Span,
        scope: &Scope<'_, 'a>,
    ) -> Result<Expr, WireError> {
        let Ident { value: name, quote_style: _, span: _ } = ident;
        let Some(columns) = self.find_table(table, scope) else {
            return Err(self.at(self.missing_table(table, scope), span));
        };
        let mut found = columns.iter().filter(|c| c.name == *name);
        match (found.next(), found.next()) {
            (Some(column), None) => Ok(column.expr()),
            (Some(_), Some(_)) => {
                let message = format!("column reference \"{name}\" is ambiguous");
                Err(self.at(error(SqlState::AMBIGUOUS_COLUMN, message), span))
            }
            (None, _) => {
                let message = format!("column {table}.{name} does not exist");
                Err(self.at(error(SqlState::UNDEFINED_COLUMN, message), span))
            }
        }
    }

    /// 42P01 for the table of a qualified name.
    pub(crate) fn missing_table(&self, table: &str, scope: &Scope<'_, 'a>) -> WireError {
        let hidden = scope.names.hidden.iter().find(|(name, _)| name == table);
        match hidden {
            Some((_, alias)) => {
                let message = format!("invalid reference to FROM-clause entry for table \"{table}\"");
                error(SqlState::UNDEFINED_TABLE, message)
                    .with_hint(format!("Perhaps you meant to reference the table alias \"{alias}\"."))
            }
            None => {
                error(SqlState::UNDEFINED_TABLE, format!("missing FROM-clause entry for table \"{table}\""))
            }
        }
    }

    /// PostgreSQL's hint for a misspelt column, for the plain case: one column that differs by a letter or two.
    fn similar(&self, name: &str, scope: &Scope<'_, 'a>) -> Option<String> {
        if name.len() > 64 {
            return None;
        }
        let near = |other: &str| {
            other.len() <= 64
                && distance(name, other) <= (name.chars().count() / 2).clamp(1, 3)
                && other != name
        };
        let mut best: Option<(usize, &str, &str)> = None;
        for (table, columns) in &scope.names.tables {
            for column in columns.iter().filter(|c| near(&c.name)) {
                let far = distance(name, &column.name);
                if best.is_none_or(|(known, _, _)| far < known) {
                    best = Some((far, table, &column.name));
                }
            }
        }
        let (_, table, column) = best?;
        Some(format!("Perhaps you meant to reference the column \"{table}.{column}\"."))
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}
