//! Queries as SQL. Their columns are called `a0`, `a1`, ..

use super::expression::is_plain;
use super::{Naming, Writer};
use crate::bind::tree::{
    Body, Expr, From, JoinKind, OrderKey, Query, Relation, RelationSource, Select, SetOp,
};
use crate::bind::walk::grow;
use dialect::key::key_sql;
use dialect::physical::table_name;
use dialect::rowset::table_sql;
use proto::WireError;

/// A key of ORDER BY. SQLite's own place for NULLs is the other end, so it's said, unless there can be none.
pub(crate) fn sorted(sql: &str, descending: bool, nulls_first: bool, nullable: bool) -> String {
    let direction = if descending { " DESC" } else { "" };
    // SQLite sorts NULLs as the least values: first if ascending, last if descending.
    let nulls = match (nullable && nulls_first == descending, nulls_first) {
        (false, _) => "",
        (true, true) => " NULLS FIRST",
        (true, false) => " NULLS LAST",
    };
    format!("{sql}{direction}{nulls}")
}

/// `a0, a1, ..`.
pub(crate) fn names(count: usize) -> String {
    let names: Vec<_> = (0..count).map(|i| format!("a{i}")).collect();
    names.join(", ")
}

impl Writer<'_, '_, '_> {
    /// A query.
    pub(crate) fn query(&mut self, query: &Query) -> Result<String, WireError> {
        grow(|| self.query_here(query))
    }

    fn query_here(&mut self, query: &Query) -> Result<String, WireError> {
        let mut with = String::new();
        for cte in &query.ctes {
            with += if with.is_empty() { "WITH " } else { ", " };
            with += &format!("w{} AS ({})", cte.id, self.query(&cte.query)?);
        }
        if !with.is_empty() {
            with += " ";
        }
        let width = query.columns.len();
        let body = match &query.body {
            Body::Select(select) => self.select(select, width, &query.order_by)?,
            Body::Values(rows) => {
                let mut lines = Vec::with_capacity(rows.len());
                for row in rows {
                    let row = row.iter().map(|e| self.expr(e)).collect::<Result<Vec<_>, _>>()?;
                    lines.push(format!("({})", row.join(", ")));
                }
                let columns: Vec<_> = (0..width).map(|i| format!("column{} AS a{i}", i + 1)).collect();
                let sql = format!("SELECT {} FROM (VALUES {})", columns.join(", "), lines.join(", "));
                self.ordered(sql, query)
            }
            Body::SetOperation { op, all, left, right } => {
                let sql = self.set_operation(*op, *all, left, right)?;
                self.ordered(sql, query)
            }
        };
        let limit = self.limit(query)?;
        Ok(format!("{with}{body}{limit}"))
    }

    /// A query whose order is by its output columns.
    fn ordered(&mut self, sql: String, query: &Query) -> String {
        if query.order_by.is_empty() && query.limit.is_none() && query.offset.is_none() {
            return sql;
        }
        let keys: Vec<_> = query
            .order_by
            .iter()
            .map(|key| {
                let sql = key_sql(query.columns[key.column].ty.ty, &format!("a{}", key.column));
                sorted(&sql, key.descending, key.nulls_first, true)
            })
            .collect();
        let order = if keys.is_empty() { String::new() } else { format!(" ORDER BY {}", keys.join(", ")) };
        format!("SELECT {} FROM ({sql}){order}", names(query.columns.len()))
    }

    fn limit(&mut self, query: &Query) -> Result<String, WireError> {
        let mut sql = String::new();
        if query.limit.is_none() && query.offset.is_none() {
            return Ok(sql);
        }
        sql += " LIMIT ";
        match &query.limit {
            Some(limit) => {
                let scalar = self.scalars.row_count(limit, false, self.binder)?;
                sql += &format!("coalesce({}, -1)", self.param(scalar));
            }
            None => sql += "-1",
        }
        if let Some(offset) = &query.offset {
            let scalar = self.scalars.row_count(offset, true, self.binder)?;
            sql += &format!(" OFFSET coalesce({}, 0)", self.param(scalar));
        }
        Ok(sql)
    }

    /// A SELECT's first `width` columns, ordered.
    pub(crate) fn select(
        &mut self,
        select: &Select,
        width: usize,
        order_by: &[OrderKey],
    ) -> Result<String, WireError> {
        let by_key = select.distinct && select.projection[..width].iter().any(|e| !is_plain(e.ty.ty));
        let mut sql = "SELECT ".to_owned();
        if select.distinct && !by_key {
            sql += "DISTINCT ";
        }
        for (i, expr) in select.projection[..width].iter().enumerate() {
            if i > 0 {
                sql += ", ";
            }
            sql += &format!("{} AS a{i}", self.expr(expr)?);
        }
        if width == 0 {
            sql += "NULL AS a0";
        }
        // SQLite takes HAVING for a grouped query's only if an aggregate stands among the columns.
        let bare = select.having.is_some()
            && select.group_by.is_empty()
            && !select.projection[..width].iter().any(Expr::has_aggregate);
        if bare {
            sql += ", count(*) AS n";
        }
        if !select.from.is_empty() {
            sql += " FROM ";
            sql += &self.tables(&select.from)?;
        }
        sql += &self.conditions(select)?;
        if bare {
            // At most one row, so no order and no duplicates.
            return Ok(format!("SELECT {} FROM ({sql})", names(width.max(1))));
        }
        if by_key {
            // DISTINCT would compare storage forms; of each group of equal keys any row will do.
            let keys: Vec<_> = select.projection[..width]
                .iter()
                .enumerate()
                .map(|(i, e)| key_sql(e.ty.ty, &format!("a{i}")))
                .collect();
            sql = format!("SELECT {} FROM ({sql}) GROUP BY {}", names(width), keys.join(", "));
        }
        if !order_by.is_empty() {
            let mut keys = Vec::with_capacity(order_by.len());
            for key in order_by {
                let expr = &select.projection[key.column];
                let (sql, nullable) = if by_key {
                    (key_sql(expr.ty.ty, &format!("a{}", key.column)), true)
                } else {
                    (self.key(expr)?, self.nullable(expr, &select.from))
                };
                keys.push(sorted(&constant_key(sql), key.descending, key.nulls_first, nullable));
            }
            sql += &format!(" ORDER BY {}", keys.join(", "));
        }
        Ok(sql)
    }

    /// WHERE, GROUP BY and HAVING.
    pub(crate) fn conditions(&mut self, select: &Select) -> Result<String, WireError> {
        let mut sql = String::new();
        if let Some(filter) = &select.filter {
            sql += &format!(" WHERE {}", self.expr(filter)?);
        }
        if !select.group_by.is_empty() {
            let keys = select.group_by.iter().map(|e| self.key(e)).collect::<Result<Vec<_>, _>>()?;
            let keys: Vec<_> = keys.into_iter().map(constant_key).collect();
            sql += &format!(" GROUP BY {}", keys.join(", "));
        }
        if let Some(having) = &select.having {
            sql += &format!(" HAVING {}", self.expr(having)?);
        }
        Ok(sql)
    }

    /// Whether an expression can be NULL, as far as it matters to who can use an index.
    pub(crate) fn nullable(&self, expr: &Expr, from: &[From]) -> bool {
        let crate::bind::tree::ExprKind::Column(rel, column) = expr.kind else { return true };
        let [From::Relation(relation)] = from else { return true };
        match &relation.source {
            RelationSource::Table(table) if relation.id == rel => {
                let column = &table.columns[column as usize];
                !column.not_null && !table.primary_key.contains(&column.id)
            }
            _ => true,
        }
    }

    /// FROM's items.
    pub(crate) fn tables(&mut self, items: &[From]) -> Result<String, WireError> {
        let mut sql = String::new();
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                sql += ", ";
            }
            // SQLite's comma is a join like others, from left to right: a join to its right needs parentheses.
            match item {
                From::Join { .. } if items.len() > 1 => sql += &format!("({})", self.joined(item)?),
                item => sql += &self.joined(item)?,
            }
        }
        Ok(sql)
    }

    fn joined(&mut self, item: &From) -> Result<String, WireError> {
        grow(|| match item {
            From::Relation(relation) => self.relation(relation),
            From::Join { kind, left, right, on } => {
                let word = match kind {
                    JoinKind::Inner => "JOIN",
                    JoinKind::Left => "LEFT JOIN",
                    JoinKind::Right => "RIGHT JOIN",
                    JoinKind::Full => "FULL JOIN",
                };
                let left = self.joined(left)?;
                let right = match &**right {
                    From::Relation(relation) => self.relation(relation)?,
                    join @ From::Join { .. } => format!("({})", self.joined(join)?),
                };
                let on = match on {
                    Some(on) => self.expr(on)?,
                    None => "1".to_owned(),
                };
                Ok(format!("{left} {word} {right} ON {on}"))
            }
        })
    }

    fn relation(&mut self, relation: &Relation) -> Result<String, WireError> {
        let alias = relation.id.0;
        Ok(match (&relation.source, self.relations.get(&relation.id)) {
            (_, Some(Naming::Source(name, _))) => format!("{name} AS r{alias}"),
            (RelationSource::Table(table), _) => format!("{} AS r{alias}", table_name(table.id)),
            (RelationSource::Query(query), _) => format!("({}) AS r{alias}", self.query(query)?),
            (RelationSource::Cte(id), _) => format!("w{id} AS r{alias}"),
            (RelationSource::Rows(scalar), _) => {
                let rows = table_sql(&self.param(*scalar), &relation.types);
                format!("({rows}) AS r{alias}")
            }
            (RelationSource::System(name), _) => {
                return Err(WireError::internal(format!("the system relation {name} has no place")));
            }
        })
    }

    fn set_operation(
        &mut self,
        op: SetOp,
        all: bool,
        left: &Query,
        right: &Query,
    ) -> Result<String, WireError> {
        let width = left.columns.len();
        let list = names(width);
        let plain = left.columns.iter().all(|c| is_plain(c.ty.ty));
        let (a, b) = (self.query(left)?, self.query(right)?);
        let keys = |prefix: &str| -> Vec<String> {
            let types = left.columns.iter().map(|c| c.ty.ty);
            types.enumerate().map(|(i, ty)| key_sql(ty, &format!("{prefix}a{i}"))).collect()
        };
        let word = match (op, all) {
            (SetOp::Union, true) => "UNION ALL",
            (SetOp::Union, false) if plain => "UNION",
            (SetOp::Intersect, false) if plain => "INTERSECT",
            (SetOp::Except, false) if plain => "EXCEPT",
            (SetOp::Union, false) => {
                let both = format!("SELECT {list} FROM ({a}) UNION ALL SELECT {list} FROM ({b})");
                return Ok(format!("SELECT {list} FROM ({both}) GROUP BY {}", keys("").join(", ")));
            }
            (SetOp::Intersect | SetOp::Except, _) => {
                // The n-th of equal rows on the left stays if the right has (or hasn't) an n-th one too.
                let partition = keys("").join(", ");
                let numbered = |sql: &str| {
                    format!("SELECT {list}, row_number() OVER (PARTITION BY {partition}) AS n FROM ({sql})")
                };
                let mut same: Vec<String> =
                    keys("x.").iter().zip(keys("y.")).map(|(x, y)| format!("{x} IS {y}")).collect();
                if all {
                    same.push("x.n = y.n".to_owned());
                }
                let not = if op == SetOp::Except { "NOT " } else { "" };
                let first = if all { "" } else { "x.n = 1 AND " };
                return Ok(format!(
                    "SELECT {list} FROM ({}) AS x WHERE {first}{not}EXISTS (SELECT 1 FROM ({}) AS y WHERE {})",
                    numbered(&a),
                    numbered(&b),
                    same.join(" AND ")
                ));
            }
        };
        Ok(format!("SELECT {list} FROM ({a}) {word} SELECT {list} FROM ({b})"))
    }
}

/// SQLite takes an integer in ORDER BY and GROUP BY for a column's place.
pub(crate) fn constant_key(sql: String) -> String {
    let bytes = sql.as_bytes();
    if bytes.iter().all(|b| b.is_ascii_digit() || matches!(b, b'(' | b')' | b'-' | b' ')) {
        format!("+({sql})+0")
    } else {
        sql
    }
}
