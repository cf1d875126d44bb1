//! Rows that are the same in every cluster, taken from PostgreSQL 15 in COPY's text format.

use super::Relation;
use dialect::Type;
use proto::Value;

/// Types that Shoal has.
pub(super) const PG_TYPE: &str = include_str!("pg_type.tsv");
/// Access methods that Shoal has.
pub(super) const PG_AM: &str = include_str!("pg_am.tsv");
/// Collations: those that compare by bytes.
pub(super) const PG_COLLATION: &str = include_str!("pg_collation.tsv");

/// The rows of such a text.
pub(super) fn rows(relation: &Relation, text: &str) -> Vec<Vec<Value>> {
    text.lines()
        .map(|line| {
            relation.columns.iter().zip(line.split('\t')).map(|((_, ty), field)| value(*ty, field)).collect()
        })
        .collect()
}

fn value(ty: Type, field: &str) -> Value {
    if field == "\\N" {
        return Value::Null;
    }
    match ty {
        Type::Bool => Value::Int(i64::from(field == "t")),
        Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid | Type::Regclass => {
            field.parse().map_or(Value::Null, Value::Int)
        }
        Type::Float4 | Type::Float8 => field.parse().map_or(Value::Null, Value::Real),
        _ => Value::Text(field.to_owned()),
    }
}
