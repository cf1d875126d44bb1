//! Rows of all types of keys, placed and filtered.

use super::*;
use dialect::key::key_form;
use dialect::numeric::Numeric;
use dialect::physical;
use proto::catalog::{Column, Placement, Table, TypeRef};
use proto::{ColumnId, KeyspaceNumber, SchemaVersion, Value};
use replica::session::Capturing;
use replica::{RowChange, RowOp, changes};
use rusqlite::types::ToSqlOutput;

const KEYSPACE: KeyspaceNumber = KeyspaceNumber(1);
/// For the last column, which belongs to no key.
const LAST: u32 = 9;

/// SplitMix64.
pub(crate) struct Chance(pub u64);

impl Chance {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// A value of a type, of few or of many.
    pub(crate) fn value(&mut self, ty: Type) -> Value {
        let few = self.below(2) == 0;
        let number = if few { self.below(20).cast_signed() - 10 } else { self.below(u64::MAX).cast_signed() };
        match ty {
            Type::Bool => Value::Int(number & 1),
            Type::Float8 => Value::Real(if number == 0 { -0.0 } else { number as f64 / 8.0 }),
            Type::Text => Value::Text(format!("{}ä{number}", "a".repeat(self.below(3) as usize))),
            Type::Numeric => {
                let zeros = "0".repeat(self.below(4) as usize);
                Value::Blob(Numeric::parse(&format!("{number}.5{zeros}")).unwrap().encode())
            }
            Type::Bytea | Type::Uuid => Value::Blob(number.to_be_bytes().to_vec()),
            _ => Value::Int(number),
        }
    }
}

/// A table `t<id>` of columns of these types, all of them its primary key, and one more.
pub(crate) fn table(id: u32, key: &[Type], placement: Placement) -> Table {
    let column = |id: u32, ty: Type| Column {
        id: ColumnId(id),
        name: format!("name {id}"),
        ty: TypeRef { oid: ty.oid(), modifier: -1 },
        not_null: id != LAST,
        default: None,
    };
    // A table of one bigint has the hidden key.
    let first = if key == [Type::Int8] { 0 } else { 1 };
    let key = key.iter().zip(first..).map(|(ty, id)| column(id, *ty));
    let columns: Vec<_> = key.chain([column(LAST, Type::Text)]).collect();
    Table {
        id: TableId(id),
        name: format!("name {id}"),
        primary_key: columns.iter().map(|column| column.id).filter(|id| id.0 != LAST).collect(),
        columns,
        primary_key_name: None,
        indexes: Vec::new(),
        checks: Vec::new(),
        placement,
        next_column: ColumnId(LAST + 1),
        modified: SchemaVersion(1),
    }
}

/// Tables whose keys are of every type, of several columns, of single columns of them, and none.
pub(crate) fn tables() -> Vec<Table> {
    use Type::{Bool, Bytea, Date, Float8, Int2, Int8, Numeric, Text, Timestamptz, Uuid};
    let keys: [&[Type]; 12] = [
        &[Int8],
        &[Text],
        &[Numeric],
        &[Timestamptz],
        &[Float8],
        &[Bytea],
        &[Uuid],
        &[Date, Bool],
        &[Text, Numeric, Int2],
        &[Numeric, Text],
        &[Int2, Int8],
        &[Bool, Text, Float8],
    ];
    let mut tables = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        let mut new = table(at as u32 + 1, key, Placement::Reference);
        // Some are placed by all of it, others by a part, and in another order.
        let mut by: Vec<_> = new.primary_key.iter().copied().rev().collect();
        by.truncate(2);
        new.placement = Placement::Sharded { keyspace: KEYSPACE, key: by };
        tables.push(new);
    }
    tables.push(table(13, &[Text, Int2], Placement::Reference));
    tables
}

/// Makes the tables on a shard, with their layouts.
pub(crate) fn make(connection: &Connection, tables: &[Table], sharding: Sharding) {
    connection.execute_batch(&init()).unwrap();
    for (job, table) in tables.iter().enumerate() {
        connection.execute_batch(&physical::create(table).unwrap().join(";")).unwrap();
        let layout = Some(physical::layout(table, sharding).unwrap());
        let made = TableLayout { table: table.id, layout };
        connection.execute_batch(&note(SchemaStep { job: job as u64, step: 1 }, &made)).unwrap();
    }
}

struct Stored<'v>(&'v Value);

impl rusqlite::ToSql for Stored<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        use rusqlite::types::ValueRef as Sqlite;
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => Sqlite::Null,
            Value::Int(int) => Sqlite::Integer(*int),
            Value::Real(real) => Sqlite::Real(*real),
            Value::Text(text) => Sqlite::Text(text.as_bytes()),
            Value::Blob(blob) => Sqlite::Blob(blob),
        }))
    }
}

/// Adds rows by chance.
pub(crate) fn fill(connection: &Connection, table: &Table, rows: u64, chance: &mut Chance) {
    let places: Vec<_> = (1..=table.columns.len()).map(|place| format!("?{place}")).collect();
    let sql = format!("INSERT OR IGNORE INTO t{} VALUES ({})", table.id, places.join(", "));
    let mut insert = connection.prepare_cached(&sql).unwrap();
    for _ in 0..rows {
        let types = table.columns.iter().map(|column| Type::from_oid(column.ty.oid).unwrap());
        let row: Vec<_> = types.map(|ty| chance.value(ty)).collect();
        insert.execute(rusqlite::params_from_iter(row.iter().map(Stored))).unwrap();
    }
}

/// A changeset of all kinds of changes to all tables, and to what a shard has for itself.
fn changed(tables: &[Table], sharding: Sharding, chance: &mut Chance) -> (Capturing, Bytes) {
    let connection = Connection::open_in_memory().unwrap();
    make(&connection, tables, sharding);
    connection.execute_batch("CREATE TABLE shoal_x (id INTEGER PRIMARY KEY NOT NULL)").unwrap();
    tables.iter().for_each(|table| fill(&connection, table, 60, chance));
    let mut connection = Capturing::new(connection);
    connection.begin_capture();
    connection.execute_batch("INSERT INTO shoal_x VALUES (1), (2)").unwrap();
    for table in tables {
        let sql = format!(
            "DELETE FROM t{0} WHERE rowid IN (SELECT rowid FROM t{0} LIMIT 9);
             UPDATE t{0} SET c{LAST} = 'x' || c{LAST} WHERE rowid IN (SELECT rowid FROM t{0} LIMIT 20)",
            table.id
        );
        connection.execute_batch(&sql).unwrap();
        fill(&connection, table, 30, chance);
    }
    let changeset = connection.capture().unwrap().changeset().unwrap();
    connection.end_capture();
    (connection, changeset)
}

/// Where routers find a changed row, by the table's descriptor; `None` for a reference table's.
fn home(tables: &[Table], sharding: Sharding, row: &RowChange) -> Option<KeyspaceId> {
    let table = tables.iter().find(|table| physical::table_name(table.id) == row.table).unwrap();
    let Placement::Sharded { key, .. } = &table.placement else { return None };
    let values = if row.op == RowOp::Insert { &row.new } else { &row.old };
    let forms = key.iter().map(|id| {
        let place = table.columns.iter().position(|column| column.id == *id).unwrap();
        let ty = Type::from_oid(table.columns[place].ty.oid).unwrap();
        key_form(ty, values[place].as_ref().unwrap().as_ref())
    });
    let forms: Vec<_> = forms.collect();
    let key = forms.iter().map(Value::as_ref);
    Some(match sharding {
        Sharding::Hash => KeyspaceId::hash(key),
        Sharding::Range => KeyspaceId::range(key),
        Sharding::Single => KeyspaceId(Vec::new()),
    })
}

/// Ranges next to each other that cut these ids somewhere.
fn ranges(ids: &[KeyspaceId], chance: &mut Chance) -> Vec<KeyRange> {
    let mut bounds: Vec<Vec<u8>> = Vec::new();
    for _ in 0..chance.below(5) {
        bounds.push(ids[chance.below(ids.len() as u64) as usize].0.clone());
    }
    bounds.retain(|bound| !bound.is_empty());
    bounds.sort();
    bounds.dedup();
    let starts = [Vec::new()].into_iter().chain(bounds.clone());
    let ends = bounds.into_iter().map(Some).chain([None]);
    starts.zip(ends).map(|(start, end)| KeyRange { start, end }).collect()
}

#[test]
fn the_parts_of_all_ranges_are_the_changeset() {
    let tables = tables();
    for seed in 0..30 {
        let mut chance = Chance(seed);
        let sharding = [Sharding::Hash, Sharding::Range, Sharding::Single][seed as usize % 3];
        let (connection, changeset) = changed(&tables, sharding, &mut chance);
        let layouts = Layouts::read(&connection).unwrap();
        let mut left = changes(&changeset).unwrap();
        left.retain(|row| !row.table.starts_with("shoal"));
        let all = left.len();
        assert!(all > 500 && left.iter().any(|row| row.op == RowOp::Update));
        let ids: Vec<_> = left.iter().filter_map(|row| home(&tables, sharding, row)).collect();
        for (at, range) in ranges(&ids, &mut chance).into_iter().enumerate() {
            // Reference tables come from one alone.
            let share = Share { range, references: at == 0 };
            let part = changes(&layouts.filter(&changeset, &share).unwrap()).unwrap();
            let own = |row: &RowChange| match home(&tables, sharding, row) {
                Some(id) => share.range.contains(&id.0),
                None => share.references,
            };
            let (here, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(own);
            assert_eq!(part, here, "seed {seed}, {}", share.range);
            left = rest;
        }
        assert_eq!(left, [], "seed {seed}");
    }
}

#[test]
fn equal_keys_are_at_one_place() {
    let numeric = |text: &str| Value::Blob(Numeric::parse(text).unwrap().encode());
    let laid = |ty, sharding| {
        let key = vec![ColumnId(1)];
        let table = table(1, &[ty, Type::Text], Placement::Sharded { keyspace: KEYSPACE, key });
        Laid::new(physical::layout(&table, sharding).unwrap()).unwrap()
    };
    for sharding in [Sharding::Hash, Sharding::Range] {
        let id = |ty, value: &Value| laid(ty, sharding).keyspace_id(|_| value.as_ref()).unwrap();
        assert_eq!(id(Type::Numeric, &numeric("1.0")), id(Type::Numeric, &numeric("1.000")));
        assert_ne!(id(Type::Numeric, &numeric("1.0")), id(Type::Numeric, &numeric("1.01")));
        assert_eq!(id(Type::Float8, &Value::Real(0.0)), id(Type::Float8, &Value::Real(-0.0)));
        assert_ne!(id(Type::Text, &Value::Text("a".into())), id(Type::Text, &Value::Text("a ".into())));
        assert_ne!(id(Type::Int8, &Value::Null), id(Type::Int8, &Value::Int(0)));
    }
}

#[test]
fn what_is_one_piece_is_not_copied() {
    let tables = [table(1, &[Type::Text, Type::Int2], Placement::Single { keyspace: KEYSPACE })];
    let (connection, changeset) = changed(&tables, Sharding::Single, &mut Chance(1));
    let layouts = Layouts::read(&connection).unwrap();
    let whole = layouts.filter(&changeset, &Share { range: KeyRange::full(), references: false }).unwrap();
    // But for the rows that the shard has for itself.
    assert!(whole.len() < changeset.len() && changeset.as_ptr_range().contains(&whole.as_ptr()));
    let again = layouts.filter(&whole, &Share { range: KeyRange::full(), references: false }).unwrap();
    assert!(again == whole && again.as_ptr() == whole.as_ptr());
}

#[test]
fn a_changeset_of_other_columns_is_refused() {
    let mut chance = Chance(1);
    let one = [table(1, &[Type::Text, Type::Int2], Placement::Single { keyspace: KEYSPACE })];
    let share = Share { range: KeyRange::full(), references: true };
    let (_, changeset) = changed(&one, Sharding::Single, &mut chance);
    for (key, problem) in [
        (&[Type::Text][..], "layout of table 1: a changeset has other columns"),
        (&[Type::Text, Type::Int2, Type::Bool], "layout of table 1: a changeset has other columns"),
    ] {
        let other = Connection::open_in_memory().unwrap();
        make(&other, &[table(1, key, Placement::Single { keyspace: KEYSPACE })], Sharding::Single);
        let error = Layouts::read(&other).unwrap().filter(&changeset, &share).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let error = Layouts::default().filter(&changeset, &share).unwrap_err();
    assert!(error.to_string().contains("layout of table 1: it isn't there"), "{error}");
}

#[test]
fn a_layout_holds_from_its_step_to_the_next() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(&init()).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE replica_schema (job INTEGER, step INTEGER, position INTEGER, failure BLOB)",
        )
        .unwrap();
    let wide = table(5, &[Type::Text, Type::Int2], Placement::Reference);
    let narrow = table(5, &[Type::Text], Placement::Reference);
    let layout = |table: &Table| physical::layout(table, Sharding::Single).unwrap();
    // A change that is undone; another one that was given its number before and comes later is of another table.
    let steps =
        [(3, 1, 10, Some(&narrow)), (7, 2, 20, Some(&wide)), (7, 1002, 21, Some(&narrow)), (9, 2, 30, None)];
    for (job, step, position, table) in steps {
        let made = TableLayout { table: TableId(5), layout: table.map(layout) };
        connection.execute_batch(&note(SchemaStep { job, step }, &made)).unwrap();
        connection
            .execute(
                "INSERT INTO replica_schema VALUES (?1, ?2, ?3, NULL)",
                (job.cast_signed(), step, position),
            )
            .unwrap();
    }
    let at = |index| {
        let layouts = Layouts::read_at(&connection, LogIndex(index)).unwrap();
        layouts.tables().map(|(_, laid)| laid.layout.columns.len()).next()
    };
    let found = [9, 10, 19, 20, 21, 29, 30].map(at);
    assert_eq!(found, [None, Some(2), Some(2), Some(3), Some(2), Some(2), None]);
    assert_eq!(Layouts::read(&connection).unwrap().tables().count(), 0);
}
