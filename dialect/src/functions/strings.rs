//! Functions over text and bytes.

use super::{Arg, Arg::Is, Function};
use crate::types::{Element, Type::*};

/// All of them.
pub(super) static TABLE: &[Function] = &[
    Function::new("length", &[Is(Text)], Int4, "length({0})"),
    Function::new("length", &[Is(Bpchar)], Int4, "length({0})"),
    Function::new("length", &[Is(Bytea)], Int4, "length({0})"),
    Function::new("char_length", &[Is(Text)], Int4, "length({0})"),
    Function::new("char_length", &[Is(Bpchar)], Int4, "length({0})"),
    Function::new("character_length", &[Is(Text)], Int4, "length({0})"),
    Function::new("character_length", &[Is(Bpchar)], Int4, "length({0})"),
    Function::new("octet_length", &[Is(Text)], Int4, "octet_length({0})"),
    Function::new("octet_length", &[Is(Bytea)], Int4, "octet_length({0})"),
    // It counts the padding, which isn't stored.
    Function::refused("octet_length", &[Is(Bpchar)]),
    Function::new("bit_length", &[Is(Text)], Int4, "pg_int4(octet_length({0}) * 8)"),
    Function::new("bit_length", &[Is(Bytea)], Int4, "pg_int4(octet_length({0}) * 8)"),
    Function::new("lower", &[Is(Text)], Text, "pg_lower({0})"),
    Function::new("upper", &[Is(Text)], Text, "pg_upper({0})"),
    Function::new("initcap", &[Is(Text)], Text, "pg_initcap({0})"),
    Function::new("reverse", &[Is(Text)], Text, "pg_reverse({0})"),
    Function::new("substr", &[Is(Text), Is(Int4)], Text, "pg_substr({0}, {1})"),
    Function::new("substr", &[Is(Text), Is(Int4), Is(Int4)], Text, "pg_substr({0}, {1}, {2})"),
    Function::new("substr", &[Is(Bytea), Is(Int4)], Bytea, "pg_bytes_substr({0}, {1})"),
    Function::new("substr", &[Is(Bytea), Is(Int4), Is(Int4)], Bytea, "pg_bytes_substr({0}, {1}, {2})"),
    Function::new("substring", &[Is(Text), Is(Int4)], Text, "pg_substr({0}, {1})"),
    Function::new("substring", &[Is(Text), Is(Int4), Is(Int4)], Text, "pg_substr({0}, {1}, {2})"),
    Function::new("substring", &[Is(Bytea), Is(Int4)], Bytea, "pg_bytes_substr({0}, {1})"),
    Function::new("substring", &[Is(Bytea), Is(Int4), Is(Int4)], Bytea, "pg_bytes_substr({0}, {1}, {2})"),
    Function::refused("substring", &[Is(Text), Is(Text)]),
    Function::refused("substring", &[Is(Text), Is(Text), Is(Text)]),
    Function::new("left", &[Is(Text), Is(Int4)], Text, "pg_left({0}, {1})"),
    Function::new("right", &[Is(Text), Is(Int4)], Text, "pg_right({0}, {1})"),
    Function::new("btrim", &[Is(Text)], Text, "trim({0}, ' ')"),
    Function::new("btrim", &[Is(Text), Is(Text)], Text, "pg_btrim({0}, {1})"),
    Function::new("btrim", &[Is(Bytea), Is(Bytea)], Bytea, "pg_bytes_btrim({0}, {1})"),
    Function::new("ltrim", &[Is(Text)], Text, "ltrim({0}, ' ')"),
    Function::new("ltrim", &[Is(Text), Is(Text)], Text, "pg_ltrim({0}, {1})"),
    Function::new("ltrim", &[Is(Bytea), Is(Bytea)], Bytea, "pg_bytes_ltrim({0}, {1})"),
    Function::new("rtrim", &[Is(Text)], Text, "rtrim({0}, ' ')"),
    Function::new("rtrim", &[Is(Text), Is(Text)], Text, "pg_rtrim({0}, {1})"),
    Function::new("rtrim", &[Is(Bytea), Is(Bytea)], Bytea, "pg_bytes_rtrim({0}, {1})"),
    Function::new("lpad", &[Is(Text), Is(Int4)], Text, "pg_lpad({0}, {1}, ' ')"),
    Function::new("lpad", &[Is(Text), Is(Int4), Is(Text)], Text, "pg_lpad({0}, {1}, {2})"),
    Function::new("rpad", &[Is(Text), Is(Int4)], Text, "pg_rpad({0}, {1}, ' ')"),
    Function::new("rpad", &[Is(Text), Is(Int4), Is(Text)], Text, "pg_rpad({0}, {1}, {2})"),
    Function::new("repeat", &[Is(Text), Is(Int4)], Text, "pg_repeat({0}, {1})"),
    Function::new("replace", &[Is(Text), Is(Text), Is(Text)], Text, "pg_replace({0}, {1}, {2})"),
    Function::new("translate", &[Is(Text), Is(Text), Is(Text)], Text, "pg_translate({0}, {1}, {2})"),
    Function::new("overlay", &[Is(Text), Is(Text), Is(Int4)], Text, "pg_overlay({0}, {1}, {2})"),
    Function::new(
        "overlay",
        &[Is(Text), Is(Text), Is(Int4), Is(Int4)],
        Text,
        "pg_overlay({0}, {1}, {2}, {3})",
    ),
    Function::new("overlay", &[Is(Bytea), Is(Bytea), Is(Int4)], Bytea, "pg_bytes_overlay({0}, {1}, {2})"),
    Function::new(
        "overlay",
        &[Is(Bytea), Is(Bytea), Is(Int4), Is(Int4)],
        Bytea,
        "pg_bytes_overlay({0}, {1}, {2}, {3})",
    ),
    // POSITION(part IN string) is position(string, part).
    Function::new("position", &[Is(Text), Is(Text)], Int4, "pg_strpos({0}, {1})"),
    Function::new("position", &[Is(Bytea), Is(Bytea)], Int4, "pg_bytes_position({0}, {1})"),
    Function::new("strpos", &[Is(Text), Is(Text)], Int4, "pg_strpos({0}, {1})"),
    Function::new("starts_with", &[Is(Text), Is(Text)], Bool, "pg_starts_with({0}, {1})"),
    Function::new("split_part", &[Is(Text), Is(Text), Is(Int4)], Text, "pg_split_part({0}, {1}, {2})"),
    Function::new("ascii", &[Is(Text)], Int4, "pg_ascii({0})"),
    Function::new("chr", &[Is(Int4)], Text, "pg_chr({0})"),
    Function::new("concat", &[Arg::Any], Text, "pg_concat({*})").variadic().called_on_null().stable(),
    Function::new("concat_ws", &[Is(Text), Arg::Any], Text, "pg_concat_ws({*})")
        .variadic()
        .called_on_null()
        .stable(),
    Function::new("format", &[Is(Text)], Text, "pg_format({0})").called_on_null().stable(),
    Function::new("format", &[Is(Text), Arg::Any], Text, "pg_format({*})")
        .variadic()
        .called_on_null()
        .stable(),
    Function::new("quote_ident", &[Is(Text)], Text, "pg_quote_ident({0})"),
    Function::new("quote_literal", &[Is(Text)], Text, "pg_quote_literal({0})"),
    Function::new("quote_literal", &[Arg::AnyElement], Text, "pg_quote_literal({0})").stable(),
    Function::new("quote_nullable", &[Is(Text)], Text, "pg_quote_nullable({0})").called_on_null(),
    Function::new("quote_nullable", &[Arg::AnyElement], Text, "pg_quote_nullable({0})")
        .called_on_null()
        .stable(),
    Function::new("to_hex", &[Is(Int4)], Text, "pg_int4_hex({0})"),
    Function::new("to_hex", &[Is(Int8)], Text, "pg_int8_hex({0})"),
    Function::new("encode", &[Is(Bytea), Is(Text)], Text, "pg_encode({0}, {1})"),
    Function::new("decode", &[Is(Text), Is(Text)], Bytea, "pg_decode({0}, {1})"),
    Function::new("convert_from", &[Is(Bytea), Is(Name)], Text, "pg_convert_from({0}, {1})").stable(),
    Function::new("convert_to", &[Is(Text), Is(Name)], Bytea, "pg_convert_to({0}, {1})").stable(),
    Function::new("get_byte", &[Is(Bytea), Is(Int4)], Int4, "pg_get_byte({0}, {1})"),
    Function::new("set_byte", &[Is(Bytea), Is(Int4), Is(Int4)], Bytea, "pg_set_byte({0}, {1}, {2})"),
    Function::new("bit_count", &[Is(Bytea)], Int8, "pg_bit_count({0})"),
    Function::new("md5", &[Is(Text)], Text, "pg_md5({0})"),
    Function::new("md5", &[Is(Bytea)], Text, "pg_md5({0})"),
    Function::new("sha224", &[Is(Bytea)], Bytea, "pg_sha224({0})"),
    Function::new("sha256", &[Is(Bytea)], Bytea, "pg_sha256({0})"),
    Function::new("sha384", &[Is(Bytea)], Bytea, "pg_sha384({0})"),
    Function::new("sha512", &[Is(Bytea)], Bytea, "pg_sha512({0})"),
    Function::new("like", &[Is(Text), Is(Text)], Bool, "pg_like({0}, {1})"),
    Function::new("notlike", &[Is(Text), Is(Text)], Bool, "(NOT pg_like({0}, {1}))"),
    // x LIKE y ESCAPE z is x LIKE like_escape(y, z).
    Function::new("like_escape", &[Is(Text), Is(Text)], Text, "pg_like_escape({0}, {1})"),
    Function::new("textcat", &[Is(Text), Is(Text)], Text, "({0} || {1})"),
    Function::new(
        "string_to_array",
        &[Is(Text), Is(Text)],
        Array(Element::Text),
        "pg_string_to_array({0}, {1})",
    )
    .called_on_null(),
    Function::new("array_to_string", &[Arg::AnyArray, Is(Text)], Text, "pg_array_to_string({0}, {1})")
        .stable(),
    Function::new(
        "array_to_string",
        &[Arg::AnyArray, Is(Text), Is(Text)],
        Text,
        "pg_array_to_string({0}, {1}, {2})",
    )
    .called_on_null()
    .stable(),
    Function::new("array_length", &[Arg::AnyArray, Is(Int4)], Int4, "pg_array_length({0}, {1})"),
    Function::new("array_upper", &[Arg::AnyArray, Is(Int4)], Int4, "pg_array_length({0}, {1})"),
    Function::new("array_lower", &[Arg::AnyArray, Is(Int4)], Int4, "pg_array_lower({0}, {1})"),
    Function::new("cardinality", &[Arg::AnyArray], Int4, "pg_cardinality({0})"),
];
