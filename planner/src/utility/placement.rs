//! Where a table's rows live: PARTITION BY, WITH (..), and the rule for tables that say nothing.

use super::command::{PartitionBy, StorageParameter};
use super::names::at;
use crate::Context;
use crate::plan::Notice;
use proto::catalog::{Placement, Table};
use proto::topology::{Keyspace, Sharding};
use proto::{ColumnId, KeyspaceNumber, SqlState, WireError};

/// The keyspace of tables that say nothing.
const MAIN: &str = "main";
/// The keyspace of tables that are kept whole.
const SINGLE: &str = "single";

/// PostgreSQL's storage parameters: how it would lay bytes out and clean up after itself. Nothing here needs them.
pub(super) fn check_physical(parameter: &StorageParameter) -> Result<(), WireError> {
    let name = parameter.name.strip_prefix("toast.").unwrap_or(&parameter.name);
    let known = name.starts_with("autovacuum_")
        || matches!(
            name,
            "fillfactor"
                | "toast_tuple_target"
                | "parallel_workers"
                | "vacuum_index_cleanup"
                | "vacuum_truncate"
                | "log_autovacuum_min_duration"
                | "user_catalog_table"
                | "oids"
        );
    if !known {
        let message = format!("unrecognized parameter \"{}\"", parameter.name);
        return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    if name == "oids" && parameter.value.as_deref() != Some("false") {
        return Err(WireError::unsupported("a table with OIDs"));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn keyspace<'a>(context: &Context<'a>, name: &str) -> Result<&'a Keyspace, WireError> {
    context.topology.keyspace_named(name).ok_or_else(|| {
        let names: Vec<_> = context.topology.keyspaces.values().map(|k| k.name.as_str()).collect();
        WireError::new(SqlState::UNDEFINED_OBJECT, format!("keyspace \"{name}\" does not exist"))
            .with_hint(format!("There are: {}. shoal keyspace create makes another.", names.join(", ")))
    })
}

/// What CREATE TABLE says of the placement.
#[derive(Debug)]
pub(super) struct Wish<'c> {
    keyspace: Option<&'c str>,
    placement: Option<&'c str>,
}

/// Reads WITH (..).
pub(super) fn wish(parameters: &[StorageParameter]) -> Result<Wish<'_>, WireError> {
    let mut wish = Wish { keyspace: None, placement: None };
    for (i, parameter) in parameters.iter().enumerate() {
        if parameters[..i].iter().any(|other| other.name == parameter.name) {
            let message = format!("parameter \"{}\" specified more than once", parameter.name);
            return Err(WireError::new(SqlState::SYNTAX_ERROR, message));
        }
        let slot = match parameter.name.as_str() {
            "keyspace" => &mut wish.keyspace,
            "placement" => &mut wish.placement,
            _ => {
                check_physical(parameter)?;
                continue;
            }
        };
        let value = parameter.value.as_deref();
        *slot =
            Some(value.ok_or_else(|| invalid(format!("parameter \"{}\" needs a value", parameter.name)))?);
    }
    if let Some(placement) = wish.placement
        && !["reference", "single"].contains(&placement)
    {
        return Err(invalid(format!("invalid value for parameter \"placement\": \"{placement}\""))
            .with_hint(
                "It is 'reference' or 'single'. PARTITION BY HASH or RANGE spreads rows over shards.",
            ));
    }
    Ok(wish)
}

/// Decides where a new table's rows live. The table is complete but for this.
pub(super) fn place(
    context: &Context<'_>,
    table: &Table,
    partition: Option<&PartitionBy>,
    wish: &Wish<'_>,
    notices: &mut Vec<Notice>,
) -> Result<Placement, WireError> {
    match (partition, wish.placement) {
        (Some(_), Some(placement)) => {
            Err(invalid(format!("PARTITION BY and placement = '{placement}' exclude each other")))
        }
        (None, Some("reference")) => match wish.keyspace {
            Some(_) => {
                Err(invalid("a reference table is in every keyspace").with_hint("Leave keyspace out."))
            }
            None => Ok(Placement::Reference),
        },
        (None, Some(_)) => {
            let keyspace = keyspace(context, wish.keyspace.unwrap_or(SINGLE))?;
            expect_sharding(keyspace, Sharding::Single, "placement = 'single'")?;
            Ok(Placement::Single { keyspace: keyspace.number })
        }
        (Some(partition), None) => {
            let key = partition_key(table, partition)?;
            let placement = if partition.range {
                match wish.keyspace {
                    // The coordinator makes one.
                    None => Placement::Sharded { keyspace: KeyspaceNumber(0), key },
                    Some(name) => {
                        let keyspace = keyspace(context, name)?;
                        expect_sharding(keyspace, Sharding::Range, "PARTITION BY RANGE")?;
                        Placement::Sharded { keyspace: keyspace.number, key }
                    }
                }
            } else {
                let keyspace = keyspace(context, wish.keyspace.unwrap_or(MAIN))?;
                expect_sharding(keyspace, Sharding::Hash, "PARTITION BY HASH")?;
                Placement::Sharded { keyspace: keyspace.number, key }
            };
            match unenforceable(table, &placement) {
                Some(lacking) => Err(lacking.error(table)),
                None => Ok(placement),
            }
        }
        (None, None) => {
            let keyspace = keyspace(context, wish.keyspace.unwrap_or(MAIN))?;
            match keyspace.sharding {
                Sharding::Hash => by_default(context, table, keyspace.number, notices),
                Sharding::Single => Ok(Placement::Single { keyspace: keyspace.number }),
                Sharding::Range => Err(invalid(format!("keyspace \"{}\" is of kind range", keyspace.name))
                    .with_hint("Add PARTITION BY RANGE (column).")),
            }
        }
    }
}

fn expect_sharding(keyspace: &Keyspace, sharding: Sharding, clause: &str) -> Result<(), WireError> {
    if keyspace.sharding == sharding {
        return Ok(());
    }
    Err(invalid(format!(
        "keyspace \"{}\" is of kind {}, and {clause} needs one of kind {sharding}",
        keyspace.name, keyspace.sharding
    )))
}

fn partition_key(table: &Table, partition: &PartitionBy) -> Result<Vec<ColumnId>, WireError> {
    if partition.columns.len() > 32 {
        let message = "cannot partition using more than 32 columns";
        return Err(WireError::new(SqlState::INVALID_OBJECT_DEFINITION, message));
    }
    let mut key = Vec::with_capacity(partition.columns.len());
    for name in &partition.columns {
        let column = table.column_named(&name.value).ok_or_else(|| {
            let message = format!("column \"{}\" named in partition key does not exist", name.value);
            at(WireError::new(SqlState::UNDEFINED_COLUMN, message), name.position)
        })?;
        if key.contains(&column.id) {
            let message = format!("column \"{}\" appears twice in the partition key", name.value);
            return Err(at(WireError::new(SqlState::DUPLICATE_COLUMN, message), name.position));
        }
        key.push(column.id);
    }
    Ok(key)
}

/// By the hash of the first primary-key column, or whole where a constraint couldn't be enforced that way.
pub(super) fn by_default(
    context: &Context<'_>,
    table: &Table,
    main: KeyspaceNumber,
    notices: &mut Vec<Notice>,
) -> Result<Placement, WireError> {
    let key = table.primary_key.first().copied().into_iter().collect();
    let sharded = Placement::Sharded { keyspace: main, key };
    let Some(lacking) = unenforceable(table, &sharded) else { return Ok(sharded) };
    let why = match table.column(lacking.column).filter(|column| column.id != ColumnId::HIDDEN_KEY) {
        Some(column) => {
            format!("its {} lacks column \"{}\", by which rows would be spread", lacking.what(), column.name)
        }
        None => format!("it has no primary key to spread rows by, and a {}", lacking.what()),
    };
    notices.push(Notice {
        severity: "NOTICE",
        sqlstate: SqlState::SUCCESSFUL_COMPLETION,
        message: format!("table \"{}\" is kept whole on one shard: {why}", table.name),
        hint: Some(
            "PARTITION BY HASH (column) with a column of every unique constraint spreads it over the shards; \
             WITH (placement = 'single') chooses this without a notice."
                .to_owned(),
        ),
    });
    Ok(Placement::Single { keyspace: keyspace(context, SINGLE)?.number })
}

/// A key that no shard could enforce by itself.
pub(super) struct Lacking {
    /// `None` for the primary key.
    index: Option<(String, bool)>,
    primary_key: Option<String>,
    /// The column of the shard key that it lacks.
    column: ColumnId,
}

impl Lacking {
    fn what(&self) -> String {
        match (&self.index, &self.primary_key) {
            (Some((name, true)), _) => format!("unique constraint \"{name}\""),
            (Some((name, false)), _) => format!("unique index \"{name}\""),
            (None, Some(name)) => format!("primary key \"{name}\""),
            (None, None) => "primary key".to_owned(),
        }
    }

    /// PostgreSQL's error for partitioned tables.
    pub fn error(&self, table: &Table) -> WireError {
        let kind = match &self.index {
            None => "PRIMARY KEY",
            Some((_, true)) => "UNIQUE",
            Some((_, false)) => "UNIQUE",
        };
        let column = table.column(self.column).map_or("", |column| &column.name);
        WireError::new(
            SqlState::FEATURE_NOT_SUPPORTED,
            "unique constraint on partitioned table must include all partitioning columns",
        )
        .with_detail(format!(
            "{kind} constraint on table \"{}\" lacks column \"{column}\" which is part of the partition key.",
            table.name
        ))
        .with_hint(
            "Add the column to the constraint, or keep the table whole with WITH (placement = 'single').",
        )
    }
}

/// The first key of a table that no shard could enforce by itself, rows being placed like this.
pub(super) fn unenforceable(table: &Table, placement: &Placement) -> Option<Lacking> {
    let Placement::Sharded { keyspace: _, key } = placement else { return None };
    let lacks = |columns: &mut dyn Iterator<Item = ColumnId>| {
        let columns: Vec<_> = columns.collect();
        key.iter().copied().find(|column| !columns.contains(column))
    };
    if !table.has_hidden_key()
        && let Some(column) = lacks(&mut table.primary_key.iter().copied())
    {
        return Some(Lacking { index: None, primary_key: table.primary_key_name.clone(), column });
    }
    table.indexes.iter().filter(|index| index.unique).find_map(|index| {
        let column = lacks(&mut index.columns.iter().map(|c| c.column))?;
        Some(Lacking { index: Some((index.name.clone(), index.constraint)), primary_key: None, column })
    })
}

/// Whether a table's placement was chosen for it, as far as the descriptor shows: nobody can ask for rows to be
/// spread by the hidden key.
pub(super) fn is_default(table: &Table) -> bool {
    matches!(&table.placement, Placement::Sharded { keyspace: _, key } if key[..] == [ColumnId::HIDDEN_KEY])
}
