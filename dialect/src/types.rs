//! The Postgres types that Shoal has.

use proto::catalog::TypeRef;

/// A type, without its modifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// `boolean`: INTEGER 0 or 1.
    Bool,
    /// `smallint`: INTEGER.
    Int2,
    /// `integer`: INTEGER.
    Int4,
    /// `bigint`: INTEGER.
    Int8,
    /// `real`: REAL that a 32-bit float can hold. No NaN.
    Float4,
    /// `double precision`: REAL. No NaN.
    Float8,
    /// `numeric`: BLOB, an order-preserving encoding of the value, then the display scale. The key form leaves the
    /// scale out: 1.0 and 1.00 are one key.
    Numeric,
    /// `text`: TEXT.
    Text,
    /// `character varying`: TEXT.
    Varchar,
    /// `character`: TEXT without trailing blanks, padded when shown.
    Bpchar,
    /// `"char"`: TEXT of one character. Catalog only.
    Char,
    /// `name`: TEXT. Catalog only.
    Name,
    /// `bytea`: BLOB.
    Bytea,
    /// `date`: INTEGER, days since 2000-01-01; i32's ends are the infinities.
    Date,
    /// `timestamp`: INTEGER, microseconds since 2000-01-01 00:00; i64's ends are the infinities.
    Timestamp,
    /// `timestamp with time zone`: as `timestamp`, in UTC.
    Timestamptz,
    /// `uuid`: BLOB of 16 bytes.
    Uuid,
    /// `oid`: INTEGER. Catalog only.
    Oid,
    /// `regclass`: INTEGER, a relation's oid. Catalog only.
    Regclass,
    /// An array, as TEXT in Postgres's array text form. Catalog and parameters only.
    Array(Element),
    /// A literal or parameter whose type isn't known yet. Never stored.
    Unknown,
}

/// What an array can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the variants are those of `Type`
pub enum Element {
    Bool,
    Int2,
    Int4,
    Int8,
    Float8,
    Numeric,
    Text,
    Varchar,
    Name,
    Char,
    Oid,
    Uuid,
}

/// A type with its modifier (-1 for none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Typed {
    /// The type.
    pub ty: Type,
    /// PostgreSQL's modifier: for varchar(n) and char(n) n + 4, for numeric(p, s) ((p << 16) | (s & 0x7ff)) + 4, for
    /// timestamp(p) p.
    pub modifier: i32,
}

impl Typed {
    /// A type without a modifier.
    pub const fn plain(ty: Type) -> Self {
        Self { ty, modifier: -1 }
    }

    /// As the catalog writes it.
    pub fn to_ref(self) -> TypeRef {
        TypeRef { oid: self.ty.oid(), modifier: self.modifier }
    }

    /// Read from the catalog. `None` for an oid that Shoal doesn't have.
    pub fn from_ref(ty: TypeRef) -> Option<Self> {
        Some(Self { ty: Type::from_oid(ty.oid)?, modifier: ty.modifier })
    }
}

impl Type {
    /// PostgreSQL's object id of the type (`pg_type.dat`).
    pub fn oid(self) -> u32 {
        match self {
            Type::Bool => 16,
            Type::Bytea => 17,
            Type::Char => 18,
            Type::Name => 19,
            Type::Int8 => 20,
            Type::Int2 => 21,
            Type::Int4 => 23,
            Type::Text => 25,
            Type::Oid => 26,
            Type::Float4 => 700,
            Type::Float8 => 701,
            Type::Unknown => 705,
            Type::Bpchar => 1042,
            Type::Varchar => 1043,
            Type::Date => 1082,
            Type::Timestamp => 1114,
            Type::Timestamptz => 1184,
            Type::Numeric => 1700,
            Type::Regclass => 2205,
            Type::Uuid => 2950,
            Type::Array(Element::Bool) => 1000,
            Type::Array(Element::Char) => 1002,
            Type::Array(Element::Name) => 1003,
            Type::Array(Element::Int2) => 1005,
            Type::Array(Element::Int4) => 1007,
            Type::Array(Element::Text) => 1009,
            Type::Array(Element::Varchar) => 1015,
            Type::Array(Element::Int8) => 1016,
            Type::Array(Element::Float8) => 1022,
            Type::Array(Element::Oid) => 1028,
            Type::Array(Element::Numeric) => 1231,
            Type::Array(Element::Uuid) => 2951,
        }
    }

    /// The type of an object id.
    pub fn from_oid(oid: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.oid() == oid)
    }

    /// Every type.
    pub const ALL: &'static [Type] = &[
        Type::Bool,
        Type::Int2,
        Type::Int4,
        Type::Int8,
        Type::Float4,
        Type::Float8,
        Type::Numeric,
        Type::Text,
        Type::Varchar,
        Type::Bpchar,
        Type::Char,
        Type::Name,
        Type::Bytea,
        Type::Date,
        Type::Timestamp,
        Type::Timestamptz,
        Type::Uuid,
        Type::Oid,
        Type::Regclass,
        Type::Array(Element::Bool),
        Type::Array(Element::Char),
        Type::Array(Element::Name),
        Type::Array(Element::Int2),
        Type::Array(Element::Int4),
        Type::Array(Element::Text),
        Type::Array(Element::Varchar),
        Type::Array(Element::Int8),
        Type::Array(Element::Float8),
        Type::Array(Element::Oid),
        Type::Array(Element::Numeric),
        Type::Array(Element::Uuid),
        Type::Unknown,
    ];
}
