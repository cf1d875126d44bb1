//! COPY.

use super::insert::Filler;
use super::select::all_columns;
use super::tree::{Query, RelId};
use super::{Binder, error};
use crate::plan::CopyFormat;
use crate::utility::{Columns, Copied, Copy, Name, Qualified};
use dialect::types::Typed;
use proto::catalog::Table;
use proto::{SqlState, WireError};
use sqlparser::ast;
use std::sync::Arc;

/// A COPY, bound.
pub(crate) enum BoundCopy {
    /// FROM STDIN: the table, its input's columns, and what each column of a row is filled with.
    In {
        table: Arc<Table>,
        rel: RelId,
        columns: Vec<(String, Typed)>,
        fillers: Vec<Filler>,
        format: CopyFormat,
    },
    /// TO STDOUT.
    Out { query: Box<Query>, format: CopyFormat },
}

impl<'a> Binder<'a> {
    fn table_named(&self, name: &Qualified) -> Result<&'a Arc<Table>, WireError> {
        let Qualified { schema, name, position } = name;
        let parts = schema.iter().chain([name]).map(|part| ast::Ident::new(part.clone())).collect::<Vec<_>>();
        self.table(&ast::ObjectName::from(parts)).map_err(|error| match position {
            Some(position) if error.position.is_none() => error.at(*position),
            _ => error,
        })
    }

    pub(crate) fn copy(&mut self, copy: &Copy) -> Result<BoundCopy, WireError> {
        let Copy { what, from, format, force_quote, force_not_null, force_null, condition } = copy;
        if condition.is_some() {
            return Err(WireError::unsupported("COPY .. WHERE"));
        }
        if !force_not_null.is_empty() || !force_null.is_empty() {
            return Err(WireError::unsupported("FORCE_NULL and FORCE_NOT_NULL"));
        }
        let mut format = format.clone();
        match what {
            Copied::Table(name, columns) => {
                let table = self.table_named(name)?;
                let rel = self.new_relation();
                let idents: Vec<ast::Ident> =
                    columns.iter().map(|c| ast::Ident::new(c.value.clone())).collect();
                let idents: Vec<&ast::Ident> = idents.iter().collect();
                let targets = if idents.is_empty() {
                    let (named, _) = self.table_columns(rel, table)?;
                    named.iter().map(|c| (c.column as usize, c.ty)).collect()
                } else {
                    self.column_list(table, &idents)?
                };
                let shown: Vec<(String, Typed)> =
                    targets.iter().map(|(place, ty)| (table.columns[*place].name.clone(), *ty)).collect();
                if !*from {
                    let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
                    format.force_quote = forced(force_quote, &names)?;
                    let query = all_columns(self, table, rel, &targets)?;
                    return Ok(BoundCopy::Out { query: Box::new(query), format });
                }
                let mut fillers: Vec<Filler> = Vec::with_capacity(table.columns.len());
                for place in 0..table.columns.len() {
                    fillers.push(match targets.iter().position(|(target, _)| *target == place) {
                        Some(input) => Filler::Input(input),
                        None => Filler::Default(self.default_value(table, place)?),
                    });
                }
                let table = Arc::clone(table);
                Ok(BoundCopy::In { table, rel, columns: shown, fillers, format })
            }
            Copied::Query(tree) => {
                let ast::Statement::Query(query) = &**tree else {
                    return Err(WireError::unsupported("COPY of a writing statement"));
                };
                let mut query = self.query(query, None, None)?;
                self.settle_query(&mut query)?;
                let names: Vec<&str> = query.columns.iter().map(|c| c.name.as_str()).collect();
                format.force_quote = forced(force_quote, &names)?;
                Ok(BoundCopy::Out { query: Box::new(query), format })
            }
        }
    }
}

/// The places of FORCE_QUOTE's columns.
fn forced(columns: &Columns, names: &[&str]) -> Result<Vec<usize>, WireError> {
    let Columns::Some(columns) = columns else { return Ok((0..names.len()).collect()) };
    let mut places = Vec::with_capacity(columns.len());
    for Name { value, position } in columns {
        let place = names.iter().position(|name| name == value).ok_or_else(|| {
            let missing = error(SqlState::UNDEFINED_COLUMN, format!("column \"{value}\" does not exist"));
            match position {
                Some(position) => missing.at(*position),
                None => missing,
            }
        })?;
        places.push(place);
    }
    Ok(places)
}
