//! Runs plans on plain SQLite databases, one for each shard: what emitted SQL means, without a cluster.

use super::World;
use dialect::Type;
use dialect::datetime::{TimeZone, timestamptz_to_timestamp};
use dialect::io::{self, OutputSettings};
use dialect::key::key_form;
use dialect::physical;
use dialect::types::Typed;
use planner::plan::{
    Action, Environment, Fragment, Gather, Insert, InsertRows, Modify, Plan, Query, Route, RowValue, Scalar,
    ScalarId, SessionCommand, SourceRows,
};
use planner::text::{Text, split};
use planner::{Context, Rules, Settings, route, route_row, system};
use proto::services::{LockedRows, SchemaChange};
use proto::{RowBatchBuilder, ShardId, SqlState, Value, ValueRef, WireError};
use rusqlite::Connection;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A world whose shards have rows.
pub struct Database {
    pub world: World,
    pub settings: Settings,
    shards: BTreeMap<ShardId, Connection>,
    router: Connection,
    sequences: BTreeMap<u32, i64>,
    /// The keys of the rows that queries have locked.
    pub locked: RefCell<BTreeSet<String>>,
}

/// What a statement answered.
pub struct Answer {
    pub columns: Option<Vec<(String, Typed)>>,
    pub rows: Vec<Vec<Value>>,
    pub affected: u64,
}

fn open() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    dialect::sqlite::register(&connection).unwrap();
    connection
}

impl Database {
    pub fn new() -> Database {
        let world = World::new();
        let mut database = Database {
            world,
            settings: Settings::default(),
            shards: BTreeMap::new(),
            router: open(),
            sequences: BTreeMap::new(),
            locked: RefCell::default(),
        };
        database.open_shards();
        database
    }

    fn open_shards(&mut self) {
        for shard in self.world.topology.shards.keys() {
            self.shards.entry(*shard).or_insert_with(open);
        }
    }

    pub fn run(&mut self, sql: &str) -> Result<Answer, WireError> {
        let texts = split(sql)?;
        let text = texts.first().expect("a statement");
        let planned = {
            let context = Context {
                catalog: &self.world.catalog,
                topology: &self.world.topology,
                settings: &self.settings,
            };
            planner::plan(text, &[], &context)?
        };
        let plan = &planned.plan;
        let columns = plan.columns.as_ref().map(|c| c.iter().map(|c| (c.name.clone(), c.ty)).collect());
        let (rows, affected) = self.act(plan, text)?;
        let affected = if columns.is_some() && affected == 0 { rows.len() as u64 } else { affected };
        Ok(Answer { columns, rows, affected })
    }

    fn act(&mut self, plan: &Plan, text: &Text) -> Result<(Vec<Vec<Value>>, u64), WireError> {
        let scalars = self.scalars(plan, text)?;
        match &plan.action {
            Action::Query(query) => Ok((self.query(query, &scalars)?, 0)),
            Action::Insert(insert) => self.insert(insert, &scalars),
            Action::Modify(Modify { moves: Some(moves), .. }) => {
                let mut found = self.query(&moves.read, &scalars)?;
                let width = moves.key.len();
                let key = |row: &[Value], places: &mut dyn Iterator<Item = usize>| -> Vec<Value> {
                    let types = moves.key.iter().map(|(ty, _)| *ty);
                    types.zip(places).map(|(ty, place)| key_form(ty, row[place].as_ref())).collect()
                };
                let old = |row: &Vec<Value>| key(row, &mut (0..width));
                found.sort_by(|a, b| {
                    let keys = old(a).into_iter().zip(old(b));
                    keys.fold(std::cmp::Ordering::Equal, |known, (a, b)| known.then(compare(&a, &b)))
                });
                found.dedup_by_key(|row| old(row));
                for (place, row) in found.iter().enumerate() {
                    let new = key(row, &mut moves.key.iter().map(|(_, place)| moves.before + place));
                    if found[place + 1..].iter().any(|row| old(row) == new) {
                        return Err(WireError::new(SqlState::UNIQUE_VIOLATION, "a key that is there"));
                    }
                }
                self.atomically(|this| {
                    for row in &found {
                        let shards = this.shards_of(route_row(&moves.place, row, &this.world.topology)?);
                        let connection = &this.shards[&shards[0]];
                        assert_eq!(execute(connection, &moves.delete, &row[..width])?.1, 1);
                    }
                    let rows: Vec<_> = found.iter().map(|row| row[moves.before..].to_vec()).collect();
                    this.insert_rows(&moves.insert, &rows, &pick(&moves.insert.params, &scalars))
                })
            }
            Action::Modify(modify) => {
                let fragment = &modify.fragment;
                let shards = self.shards_of(route(&fragment.target, &scalars, &self.world.topology)?);
                let (mut rows, mut affected) = (Vec::new(), 0);
                let params = pick(&fragment.params, &scalars);
                let everywhere = matches!(fragment.target, planner::plan::Target::Everywhere);
                for (i, shard) in shards.iter().enumerate() {
                    let connection = &self.shards[shard];
                    // Both ways of running it do the same, and each row that is touched is told of once.
                    connection.execute_batch("SAVEPOINT touch").unwrap();
                    let touched = execute(connection, &modify.locking_sql, &params);
                    connection.execute_batch("ROLLBACK TO touch; RELEASE touch").unwrap();
                    let (more, count) = execute(connection, &fragment.sql, &params)?;
                    let (mut touched, touched_count) = touched?;
                    let keys: HashSet<_> =
                        touched.iter_mut().map(|row| format!("{:?}", cut(row, modify.touch))).collect();
                    assert_eq!((touched.len(), keys.len()), (count as usize, count as usize));
                    assert_eq!(touched_count, count);
                    if !fragment.columns.is_empty() {
                        assert_eq!(touched, more);
                    }
                    if !everywhere || i == 0 {
                        rows.extend(more);
                        affected += count;
                    }
                }
                Ok((rows, affected))
            }
            Action::Schema(schema) => {
                for (i, change) in schema.changes.iter().enumerate() {
                    let fills = schema.fills.iter().filter(|(place, _, _)| *place == i);
                    let fills: Vec<_> =
                        fills.map(|(_, column, id)| (*column, scalars[id.0 as usize].clone())).collect();
                    self.change(change, &fills)?;
                }
                Ok((Vec::new(), 0))
            }
            Action::Session(SessionCommand::Set { name, value, .. }) if name == "shoal.rules" => {
                self.settings.rules = Rules::parse(value.as_deref().unwrap_or_default())?;
                Ok((Vec::new(), 0))
            }
            _ => Ok((Vec::new(), 0)),
        }
    }

    fn change(&mut self, change: &SchemaChange, fills: &[(proto::ColumnId, Value)]) -> Result<(), WireError> {
        let world = self.world.clone();
        let done = self.change_shards(change, fills);
        if done.is_err() {
            self.world = world;
        }
        done
    }

    fn change_shards(
        &mut self,
        change: &SchemaChange,
        fills: &[(proto::ColumnId, Value)],
    ) -> Result<(), WireError> {
        let before = self.world.catalog.clone();
        self.world.apply(change.clone());
        self.open_shards();
        let mut statements = Vec::new();
        for table in self.world.catalog.tables() {
            match before.table(table.id) {
                None => statements.extend(physical::create(table)?),
                Some(old) if old != table => statements.extend(physical::change(old, table, fills)?),
                Some(_) => {}
            }
        }
        for table in before.tables() {
            if self.world.catalog.table(table.id).is_none() {
                statements.extend(physical::drop(table.id));
            }
        }
        if let SchemaChange::Truncate { tables, .. } = change {
            statements.extend(tables.iter().flat_map(|id| physical::truncate(*id)));
        }
        let end = |sql: &str| self.shards.values().for_each(|shard| shard.execute_batch(sql).unwrap());
        end("BEGIN");
        for connection in self.shards.values() {
            for sql in &statements {
                if let Err(error) = connection.execute_batch(sql) {
                    end("ROLLBACK");
                    return Err(dialect::sqlite::error(error));
                }
            }
        }
        end("COMMIT");
        Ok(())
    }

    fn next(&mut self, sequence: proto::SequenceId) -> Value {
        let known = self.world.catalog.sequence(sequence).expect("a plan's sequence exists");
        let next = self.sequences.entry(sequence.0).or_insert(known.start);
        *next += known.increment;
        Value::Int(*next - known.increment)
    }

    fn scalars(&mut self, plan: &Plan, text: &Text) -> Result<Vec<Value>, WireError> {
        let zone = TimeZone::utc();
        let mut values: Vec<Value> = Vec::new();
        for scalar in &plan.scalars {
            let value = match scalar {
                Scalar::Constant(value) => value.clone(),
                Scalar::Literal { slot, ty } => io::input(*ty, &text.literal(*slot).unwrap(), &zone)?,
                Scalar::Negative { slot, ty } => {
                    io::input(*ty, &format!("-{}", text.literal(*slot).unwrap()), &zone)?
                }
                Scalar::Parameter(n) => {
                    return Err(WireError::new(
                        SqlState::UNDEFINED_PARAMETER,
                        format!("no parameter ${}", n + 1),
                    ));
                }
                Scalar::NextValue(sequence) => self.next(*sequence),
                Scalar::Query { place, columns, single } => {
                    let mut rows = self.query(&plan.first[*place], &values)?;
                    rows.iter_mut().for_each(|row| row.truncate((*columns).into()));
                    if *single && rows.len() > 1 {
                        let message = "more than one row returned by a subquery used as an expression";
                        return Err(WireError::new(SqlState::CARDINALITY_VIOLATION, message));
                    }
                    if *single {
                        rows.pop().and_then(|mut row| row.pop()).unwrap_or(Value::Null)
                    } else {
                        let mut batch = RowBatchBuilder::new(*columns);
                        rows.iter().for_each(|row| batch.push_row(row.iter().map(Value::as_ref)));
                        dialect::rowset::pack(&batch.finish())
                    }
                }
                Scalar::Environment(fact) => environment(*fact),
                Scalar::Local(moment) => match values[moment.0 as usize] {
                    Value::Int(moment) => Value::Int(timestamptz_to_timestamp(moment, &zone)?),
                    _ => Value::Null,
                },
                Scalar::Expression { sql, params } => {
                    let params = pick(params, &values);
                    let (rows, _) = execute(&self.router, &format!("SELECT {sql}"), &params)?;
                    rows[0][0].clone()
                }
            };
            values.push(value);
        }
        Ok(values)
    }

    fn shards_of(&self, route: Route) -> Vec<ShardId> {
        match route {
            Route::One(shard) => vec![shard],
            Route::Some(shards) | Route::All(shards) => shards,
            Route::None => Vec::new(),
        }
    }

    fn fragment(&self, fragment: &Fragment, scalars: &[Value]) -> Result<Vec<Vec<Vec<Value>>>, WireError> {
        let shards = self.shards_of(route(&fragment.target, scalars, &self.world.topology)?);
        let params = pick(&fragment.params, scalars);
        shards.iter().map(|shard| Ok(execute(&self.shards[shard], &fragment.sql, &params)?.0)).collect()
    }

    fn query(&self, query: &Query, scalars: &[Value]) -> Result<Vec<Vec<Value>>, WireError> {
        let mut fragments: Vec<_> =
            query.fragments.iter().map(|f| self.fragment(f, scalars)).collect::<Result<_, _>>()?;
        if let Some(lock) = &query.lock {
            let most = match lock.limit.map(|id| &scalars[id.0 as usize]) {
                Some(Value::Int(n)) => *n as usize,
                _ => usize::MAX,
            };
            for rows in fragments.iter_mut().flatten() {
                rows.truncate(most);
                for row in rows {
                    for LockedRows { table, key, .. } in lock.rows.iter() {
                        let key = cut(row, *key);
                        assert!(key.iter().all(|value| !value.is_null()), "{key:?}");
                        self.locked.borrow_mut().insert(format!("{table} {key:?}"));
                    }
                }
            }
        }
        match &query.gather {
            Gather::Stream { order, offset, limit, visible } => {
                let mut rows: Vec<Vec<Value>> = fragments.into_iter().flatten().flatten().collect();
                rows.sort_by(|a, b| {
                    let keys = order.iter().map(|key| {
                        let (x, y) = (&a[key.column], &b[key.column]);
                        match (x.is_null(), y.is_null()) {
                            (true, true) => std::cmp::Ordering::Equal,
                            (true, false) if key.nulls_first => std::cmp::Ordering::Less,
                            (true, false) => std::cmp::Ordering::Greater,
                            (false, true) if key.nulls_first => std::cmp::Ordering::Greater,
                            (false, true) => std::cmp::Ordering::Less,
                            (false, false) if key.descending => compare(y, x),
                            (false, false) => compare(x, y),
                        }
                    });
                    keys.fold(std::cmp::Ordering::Equal, |known, next| known.then(next))
                });
                let count = |id: &Option<ScalarId>, none: usize| match id.map(|id| &scalars[id.0 as usize]) {
                    Some(Value::Int(n)) => *n as usize,
                    _ => none,
                };
                let rows = rows.into_iter().skip(count(offset, 0)).take(count(limit, usize::MAX));
                Ok(rows.map(|row| row.into_iter().take(*visible).collect()).collect())
            }
            Gather::Sqlite { sources, sql, params } => {
                let gather = open();
                for source in sources {
                    let columns: Vec<_> = (0..source.columns.len()).map(|i| format!("a{i}")).collect();
                    let name = &source.name;
                    gather.execute_batch(&format!("CREATE TABLE {name} ({})", columns.join(", "))).unwrap();
                    let rows: Vec<Vec<Value>> = match source.rows {
                        SourceRows::Fragment(n) => fragments[n].iter().flatten().cloned().collect(),
                        SourceRows::System(key) => {
                            let facts = system::SessionFacts::default();
                            system::rows(key, &self.world.catalog, &self.world.topology, &facts)
                        }
                    };
                    let marks: Vec<_> = columns.iter().map(|_| "?").collect();
                    for row in rows {
                        execute(&gather, &format!("INSERT INTO {name} VALUES ({})", marks.join(", ")), &row)?;
                    }
                }
                Ok(execute(&gather, sql, &pick(params, scalars))?.0)
            }
        }
    }

    fn insert(&mut self, insert: &Insert, scalars: &[Value]) -> Result<(Vec<Vec<Value>>, u64), WireError> {
        let rows: Vec<Vec<Value>> = match &insert.rows {
            InsertRows::Values(rows) => rows.iter().map(|row| pick(row, scalars)).collect(),
            InsertRows::Query { query, row } => {
                let mut made = Vec::new();
                for input in self.query(query, scalars)? {
                    let mut values = Vec::new();
                    for value in row {
                        values.push(match value {
                            RowValue::Input(i) => input[*i].clone(),
                            RowValue::Fixed(id) => scalars[id.0 as usize].clone(),
                            RowValue::NextValue(sequence) => self.next(*sequence),
                            RowValue::Environment(fact) => environment(*fact),
                            RowValue::Expression(sql) => {
                                execute(&self.router, &format!("SELECT {sql}"), &[])?.0[0][0].clone()
                            }
                        });
                    }
                    made.push(values);
                }
                made
            }
        };
        let params = pick(&insert.params, scalars);
        self.atomically(|this| this.insert_rows(insert, &rows, &params))
    }

    fn atomically<T>(&self, run: impl FnOnce(&Self) -> Result<T, WireError>) -> Result<T, WireError> {
        let each = |sql: &str| self.shards.values().for_each(|shard| shard.execute_batch(sql).unwrap());
        each("SAVEPOINT s");
        let done = run(self);
        each(if done.is_ok() { "RELEASE s" } else { "ROLLBACK TO s; RELEASE s" });
        done
    }

    fn insert_rows(
        &self,
        insert: &Insert,
        rows: &[Vec<Value>],
        params: &[Value],
    ) -> Result<(Vec<Vec<Value>>, u64), WireError> {
        let (mut returned, mut affected) = (Vec::new(), 0);
        let mut touched = HashSet::new();
        for row in rows {
            if insert.not_null.iter().any(|(place, _)| row[*place].is_null()) {
                return Err(WireError::new(SqlState::NOT_NULL_VIOLATION, "null value"));
            }
            let shards = self.shards_of(route_row(&insert.target, row, &self.world.topology)?);
            let all: Vec<Value> = row.iter().chain(params).cloned().collect();
            for (i, shard) in shards.iter().enumerate() {
                let (more, count) = execute(&self.shards[shard], &insert.sql, &all)?;
                if i > 0 {
                    continue;
                }
                affected += count;
                for row in more {
                    let touch = usize::from(insert.touch);
                    if touch > 0 && !touched.insert(format!("{:?}", &row[..touch])) {
                        return Err(WireError::new(SqlState::CARDINALITY_VIOLATION, "twice"));
                    }
                    returned.push(row[touch..].to_vec());
                }
            }
        }
        Ok((if insert.returning.is_some() { returned } else { Vec::new() }, affected))
    }
}

/// Takes the first columns, a key, off a row.
fn cut(row: &mut Vec<Value>, key: u16) -> Vec<Value> {
    row.drain(..usize::from(key)).collect()
}

fn compare(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Real(a), Value::Real(b)) => a.total_cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
        (a, b) => panic!("{a:?} and {b:?} in one column"),
    }
}

fn environment(fact: Environment) -> Value {
    match fact {
        Environment::TransactionTime | Environment::StatementTime | Environment::ClockTime => {
            Value::Int(1 << 49)
        }
        Environment::TimeZone => Value::Text("UTC".to_owned()),
        Environment::User | Environment::Database => Value::Text("shoal".to_owned()),
        Environment::BackendPid => Value::Int(7),
        Environment::RandomUuid => Value::Blob(vec![7; 16]),
        Environment::Random => Value::Real(0.5),
    }
}

fn pick(ids: &[ScalarId], scalars: &[Value]) -> Vec<Value> {
    ids.iter().map(|id| scalars[id.0 as usize].clone()).collect()
}

/// Runs SQL and answers with its rows and the number of rows changed.
fn execute(
    connection: &Connection,
    sql: &str,
    params: &[Value],
) -> Result<(Vec<Vec<Value>>, u64), WireError> {
    let fail = |error: rusqlite::Error| {
        let error = dialect::sqlite::error(error);
        if error.sqlstate == SqlState::INTERNAL_ERROR {
            return WireError::internal(format!("{} in {sql}", error.message));
        }
        error
    };
    let mut statement = connection.prepare(sql).map_err(fail)?;
    let wanted = statement.parameter_count();
    for (i, value) in params.iter().take(wanted).enumerate() {
        let bound = dialect::sqlite::parameter(value.as_ref());
        statement.raw_bind_parameter(i + 1, bound).map_err(fail)?;
    }
    let width = statement.column_count();
    let changes = connection.total_changes();
    let mut out = Vec::new();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(fail)? {
        let values = (0..width).map(|i| {
            let value: ValueRef<'_> = dialect::sqlite::value_ref(row.get_ref(i).unwrap())?;
            Ok(value.to_owned())
        });
        out.push(values.collect::<Result<Vec<_>, WireError>>()?);
    }
    drop(rows);
    Ok((out, connection.total_changes() - changes))
}

/// An answer as the golden scripts of `tests/sql` write it.
pub fn render(answer: &Result<Answer, WireError>, ordered: bool) -> String {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return format!("ERROR {}\n", error.sqlstate),
    };
    let mut out = String::new();
    let Some(columns) = &answer.columns else { return format!("({})\n", answer.affected) };
    let names: Vec<_> = columns.iter().map(|(name, ty)| format!("{name}:{}", short(ty.ty))).collect();
    if answer.rows.is_empty() && answer.affected == 0 || !answer.rows.is_empty() || !names.is_empty() {
        out += &format!("{}\n", names.join("|"));
    }
    let mut lines = Vec::new();
    for row in &answer.rows {
        let values: Vec<_> = row
            .iter()
            .zip(columns)
            .map(|(value, (_, ty))| {
                if value.is_null() {
                    return "∅".to_owned();
                }
                let mut text = Vec::new();
                io::output_text(*ty, value.as_ref(), &OutputSettings::default(), &mut text)
                    .unwrap_or_else(|e| panic!("{e}: {value:?} as {ty:?}"));
                String::from_utf8(text).unwrap().replace('\n', "\\n")
            })
            .collect();
        lines.push(values.join("|"));
    }
    if !ordered {
        lines.sort();
    }
    for line in lines {
        out += &format!("{line}\n");
    }
    out + &format!("({})\n", answer.affected)
}

fn short(ty: Type) -> &'static str {
    match ty {
        Type::Bool => "bool",
        Type::Int2 => "int2",
        Type::Int4 => "int4",
        Type::Int8 => "int8",
        Type::Float4 => "float4",
        Type::Float8 => "float8",
        Type::Numeric => "numeric",
        Type::Text => "text",
        Type::Varchar => "varchar",
        Type::Bpchar => "bpchar",
        Type::Char => "char",
        Type::Name => "name",
        Type::Bytea => "bytea",
        Type::Date => "date",
        Type::Timestamp => "timestamp",
        Type::Timestamptz => "timestamptz",
        Type::Uuid => "uuid",
        Type::Oid => "oid",
        Type::Regclass => "regclass",
        Type::Array(_) => "array",
        Type::Unknown => "unknown",
    }
}
