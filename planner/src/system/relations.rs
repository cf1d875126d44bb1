//! The relations of `pg_catalog` and `information_schema` that Shoal has, as PostgreSQL 15 declares them.
//!
//! Columns of types that Shoal lacks have one that shows alike: `xid` an `oid`, `regproc`, `regtype`, `pg_lsn`,
//! `int2vector`, `oidvector` and `pg_node_tree` a `text`.

mod absent;
mod information_schema;
mod own;
mod pg_catalog;

use super::Relation;

/// Every relation.
pub(super) fn all() -> impl Iterator<Item = &'static Relation> {
    let rooms = [pg_catalog::RELATIONS, absent::RELATIONS, information_schema::RELATIONS, own::RELATIONS];
    rooms.into_iter().flatten()
}
