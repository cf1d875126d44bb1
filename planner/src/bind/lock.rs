//! Row locks: FOR UPDATE and its kin.
//!
//! In come a SELECT's locking clauses and what its FROM has, out go the tables whose rows are locked. What
//! PostgreSQL refuses is refused in its words; tables within subqueries of FROM, Shoal refuses for itself.
//! How rows are locked, and where, is the planner's affair.

use super::scope::Names;
use super::tree::{From, Lock, RelId, Relation, RelationSource, Select};
use super::{Binder, error, misplaced_keyword, syntax};
use crate::text::lock_clause;
use proto::services::{LockWait, RowLock};
use proto::{SqlState, WireError};
use sqlparser::ast;

/// A clause, read.
struct Clause<'t> {
    mode: RowLock,
    wait: LockWait,
    /// The names behind OF.
    of: Vec<Vec<&'t ast::Ident>>,
}

/// A lock as SQL has it, and PostgreSQL's messages.
pub(crate) fn lock_name(mode: RowLock) -> &'static str {
    match mode {
        RowLock::KeyShare => "FOR KEY SHARE",
        RowLock::Share => "FOR SHARE",
        RowLock::NoKeyUpdate => "FOR NO KEY UPDATE",
        RowLock::Update => "FOR UPDATE",
    }
}

fn read(clause: &ast::LockClause) -> Result<Clause<'_>, WireError> {
    let ast::LockClause { lock_type: _, of, nonblock } = clause;
    // The type is always the same: the mended tokens tell which it is.
    let unknown = || WireError::internal("a locking clause without its lock");
    let (name, of) = of.as_ref().and_then(lock_clause).ok_or_else(unknown)?;
    let modes = [RowLock::KeyShare, RowLock::Share, RowLock::NoKeyUpdate, RowLock::Update];
    let mode = modes.into_iter().find(|mode| lock_name(*mode)[4..] == *name).ok_or_else(unknown)?;
    let wait = match nonblock {
        None => LockWait::Wait,
        Some(ast::NonBlock::Nowait) => LockWait::NoWait,
        Some(ast::NonBlock::SkipLocked) => LockWait::SkipLocked,
    };
    Ok(Clause { mode, wait, of })
}

/// The name of a query's lock, if it has one.
pub(super) fn locked_with(query: &ast::Query) -> Result<Option<&'static str>, WireError> {
    query.locks.first().map(|clause| Ok(lock_name(read(clause)?.mode))).transpose()
}

/// Of several clauses about one table the strongest lock holds, and the least patience.
fn stronger(a: Lock, b: Lock) -> Lock {
    let patience = |wait| match wait {
        LockWait::NoWait => 0,
        LockWait::SkipLocked => 1,
        LockWait::Wait => 2,
    };
    let wait = if patience(a.wait) <= patience(b.wait) { a.wait } else { b.wait };
    Lock { rel: a.rel, mode: a.mode.max(b.mode), wait }
}

/// PostgreSQL's `CheckSelectLocking`.
fn check_allowed(select: &Select, name: &str) -> Result<(), WireError> {
    let what = if select.distinct {
        "DISTINCT clause"
    } else if !select.group_by.is_empty() {
        "GROUP BY clause"
    } else if select.having.is_some() {
        "HAVING clause"
    } else if select.grouped {
        "aggregate functions"
    } else {
        return Ok(());
    };
    Err(error(SqlState::FEATURE_NOT_SUPPORTED, format!("{name} is not allowed with {what}")))
}

fn find(from: &[From], rel: RelId) -> Option<&Relation> {
    let mut found = None;
    for item in from {
        item.each_relation(&mut |relation| {
            if relation.id == rel {
                found = Some(relation);
            }
        });
    }
    found
}

impl<'a> Binder<'a> {
    /// The locks on a SELECT's rows: of each table one, in the order in which they were named.
    pub(super) fn row_locks(
        &self,
        clauses: &[ast::LockClause],
        select: &Select,
        names: &Names<'a>,
    ) -> Result<Vec<Lock>, WireError> {
        let mut locks: Vec<Lock> = Vec::new();
        for clause in clauses {
            let Clause { mode, wait, of } = read(clause)?;
            let name = lock_name(mode);
            check_allowed(select, name)?;
            let mut rels = Vec::new();
            if of.is_empty() {
                let mut refused = None;
                for item in &select.from {
                    item.each_relation(&mut |relation| match &relation.source {
                        RelationSource::Table(_) => rels.push(relation.id),
                        RelationSource::Query(_) => refused = Some("a subquery in FROM"),
                        RelationSource::System(_) => refused = Some("a system relation"),
                        // PostgreSQL locks nothing there either.
                        RelationSource::Cte(_) | RelationSource::Rows(_) => {}
                    });
                }
                if let Some(what) = refused {
                    return Err(WireError::unsupported(format!("{name} of {what}"))
                        .with_hint("Name with OF whose rows should be locked."));
                }
            }
            for table in &of {
                rels.push(self.locked_table(table, name, select, names)?);
            }
            for rel in rels {
                let here = Lock { rel, mode, wait };
                match locks.iter_mut().find(|known| known.rel == rel) {
                    Some(known) => *known = stronger(*known, here),
                    None => locks.push(here),
                }
            }
        }
        Ok(locks)
    }

    /// The table that OF names.
    fn locked_table(
        &self,
        parts: &[&ast::Ident],
        name: &str,
        select: &Select,
        names: &Names<'a>,
    ) -> Result<RelId, WireError> {
        let [ident] = parts else {
            let error = syntax(format!("{name} must specify unqualified relation names"));
            return Err(match parts.first() {
                Some(ident) => self.at(error, ident.span),
                None => error,
            });
        };
        if let Some(misplaced) = misplaced_keyword(ident) {
            return Err(self.at(misplaced, ident.span));
        }
        let refused = |what: String| {
            Err(self.at(error(SqlState::FEATURE_NOT_SUPPORTED, format!("{name} {what}")), ident.span))
        };
        let Some((_, columns)) = names.tables.iter().find(|(shown, _)| *shown == ident.value) else {
            let message = format!("relation \"{}\" in {name} clause not found in FROM clause", ident.value);
            return Err(self.at(error(SqlState::UNDEFINED_TABLE, message), ident.span));
        };
        let mut rels: Vec<RelId> = columns.iter().map(|column| column.rel).collect();
        rels.dedup();
        let relation = match rels[..] {
            [rel] => find(&select.from, rel),
            _ => None,
        };
        match relation.map(|relation| (&relation.source, relation.id)) {
            Some((RelationSource::Table(_), rel)) => Ok(rel),
            Some((RelationSource::Cte(_) | RelationSource::Rows(_), _)) => {
                refused("cannot be applied to a WITH query".to_owned())
            }
            Some((RelationSource::Query(_), _)) => {
                Err(WireError::unsupported(format!("{name} of a subquery in FROM")))
            }
            Some((RelationSource::System(_), _)) => {
                Err(WireError::unsupported(format!("{name} of a system relation")))
            }
            None => refused("cannot be applied to a join".to_owned()),
        }
    }
}
