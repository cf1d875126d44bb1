//! What catalog queries call and needs no catalog: types' names, encodings, the bootstrap role.

use super::strings::quote_ident;
use super::{Answer, Body::*, Native, int};
use proto::{Value, ValueRef};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_format_type", body: Loose(2, format_type) },
    Native { name: "pg_userbyid", body: Strict(1, user_by_id) },
    Native { name: "pg_search_path", body: Strict(1, search_path) },
    Native { name: "pg_encoding_name", body: Strict(1, encoding_name) },
];

/// Types by oid, as `format_type` names them without a modifier. More than Shoal has: catalog rows may show them.
const NAMES: &[(i64, &str)] = &[
    (16, "boolean"),
    (17, "bytea"),
    (18, "\"char\""),
    (19, "name"),
    (20, "bigint"),
    (21, "smallint"),
    (23, "integer"),
    (24, "regproc"),
    (25, "text"),
    (26, "oid"),
    (27, "tid"),
    (28, "xid"),
    (29, "cid"),
    (114, "json"),
    (142, "xml"),
    (194, "pg_node_tree"),
    (700, "real"),
    (701, "double precision"),
    (705, "unknown"),
    (790, "money"),
    (869, "inet"),
    (1033, "aclitem"),
    (1042, "character"),
    (1043, "character varying"),
    (1082, "date"),
    (1083, "time without time zone"),
    (1114, "timestamp without time zone"),
    (1184, "timestamp with time zone"),
    (1186, "interval"),
    (1266, "time with time zone"),
    (1560, "bit"),
    (1562, "bit varying"),
    (1700, "numeric"),
    (2205, "regclass"),
    (2206, "regtype"),
    (2249, "record"),
    (2278, "void"),
    (2950, "uuid"),
    (3802, "jsonb"),
    (1000, "boolean[]"),
    (1001, "bytea[]"),
    (1002, "\"char\"[]"),
    (1003, "name[]"),
    (1005, "smallint[]"),
    (1007, "integer[]"),
    (1009, "text[]"),
    (1014, "character[]"),
    (1015, "character varying[]"),
    (1016, "bigint[]"),
    (1021, "real[]"),
    (1022, "double precision[]"),
    (1028, "oid[]"),
    (1034, "aclitem[]"),
    (1115, "timestamp without time zone[]"),
    (1182, "date[]"),
    (1185, "timestamp with time zone[]"),
    (1231, "numeric[]"),
    (2951, "uuid[]"),
];

fn format_type(args: &[ValueRef<'_>]) -> Answer<Value> {
    if args[0].is_null() {
        return Ok(Value::Null);
    }
    let oid = int(args[0])?;
    if oid == 0 {
        return Ok(Value::Text("-".into()));
    }
    let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == oid) else {
        return Ok(Value::Text("???".into()));
    };
    let modifier = if args[1].is_null() { None } else { Some(int(args[1])?) };
    let (base, array) = name.strip_suffix("[]").map_or((*name, ""), |base| (base, "[]"));
    let Some(modifier) = modifier.filter(|m| *m >= 0) else {
        // With a modifier given, even none: `bpchar`, for `character` alone would mean character(1).
        let bare = if base == "character" && modifier.is_some() { "bpchar" } else { base };
        return Ok(Value::Text(format!("{bare}{array}")));
    };
    Ok(Value::Text(match base {
        "character" | "character varying" if modifier > 4 => format!("{base}({}){array}", modifier - 4),
        "numeric" if modifier > 4 => {
            let packed = modifier - 4;
            let scale = (((packed & 0x7ff) ^ 1024) - 1024) as i32;
            format!("numeric({},{scale}){array}", packed >> 16 & 0xffff)
        }
        "bit" | "bit varying" => format!("{base}({modifier}){array}"),
        _ => match base.split_once(' ') {
            Some((time @ ("time" | "timestamp"), zone)) => format!("{time}({modifier}) {zone}{array}"),
            _ => format!("{base}{array}"),
        },
    }))
}

/// The only role that owns things.
fn user_by_id(args: &[ValueRef<'_>]) -> Answer<Value> {
    Ok(Value::Text(match int(args[0])? {
        10 => quote_ident("shoal").into_owned(),
        oid => format!("unknown (OID={oid})"),
    }))
}

fn encoding_name(args: &[ValueRef<'_>]) -> Answer<Value> {
    Ok(Value::Text(match int(args[0])? {
        0 => "SQL_ASCII".into(),
        6 => "UTF8".into(),
        _ => String::new(),
    }))
}

/// `current_schemas`: with what is searched without being named, or without.
fn search_path(args: &[ValueRef<'_>]) -> Answer<Value> {
    let path = if int(args[0])? != 0 { "{pg_catalog,public}" } else { "{public}" };
    Ok(Value::Text(path.into()))
}
