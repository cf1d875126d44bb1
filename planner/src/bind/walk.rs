//! Walking the bound tree.
//!
//! One place knows which expressions an expression has in it, so that a question about all of them can't forget one.

use super::tree::{Body, Expr, ExprKind, From, Query, RelId, RelationSource};
use proto::WireError;

/// Runs on a grown stack where the tree is deep.
pub(crate) fn grow<R>(f: impl FnOnce() -> R) -> R {
    stacker::maybe_grow(128 * 1024, 2 * 1024 * 1024, f)
}

impl Expr {
    /// Calls `f` with each direct part. Subqueries' parts aren't this expression's: see [`Expr::query`].
    pub(crate) fn each_part<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match &self.kind {
            ExprKind::Literal(_)
            | ExprKind::Value(_)
            | ExprKind::Parameter(_)
            | ExprKind::Environment(..)
            | ExprKind::NextValue(..)
            | ExprKind::Column(..)
            | ExprKind::Excluded(_)
            | ExprKind::Known(_)
            | ExprKind::Subquery(_)
            | ExprKind::Exists(_) => {}
            ExprKind::Call(_, parts)
            | ExprKind::And(parts)
            | ExprKind::Or(parts)
            | ExprKind::Coalesce(parts)
            | ExprKind::Extreme(_, parts) => parts.iter().for_each(f),
            ExprKind::Cast(_, part)
            | ExprKind::Not(part)
            | ExprKind::IsNull(part, _)
            | ExprKind::IsTruth(part, _, _)
            | ExprKind::InQuery(part, _, _) => f(part),
            ExprKind::Distinct(a, b, _) | ExprKind::InArray(a, b, _) | ExprKind::NullIf(a, b) => {
                f(a);
                f(b);
            }
            ExprKind::In(part, list, _) => {
                f(part);
                list.iter().for_each(f);
            }
            ExprKind::Case(branches, otherwise) => {
                for (condition, result) in branches {
                    f(condition);
                    f(result);
                }
                if let Some(otherwise) = otherwise {
                    f(otherwise);
                }
            }
            ExprKind::Aggregate(call) => {
                call.args.iter().for_each(&mut *f);
                call.order_by.iter().for_each(|key| f(&key.expr));
                call.filter.iter().for_each(f);
            }
        }
    }

    /// Calls `f` with each direct part: those of [`Expr::each_part`].
    pub(crate) fn each_part_mut(
        &mut self,
        f: &mut dyn FnMut(&mut Expr) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        match &mut self.kind {
            ExprKind::Literal(_)
            | ExprKind::Value(_)
            | ExprKind::Parameter(_)
            | ExprKind::Environment(..)
            | ExprKind::NextValue(..)
            | ExprKind::Column(..)
            | ExprKind::Excluded(_)
            | ExprKind::Known(_)
            | ExprKind::Subquery(_)
            | ExprKind::Exists(_) => Ok(()),
            ExprKind::Call(_, parts)
            | ExprKind::And(parts)
            | ExprKind::Or(parts)
            | ExprKind::Coalesce(parts)
            | ExprKind::Extreme(_, parts) => parts.iter_mut().try_for_each(f),
            ExprKind::Cast(_, part)
            | ExprKind::Not(part)
            | ExprKind::IsNull(part, _)
            | ExprKind::IsTruth(part, _, _)
            | ExprKind::InQuery(part, _, _) => f(part),
            ExprKind::Distinct(a, b, _) | ExprKind::InArray(a, b, _) | ExprKind::NullIf(a, b) => {
                f(a)?;
                f(b)
            }
            ExprKind::In(part, list, _) => {
                f(part)?;
                list.iter_mut().try_for_each(f)
            }
            ExprKind::Case(branches, otherwise) => {
                for (condition, result) in branches {
                    f(condition)?;
                    f(result)?;
                }
                otherwise.iter_mut().try_for_each(|otherwise| f(otherwise))
            }
            ExprKind::Aggregate(call) => {
                call.args.iter_mut().try_for_each(&mut *f)?;
                call.order_by.iter_mut().try_for_each(|key| f(&mut key.expr))?;
                call.filter.iter_mut().try_for_each(f)
            }
        }
    }

    /// The subquery that this expression is, if it is one.
    pub(crate) fn query(&self) -> Option<&Query> {
        match &self.kind {
            ExprKind::Subquery(query) | ExprKind::Exists(query) | ExprKind::InQuery(_, query, _) => {
                Some(query)
            }
            _ => None,
        }
    }

    /// Whether `f` holds for this expression or one within it, subqueries left out.
    pub(crate) fn any(&self, f: &mut dyn FnMut(&Expr) -> bool) -> bool {
        grow(|| {
            if f(self) {
                return true;
            }
            let mut found = false;
            self.each_part(&mut |part| found = found || part.any(f));
            found
        })
    }

    /// Calls `f` with this expression and all within it, those of subqueries too.
    pub(crate) fn each_deep<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        grow(|| {
            f(self);
            if let Some(query) = self.query() {
                query.each_expr(f);
            }
            self.each_part(&mut |part| part.each_deep(f));
        });
    }

    /// Whether an aggregate stands in it.
    pub(crate) fn has_aggregate(&self) -> bool {
        self.any(&mut |e| matches!(e.kind, ExprKind::Aggregate(_)))
    }

    /// Whether a subquery stands in it.
    pub(crate) fn has_query(&self) -> bool {
        self.any(&mut |e| e.query().is_some())
    }

    /// Whether it is known before any row is seen: no column, no aggregate, no subquery.
    pub(crate) fn is_constant(&self) -> bool {
        !self.any(&mut |e| {
            matches!(e.kind, ExprKind::Column(..) | ExprKind::Excluded(_) | ExprKind::Aggregate(_))
                || e.query().is_some()
        })
    }

    /// The relations whose columns stand in it, subqueries included.
    pub(crate) fn relations(&self) -> Vec<RelId> {
        let mut found = Vec::new();
        self.each_deep(&mut |e| {
            if let ExprKind::Column(rel, _) = e.kind
                && !found.contains(&rel)
            {
                found.push(rel);
            }
        });
        found
    }
}

impl Query {
    /// Calls `f` with every expression of the query, at any depth.
    pub(crate) fn each_expr<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        for cte in &self.ctes {
            cte.query.each_expr(f);
        }
        match &self.body {
            Body::Select(select) => {
                for from in &select.from {
                    from.each_expr(f);
                }
                let lists = select.filter.iter().chain(&select.group_by).chain(&select.having);
                lists.chain(&select.projection).for_each(|e| e.each_deep(f));
            }
            Body::Values(rows) => rows.iter().flatten().for_each(|e| e.each_deep(f)),
            Body::SetOperation { op: _, all: _, left, right } => {
                left.each_expr(f);
                right.each_expr(f);
            }
        }
        self.limit.iter().chain(&self.offset).for_each(|e| e.each_deep(f));
    }

    /// Calls `f` with every relation of the query, at any depth.
    pub(crate) fn each_relation<'a>(&'a self, f: &mut dyn FnMut(&'a super::tree::Relation)) {
        for cte in &self.ctes {
            cte.query.each_relation(f);
        }
        if let Body::SetOperation { op: _, all: _, left, right } = &self.body {
            left.each_relation(f);
            right.each_relation(f);
        }
        if let Body::Select(select) = &self.body {
            for from in &select.from {
                from.each_relation(&mut |relation| {
                    f(relation);
                    if let RelationSource::Query(query) = &relation.source {
                        query.each_relation(f);
                    }
                });
            }
        }
        // Subqueries of expressions. `each_expr` visits those of nested queries too, whose relations were seen above,
        // so this goes through the query's own expressions alone.
        self.each_own_expr(&mut |e| {
            e.each_shallow_query(&mut |query| query.each_relation(f));
        });
    }

    /// Calls `f` with the expressions that stand in this query itself, roots only.
    pub(crate) fn each_own_expr<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match &self.body {
            Body::Select(select) => {
                for from in &select.from {
                    from.each_on(f);
                }
                let lists = select.filter.iter().chain(&select.group_by).chain(&select.having);
                lists.chain(&select.projection).for_each(&mut *f);
            }
            Body::Values(rows) => rows.iter().flatten().for_each(&mut *f),
            Body::SetOperation { op: _, all: _, left: _, right: _ } => {}
        }
        self.limit.iter().chain(&self.offset).for_each(f);
    }
}

impl Expr {
    /// Calls `f` with each subquery that stands in this expression, not with those within them.
    pub(crate) fn each_shallow_query<'a>(&'a self, f: &mut dyn FnMut(&'a Query)) {
        grow(|| {
            if let Some(query) = self.query() {
                f(query);
            }
            self.each_part(&mut |part| part.each_shallow_query(f));
        });
    }
}

impl From {
    fn each_expr<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match self {
            From::Relation(relation) => {
                if let RelationSource::Query(query) = &relation.source {
                    query.each_expr(f);
                }
            }
            From::Join { kind: _, left, right, on } => {
                left.each_expr(f);
                right.each_expr(f);
                on.iter().for_each(|e| e.each_deep(f));
            }
        }
    }

    fn each_on<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        if let From::Join { kind: _, left, right, on } = self {
            left.each_on(f);
            right.each_on(f);
            on.iter().for_each(f);
        }
    }

    /// Calls `f` with each relation of the item, not with those within subqueries.
    pub(crate) fn each_relation<'a>(&'a self, f: &mut dyn FnMut(&'a super::tree::Relation)) {
        match self {
            From::Relation(relation) => f(relation),
            From::Join { kind: _, left, right, on: _ } => {
                left.each_relation(f);
                right.each_relation(f);
            }
        }
    }
}
