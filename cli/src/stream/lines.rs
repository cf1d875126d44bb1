//! Changes of a table's rows as lines of JSON.
//!
//! Pure: in come what a shard's log says, part by part, and the catalog of now for names and types; out go lines. A line is
//! held back until it is known whether its entry has more, for the last one says so.

use dialect::Type;
use dialect::io::{OutputSettings, output_text};
use dialect::physical::{table_name, truncate};
use dialect::types::Typed;
use proto::catalog::Table;
use proto::gtid::GtidSource;
use proto::layout::Layout;
use proto::services::{Change, ChangeKind, Changes, SchemaRun};
use proto::{LogIndex, Value, ValueRef, WireError};
use replica::{RowChange, RowOp};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;
use std::sync::Arc;

/// Integers up to this one a double can hold, and all before it.
const EXACT: i64 = 1 << 53;

/// One shard's lines.
pub struct Lines {
    source: GtidSource,
    table: Arc<Table>,
    /// How its rows lie; nothing if it isn't there. Unknown until it is told.
    layout: Option<Option<Layout>>,
    held: Option<(LogIndex, Line)>,
    /// How many lines were made of the last entry that had any, and how many of them come once more.
    made: (LogIndex, u64),
    again: u64,
    /// The last entry whose lines are all there.
    told: LogIndex,
}

/// What happened to a row, or to all of them.
#[derive(Serialize)]
struct Line {
    gtid: String,
    op: &'static str,
    table: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Fields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<Fields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<Fields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<Vec<ColumnLine>>,
    last: bool,
}

#[derive(Serialize)]
struct ColumnLine {
    name: String,
    r#type: String,
}

/// Columns by name, in the table's order.
struct Fields(Vec<(String, Json)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Lines {
    /// Of a table on the shard of this log.
    pub fn new(source: GtidSource, table: Arc<Table>) -> Self {
        let (made, told) = ((LogIndex(0), 0), LogIndex(0));
        Lines { source, table, layout: None, held: None, made, again: 0, told }
    }

    /// The last entry of which there were lines, and no more will come.
    pub fn told(&self) -> LogIndex {
        self.told
    }

    /// Whether an entry has had lines, and may have more.
    pub fn is_within(&self) -> bool {
        self.held.is_some()
    }

    /// The entry that wasn't at its end comes once more, from its beginning. Every replica tells it alike.
    pub fn again(&mut self) {
        self.again = if self.held.is_some() { self.made.1 } else { 0 };
    }

    /// Whether a part has columns that the table's description of now doesn't know yet: then another is to be had soon.
    pub fn is_ahead(&self, part: &Changes) -> bool {
        let layouts = part.changes.iter().filter_map(|change| match &change.kind {
            ChangeKind::Layouts(tables) => {
                tables.iter().find(|of| of.table == self.table.id)?.layout.as_ref()
            }
            _ => None,
        });
        let mut columns = layouts.flat_map(|layout| &layout.columns);
        columns.any(|column| column.id >= self.table.next_column)
    }

    /// The table is described so now.
    pub fn describe(&mut self, table: Arc<Table>) {
        self.table = table;
    }

    /// The lines of a part.
    pub fn take(&mut self, part: &Changes) -> Result<Vec<String>, WireError> {
        let mut lines = Vec::new();
        for Change { index, kind } in &part.changes {
            match kind {
                ChangeKind::Rows(changeset) | ChangeKind::Piece(changeset) => {
                    let name = table_name(self.table.id);
                    let changes = replica::changes(changeset)?;
                    for change in changes.into_iter().filter(|change| change.table == name) {
                        let line = self.row(*index, &change)?;
                        self.push(*index, line, &mut lines);
                    }
                }
                ChangeKind::Schema(run) if empties(run, &self.table) => {
                    let line = self.line(*index, "truncate");
                    self.push(*index, line, &mut lines);
                }
                ChangeKind::Layouts(tables) => {
                    let of_table = tables.iter().find(|of| of.table == self.table.id);
                    let layout = of_table.and_then(|of| of.layout.clone());
                    let before = self.layout.replace(layout);
                    if before.is_some_and(|before| Some(before) != self.layout) {
                        let line = Line { columns: Some(self.columns()), ..self.line(*index, "schema") };
                        self.push(*index, line, &mut lines);
                    }
                }
                ChangeKind::Answer(_) | ChangeKind::Schema(_) | ChangeKind::Replay(_) => {}
                ChangeKind::Serving(_) | ChangeKind::Left(_) => {}
            }
        }
        if let Some((index, held)) = self.held.take_if(|(index, _)| *index <= part.position) {
            self.told = index;
            lines.push(json(&Line { last: true, ..held }));
        }
        Ok(lines)
    }

    /// Whether the table is gone from the shard.
    pub fn is_dropped(&self) -> bool {
        matches!(self.layout, Some(None))
    }

    fn push(&mut self, index: LogIndex, line: Line, lines: &mut Vec<String>) {
        if self.again > 0 && self.made.0 == index {
            self.again -= 1;
            return;
        }
        self.made = (index, if self.made.0 == index { self.made.1 + 1 } else { 1 });
        if let Some((of, before)) = self.held.replace((index, line)) {
            if of < index {
                self.told = of;
            }
            lines.push(json(&Line { last: of < index, ..before }));
        }
    }

    fn gtid(&self, index: LogIndex) -> String {
        format!("{}:{index}", self.source)
    }

    fn line(&self, index: LogIndex, op: &'static str) -> Line {
        let (gtid, table) = (self.gtid(index), self.table.name.clone());
        Line { gtid, op, table, key: None, old: None, new: None, columns: None, last: false }
    }

    fn row(&self, index: LogIndex, change: &RowChange) -> Result<Line, WireError> {
        let op = match change.op {
            RowOp::Insert => "insert",
            RowOp::Update => "update",
            RowOp::Delete => "delete",
        };
        // An update's key is as it was, and it tells of what has changed alone.
        let is_whole = change.op != RowOp::Update;
        let told = |at: usize| is_whole || !change.key[at];
        let known = if change.op == RowOp::Insert { &change.new } else { &change.old };
        let key = Some(self.fields(known, |at| change.key[at])?);
        let old = (change.op != RowOp::Insert).then(|| self.fields(&change.old, told)).transpose()?;
        let new = (change.op != RowOp::Delete).then(|| self.fields(&change.new, told)).transpose()?;
        Ok(Line { key, old, new, ..self.line(index, op) })
    }

    /// The columns that a changed row tells of. Those that are gone by now have no name any more, and the key that a table
    /// has which declares none isn't anybody's.
    fn fields(&self, values: &[Option<Value>], wanted: impl Fn(usize) -> bool) -> Result<Fields, WireError> {
        let layout = self.layout.iter().flatten().next();
        let layout = layout.ok_or_else(|| WireError::internal("a row of a table that isn't there"))?;
        if values.len() != layout.columns.len() {
            return Err(WireError::internal("a changed row has other columns than its table had"));
        }
        let mut fields = Vec::new();
        for column in self.table.visible_columns() {
            let Some(at) = layout.columns.iter().position(|laid| laid.id == column.id) else { continue };
            let (Some(value), true) = (&values[at], wanted(at)) else { continue };
            let oid = layout.columns[at].ty;
            let ty = if oid == column.ty.oid {
                Typed::from_ref(column.ty)
            } else {
                Type::from_oid(oid).map(|ty| Typed { ty, modifier: -1 })
            };
            let ty = ty.ok_or_else(|| WireError::internal(format!("no type has the object id {oid}")))?;
            fields.push((column.name.clone(), value_json(ty, value.as_ref())?));
        }
        Ok(Fields(fields))
    }

    fn columns(&self) -> Vec<ColumnLine> {
        let Some(Some(layout)) = &self.layout else { return Vec::new() };
        let there = self.table.visible_columns().filter_map(|column| {
            let laid = layout.columns.iter().find(|laid| laid.id == column.id)?;
            let r#type = dialect::functions::type_name(Type::from_oid(laid.ty)?).to_owned();
            Some(ColumnLine { name: column.name.clone(), r#type })
        });
        there.collect()
    }
}

/// Whether a step deletes all rows of a table.
fn empties(run: &SchemaRun, table: &Table) -> bool {
    run.failure.is_none() && truncate(table.id).iter().all(|statement| run.statements.contains(statement))
}

/// Numbers that a double can hold exactly are numbers, and so are doubles that are numbers; all else is as PostgreSQL writes it.
fn value_json(ty: Typed, value: ValueRef<'_>) -> Result<Json, WireError> {
    Ok(match (ty.ty, value) {
        (_, ValueRef::Null) => Json::Null,
        (Type::Bool, ValueRef::Int(truth)) => Json::Bool(truth != 0),
        (Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid, ValueRef::Int(int))
            if (-EXACT..=EXACT).contains(&int) =>
        {
            Json::from(int)
        }
        (Type::Float4 | Type::Float8, ValueRef::Real(real)) if real.is_finite() => Json::from(real),
        _ => {
            let mut text = Vec::new();
            output_text(ty, value, &OutputSettings::default(), &mut text)?;
            Json::from(String::from_utf8_lossy(&text))
        }
    })
}

fn json(line: &Line) -> String {
    serde_json::to_string(line).expect("names, numbers and texts can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::catalog::{Column, Placement, TypeRef};
    use proto::layout::{LayoutColumn, Place, TableLayout};
    use proto::services::SchemaStep;
    use proto::{ColumnId, Incarnation, KeyRange, KeyspaceNumber, SchemaVersion, TableId};
    use replica::session::Capturing;
    use rusqlite::Connection;

    const TABLE: TableId = TableId(16384);

    fn column(id: u32, name: &str, ty: Type) -> Column {
        let ty = TypeRef { oid: ty.oid(), modifier: -1 };
        Column { id: ColumnId(id), name: name.into(), ty, not_null: false, default: None }
    }

    fn table() -> Arc<Table> {
        Arc::new(Table {
            id: TABLE,
            name: "account".into(),
            columns: vec![
                column(1, "id", Type::Int8),
                column(2, "note", Type::Text),
                column(3, "open", Type::Bool),
                column(4, "worth", Type::Numeric),
            ],
            primary_key: vec![ColumnId(1)],
            primary_key_name: None,
            indexes: Vec::new(),
            checks: Vec::new(),
            placement: Placement::Sharded { keyspace: KeyspaceNumber(1), key: vec![ColumnId(1)] },
            next_column: ColumnId(5),
            modified: SchemaVersion(1),
        })
    }

    /// As a shard has it: the columns lie in the order in which they came.
    fn layouts(columns: &[(u32, Type)]) -> ChangeKind {
        let column = |(id, ty): &(u32, Type)| LayoutColumn { id: ColumnId(*id), ty: ty.oid() };
        let columns = columns.iter().map(column).collect();
        let layout = Layout { columns, primary_key: vec![0], place: Place::Single };
        ChangeKind::Layouts(vec![TableLayout { table: TABLE, layout: Some(layout) }])
    }

    const COLUMNS: [(u32, Type); 4] = [(1, Type::Int8), (2, Type::Text), (3, Type::Bool), (4, Type::Numeric)];

    fn lines() -> Lines {
        let (shard, incarnation) = (KeyRange::parse("-80").unwrap(), Incarnation(1));
        Lines::new(GtidSource { keyspace: "main".into(), shard, incarnation }, table())
    }

    /// What statements change.
    fn changeset(connection: &mut Capturing, sql: &str) -> ChangeKind {
        connection.begin_capture();
        connection.execute_batch(sql).unwrap();
        let changeset = connection.capture().unwrap().changeset().unwrap();
        connection.end_capture();
        ChangeKind::Rows(changeset)
    }

    fn database() -> Capturing {
        let connection = Connection::open_in_memory().unwrap();
        let columns = "c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT, c3 INTEGER, c4 BLOB";
        let sql = format!(
            "CREATE TABLE t{TABLE} ({columns}) STRICT; CREATE TABLE t9 (c1 INTEGER NOT NULL PRIMARY KEY) STRICT"
        );
        connection.execute_batch(&sql).unwrap();
        Capturing::new(connection)
    }

    fn part(position: u64, changes: Vec<(u64, ChangeKind)>) -> Changes {
        let change = |(index, kind)| Change { index: LogIndex(index), kind };
        let changes = changes.into_iter().map(change).collect();
        Changes { changes, position: LogIndex(position), committed: LogIndex(99) }
    }

    #[test]
    fn a_row_is_told_by_its_columns_names() {
        let (mut lines, mut database) = (lines(), database());
        let insert = changeset(
            &mut database,
            "INSERT INTO t9 VALUES (1); INSERT INTO t16384 VALUES (9007199254740993, 'ä\"', 1, NULL)",
        );
        let told = lines.take(&part(5, vec![(4, layouts(&COLUMNS)), (4, insert)])).unwrap();
        let expected = r#"{"gtid":"main/-80.1:4","op":"insert","table":"account","key":{"id":"9007199254740993"},"new":{"id":"9007199254740993","note":"ä\"","open":true,"worth":null},"last":true}"#;
        assert_eq!(told, [expected]);
        let update = changeset(&mut database, "UPDATE t16384 SET c2 = 'b', c3 = 0");
        let told = lines.take(&part(6, vec![(6, update)])).unwrap();
        let expected = r#"{"gtid":"main/-80.1:6","op":"update","table":"account","key":{"id":"9007199254740993"},"old":{"note":"ä\"","open":true},"new":{"note":"b","open":false},"last":true}"#;
        assert_eq!(told, [expected]);
        let delete = changeset(&mut database, "DELETE FROM t16384");
        let told = lines.take(&part(7, vec![(7, delete)])).unwrap();
        let expected = r#"{"gtid":"main/-80.1:7","op":"delete","table":"account","key":{"id":"9007199254740993"},"old":{"id":"9007199254740993","note":"b","open":false,"worth":null},"last":true}"#;
        assert_eq!(told, [expected]);
        assert_eq!(lines.take(&part(9, vec![])).unwrap(), [""; 0]);
    }

    #[test]
    fn the_last_line_of_an_entry_says_so() {
        let (mut lines, mut database) = (lines(), database());
        let two = changeset(&mut database, "INSERT INTO t16384 (c1) VALUES (1), (2)");
        let three = changeset(&mut database, "INSERT INTO t16384 (c1) VALUES (3)");
        let last = |told: Vec<String>| -> Vec<bool> {
            told.iter().map(|line| line.ends_with("\"last\":true}")).collect()
        };
        // The entry isn't at its end with this part.
        let begun = part(3, vec![(4, layouts(&COLUMNS)), (4, two.clone())]);
        assert_eq!(last(lines.take(&begun).unwrap()), [false]);
        let rest = part(4, vec![(4, three.clone())]);
        assert_eq!(last(lines.take(&rest).unwrap()), [false, true]);
        // Another replica tells it from its beginning.
        let entry = |index| [(index, two.clone()), (index, three.clone())];
        assert_eq!(last(lines.take(&part(4, entry(5)[..1].to_vec())).unwrap()), [false]);
        lines.again();
        assert_eq!(
            last(lines.take(&part(5, entry(5).to_vec())).unwrap()),
            [false, true],
            "each line comes once"
        );
        lines.again();
        assert_eq!(
            last(lines.take(&part(7, [entry(6), entry(7)].concat())).unwrap()),
            [false, false, true, false, false, true]
        );
    }

    #[test]
    fn what_becomes_of_the_table_is_told() {
        let (mut lines, mut database) = (lines(), database());
        let run = |statements: &[String]| {
            let step = SchemaStep { job: 1, step: 1 };
            ChangeKind::Schema(SchemaRun {
                step,
                statements: statements.to_vec(),
                require_empty: vec![],
                failure: None,
            })
        };
        let fewer = layouts(&COLUMNS[..2]);
        let told = lines.take(&part(4, vec![(4, fewer), (4, run(&truncate(TABLE)))])).unwrap();
        assert_eq!(told, [r#"{"gtid":"main/-80.1:4","op":"truncate","table":"account","last":true}"#]);
        let told = lines.take(&part(5, vec![(5, run(&[])), (5, layouts(&COLUMNS[..3]))])).unwrap();
        let expected = r#"{"gtid":"main/-80.1:5","op":"schema","table":"account","columns":[{"name":"id","type":"bigint"},{"name":"note","type":"text"},{"name":"open","type":"boolean"}],"last":true}"#;
        assert_eq!(told, [expected]);
        let insert = changeset(&mut database, "INSERT INTO t16384 (c1) VALUES (1)");
        let refused = lines.take(&part(6, vec![(6, insert)])).unwrap_err();
        assert!(refused.message.contains("other columns"), "{refused}");
        let newer = part(7, vec![(7, layouts(&[(1, Type::Int8), (5, Type::Text)]))]);
        assert!(lines.is_ahead(&newer) && !lines.is_ahead(&part(5, vec![(5, layouts(&COLUMNS))])));
        assert!(!lines.is_dropped());
        let told = lines.take(&part(8, vec![(8, ChangeKind::Layouts(vec![]))])).unwrap();
        assert!(told[0].contains(r#""op":"schema","table":"account","columns":[]"#) && lines.is_dropped());
    }

    #[test]
    fn values_are_numbers_where_these_are_exact() {
        let json =
            |ty, value: ValueRef<'_>| value_json(Typed { ty, modifier: -1 }, value).unwrap().to_string();
        assert_eq!(json(Type::Int4, ValueRef::Int(-7)), "-7");
        assert_eq!(json(Type::Int8, ValueRef::Int(EXACT)), "9007199254740992");
        assert_eq!(json(Type::Int8, ValueRef::Int(EXACT + 1)), "\"9007199254740993\"");
        assert_eq!(json(Type::Float8, ValueRef::Real(0.5)), "0.5");
        assert_eq!(json(Type::Float8, ValueRef::Real(f64::NAN)), "\"NaN\"");
        assert_eq!(json(Type::Date, ValueRef::Int(0)), "\"2000-01-01\"");
        assert_eq!(json(Type::Bytea, ValueRef::Blob(&[1, 0xff])), "\"\\\\x01ff\"");
        assert_eq!(json(Type::Text, ValueRef::Null), "null");
    }
}
