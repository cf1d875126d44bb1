//! Names: what they stand for, and those that PostgreSQL makes up.

use super::cursor::Qualified;
use crate::Context;
use crate::text::MAX_IDENTIFIER_BYTES;
use proto::catalog::{Catalog, Relation, Sequence, Table};
use proto::{SqlState, WireError};
use std::collections::HashSet;
use std::sync::Arc;

/// An error at a place.
pub(super) fn at(error: WireError, position: Option<u32>) -> WireError {
    match position {
        Some(position) => error.at(position),
        None => error,
    }
}

/// What a name stands for, in `public` or where it is written.
pub(super) enum Found {
    /// A relation of `public`.
    Relation(Relation),
    /// Nothing; the schema exists.
    Nothing,
    /// There is no such schema.
    NoSchema(String),
    /// It is one of PostgreSQL's own relations.
    System,
}

/// Looks a name up.
pub(super) fn find(context: &Context<'_>, name: &Qualified) -> Found {
    match name.schema.as_deref() {
        None | Some("public") => match context.catalog.resolve(&name.name) {
            Some(relation) => Found::Relation(relation),
            None if name.schema.is_none() && name.name.starts_with("pg_") => Found::Nothing,
            None => Found::Nothing,
        },
        Some("pg_catalog" | "information_schema") => Found::System,
        Some(schema) => Found::NoSchema(schema.to_owned()),
    }
}

pub(super) fn no_schema(schema: &str) -> WireError {
    WireError::new(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist"))
}

fn written(name: &Qualified) -> String {
    match &name.schema {
        Some(schema) => format!("{schema}.{}", name.name),
        None => name.name.clone(),
    }
}

/// 42P01 as most commands word it.
pub(super) fn undefined(name: &Qualified) -> WireError {
    let message = format!("relation \"{}\" does not exist", written(name));
    WireError::new(SqlState::UNDEFINED_TABLE, message)
}

fn system_catalog(name: &Qualified) -> WireError {
    let message = format!("permission denied: \"{}\" is a system catalog", name.name);
    WireError::new(SqlState::INSUFFICIENT_PRIVILEGE, message)
}

/// The table that a command is about.
pub(super) fn table<'a>(context: &Context<'a>, name: &Qualified) -> Result<&'a Arc<Table>, WireError> {
    match find(context, name) {
        Found::Relation(Relation::Table(id)) => {
            context.catalog.table(id).ok_or_else(|| WireError::internal("a name of no table"))
        }
        Found::Relation(Relation::Index(..) | Relation::Sequence(_)) => {
            let message = format!("\"{}\" is not a table", name.name);
            Err(WireError::new(SqlState::WRONG_OBJECT_TYPE, message))
        }
        Found::Nothing => Err(undefined(name)),
        Found::NoSchema(schema) => Err(no_schema(&schema)),
        Found::System => Err(system_catalog(name)),
    }
}

/// The sequence that a command is about.
pub(super) fn sequence<'a>(context: &Context<'a>, name: &Qualified) -> Result<&'a Arc<Sequence>, WireError> {
    match find(context, name) {
        Found::Relation(Relation::Sequence(id)) => {
            context.catalog.sequence(id).ok_or_else(|| WireError::internal("a name of no sequence"))
        }
        Found::Relation(Relation::Index(..) | Relation::Table(_)) => {
            let message = format!("\"{}\" is not a sequence", name.name);
            Err(WireError::new(SqlState::WRONG_OBJECT_TYPE, message))
        }
        Found::Nothing => Err(undefined(name)),
        Found::NoSchema(schema) => Err(no_schema(&schema)),
        Found::System => Err(system_catalog(name)),
    }
}

/// Makes sure that a new relation may have this name, if it isn't taken.
pub(super) fn creatable(name: &Qualified) -> Result<(), WireError> {
    match name.schema.as_deref() {
        None | Some("public") => Ok(()),
        Some(schema @ ("pg_catalog" | "information_schema")) => Err(WireError::new(
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("permission denied to create \"{schema}.{}\"", name.name),
        )
        .with_detail("System catalog modifications are currently disallowed.")),
        Some(schema) if schema.starts_with("pg_temp") => Err(WireError::unsupported("a temporary table")
            .with_hint("Use a table, and DROP it when it is done.")),
        Some(schema) => {
            Err(at(no_schema(schema), name.position).with_hint("All tables are in the schema public."))
        }
    }
}

/// 42P07.
pub(super) fn taken(name: &str) -> WireError {
    WireError::new(SqlState::DUPLICATE_TABLE, format!("relation \"{name}\" already exists"))
}

/// 42703 of a table that exists.
pub(super) fn no_column(table: &str, column: &str) -> WireError {
    WireError::new(
        SqlState::UNDEFINED_COLUMN,
        format!("column \"{column}\" of relation \"{table}\" does not exist"),
    )
}

/// Columns that every table has in PostgreSQL.
pub(super) fn check_column_name(name: &str) -> Result<(), WireError> {
    if ["tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"].contains(&name) {
        let message = format!("column name \"{name}\" conflicts with a system column name");
        return Err(WireError::new(SqlState::DUPLICATE_COLUMN, message));
    }
    Ok(())
}

/// Makes up names that are free (`ChooseRelationName` and `makeObjectName` of PostgreSQL).
pub(super) struct NewNames<'a> {
    catalog: &'a Catalog,
    relations: HashSet<String>,
    constraints: HashSet<String>,
}

impl<'a> NewNames<'a> {
    /// With everything taken that the catalog has.
    pub fn new(catalog: &'a Catalog) -> Self {
        let mut constraints = HashSet::new();
        for table in catalog.tables() {
            constraints.extend(table.checks.iter().map(|check| check.name.clone()));
            constraints.extend(table.primary_key_name.clone());
            constraints.extend(table.indexes.iter().filter(|i| i.constraint).map(|i| i.name.clone()));
        }
        NewNames { catalog, relations: HashSet::new(), constraints }
    }

    /// Takes a name for a relation; 42P07 if it isn't free.
    pub fn take_relation(&mut self, name: &str) -> Result<(), WireError> {
        if self.catalog.resolve(name).is_some() || !self.relations.insert(name.to_owned()) {
            return Err(taken(name));
        }
        Ok(())
    }

    /// Takes a constraint's name, which needs to be free within its table alone.
    pub fn take_constraint(&mut self, name: &str) {
        self.constraints.insert(name.to_owned());
    }

    fn choose(&self, first: &str, second: Option<&str>, label: &str, constraint: bool) -> String {
        let mut number = 0;
        loop {
            let label = if number == 0 { label.to_owned() } else { format!("{label}{number}") };
            let name = object_name(first, second, &label);
            let taken = self.catalog.resolve(&name).is_some()
                || self.relations.contains(&name)
                || constraint && self.constraints.contains(&name);
            if !taken {
                return name;
            }
            number += 1;
        }
    }

    /// A name for an index or sequence.
    pub fn relation(&mut self, table: &str, column: Option<&str>, label: &str) -> String {
        let name = self.choose(table, column, label, false);
        self.relations.insert(name.clone());
        name
    }

    /// A name for a constraint that has an index.
    pub fn key(&mut self, table: &str, column: Option<&str>, label: &str) -> String {
        let name = self.choose(table, column, label, true);
        self.relations.insert(name.clone());
        self.constraints.insert(name.clone());
        name
    }

    /// A name for a CHECK constraint.
    pub fn check(&mut self, table: &str, column: Option<&str>) -> String {
        let mut number = 0;
        loop {
            let label = if number == 0 { "check".to_owned() } else { format!("check{number}") };
            let name = object_name(table, column, &label);
            if self.constraints.insert(name.clone()) {
                return name;
            }
            number += 1;
        }
    }
}

/// The columns' part of an index's name.
pub(super) fn joined<'a>(columns: impl IntoIterator<Item = &'a str>) -> String {
    let mut name = String::new();
    for column in columns {
        if !name.is_empty() {
            name.push('_');
        }
        name.push_str(column);
        if name.len() > MAX_IDENTIFIER_BYTES {
            break;
        }
    }
    cut(&name, MAX_IDENTIFIER_BYTES).to_owned()
}

fn cut(name: &str, mut length: usize) -> &str {
    if name.len() <= length {
        return name;
    }
    while !name.is_char_boundary(length) {
        length -= 1;
    }
    &name[..length]
}

fn object_name(first: &str, second: Option<&str>, label: &str) -> String {
    let (mut first_bytes, mut second_bytes) = (first.len(), second.map_or(0, str::len));
    let overhead = usize::from(second.is_some()) + 1 + label.len();
    while first_bytes + second_bytes + overhead > MAX_IDENTIFIER_BYTES {
        if first_bytes > second_bytes {
            first_bytes -= 1;
        } else {
            second_bytes -= 1;
        }
    }
    let first = cut(first, first_bytes);
    match second {
        Some(second) => format!("{first}_{}_{label}", cut(second, second_bytes)),
        None => format!("{first}_{label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_postgresqls() {
        assert_eq!(object_name("t", Some("a"), "key"), "t_a_key");
        assert_eq!(object_name("t", None, "pkey"), "t_pkey");
        let long = "x".repeat(60);
        // From PostgreSQL 15: CREATE TABLE xxx.. (yyy.. int UNIQUE), 60 letters each.
        let name = object_name(&long, Some(&"y".repeat(60)), "key");
        assert_eq!(name.len(), 63);
        assert_eq!(name, format!("{}_{}_key", "x".repeat(29), "y".repeat(29)));
        assert_eq!(joined(["a", "b"]), "a_b");
    }

    #[test]
    fn taken_names_are_numbered() {
        let catalog = Catalog::default();
        let mut names = NewNames::new(&catalog);
        assert_eq!(names.key("t", Some("a"), "key"), "t_a_key");
        assert_eq!(names.key("t", Some("a"), "key"), "t_a_key1");
        assert_eq!(names.check("t", None), "t_check");
        assert_eq!(names.check("t", None), "t_check1");
    }
}
