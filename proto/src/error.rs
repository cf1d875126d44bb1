//! Errors as they cross processes and reach clients.
//!
//! Every error that a user can see is a [`WireError`]: an SQLSTATE, a message, and what the caller must decide by:
//! whether asking again can help. Crates keep their own `thiserror` enums inside; at their border they turn into this.

use crate::ids::{ColumnId, Epoch, IndexId, LogIndex, NodeId, SchemaVersion, ShardId, TableId};
use std::fmt;
use std::num::NonZeroU32;

/// A five-character code of PostgreSQL's appendix A.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    const fn of(code: &str) -> Self {
        match code.as_bytes().first_chunk::<5>() {
            Some(bytes) if code.len() == 5 => Self(*bytes),
            _ => panic!("an SQLSTATE has five characters"),
        }
    }

    /// The code's five characters; `None` unless they are upper-case letters and digits.
    pub fn parse(code: &str) -> Option<Self> {
        let bytes: [u8; 5] = code.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()).then_some(Self(bytes))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked ASCII when made")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! sqlstates {
    ($($name:ident = $code:literal;)*) => {
        /// The codes that Shoal uses, under PostgreSQL's condition names. Those of class `SH` are its own.
        impl SqlState {
            $(#[doc = concat!("`", $code, "`")] pub const $name: SqlState = SqlState::of($code);)*
        }
    };
}

sqlstates! {
    SUCCESSFUL_COMPLETION = "00000";
    WARNING = "01000";
    PROTOCOL_VIOLATION = "08P01";
    CONNECTION_FAILURE = "08006";
    TRANSACTION_RESOLUTION_UNKNOWN = "08007";
    FEATURE_NOT_SUPPORTED = "0A000";
    CARDINALITY_VIOLATION = "21000";
    STRING_DATA_RIGHT_TRUNCATION = "22001";
    NUMERIC_VALUE_OUT_OF_RANGE = "22003";
    NULL_VALUE_NOT_ALLOWED = "22004";
    DATETIME_FIELD_OVERFLOW = "22008";
    DIVISION_BY_ZERO = "22012";
    SUBSTRING_ERROR = "22011";
    CHARACTER_NOT_IN_REPERTOIRE = "22021";
    INVALID_PARAMETER_VALUE = "22023";
    INVALID_ESCAPE_SEQUENCE = "22025";
    INVALID_ARGUMENT_FOR_LOGARITHM = "2201E";
    INVALID_ARGUMENT_FOR_POWER_FUNCTION = "2201F";
    INVALID_ROW_COUNT_IN_LIMIT_CLAUSE = "2201W";
    INVALID_DATETIME_FORMAT = "22007";
    INVALID_TIME_ZONE_DISPLACEMENT_VALUE = "22009";
    ARRAY_SUBSCRIPT_ERROR = "2202E";
    INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE = "2201X";
    INVALID_REGULAR_EXPRESSION = "2201B";
    INVALID_TEXT_REPRESENTATION = "22P02";
    INVALID_BINARY_REPRESENTATION = "22P03";
    BAD_COPY_FILE_FORMAT = "22P04";
    INTEGRITY_CONSTRAINT_VIOLATION = "23000";
    NOT_NULL_VIOLATION = "23502";
    FOREIGN_KEY_VIOLATION = "23503";
    UNIQUE_VIOLATION = "23505";
    CHECK_VIOLATION = "23514";
    ACTIVE_SQL_TRANSACTION = "25001";
    READ_ONLY_SQL_TRANSACTION = "25006";
    NO_ACTIVE_SQL_TRANSACTION = "25P01";
    IN_FAILED_SQL_TRANSACTION = "25P02";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = "25P03";
    INVALID_SQL_STATEMENT_NAME = "26000";
    INVALID_AUTHORIZATION_SPECIFICATION = "28000";
    INVALID_CURSOR_NAME = "34000";
    INVALID_SAVEPOINT_SPECIFICATION = "3B001";
    INVALID_CATALOG_NAME = "3D000";
    INVALID_SCHEMA_NAME = "3F000";
    SERIALIZATION_FAILURE = "40001";
    DEADLOCK_DETECTED = "40P01";
    SYNTAX_ERROR = "42601";
    GROUPING_ERROR = "42803";
    DATATYPE_MISMATCH = "42804";
    WINDOWING_ERROR = "42P20";
    INDETERMINATE_DATATYPE = "42P18";
    WRONG_OBJECT_TYPE = "42809";
    CANNOT_COERCE = "42846";
    INVALID_NAME = "42602";
    NAME_TOO_LONG = "42622";
    RESERVED_NAME = "42939";
    UNDEFINED_COLUMN = "42703";
    UNDEFINED_FUNCTION = "42883";
    UNDEFINED_TABLE = "42P01";
    UNDEFINED_PARAMETER = "42P02";
    UNDEFINED_OBJECT = "42704";
    DUPLICATE_COLUMN = "42701";
    DUPLICATE_CURSOR = "42P03";
    DUPLICATE_PREPARED_STATEMENT = "42P05";
    DUPLICATE_SCHEMA = "42P06";
    DUPLICATE_TABLE = "42P07";
    DUPLICATE_ALIAS = "42712";
    DUPLICATE_OBJECT = "42710";
    AMBIGUOUS_COLUMN = "42702";
    AMBIGUOUS_FUNCTION = "42725";
    AMBIGUOUS_PARAMETER = "42P08";
    AMBIGUOUS_ALIAS = "42P09";
    INVALID_COLUMN_REFERENCE = "42P10";
    INVALID_COLUMN_DEFINITION = "42611";
    INVALID_TABLE_DEFINITION = "42P16";
    INVALID_OBJECT_DEFINITION = "42P17";
    GENERATED_ALWAYS = "428C9";
    INSUFFICIENT_PRIVILEGE = "42501";
    OUT_OF_MEMORY = "53200";
    CONFIGURATION_LIMIT_EXCEEDED = "53400";
    DISK_FULL = "53100";
    TOO_MANY_CONNECTIONS = "53300";
    PROGRAM_LIMIT_EXCEEDED = "54000";
    STATEMENT_TOO_COMPLEX = "54001";
    TOO_MANY_COLUMNS = "54011";
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000";
    OBJECT_IN_USE = "55006";
    LOCK_NOT_AVAILABLE = "55P03";
    SEQUENCE_GENERATOR_LIMIT_EXCEEDED = "2200H";
    DEPENDENT_OBJECTS_STILL_EXIST = "2BP01";
    QUERY_CANCELED = "57014";
    ADMIN_SHUTDOWN = "57P01";
    CANNOT_CONNECT_NOW = "57P03";
    IO_ERROR = "58030";
    SNAPSHOT_TOO_OLD = "72000";
    TRANSACTION_ALREADY_COMMITTED = "SH001";
    POSITION_LOST = "SH002";
    POSITION_NOT_REACHED = "SH003";
    POSITION_FORGOTTEN = "SH004";
    INTERNAL_ERROR = "XX000";
    DATA_CORRUPTED = "XX001";
}

/// What asking again can achieve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// Nothing: the same request gets the same answer.
    #[default]
    Never,
    /// The replica isn't its group's leader. Nothing was executed. Ask the node named here, or any other.
    NotLeader(Option<NodeId>),
    /// The topology is newer than the request's. Nothing was executed. Route again at this epoch or later.
    StaleEpoch(Epoch),
    /// The catalog is newer than the request's. Nothing was executed. Plan again at this version or later.
    StaleSchema(SchemaVersion),
    /// Nothing was executed; the same request may succeed in a moment.
    Later,
    /// Nothing was executed: a row that was waited for has moved to another shard. The statement is to be run again, on all
    /// its shards.
    Moved,
    /// Nothing was executed: the replica has come no further than this. The group's leader, or another one, may have.
    Behind(LogIndex),
    /// It may have been executed. Repeating it is safe under the same request id alone.
    Unknown,
}

/// The constraint that a row broke. Names live in the catalog, so shards report ids and the router names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// NULL in a column that forbids it.
    NotNull(TableId, ColumnId),
    /// Two rows with one key: the primary key (`None`), or a unique index.
    Unique(TableId, Option<IndexId>),
    /// A CHECK constraint, by its position in [`crate::catalog::Table::checks`].
    Check(TableId, u32),
}

/// An error as a client or another process sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sqlstate}: {message}")]
pub struct WireError {
    /// PostgreSQL's code for the condition.
    pub sqlstate: SqlState,
    /// What was wrong, in PostgreSQL's wording where it has one.
    pub message: String,
    /// More about this one case.
    pub detail: Option<String>,
    /// A way out.
    pub hint: Option<String>,
    /// 1-based character position in the statement's text.
    pub position: Option<NonZeroU32>,
    /// What asking again can achieve.
    pub retry: Retry,
    /// The broken constraint, while its name is still to be looked up.
    pub violation: Option<Violation>,
    /// The state of a shard that it tells of: whoever hears it knows of rows, or of their absence, as of there. Clients
    /// aren't told, but their sessions see no less from then on.
    pub state: Option<Box<(ShardId, LogIndex)>>,
}

impl WireError {
    /// An error that asking again can't mend.
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            retry: Retry::Never,
            violation: None,
            state: None,
        }
    }

    /// `0A000`: a thing that PostgreSQL has and Shoal refuses.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(SqlState::FEATURE_NOT_SUPPORTED, format!("{what} is not supported"))
    }

    /// `XX000`: something that can't be, was.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL_ERROR, message)
    }

    /// The same error with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with a detail line.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same error, pointing at a place in the statement (1-based, in characters).
    pub fn at(mut self, position: u32) -> Self {
        self.position = NonZeroU32::new(position);
        self
    }

    /// The same error, saying what asking again can achieve.
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same error, naming the broken constraint by ids.
    pub fn with_violation(mut self, violation: Violation) -> Self {
        self.violation = Some(violation);
        self
    }

    /// The same error, made from this state of a shard unless an earlier one is known. One of a request that wasn't
    /// executed, or whose outcome isn't known, tells of none.
    pub fn made_from(mut self, shard: ShardId, index: LogIndex) -> Self {
        if matches!(self.retry, Retry::Never | Retry::Moved) {
            self.state.get_or_insert_with(|| Box::new((shard, index)));
        }
        self
    }

    /// The same error, told in the place of another one: whoever hears it may know of what that one was made from.
    pub fn instead_of(mut self, other: WireError) -> Self {
        self.state = self.state.or(other.state);
        self
    }
}
