//! EXPLAIN's lines: route, fragments with their SQL, gather.

use crate::bind::lock::lock_name;
use crate::plan::{
    Action, Fragment, Gather, Insert, InsertRows, InsertTarget, KeyFilter, KeyPart, Locking, MergeKey, Plan,
    Query, Route, Scalar, ScalarId, SourceRows, Target,
};
use dialect::physical::table_name;
use proto::services::{LockWait, LockedRows};
use proto::topology::Topology;

/// What EXPLAIN prints of a plan. `routes` are those of its fragments, in order; what is missing is left out.
pub fn explain(plan: &Plan, routes: &[Route], topology: &Topology) -> Vec<String> {
    let mut lines = Lines { out: Vec::new(), scalars: &plan.scalars, topology };
    for (place, query) in plan.first.iter().enumerate() {
        lines.push(0, format!("First: query {}", place + 1));
        lines.query(query, &[], 1);
    }
    match &plan.action {
        Action::Query(query) => lines.query(query, routes, 0),
        Action::Insert(insert) => lines.insert(insert, routes),
        Action::Modify(modify) => {
            lines.push(0, if modify.delete { "Delete" } else { "Update" });
            match &modify.moves {
                None => lines.fragment(&modify.fragment, routes.first(), 1),
                Some(moves) => {
                    lines.push(1, "Move: each row is deleted and inserted anew");
                    lines.push(1, format!("SQL: {}", moves.delete));
                    lines.query(&moves.read, routes, 1);
                    lines.insert(&moves.insert, &[]);
                }
            }
        }
        Action::CopyOut(copy) => lines.query(&copy.query, routes, 0),
        Action::CopyIn(copy) => lines.insert(&copy.insert, routes),
        Action::Explain(inner) => return explain(&inner.plan, routes, topology),
        Action::Schema(schema) => lines.push(0, schema.tag),
        Action::Session(_) => lines.push(0, "Session command"),
    }
    lines.out
}

struct Lines<'a> {
    out: Vec<String>,
    scalars: &'a [Scalar],
    topology: &'a Topology,
}

impl Lines<'_> {
    fn push(&mut self, depth: usize, line: impl AsRef<str>) {
        self.out.push(format!("{}{}", "  ".repeat(depth), line.as_ref()));
    }

    fn query(&mut self, query: &Query, routes: &[Route], depth: usize) {
        match &query.gather {
            Gather::Stream { order, offset, limit, visible: _ } => {
                let what = if order.is_empty() { "Gather: concatenate" } else { "Gather: merge by " };
                let keys: Vec<_> = order.iter().map(merge_key).collect();
                self.push(depth, format!("{what}{}", keys.join(", ")));
                for (word, scalar) in [("Offset", offset), ("Limit", limit)] {
                    if let Some(scalar) = scalar {
                        let scalar = self.scalar(*scalar);
                        self.push(depth + 1, format!("{word}: {scalar}"));
                    }
                }
            }
            Gather::Sqlite { sources, sql, params } => {
                self.push(depth, "Gather: SQLite");
                self.push(depth + 1, format!("SQL: {sql}"));
                self.params(params, depth + 1);
                for source in sources {
                    let from = match source.rows {
                        SourceRows::Fragment(number) => format!("fragment {}", number + 1),
                        SourceRows::System(name) => format!("system relation {name}"),
                    };
                    self.push(depth + 1, format!("Table {}: {from}", source.name));
                }
            }
        }
        if let Some(Locking { rows, limit }) = &query.lock {
            let of: Vec<_> = rows.iter().map(locked_rows).collect();
            let limit = limit.map_or(String::new(), |limit| {
                format!(", {} rows of each shard at most", self.scalar(limit))
            });
            self.push(depth, format!("Lock: {}{limit}", of.join(", ")));
        }
        for (i, fragment) in query.fragments.iter().enumerate() {
            self.push(depth, format!("Fragment {}", i + 1));
            self.fragment(fragment, routes.get(i), depth + 1);
        }
    }

    fn insert(&mut self, insert: &Insert, routes: &[Route]) {
        self.push(0, "Insert");
        let place = match &insert.target {
            InsertTarget::Sharded { keyspace, key: _ } => {
                let name = self.topology.keyspaces.get(keyspace).map_or("?", |k| k.name.as_str());
                format!("each row by its shard key in {name}")
            }
            InsertTarget::Single(keyspace) => {
                let name = self.topology.keyspaces.get(keyspace).map_or("?", |k| k.name.as_str());
                format!("the shard of {name}")
            }
            InsertTarget::Everywhere => "every shard".to_owned(),
        };
        self.push(1, format!("Route: {place}"));
        self.push(1, format!("SQL: {}", insert.sql));
        self.params(&insert.params, 1);
        match &insert.rows {
            InsertRows::Values(rows) => self.push(1, format!("Rows: {}", rows.len())),
            InsertRows::Query { query, row: _ } => {
                self.push(1, "Rows: of a query");
                self.query(query, routes, 2);
            }
        }
    }

    fn fragment(&mut self, fragment: &Fragment, route: Option<&Route>, depth: usize) {
        let target = match &fragment.target {
            Target::Keyspace { keyspace, key: _, filter } => {
                let name = self.topology.keyspaces.get(keyspace).map_or("?", |k| k.name.as_str());
                let filter = match filter {
                    KeyFilter::All => String::new(),
                    KeyFilter::Nothing => ", no key".to_owned(),
                    KeyFilter::In(columns) => {
                        let columns: Vec<_> = columns
                            .iter()
                            .map(|values| {
                                let values: Vec<_> = values.iter().map(|v| self.scalar(*v)).collect();
                                values.join(" or ")
                            })
                            .collect();
                        format!(", key = ({})", columns.join(", "))
                    }
                    KeyFilter::Rows { rows, key } => {
                        let parts: Vec<_> = key
                            .iter()
                            .map(|part| match part {
                                KeyPart::Scalar(id) => self.scalar(*id),
                                KeyPart::Column(place) => format!("column {}", place + 1),
                            })
                            .collect();
                        format!(", key = ({}) in {}", parts.join(", "), self.scalar(*rows))
                    }
                    KeyFilter::Between(low, high) => {
                        let side = |bound: &Option<(ScalarId, bool)>, op: &str| {
                            bound.map(|(id, inclusive)| {
                                format!("key {op}{} {}", if inclusive { "=" } else { "" }, self.scalar(id))
                            })
                        };
                        let sides: Vec<_> = side(low, ">").into_iter().chain(side(high, "<")).collect();
                        format!(", {}", sides.join(" and "))
                    }
                };
                format!("{name}{filter}")
            }
            Target::Any => "any one shard".to_owned(),
            Target::Everywhere => "every shard".to_owned(),
        };
        self.push(depth, format!("Target: {target}"));
        if let Some(route) = route {
            let names = |shards: &[proto::ShardId]| {
                let names: Vec<_> = shards.iter().map(|shard| self.topology.shard_name(*shard)).collect();
                names.join(", ")
            };
            let line = match route {
                Route::One(shard) => format!("One({})", names(&[*shard])),
                Route::Some(shards) => format!("Some({})", names(shards)),
                Route::All(shards) => format!("All({})", names(shards)),
                Route::None => "None".to_owned(),
            };
            self.push(depth, format!("Route: {line}"));
        }
        self.push(depth, format!("SQL: {}", fragment.sql));
        self.params(&fragment.params, depth);
        if fragment.lookup {
            self.push(depth, "Lookup by key");
        }
    }

    fn params(&mut self, params: &[ScalarId], depth: usize) {
        if params.is_empty() {
            return;
        }
        let list: Vec<_> = params.iter().map(|id| self.scalar(*id)).collect();
        self.push(depth, format!("Parameters: {}", list.join(", ")));
    }

    /// A scalar as a reader knows it.
    fn scalar(&self, id: ScalarId) -> String {
        let Some(scalar) = self.scalars.get(id.0 as usize) else { return "?".to_owned() };
        match scalar {
            Scalar::Constant(value) => match value {
                proto::Value::Null => "NULL".to_owned(),
                proto::Value::Int(value) => value.to_string(),
                proto::Value::Real(value) => value.to_string(),
                proto::Value::Text(value) => format!("'{value}'"),
                proto::Value::Blob(value) => format!("{} bytes", value.len()),
            },
            Scalar::Literal { slot, ty } => {
                format!("literal {} as {}", slot + 1, dialect::functions::type_name(ty.ty))
            }
            Scalar::Negative { slot, ty } => {
                format!("- literal {} as {}", slot + 1, dialect::functions::type_name(ty.ty))
            }
            Scalar::Parameter(number) => format!("${}", number + 1),
            Scalar::NextValue(sequence) => format!("nextval of {sequence}"),
            Scalar::Environment(fact) => format!("{fact:?}"),
            Scalar::Local(moment) => format!("{} as a local time", self.scalar(*moment)),
            Scalar::Query { place, columns: _, single: true } => format!("the value of query {}", place + 1),
            Scalar::Query { place, columns: _, single: false } => format!("the rows of query {}", place + 1),
            Scalar::Expression { sql, params } => {
                let params: Vec<_> = params.iter().map(|id| self.scalar(*id)).collect();
                format!("({sql} with {})", params.join(", "))
            }
        }
    }
}

fn locked_rows(rows: &LockedRows) -> String {
    let LockedRows { table, key: _, mode, wait } = *rows;
    let wait = match wait {
        LockWait::Wait => "",
        LockWait::NoWait => " NOWAIT",
        LockWait::SkipLocked => " SKIP LOCKED",
    };
    format!("{} of {}{wait}", lock_name(mode), table_name(table))
}

fn merge_key(key: &MergeKey) -> String {
    let direction = if key.descending { " DESC" } else { "" };
    let nulls = if key.nulls_first != key.descending {
        if key.nulls_first { " NULLS FIRST" } else { " NULLS LAST" }
    } else {
        ""
    };
    format!("column {}{direction}{nulls}", key.column + 1)
}
