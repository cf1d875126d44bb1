//! Commands as they were written: the trees of this grammar, before any name is looked up.

use super::cursor::{Name, Qualified};
use crate::plan::{CopyFormat, SessionCommand};
use crate::text::Tree;
use proto::catalog::RoleChange;
use sqlparser::ast;

/// A command, parsed and not yet bound.
#[derive(Debug)]
pub struct Command(pub(crate) Kind);

/// The commands.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Needs no binding.
    Session(SessionCommand),
    /// PREPARE name (types) AS ..
    Prepare { name: String, types: Vec<TypeName>, offset: usize },
    /// EXECUTE name (arguments)
    Execute { name: String, arguments: Vec<Tree<ast::Expr>> },
    /// VACUUM, ANALYZE, CHECKPOINT
    Maintenance { tag: &'static str, tables: Vec<(Qualified, Vec<Name>)> },
    /// CREATE TABLE
    CreateTable(Box<CreateTable>),
    /// ALTER TABLE
    AlterTable(AlterTable),
    /// DROP TABLE, INDEX, SEQUENCE
    Drop(Drop),
    /// CREATE INDEX
    CreateIndex(CreateIndex),
    /// ALTER INDEX, TABLE or SEQUENCE .. RENAME TO
    Rename { what: RelationKind, if_exists: bool, from: Qualified, to: Name },
    /// TRUNCATE
    Truncate { tables: Vec<Qualified>, restart_identity: bool },
    /// CREATE SEQUENCE
    CreateSequence { if_not_exists: bool, name: Qualified, options: Vec<SequenceOption> },
    /// ALTER SEQUENCE
    AlterSequence { if_exists: bool, name: Qualified, options: Vec<SequenceOption> },
    /// ALTER ROLE .. SET, ALTER ROLE .. RESET
    AlterRole { role: RoleName, change: RoleChange, from_current: bool },
}

/// Whose sessions ALTER ROLE is about.
#[derive(Debug)]
pub(crate) enum RoleName {
    All,
    CurrentUser,
    Named(String),
}

/// A type's name, with its place.
#[derive(Debug)]
pub(crate) struct TypeName {
    pub data_type: ast::DataType,
    pub position: Option<u32>,
}

/// What DROP and RENAME name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelationKind {
    Table,
    Index,
    Sequence,
}

impl RelationKind {
    /// As messages have it.
    pub fn noun(self) -> &'static str {
        match self {
            RelationKind::Table => "table",
            RelationKind::Index => "index",
            RelationKind::Sequence => "sequence",
        }
    }
}

/// DROP TABLE, INDEX, SEQUENCE.
#[derive(Debug)]
pub(crate) struct Drop {
    pub what: RelationKind,
    pub if_exists: bool,
    pub names: Vec<Qualified>,
    pub cascade: bool,
}

/// CREATE TABLE.
#[derive(Debug)]
pub(crate) struct CreateTable {
    pub name: Qualified,
    pub if_not_exists: bool,
    pub columns: Vec<ColumnDefinition>,
    pub constraints: Vec<TableConstraint>,
    pub partition: Option<PartitionBy>,
    pub parameters: Vec<StorageParameter>,
}

/// PARTITION BY.
#[derive(Debug)]
pub(crate) struct PartitionBy {
    pub range: bool,
    pub columns: Vec<Name>,
}

/// One of WITH (..).
#[derive(Debug)]
pub(crate) struct StorageParameter {
    pub name: String,
    pub value: Option<String>,
}

/// A column of CREATE TABLE or ADD COLUMN.
#[derive(Debug)]
pub(crate) struct ColumnDefinition {
    pub name: Name,
    pub ty: TypeName,
    pub constraints: Vec<ColumnConstraint>,
}

/// A column's constraint.
#[derive(Debug)]
pub(crate) struct ColumnConstraint {
    /// CONSTRAINT name.
    pub name: Option<Name>,
    pub position: Option<u32>,
    pub kind: ColumnConstraintKind,
}

/// What a column's constraint is.
#[derive(Debug)]
pub(crate) enum ColumnConstraintKind {
    NotNull,
    Null,
    Default(Tree<ast::Expr>),
    PrimaryKey,
    Unique,
    Check(Tree<ast::Expr>),
    Identity { always: bool, options: Vec<SequenceOption> },
}

/// A table's constraint.
#[derive(Debug)]
pub(crate) struct TableConstraint {
    pub name: Option<Name>,
    pub position: Option<u32>,
    pub kind: TableConstraintKind,
}

/// What a table's constraint is.
#[derive(Debug)]
pub(crate) enum TableConstraintKind {
    PrimaryKey(Vec<Name>),
    Unique(Vec<Name>),
    Check(Tree<ast::Expr>),
}

/// ALTER TABLE.
#[derive(Debug)]
pub(crate) struct AlterTable {
    pub if_exists: bool,
    pub name: Qualified,
    pub actions: Vec<AlterAction>,
}

/// One action of ALTER TABLE.
#[derive(Debug)]
pub(crate) enum AlterAction {
    AddColumn {
        if_not_exists: bool,
        column: ColumnDefinition,
    },
    DropColumn {
        if_exists: bool,
        name: Name,
        cascade: bool,
    },
    RenameColumn {
        from: Name,
        to: Name,
    },
    SetDefault {
        column: Name,
        value: Tree<ast::Expr>,
    },
    DropDefault {
        column: Name,
    },
    SetNotNull {
        column: Name,
    },
    DropNotNull {
        column: Name,
    },
    SetType {
        column: Name,
        ty: TypeName,
    },
    AddConstraint(TableConstraint),
    DropConstraint {
        if_exists: bool,
        name: Name,
    },
    RenameConstraint {
        from: Name,
        to: Name,
    },
    /// A storage parameter or another physical hint.
    Nothing,
}

/// CREATE INDEX.
#[derive(Debug)]
pub(crate) struct CreateIndex {
    pub unique: bool,
    pub if_not_exists: bool,
    pub name: Option<Name>,
    pub table: Qualified,
    pub columns: Vec<IndexedColumn>,
}

/// A column of CREATE INDEX.
#[derive(Debug)]
pub(crate) struct IndexedColumn {
    pub name: Name,
    pub descending: bool,
    pub nulls_first: bool,
}

/// An option of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SequenceOption {
    As(ast::DataType),
    Start(i64),
    Restart(Option<i64>),
    Increment(i64),
    Min(Option<i64>),
    Max(Option<i64>),
    Cycle(bool),
    Cache(i64),
    OwnedBy(Option<(Option<String>, String, String)>),
}

/// COPY, parsed.
#[derive(Debug)]
pub struct Copy {
    /// What is copied.
    pub what: Copied,
    /// FROM STDIN, not TO STDOUT.
    pub from: bool,
    /// The format. Its `force_quote` is empty: see [`Copy::force_quote`].
    pub format: CopyFormat,
    /// Whose values are always quoted.
    pub force_quote: Columns,
    /// For which columns the null string is an empty value.
    pub force_not_null: Vec<Name>,
    /// For which columns a quoted null string is NULL, too.
    pub force_null: Vec<Name>,
    /// Which rows are taken. FROM alone.
    pub condition: Option<Tree<ast::Expr>>,
}

/// Some columns or all.
#[derive(Clone, Debug, PartialEq)]
pub enum Columns {
    /// All of them.
    All,
    /// These.
    Some(Vec<Name>),
}

/// What COPY copies.
#[derive(Debug)]
pub enum Copied {
    /// A table's columns; none for all.
    Table(Qualified, Vec<Name>),
    /// What a statement returns. TO alone.
    Query(Tree<ast::Statement>),
}
