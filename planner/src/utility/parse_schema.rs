//! The grammar of CREATE, ALTER, DROP and TRUNCATE.

use super::command::{
    AlterAction, AlterTable, ColumnConstraint, ColumnConstraintKind, ColumnDefinition, CreateIndex,
    CreateTable, Drop, IndexedColumn, Kind, PartitionBy, RelationKind, SequenceOption, StorageParameter,
    TableConstraint, TableConstraintKind, TypeName,
};
use super::cursor::{Cursor, Name};
use super::parse::refused;
use super::role;
use proto::{SqlState, WireError};
use sqlparser::tokenizer::Token;

/// What follows CREATE, ALTER or DROP and isn't Shoal's, with a way out where there is one.
fn refuse_object(cursor: &mut Cursor<'_>, verb: &str) -> WireError {
    const OBJECTS: &[(&str, &str, Option<&str>)] = &[
        (
            "database",
            "DATABASE",
            Some("A cluster is one database. Keyspaces are made by shoal keyspace create."),
        ),
        ("schema", "SCHEMA", Some("All tables are in the schema public.")),
        ("role", "ROLE", Some("Every user may do everything.")),
        ("user", "USER", Some("Every user may do everything.")),
        ("group", "GROUP", Some("Every user may do everything.")),
        ("view", "VIEW", Some("Write the query where it is used, for example in WITH.")),
        ("materialized", "MATERIALIZED VIEW", None),
        ("recursive", "VIEW", None),
        ("function", "FUNCTION", None),
        ("procedure", "PROCEDURE", None),
        ("routine", "ROUTINE", None),
        ("aggregate", "AGGREGATE", None),
        ("trigger", "TRIGGER", None),
        ("constraint", "CONSTRAINT TRIGGER", None),
        ("event", "EVENT TRIGGER", None),
        ("rule", "RULE", None),
        ("type", "TYPE", Some("Use text with a CHECK constraint for a list of values.")),
        ("domain", "DOMAIN", Some("Use a column with a CHECK constraint.")),
        ("extension", "EXTENSION", None),
        ("language", "LANGUAGE", None),
        ("trusted", "LANGUAGE", None),
        ("cast", "CAST", None),
        ("collation", "COLLATION", None),
        ("conversion", "CONVERSION", None),
        ("operator", "OPERATOR", None),
        ("policy", "POLICY", None),
        ("publication", "PUBLICATION", None),
        ("subscription", "SUBSCRIPTION", None),
        ("server", "SERVER", None),
        ("foreign", "FOREIGN TABLE", None),
        ("statistics", "STATISTICS", None),
        ("system", "SYSTEM", None),
        ("tablespace", "TABLESPACE", None),
        ("text", "TEXT SEARCH", None),
        ("transform", "TRANSFORM", None),
        ("access", "ACCESS METHOD", None),
        ("default", "DEFAULT PRIVILEGES", None),
        ("large", "LARGE OBJECT", None),
        ("owned", "OWNED", None),
    ];
    for (word, object, hint) in OBJECTS {
        if cursor.is(word) {
            return refused(&format!("{verb} {object}"), *hint);
        }
    }
    cursor.error()
}

/// After CREATE.
pub(super) fn create(cursor: &mut Cursor<'_>) -> Result<Kind, WireError> {
    if cursor.accept_all(&["or", "replace"]) {
        return Err(refuse_object(cursor, "CREATE OR REPLACE"));
    }
    cursor.accept_one(&["global", "local"]);
    if cursor.accept("temp") || cursor.accept("temporary") {
        let what = if cursor.is("sequence") { "CREATE TEMPORARY SEQUENCE" } else { "CREATE TEMPORARY TABLE" };
        return Err(refused(what, Some("Use a table, and DROP it when it is done.")));
    }
    if cursor.accept("unlogged") {
        return Err(refused("CREATE UNLOGGED TABLE", Some("Leave UNLOGGED out: every table is replicated.")));
    }
    if cursor.accept("table") {
        return Ok(Kind::CreateTable(Box::new(create_table(cursor)?)));
    }
    if cursor.is("index") || cursor.is_nth(1, "index") && cursor.is("unique") {
        let unique = cursor.accept("unique");
        cursor.expect("index")?;
        return create_index(cursor, unique).map(Kind::CreateIndex);
    }
    if cursor.accept("sequence") {
        let if_not_exists = cursor.accept_all(&["if", "not", "exists"]);
        let name = cursor.qualified()?;
        let options = sequence_options(cursor, false)?;
        return Ok(Kind::CreateSequence { if_not_exists, name, options });
    }
    Err(refuse_object(cursor, "CREATE"))
}

fn create_table(cursor: &mut Cursor<'_>) -> Result<CreateTable, WireError> {
    let if_not_exists = cursor.accept_all(&["if", "not", "exists"]);
    let name = cursor.qualified()?;
    let mut table = CreateTable {
        name,
        if_not_exists,
        columns: Vec::new(),
        constraints: Vec::new(),
        partition: None,
        parameters: Vec::new(),
    };
    if cursor.accept("of") {
        return Err(refused("CREATE TABLE OF", None));
    }
    if cursor.accept_all(&["partition", "of"]) {
        return Err(refused(
            "PARTITION OF",
            Some("Shards make partitions needless: PARTITION BY on the table itself spreads its rows."),
        ));
    }
    if cursor.is("as") {
        return Err(create_table_as());
    }
    cursor.expect_symbol(&Token::LParen)?;
    if !cursor.accept_symbol(&Token::RParen) {
        loop {
            element(cursor, &mut table)?;
            if !cursor.accept_symbol(&Token::Comma) {
                break;
            }
        }
        cursor.expect_symbol(&Token::RParen)?;
    }
    loop {
        if cursor.accept("inherits") {
            return Err(refused("INHERITS", None));
        } else if table.partition.is_none() && cursor.accept_all(&["partition", "by"]) {
            table.partition = Some(partition_by(cursor)?);
        } else if cursor.accept("using") {
            let method = cursor.name()?;
            if method.value != "heap" {
                let message = format!("access method \"{}\" does not exist", method.value);
                return Err(WireError::new(SqlState::UNDEFINED_OBJECT, message));
            }
        } else if table.parameters.is_empty() && cursor.accept("with") {
            table.parameters = storage_parameters(cursor)?;
        } else if cursor.accept_all(&["without", "oids"]) {
            // As every table.
        } else if cursor.is("on") {
            return Err(WireError::new(
                SqlState::INVALID_TABLE_DEFINITION,
                "ON COMMIT can only be used on temporary tables",
            ));
        } else if cursor.accept("tablespace") {
            tablespace(cursor)?;
        } else if cursor.is("as") {
            return Err(create_table_as());
        } else {
            return Ok(table);
        }
    }
}

fn create_table_as() -> WireError {
    refused("CREATE TABLE AS", Some("Use CREATE TABLE, then INSERT INTO .. SELECT."))
}

fn tablespace(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    let name = cursor.name()?;
    if name.value == "pg_default" {
        return Ok(());
    }
    let message = format!("tablespace \"{}\" does not exist", name.value);
    Err(WireError::new(SqlState::UNDEFINED_OBJECT, message))
}

fn partition_by(cursor: &mut Cursor<'_>) -> Result<PartitionBy, WireError> {
    let position = cursor.position();
    let strategy = cursor.name()?;
    let range = match strategy.value.as_str() {
        "hash" => false,
        "range" => true,
        "list" => {
            return Err(refused(
                "PARTITION BY LIST",
                Some("PARTITION BY RANGE or HASH spreads rows over shards."),
            ));
        }
        other => {
            let message = format!("unrecognized partitioning strategy \"{other}\"");
            let error = WireError::new(SqlState::INVALID_PARAMETER_VALUE, message);
            return Err(match position {
                Some(position) => error.at(position),
                None => error,
            });
        }
    };
    let columns = cursor.list(|cursor| {
        if !cursor.at_name() {
            return Err(expression_key(cursor));
        }
        let name = cursor.name()?;
        if cursor.accept("collate") {
            collation(cursor)?;
        }
        if cursor.is_symbol(&Token::LParen) || cursor.at_name() || cursor.is_symbol(&Token::Period) {
            return Err(expression_key(cursor));
        }
        Ok(name)
    })?;
    Ok(PartitionBy { range, columns })
}

fn expression_key(cursor: &Cursor<'_>) -> WireError {
    if cursor.at_end() || cursor.is_symbol(&Token::RParen) || cursor.is_symbol(&Token::Comma) {
        return cursor.error();
    }
    refused("an expression or operator class in a partition key", Some("Name columns alone."))
}

/// `WITH (..)` after its first word.
fn storage_parameters(cursor: &mut Cursor<'_>) -> Result<Vec<StorageParameter>, WireError> {
    cursor.list(|cursor| {
        let mut name = cursor.label()?.value;
        while cursor.accept_symbol(&Token::Period) {
            name.push('.');
            name.push_str(&cursor.label()?.value);
        }
        let value = if cursor.accept_symbol(&Token::Eq) { Some(cursor.value()?) } else { None };
        Ok(StorageParameter { name, value })
    })
}

/// The collations that compare as Shoal does: by bytes.
fn collation(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    let name = cursor.qualified_label()?;
    match (name.schema.as_deref(), name.name.as_str()) {
        (None | Some("pg_catalog"), "default" | "C" | "POSIX" | "ucs_basic" | "C.UTF-8" | "C.utf8") => Ok(()),
        _ => Err(refused(
            &format!("the collation \"{}\"", name.name),
            Some("Text is compared by its bytes: COLLATE \"C\" or none."),
        )),
    }
}

fn element(cursor: &mut Cursor<'_>, table: &mut CreateTable) -> Result<(), WireError> {
    if cursor.is("like") {
        return Err(refused("LIKE in CREATE TABLE", Some("Write the columns out.")));
    }
    match table_constraint(cursor)? {
        Some(constraint) => table.constraints.push(constraint),
        None => table.columns.push(column_definition(cursor)?),
    }
    Ok(())
}

fn key_columns(cursor: &mut Cursor<'_>) -> Result<Vec<Name>, WireError> {
    let columns = cursor.list(Cursor::name)?;
    key_options(cursor)?;
    Ok(columns)
}

/// What may follow UNIQUE and PRIMARY KEY.
fn key_options(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    loop {
        if cursor.is("include") {
            return Err(refused(
                "INCLUDE",
                Some("Leave it out, or make the columns part of an index of its own."),
            ));
        } else if cursor.accept("with") {
            check_index_parameters(cursor)?;
        } else if cursor.accept_all(&["using", "index", "tablespace"]) {
            tablespace(cursor)?;
        } else {
            return constraint_attributes(cursor);
        }
    }
}

fn constraint_attributes(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    loop {
        if cursor.is("deferrable") || cursor.is("initially") && cursor.is_nth(1, "deferred") {
            return Err(refused(
                "a deferrable constraint",
                Some("Constraints are checked by each statement."),
            ));
        }
        if !cursor.accept_all(&["not", "deferrable"]) && !cursor.accept_all(&["initially", "immediate"]) {
            return Ok(());
        }
    }
}

fn table_constraint(cursor: &mut Cursor<'_>) -> Result<Option<TableConstraint>, WireError> {
    let position = cursor.position();
    let named = cursor.accept("constraint");
    let name = if named { Some(cursor.name()?) } else { None };
    let kind = if cursor.accept("check") {
        cursor.expect_symbol(&Token::LParen)?;
        let condition = cursor.expression()?;
        cursor.expect_symbol(&Token::RParen)?;
        check_options(cursor)?;
        TableConstraintKind::Check(condition)
    } else if cursor.accept("unique") {
        if cursor.is("using") {
            return Err(refused("UNIQUE USING INDEX", Some("Write the columns out.")));
        }
        nulls_distinct(cursor)?;
        TableConstraintKind::Unique(key_columns(cursor)?)
    } else if cursor.is("primary") && cursor.is_nth(1, "key") {
        cursor.expect_all(&["primary", "key"])?;
        if cursor.is("using") {
            return Err(refused("PRIMARY KEY USING INDEX", Some("Write the columns out.")));
        }
        TableConstraintKind::PrimaryKey(key_columns(cursor)?)
    } else if cursor.is("foreign") {
        return Err(foreign_key());
    } else if cursor.is("exclude") && (cursor.is_nth(1, "using") || cursor.is_nth_symbol(1, &Token::LParen)) {
        return Err(refused("EXCLUDE", None));
    } else if named {
        return Err(cursor.error());
    } else {
        return Ok(None);
    };
    Ok(Some(TableConstraint { name, position, kind }))
}

fn foreign_key() -> WireError {
    refused(
        "a foreign key",
        Some("Leave it out; the application keeps references whole until Shoal has them."),
    )
}

fn nulls_distinct(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    if cursor.accept_all(&["nulls", "not", "distinct"]) {
        return Err(refused("NULLS NOT DISTINCT", Some("Declare the columns NOT NULL.")));
    }
    cursor.accept_all(&["nulls", "distinct"]);
    Ok(())
}

fn check_options(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    // Nothing inherits.
    cursor.accept_all(&["no", "inherit"]);
    if cursor.is("not") && cursor.is_nth(1, "valid") {
        return Err(refused("NOT VALID", Some("Leave it out: the rows are checked at once.")));
    }
    constraint_attributes(cursor)
}

/// A column's name, type and constraints.
fn column_definition(cursor: &mut Cursor<'_>) -> Result<ColumnDefinition, WireError> {
    let name = cursor.name()?;
    let (data_type, position) = cursor.data_type()?;
    let ty = TypeName { data_type, position };
    let mut constraints = Vec::new();
    loop {
        if cursor.accept("collate") {
            collation(cursor)?;
            continue;
        }
        if cursor.accept("storage") || cursor.accept("compression") {
            // How PostgreSQL would lay the bytes out.
            cursor.label()?;
            continue;
        }
        let position = cursor.position();
        let constraint = if cursor.accept("constraint") { Some(cursor.name()?) } else { None };
        let kind = if cursor.accept_all(&["not", "null"]) {
            ColumnConstraintKind::NotNull
        } else if cursor.accept("null") {
            ColumnConstraintKind::Null
        } else if cursor.accept("default") {
            ColumnConstraintKind::Default(cursor.restricted_expression()?)
        } else if cursor.accept_all(&["primary", "key"]) {
            key_options(cursor)?;
            ColumnConstraintKind::PrimaryKey
        } else if cursor.accept("unique") {
            nulls_distinct(cursor)?;
            key_options(cursor)?;
            ColumnConstraintKind::Unique
        } else if cursor.accept("check") {
            cursor.expect_symbol(&Token::LParen)?;
            let condition = cursor.expression()?;
            cursor.expect_symbol(&Token::RParen)?;
            check_options(cursor)?;
            ColumnConstraintKind::Check(condition)
        } else if cursor.accept("generated") {
            let always = cursor.accept("always");
            if !always {
                cursor.expect_all(&["by", "default"])?;
            }
            cursor.expect("as")?;
            if always && cursor.is_symbol(&Token::LParen) {
                return Err(refused("a generated column", Some("Compute it where it is read.")));
            }
            cursor.expect("identity")?;
            let options = if cursor.accept_symbol(&Token::LParen) {
                let options = sequence_options(cursor, false)?;
                cursor.expect_symbol(&Token::RParen)?;
                options
            } else {
                Vec::new()
            };
            ColumnConstraintKind::Identity { always, options }
        } else if cursor.is("references") {
            return Err(foreign_key());
        } else if constraint.is_some() {
            return Err(cursor.error());
        } else {
            constraint_attributes(cursor)?;
            return Ok(ColumnDefinition { name, ty, constraints });
        };
        constraints.push(ColumnConstraint { name: constraint, position, kind });
    }
}

fn create_index(cursor: &mut Cursor<'_>, unique: bool) -> Result<CreateIndex, WireError> {
    // Building an index blocks no readers, and there is no other way to build one.
    cursor.accept("concurrently");
    let if_not_exists = cursor.accept_all(&["if", "not", "exists"]);
    let name = if !if_not_exists && cursor.is("on") { None } else { Some(cursor.name()?) };
    cursor.expect("on")?;
    cursor.accept("only");
    let table = cursor.qualified()?;
    if cursor.accept("using") {
        let method = cursor.name()?;
        match method.value.as_str() {
            "btree" => {}
            "hash" | "gin" | "gist" | "spgist" | "brin" => {
                let what = format!("an index of method {}", method.value);
                return Err(refused(&what, Some("Use btree, which serves = as well.")));
            }
            other => {
                let message = format!("access method \"{other}\" does not exist");
                return Err(WireError::new(SqlState::UNDEFINED_OBJECT, message));
            }
        }
    }
    let expression = || refused("an index over an expression", Some("Index the columns themselves."));
    let columns = cursor.list(|cursor| {
        if !cursor.at_name() {
            return Err(if cursor.is_symbol(&Token::LParen) { expression() } else { cursor.error() });
        }
        let name = cursor.name()?;
        if cursor.is_symbol(&Token::LParen) || cursor.is_symbol(&Token::Period) {
            return Err(expression());
        }
        if cursor.accept("collate") {
            collation(cursor)?;
        }
        if cursor.at_name() && !cursor.is("nulls") {
            return Err(refused("an operator class", Some("Leave it out.")));
        }
        let descending = cursor.accept_one(&["asc", "desc"]) == Some("desc");
        let nulls_first = if cursor.accept("nulls") {
            match cursor.accept_one(&["first", "last"]) {
                Some(which) => which == "first",
                None => return Err(cursor.error()),
            }
        } else {
            descending
        };
        Ok(IndexedColumn { name, descending, nulls_first })
    })?;
    loop {
        if cursor.is("include") {
            return Err(refused("INCLUDE", Some("Make the columns part of the index.")));
        } else if cursor.is("nulls") {
            nulls_distinct(cursor)?;
        } else if cursor.accept("with") {
            check_index_parameters(cursor)?;
        } else if cursor.accept("tablespace") {
            tablespace(cursor)?;
        } else if cursor.is("where") {
            return Err(refused("a partial index", Some("Leave WHERE out.")));
        } else {
            return Ok(CreateIndex { unique, if_not_exists, name, table, columns });
        }
    }
}

fn check_index_parameters(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    for parameter in storage_parameters(cursor)? {
        if !matches!(parameter.name.as_str(), "fillfactor" | "deduplicate_items") {
            let message = format!("unrecognized parameter \"{}\"", parameter.name);
            return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
    }
    Ok(())
}

/// The options of CREATE SEQUENCE, ALTER SEQUENCE and IDENTITY, in any order.
fn sequence_options(cursor: &mut Cursor<'_>, alter: bool) -> Result<Vec<SequenceOption>, WireError> {
    let mut options: Vec<SequenceOption> = Vec::new();
    loop {
        let position = cursor.position();
        let option = if cursor.accept("as") {
            SequenceOption::As(cursor.data_type()?.0)
        } else if cursor.accept("start") {
            cursor.accept("with");
            SequenceOption::Start(cursor.integer()?)
        } else if alter && cursor.accept("restart") {
            let given = cursor.accept("with") || !(cursor.at_end() || cursor.at_name() || cursor.is("as"));
            SequenceOption::Restart(if given { Some(cursor.integer()?) } else { None })
        } else if cursor.accept("increment") {
            cursor.accept("by");
            SequenceOption::Increment(cursor.integer()?)
        } else if cursor.accept("minvalue") {
            SequenceOption::Min(Some(cursor.integer()?))
        } else if cursor.accept("maxvalue") {
            SequenceOption::Max(Some(cursor.integer()?))
        } else if cursor.accept_all(&["no", "minvalue"]) {
            SequenceOption::Min(None)
        } else if cursor.accept_all(&["no", "maxvalue"]) {
            SequenceOption::Max(None)
        } else if cursor.accept("cycle") {
            SequenceOption::Cycle(true)
        } else if cursor.accept_all(&["no", "cycle"]) {
            SequenceOption::Cycle(false)
        } else if cursor.accept("cache") {
            SequenceOption::Cache(cursor.integer()?)
        } else if cursor.accept_all(&["owned", "by"]) {
            if cursor.accept("none") {
                SequenceOption::OwnedBy(None)
            } else {
                let mut parts = vec![cursor.name()?.value];
                while cursor.accept_symbol(&Token::Period) {
                    parts.push(cursor.label()?.value);
                }
                let mut parts = parts.into_iter().rev();
                let (column, table, schema) = (parts.next(), parts.next(), parts.next());
                match (column, table) {
                    (Some(column), Some(table)) => SequenceOption::OwnedBy(Some((schema, table, column))),
                    _ => {
                        return Err(WireError::new(SqlState::SYNTAX_ERROR, "invalid OWNED BY option")
                            .with_hint("Specify OWNED BY table.column or OWNED BY NONE."));
                    }
                }
            }
        } else {
            return Ok(options);
        };
        let same = std::mem::discriminant(&option);
        if options.iter().any(|other| std::mem::discriminant(other) == same) {
            let error = WireError::new(SqlState::SYNTAX_ERROR, "conflicting or redundant options");
            return Err(match position {
                Some(position) => error.at(position),
                None => error,
            });
        }
        options.push(option);
    }
}

/// After DROP.
pub(super) fn drop(cursor: &mut Cursor<'_>) -> Result<Kind, WireError> {
    let Some(what) = cursor.accept_one(&["table", "index", "sequence"]).and_then(RelationKind::of) else {
        return Err(refuse_object(cursor, "DROP"));
    };
    if what == RelationKind::Index {
        cursor.accept("concurrently");
    }
    let if_exists = cursor.accept_all(&["if", "exists"]);
    let names = cursor.commas(Cursor::qualified)?;
    let cascade = cursor.accept_one(&["cascade", "restrict"]) == Some("cascade");
    Ok(Kind::Drop(Drop { what, if_exists, names, cascade }))
}

/// After TRUNCATE.
pub(super) fn truncate(cursor: &mut Cursor<'_>) -> Result<Kind, WireError> {
    cursor.accept("table");
    let tables = cursor.commas(|cursor| {
        cursor.accept("only");
        let table = cursor.qualified()?;
        cursor.accept_symbol(&Token::Mul);
        Ok(table)
    })?;
    let restart_identity = cursor.accept_all(&["restart", "identity"]);
    if !restart_identity {
        cursor.accept_all(&["continue", "identity"]);
    }
    // Without foreign keys there is nothing to cascade to.
    cursor.accept_one(&["cascade", "restrict"]);
    Ok(Kind::Truncate { tables, restart_identity })
}

/// After ALTER.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Kind, WireError> {
    let mapping = cursor.is("user") && cursor.is_nth(1, "mapping");
    if !mapping && cursor.accept_one(&["role", "user"]).is_some() {
        return role::alter(cursor);
    }
    let Some(what) = cursor.accept_one(&["table", "index", "sequence"]).and_then(RelationKind::of) else {
        return Err(refuse_object(cursor, "ALTER"));
    };
    if cursor.is("all") {
        return Err(refused("ALTER .. ALL IN TABLESPACE", None));
    }
    let if_exists = cursor.accept_all(&["if", "exists"]);
    if what == RelationKind::Table {
        cursor.accept("only");
    }
    let name = cursor.qualified()?;
    if what == RelationKind::Table {
        cursor.accept_symbol(&Token::Mul);
    }
    if cursor.accept_all(&["rename", "to"]) {
        return Ok(Kind::Rename { what, if_exists, from: name, to: cursor.name()? });
    }
    if cursor.is("set") && cursor.is_nth(1, "schema") {
        return Err(refused("SET SCHEMA", Some("All tables are in the schema public.")));
    }
    if cursor.is("owner") {
        return Err(refused("OWNER TO", Some("Leave it out: every user may do everything.")));
    }
    match what {
        RelationKind::Sequence => {
            let options = sequence_options(cursor, true)?;
            if options.is_empty() {
                return Err(cursor.error());
            }
            Ok(Kind::AlterSequence { if_exists, name, options })
        }
        RelationKind::Index => Err(refused("this form of ALTER INDEX", None)),
        RelationKind::Table => {
            if cursor.accept("rename") {
                return rename_part(cursor)
                    .map(|action| Kind::AlterTable(AlterTable { if_exists, name, actions: vec![action] }));
            }
            let actions = cursor.commas(alter_action)?;
            Ok(Kind::AlterTable(AlterTable { if_exists, name, actions }))
        }
    }
}

/// `RENAME [COLUMN] a TO b` and `RENAME CONSTRAINT a TO b`, after the first word.
fn rename_part(cursor: &mut Cursor<'_>) -> Result<AlterAction, WireError> {
    if cursor.accept("constraint") {
        let from = cursor.name()?;
        cursor.expect("to")?;
        return Ok(AlterAction::RenameConstraint { from, to: cursor.name()? });
    }
    cursor.accept("column");
    let from = cursor.name()?;
    cursor.expect("to")?;
    Ok(AlterAction::RenameColumn { from, to: cursor.name()? })
}

fn alter_action(cursor: &mut Cursor<'_>) -> Result<AlterAction, WireError> {
    if cursor.accept("add") {
        if !cursor.is("column")
            && !cursor.is("if")
            && let Some(constraint) = table_constraint(cursor)?
        {
            return Ok(AlterAction::AddConstraint(constraint));
        }
        cursor.accept("column");
        let if_not_exists = cursor.accept_all(&["if", "not", "exists"]);
        return Ok(AlterAction::AddColumn { if_not_exists, column: column_definition(cursor)? });
    }
    if cursor.accept("drop") {
        let constraint = cursor.accept("constraint");
        if !constraint {
            cursor.accept("column");
        }
        let if_exists = cursor.accept_all(&["if", "exists"]);
        let name = cursor.name()?;
        let cascade = cursor.accept_one(&["cascade", "restrict"]) == Some("cascade");
        return Ok(if constraint {
            // Nothing depends on a constraint.
            AlterAction::DropConstraint { if_exists, name }
        } else {
            AlterAction::DropColumn { if_exists, name, cascade }
        });
    }
    if cursor.accept("alter") {
        if cursor.is("constraint") {
            return Err(refused("ALTER CONSTRAINT", None));
        }
        cursor.accept("column");
        let column = cursor.name()?;
        return alter_column(cursor, column);
    }
    if cursor.accept("set") {
        if cursor.is_symbol(&Token::LParen) {
            for parameter in storage_parameters(cursor)? {
                super::placement::check_physical(&parameter)?;
            }
            return Ok(AlterAction::Nothing);
        }
        return Err(refused("this form of ALTER TABLE .. SET", None));
    }
    if cursor.accept("reset") {
        for parameter in storage_parameters(cursor)? {
            super::placement::check_physical(&parameter)?;
        }
        return Ok(AlterAction::Nothing);
    }
    const REFUSED: &[(&str, &str)] = &[
        ("validate", "VALIDATE CONSTRAINT"),
        ("enable", "ENABLE"),
        ("disable", "DISABLE"),
        ("force", "FORCE ROW LEVEL SECURITY"),
        ("no", "this form of ALTER TABLE"),
        ("cluster", "CLUSTER ON"),
        ("inherit", "INHERIT"),
        ("attach", "ATTACH PARTITION"),
        ("detach", "DETACH PARTITION"),
        ("replica", "REPLICA IDENTITY"),
        ("of", "OF"),
        ("owner", "OWNER TO"),
    ];
    for (word, what) in REFUSED {
        if cursor.is(word) {
            return Err(refused(what, None));
        }
    }
    Err(cursor.error())
}

fn alter_column(cursor: &mut Cursor<'_>, column: Name) -> Result<AlterAction, WireError> {
    if cursor.accept_all(&["set", "default"]) {
        return Ok(AlterAction::SetDefault { column, value: cursor.expression()? });
    }
    if cursor.accept_all(&["drop", "default"]) {
        return Ok(AlterAction::DropDefault { column });
    }
    if cursor.accept_all(&["set", "not", "null"]) {
        return Ok(AlterAction::SetNotNull { column });
    }
    if cursor.accept_all(&["drop", "not", "null"]) {
        return Ok(AlterAction::DropNotNull { column });
    }
    if cursor.accept("type") || cursor.accept_all(&["set", "data", "type"]) {
        let (data_type, position) = cursor.data_type()?;
        if cursor.accept("collate") {
            collation(cursor)?;
        }
        if cursor.is("using") {
            return Err(refused(
                "ALTER COLUMN TYPE .. USING",
                Some("Add a column, UPDATE it, drop the old one."),
            ));
        }
        return Ok(AlterAction::SetType { column, ty: TypeName { data_type, position } });
    }
    if cursor.accept_all(&["set", "statistics"]) {
        cursor.integer()?;
        return Ok(AlterAction::Nothing);
    }
    if cursor.accept_all(&["set", "storage"]) || cursor.accept_all(&["set", "compression"]) {
        cursor.label()?;
        return Ok(AlterAction::Nothing);
    }
    for (words, what) in [
        (&["add", "generated"][..], "ADD GENERATED"),
        (&["drop", "identity"][..], "DROP IDENTITY"),
        (&["drop", "expression"][..], "DROP EXPRESSION"),
        (&["set", "generated"][..], "SET GENERATED"),
        (&["restart"][..], "RESTART"),
        (&["set"][..], "this form of ALTER COLUMN .. SET"),
        (&["reset"][..], "ALTER COLUMN .. RESET"),
    ] {
        if words.iter().enumerate().all(|(nth, word)| cursor.is_nth(nth, word)) {
            return Err(refused(what, None));
        }
    }
    Err(cursor.error())
}
