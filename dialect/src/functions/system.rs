//! Functions that tell about the session and the catalog, as far as they need no catalog: psql and drivers ask them.
//!
//! What takes a relation's contents (`pg_get_indexdef`, `to_regclass`) is the planner's.

use super::{Arg::Is, Emit, Function, Volatility};
use crate::types::{Element, Type, Type::*};

/// All of them.
pub(super) static TABLE: &[Function] = &[
    Function { volatility: Volatility::Volatile, ..router("gen_random_uuid", Uuid) },
    router("current_user", Name),
    router("session_user", Name),
    router("current_role", Name),
    router("user", Name),
    router("current_database", Name),
    router("current_catalog", Name),
    router("pg_backend_pid", Int4),
    Function::new("current_schema", &[], Name, "'public'").stable(),
    Function::new("current_schemas", &[Is(Bool)], Array(Element::Name), "pg_search_path({0})").stable(),
    Function::new("version", &[], Text, concat!("'PostgreSQL 15.0 (Shoal ", env!("CARGO_PKG_VERSION"), ")'"))
        .stable(),
    Function::new("pg_is_in_recovery", &[], Bool, "0").stable(),
    Function::new("format_type", &[Is(Oid), Is(Int4)], Text, "pg_format_type({0}, {1})")
        .called_on_null()
        .stable(),
    // Every relation and type is in public or pg_catalog, and both are on the search path.
    Function::new("pg_table_is_visible", &[Is(Oid)], Bool, "({0} IS NOT NULL OR NULL)").stable(),
    Function::new("pg_type_is_visible", &[Is(Oid)], Bool, "({0} IS NOT NULL OR NULL)").stable(),
    Function::new("pg_function_is_visible", &[Is(Oid)], Bool, "({0} IS NOT NULL OR NULL)").stable(),
    // The catalog shows expressions as text in the first place.
    Function::new("pg_get_expr", &[Is(Text), Is(Oid)], Text, "{0}").stable(),
    Function::new("pg_get_expr", &[Is(Text), Is(Oid), Is(Bool)], Text, "{0}").stable(),
    Function::new("pg_get_userbyid", &[Is(Oid)], Name, "pg_userbyid({0})").stable(),
    Function::new("pg_encoding_to_char", &[Is(Int4)], Name, "pg_encoding_name({0})").stable(),
    // There is no COMMENT.
    Function::new("obj_description", &[Is(Oid), Is(Name)], Text, "CAST(NULL AS TEXT)").stable(),
    Function::new("obj_description", &[Is(Oid)], Text, "CAST(NULL AS TEXT)").stable(),
    Function::new("col_description", &[Is(Oid), Is(Int4)], Text, "CAST(NULL AS TEXT)").stable(),
    Function::new("shobj_description", &[Is(Oid), Is(Name)], Text, "CAST(NULL AS TEXT)").stable(),
    // There are no publications; a table could be in one.
    Function::new("pg_relation_is_publishable", &[Is(Regclass)], Bool, "({0} IS NOT NULL OR NULL)").stable(),
];

const fn router(name: &'static str, result: Type) -> Function {
    Function {
        volatility: Volatility::Stable,
        emit: Emit::Router(name),
        ..Function::new(name, &[], result, "")
    }
}
