//! What the planner hands to the router: everything about a statement but the values.
//!
//! A plan is made once and run many times. What differs between runs are the **scalars**: literals lifted out of
//! the text, the client's parameters, and what is evaluated once per run (`now()`, `nextval`, constant expressions).
//! The router evaluates them in order, picks shards with [`route()`](crate::route()), sends each **fragment** with the scalars
//! it wants, and runs the one **gather** step over what comes back.

use dialect::types::{Type, Typed};
use proto::services::{LockedRows, SchemaChange};
use proto::{ColumnId, KeyspaceNumber, SequenceId, ShardId, TableId, Value};
use std::sync::Arc;

/// A statement, planned.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The types of the client's parameters `$1..`.
    pub parameters: Vec<Type>,
    /// The columns of the result; `None` for a statement that returns no rows (NoData).
    pub columns: Option<Vec<OutputColumn>>,
    /// What is evaluated once per run. A later one may refer to earlier ones.
    pub scalars: Vec<Scalar>,
    /// The queries that [`Scalar::Query`] runs: subqueries that lock rows, or that must be over before the statement
    /// writes.
    pub first: Vec<Query>,
    /// Its queries read reference tables, of which each shard has a copy: two runs of it may read different ones.
    pub reads_copies: bool,
    /// What to do.
    pub action: Action,
}

/// A column of a result, as RowDescription tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Typed,
    /// The table's column that it shows unchanged, and the column's attribute number.
    pub origin: Option<(TableId, i16)>,
}

/// The place of a scalar in [`Plan::scalars`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScalarId(pub u32);

/// A value that is known before any shard is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// A value that the text fixes.
    Constant(Value),
    /// A literal that was lifted out of the text, read by the type's input function (22P02 and kin where it can't be).
    Literal {
        /// Its place among the text's literals.
        slot: u32,
        /// What it is read as.
        ty: Typed,
    },
    /// A number after a minus sign: the literal's text with `-` before it, read by the type's input function.
    Negative {
        /// Its place among the text's literals.
        slot: u32,
        /// What it is read as.
        ty: Typed,
    },
    /// `$n`, from 0, in storage form of its type in [`Plan::parameters`].
    Parameter(u32),
    /// The next value of a sequence, NULL never.
    NextValue(SequenceId),
    /// A fact of the session or the moment.
    Environment(Environment),
    /// An earlier scalar, a timestamptz, as a timestamp of the session's time zone.
    Local(ScalarId),
    /// What a query of [`Plan::first`] gives, with the scalars before this one.
    Query {
        /// Its place there.
        place: usize,
        /// How many of its columns count.
        columns: u16,
        /// Its one value: NULL if there is no row, 21000 if there are two. Otherwise all its rows, packed
        /// ([`dialect::rowset`]).
        single: bool,
    },
    /// SQL that the router's own SQLite evaluates, with these as `?1..`.
    Expression {
        /// One expression, without SELECT.
        sql: Arc<str>,
        /// Its parameters.
        params: Vec<ScalarId>,
    },
}

/// Facts of the session and the moment. Storage form in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Environment {
    /// `now()`: when the transaction began \[timestamptz\].
    TransactionTime,
    /// `statement_timestamp()` \[timestamptz\].
    StatementTime,
    /// `clock_timestamp()` \[timestamptz\].
    ClockTime,
    /// The session's time zone \[text\].
    TimeZone,
    /// `current_user`, `session_user` \[text\].
    User,
    /// `current_database()` \[text\].
    Database,
    /// `pg_backend_pid()` \[int4\].
    BackendPid,
    /// `gen_random_uuid()` \[uuid\].
    RandomUuid,
    /// `random()` \[float8\].
    Random,
}

/// What a statement does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Returns rows and changes nothing.
    Query(Query),
    /// Adds rows.
    Insert(Insert),
    /// UPDATE or DELETE.
    Modify(Modify),
    /// COPY .. FROM STDIN.
    CopyIn(CopyIn),
    /// COPY .. TO STDOUT.
    CopyOut(CopyOut),
    /// DDL and TRUNCATE.
    Schema(SchemaAction),
    /// Everything that stays within the session.
    Session(SessionCommand),
    /// EXPLAIN.
    Explain(Explain),
}

/// A query: fragments, and what makes their rows the answer.
#[derive(Clone, Debug)]
pub struct Query {
    /// What shards run.
    pub fragments: Vec<Fragment>,
    /// What the router does with the rows.
    pub gather: Gather,
    /// The locks that its rows get. The query has one fragment then, whose SQL returns the locked rows' keys before
    /// the fragment's columns.
    pub lock: Option<Locking>,
}

/// FOR UPDATE or one of its kin.
///
/// PostgreSQL locks rows as it returns them, so rows that another has locked are skipped (SKIP LOCKED) before LIMIT
/// counts. That's why a locking fragment's SQL has no limit: the shard takes its rows in order, locks each, and ends
/// when it has locked `limit`. Several shards lock as many each, and the gather cuts the rest: more rows than in
/// PostgreSQL are locked then, never fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locking {
    /// Whose rows. The fragment's SQL returns their keys first, and the shard cuts them off.
    pub rows: Arc<[LockedRows]>,
    /// The most rows that a shard locks and returns (LIMIT and OFFSET together, as rows that OFFSET skips are locked,
    /// too): a non-negative int8, or NULL for all.
    pub limit: Option<ScalarId>,
}

/// What each of some shards runs.
#[derive(Clone, Debug)]
pub struct Fragment {
    /// Which shards.
    pub target: Target,
    /// SQL over physical names, with parameters `?1..`.
    pub sql: Arc<str>,
    /// What the parameters are.
    pub params: Vec<ScalarId>,
    /// The types of the rows that come back.
    pub columns: Vec<Type>,
    /// Each shard finds the rows by key, a few at most.
    pub lookup: bool,
}

/// Which shards a fragment goes to, as far as it is known before the values are.
#[derive(Clone, Debug)]
pub enum Target {
    /// Shards of a hash, range or single keyspace.
    Keyspace {
        /// The keyspace.
        keyspace: KeyspaceNumber,
        /// The types of the shard key's columns.
        key: Vec<Type>,
        /// Which keys the fragment can touch.
        filter: KeyFilter,
    },
    /// Any one shard: it reads reference tables alone.
    Any,
    /// Every shard of every keyspace: it writes a reference table.
    Everywhere,
}

/// What a fragment's conditions say of the shard key. Scalars are in storage form of the key's types. A NULL among
/// them matches nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyFilter {
    /// Nothing.
    All,
    /// It is one of these: for each of the key's columns, in order, the values it can have.
    In(Vec<Vec<ScalarId>>),
    /// It is in one of these packed rows.
    Rows {
        /// The rows ([`Scalar::Query`]).
        rows: ScalarId,
        /// Where each of the key's columns is.
        key: Vec<KeyPart>,
    },
    /// Its first column lies between these (each with whether it is inclusive). For range keyspaces.
    Between(Option<(ScalarId, bool)>, Option<(ScalarId, bool)>),
    /// It contradicts itself: no row at all.
    Nothing,
}

/// Where a column of the shard key is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyPart {
    /// It is this.
    Scalar(ScalarId),
    /// It is in the rows' column at this place.
    Column(usize),
}

/// Where a fragment goes. Planner and executor meet here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To one shard.
    One(ShardId),
    /// To some.
    Some(Vec<ShardId>),
    /// To all of the keyspace (or, for a reference table, of the cluster).
    All(Vec<ShardId>),
    /// To none: it can have no row.
    None,
}

/// The router's part of a query.
#[derive(Clone, Debug)]
pub enum Gather {
    /// Rows pass through as they come: concatenated, or merged in order, then cut.
    Stream {
        /// The order that each shard's rows have and that the merge keeps; empty for any.
        order: Vec<MergeKey>,
        /// Rows to skip: a non-negative int8, or NULL for none.
        offset: Option<ScalarId>,
        /// Rows to return at most: a non-negative int8, or NULL for all.
        limit: Option<ScalarId>,
        /// The leading columns that are the result; those after it were for the order.
        visible: usize,
    },
    /// Rows go into tables of a private SQLite, where the rest of the query runs.
    Sqlite {
        /// The tables.
        sources: Vec<Source>,
        /// The query over them, with parameters `?1..`.
        sql: Arc<str>,
        /// What the parameters are.
        params: Vec<ScalarId>,
    },
}

/// A table of the gather's SQLite. Its columns are `a0`, `a1`, ..
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its columns' types.
    pub columns: Vec<Type>,
    /// Where its rows come from.
    pub rows: SourceRows,
}

/// Where the rows of a gather's table come from.
#[derive(Clone, Debug)]
pub enum SourceRows {
    /// From the fragment at this place.
    Fragment(usize),
    /// From the catalog: a system relation ([`crate::system`]).
    System(&'static str),
}

/// One key of an ordered merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeKey {
    /// The column. It holds the type's key form, which compares as a plain storage value.
    pub column: usize,
    /// DESC.
    pub descending: bool,
    /// NULLs before everything else.
    pub nulls_first: bool,
}

/// An INSERT.
#[derive(Clone, Debug)]
pub struct Insert {
    /// The table.
    pub table: TableId,
    /// Where its rows go.
    pub target: InsertTarget,
    /// The statement for one row: `?1..?width` its values, then `params`.
    pub sql: Arc<str>,
    /// Values of a row.
    pub width: usize,
    /// Further parameters, the same for each row.
    pub params: Vec<ScalarId>,
    /// The rows.
    pub rows: InsertRows,
    /// Values of the row that may not be NULL: 23502 before anything is sent.
    pub not_null: Vec<(usize, ColumnId)>,
    /// See [`proto::services::Access::Write`].
    pub touch: u16,
    /// Whether it returns rows, and their types.
    pub returning: Option<Vec<Type>>,
}

/// Where the rows of a table go.
#[derive(Clone, Debug)]
pub enum InsertTarget {
    /// Each by its shard key.
    Sharded {
        /// The keyspace.
        keyspace: KeyspaceNumber,
        /// For each column of the shard key, its place in the row and its type.
        key: Vec<(usize, Type)>,
    },
    /// All to the one shard of this keyspace.
    Single(KeyspaceNumber),
    /// All to every shard of every keyspace.
    Everywhere,
}

/// The rows of an INSERT.
#[derive(Clone, Debug)]
pub enum InsertRows {
    /// Written out. Each has the statement's width.
    Values(Vec<Vec<ScalarId>>),
    /// What a query returns, each row completed by the columns it doesn't name.
    Query {
        /// The query.
        query: Query,
        /// For each value of a row: the query's column, or what is evaluated anew for each row.
        row: Vec<RowValue>,
    },
}

/// Where a value of a row comes from when rows come one by one (INSERT .. SELECT, COPY).
#[derive(Clone, Debug, PartialEq)]
pub enum RowValue {
    /// From the input's column at this place.
    Input(usize),
    /// The same for every row.
    Fixed(ScalarId),
    /// A sequence's next value, for each row.
    NextValue(SequenceId),
    /// A fact that is another for each row: `gen_random_uuid()`.
    Environment(Environment),
    /// SQL that the router's SQLite evaluates for each row (a volatile default), without parameters.
    Expression(Arc<str>),
}

/// An UPDATE or DELETE.
#[derive(Clone, Debug)]
pub struct Modify {
    /// Whether it is a DELETE.
    pub delete: bool,
    /// The table.
    pub table: TableId,
    /// What shards run; `columns` are those of RETURNING.
    pub fragment: Fragment,
    /// The fragment's SQL for who must know whose row it returns: it returns their keys before the
    /// columns. A key that the statement changes is the new one. Its parameters are the fragment's.
    pub locking_sql: Arc<str>,
    /// How many columns the key has. See [`proto::services::Access::Write`].
    pub touch: u16,
    /// It changes the shard key: this is done instead. The fragment is the one that finds the rows then, but for
    /// its columns.
    pub moves: Option<Box<Move>>,
}

/// An UPDATE of the shard key: its rows are found and locked, deleted where they are, and added where they belong.
#[derive(Clone, Debug)]
pub struct Move {
    /// Finds the rows. Each comes as its primary key, its shard key, and the values that it is to have.
    pub read: Query,
    /// The types of the primary key's columns, and their places among the values.
    pub key: Vec<(Type, usize)>,
    /// By what of a found row its shard is known.
    pub place: InsertTarget,
    /// Deletes a row by its primary key, `?1..`.
    pub delete: Arc<str>,
    /// How many columns of a found row stand before the values.
    pub before: usize,
    /// Adds the rows; it has none of its own.
    pub insert: Insert,
}

/// A COPY .. FROM STDIN.
#[derive(Clone, Debug)]
pub struct CopyIn {
    /// The columns of the input, in its order, with the column's name for messages.
    pub columns: Vec<(String, Typed)>,
    /// How a row is made of them and where it goes. `rows` is empty; `row` says how to fill it.
    pub insert: Insert,
    /// For each value of a row, where it comes from.
    pub row: Vec<RowValue>,
    /// The input's format.
    pub format: CopyFormat,
}

/// A COPY .. TO STDOUT.
#[derive(Clone, Debug)]
pub struct CopyOut {
    /// The rows.
    pub query: Query,
    /// Their columns.
    pub columns: Vec<OutputColumn>,
    /// The output's format.
    pub format: CopyFormat,
}

/// How COPY writes rows.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyFormat {
    /// CSV, not text.
    pub csv: bool,
    /// Between values: one byte.
    pub delimiter: u8,
    /// What stands for NULL.
    pub null: String,
    /// Whether the first line names the columns.
    pub header: bool,
    /// CSV's quote: one byte.
    pub quote: u8,
    /// What makes a quote within quotes plain: one byte.
    pub escape: u8,
    /// Output columns (by place) that are always quoted.
    pub force_quote: Vec<usize>,
}

/// DDL or TRUNCATE: what the coordinator is asked to do, in order.
#[derive(Clone, Debug)]
pub struct SchemaAction {
    /// The command tag, for example `CREATE TABLE`.
    pub tag: &'static str,
    /// The changes. None for a statement that has nothing to do (IF EXISTS).
    pub changes: Vec<SchemaChange>,
    /// NOTICEs for the client: SQLSTATE and text.
    pub notices: Vec<Notice>,
    /// Expressions whose values become [`SchemaChange::ReplaceTable`]'s `fill`, by change and place in it.
    pub fills: Vec<(usize, ColumnId, ScalarId)>,
    /// The value of its [`SchemaChange::AlterRole`] is what the setting has in the session that runs it.
    pub from_current: bool,
}

/// A NOTICE or WARNING.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// `NOTICE` or `WARNING`.
    pub severity: &'static str,
    /// Its SQLSTATE.
    pub sqlstate: proto::SqlState,
    /// Its text.
    pub message: String,
    /// Its hint.
    pub hint: Option<String>,
}

/// Statements that the session runs by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionCommand {
    /// An empty statement.
    Empty,
    /// BEGIN or START TRANSACTION.
    Begin {
        /// Whether it was written as START TRANSACTION, which its command tag repeats.
        start: bool,
        /// READ ONLY (`true`), READ WRITE (`false`), or not said.
        read_only: Option<bool>,
        /// The isolation level that was asked for.
        isolation: Option<Isolation>,
    },
    /// COMMIT or END. `chain`: another block begins at once, and is as this one was.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK or ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT name.
    Savepoint(String),
    /// RELEASE SAVEPOINT name.
    Release(String),
    /// ROLLBACK TO SAVEPOINT name.
    RollbackTo(String),
    /// SET name TO value.
    Set {
        /// The setting's name, in lower case.
        name: String,
        /// Its value as text; `None` for DEFAULT.
        value: Option<String>,
        /// SET LOCAL.
        local: bool,
    },
    /// SET TRANSACTION, or SET SESSION CHARACTERISTICS AS TRANSACTION.
    SetTransaction {
        /// READ ONLY (`true`), READ WRITE (`false`), or not said.
        read_only: Option<bool>,
        /// The isolation level, if it was said.
        isolation: Option<Isolation>,
        /// For the session's transactions from now on, not for the one that is open.
        session: bool,
    },
    /// RESET name, or all.
    Reset(Option<String>),
    /// SHOW name (`None` for ALL).
    Show(Option<String>),
    /// PREPARE name (types) AS statement, its text from `offset` (bytes) on.
    Prepare {
        /// The statement's name.
        name: String,
        /// The declared types.
        types: Vec<Type>,
        /// Where the statement's text begins in the command's.
        offset: usize,
    },
    /// EXECUTE name (arguments).
    Execute {
        /// The statement's name.
        name: String,
        /// The arguments.
        arguments: Vec<ScalarId>,
        /// Their types.
        types: Vec<Type>,
    },
    /// DEALLOCATE name (`None` for ALL).
    Deallocate(Option<String>),
    /// DISCARD, of `ALL`, `PLANS`, `SEQUENCES` or `TEMP`.
    Discard(&'static str),
    /// VACUUM, ANALYZE or CHECKPOINT over existing tables: there is nothing that it would have to do. The tag.
    Maintenance(&'static str),
}

/// An isolation level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the SQL standard's names
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

/// EXPLAIN.
#[derive(Clone, Debug)]
pub struct Explain {
    /// Whether it is run, too.
    pub analyze: bool,
    /// The statement.
    pub plan: Arc<Plan>,
}

impl Plan {
    /// The queries: those that run first, and what the action is made of or reads.
    pub(crate) fn queries(&self) -> impl Iterator<Item = &Query> {
        let query = match &self.action {
            Action::Query(query) | Action::CopyOut(CopyOut { query, .. }) => Some(query),
            Action::Insert(Insert { rows: InsertRows::Query { query, .. }, .. }) => Some(query),
            _ => None,
        };
        self.first.iter().chain(query)
    }

    /// The lock of a query that is run before the statement, if one of those locks rows: it and the statement are one
    /// transaction.
    pub fn locks_first(&self) -> Option<&Locking> {
        let rows = match &self.action {
            Action::Insert(Insert { rows: InsertRows::Query { query, .. }, .. }) => Some(query),
            _ => None,
        };
        self.first.iter().chain(rows).find_map(|query| query.lock.as_ref())
    }
}
