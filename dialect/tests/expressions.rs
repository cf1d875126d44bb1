//! Expressions answered as PostgreSQL 15 answered them (`expressions/record.py` recorded it).
//!
//! A small reader turns each expression into SQL by the table's own resolution, as the planner does, and a SQLite
//! connection runs it. PostgreSQL read the same text.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dialect::functions::{Cast, CastContext, Emit, find_cast, resolve_function, resolve_operator, type_name};
use dialect::io::{self, OutputSettings};
use dialect::types::{Element, Type, Typed};
use dialect::{TimeZone, sqlite};
use proto::{SqlState, Value, WireError};
use rusqlite::Connection;

/// An expression on its way to SQL: what it is, or a literal without a type yet.
enum Node {
    Sql { sql: String, ty: Typed },
    Literal(Option<String>),
}

struct Reader<'a> {
    rest: &'a str,
    params: Vec<Value>,
}

const ZONE: &str = "'UTC'";

const TYPES: &[(&str, Type)] = &[
    ("bool", Type::Bool),
    ("int2", Type::Int2),
    ("int4", Type::Int4),
    ("int8", Type::Int8),
    ("float4", Type::Float4),
    ("float8", Type::Float8),
    ("numeric", Type::Numeric),
    ("text", Type::Text),
    ("varchar", Type::Varchar),
    ("bpchar", Type::Bpchar),
    ("char", Type::Bpchar),
    ("\"char\"", Type::Char),
    ("name", Type::Name),
    ("bytea", Type::Bytea),
    ("date", Type::Date),
    ("timestamp", Type::Timestamp),
    ("timestamptz", Type::Timestamptz),
    ("uuid", Type::Uuid),
    ("oid", Type::Oid),
];

fn refusal(state: SqlState) -> WireError {
    WireError::new(state, "refused by the test's reader")
}

impl Reader<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) {
        assert!(self.eat(token), "expected {token} at {}", self.rest);
    }

    fn word(&mut self) -> Option<String> {
        self.skip();
        if self.rest.starts_with("\"char\"") {
            self.rest = &self.rest[6..];
            return Some("\"char\"".into());
        }
        if let Some((name, rest)) = self.rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
            self.rest = rest;
            return Some(name.into());
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        if word.is_empty() || word.as_bytes()[0].is_ascii_digit() {
            return None;
        }
        self.rest = &self.rest[end..];
        Some(word.into())
    }

    fn string(&mut self) -> Option<String> {
        if !self.eat("'") {
            return None;
        }
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((i, c)) = chars.next() {
            if c != '\'' {
                out.push(c);
            } else if self.rest[i + 1..].starts_with('\'') {
                chars.next();
                out.push('\'');
            } else {
                self.rest = &self.rest[i + 1..];
                return Some(out);
            }
        }
        panic!("a literal without an end");
    }

    fn operator(&mut self) -> Option<String> {
        self.skip();
        let end = self.rest.find(|c| !"+-*/<>=~!@#%^&|".contains(c)).unwrap_or(self.rest.len());
        let operator = &self.rest[..end];
        self.rest = &self.rest[end..];
        (!operator.is_empty()).then(|| operator.into())
    }

    fn typed(&mut self) -> Result<Typed, WireError> {
        let name = self.word().expect("a type");
        let Some((_, ty)) = TYPES.iter().find(|(known, _)| *known == name) else {
            return Err(refusal(SqlState::UNDEFINED_OBJECT));
        };
        let mut modifier = -1;
        if self.eat("(") {
            let end = self.rest.find(')').expect("a closing parenthesis");
            let numbers: Vec<i32> = self.rest[..end].split(',').map(|n| n.trim().parse().unwrap()).collect();
            self.rest = &self.rest[end + 1..];
            modifier = match (ty, numbers.as_slice()) {
                (Type::Numeric, [precision, scale]) => ((precision << 16) | (scale & 0x7ff)) + 4,
                (Type::Timestamp | Type::Timestamptz, [precision]) => *precision,
                (_, [length]) => length + 4,
                _ => panic!("a modifier of several numbers"),
            };
        } else if name == "char" {
            modifier = 5;
        }
        Ok(Typed { ty: *ty, modifier })
    }

    fn expression(&mut self) -> Result<Node, WireError> {
        let mut node = self.primary()?;
        while self.eat("::") {
            let to = self.typed()?;
            node = self.cast(node, to, CastContext::Explicit)?;
        }
        Ok(node)
    }

    fn primary(&mut self) -> Result<Node, WireError> {
        if self.eat("(") {
            let node = match self.operator() {
                // A negative number is a constant in PostgreSQL, too; so is what follows a plus.
                Some(sign) if sign == "-" && self.rest.starts_with(|c: char| c.is_ascii_digit()) => {
                    self.number("-")?
                }
                Some(operator) => {
                    let right = self.expression()?;
                    return self.close(&operator, None, right);
                }
                None => self.expression()?,
            };
            if self.eat(")") {
                return Ok(node);
            }
            let operator = self.operator().expect("an operator");
            let right = self.expression()?;
            return self.close(&operator, Some(node), right);
        }
        if let Some(string) = self.string() {
            return Ok(Node::Literal(Some(string)));
        }
        self.skip();
        if self.eat("-") {
            return self.number("-");
        }
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            return self.number("");
        }
        let before = self.rest;
        let word = self.word().unwrap_or_else(|| panic!("an expression at {}", self.rest));
        match word.as_str() {
            "null" => return Ok(Node::Literal(None)),
            "true" | "false" => {
                let value = i64::from(word == "true");
                return Ok(self.constant(Value::Int(value), Typed::plain(Type::Bool)));
            }
            _ => {}
        }
        if TYPES.iter().any(|(name, _)| *name == word) {
            let after = self.rest;
            if !after.trim_start().starts_with('(') || self.rest.starts_with(' ') {
                self.rest = before;
                let ty = self.typed()?;
                let text = self.string().expect("a literal after its type");
                return self.cast(Node::Literal(Some(text)), ty, CastContext::Explicit);
            }
        }
        self.expect("(");
        let mut args = Vec::new();
        while !self.eat(")") {
            args.push(self.expression()?);
            self.eat(",");
        }
        let types: Vec<Type> = args.iter().map(Node::ty).collect();
        let resolved = resolve_function(&word, &types)?;
        self.call(&resolved, args)
    }

    fn close(&mut self, operator: &str, left: Option<Node>, right: Node) -> Result<Node, WireError> {
        self.expect(")");
        let resolved = resolve_operator(operator, left.as_ref().map(Node::ty), right.ty())?;
        let args = left.into_iter().chain([right]).collect();
        self.call(&resolved, args)
    }

    fn call(&mut self, resolved: &dialect::functions::Resolved, args: Vec<Node>) -> Result<Node, WireError> {
        if let Emit::Router(_) = resolved.function.emit {
            return Err(refusal(SqlState::UNDEFINED_OBJECT));
        }
        let mut sql = Vec::new();
        for (arg, ty) in args.into_iter().zip(&resolved.args) {
            let Node::Sql { sql: arg, .. } = self.cast(arg, Typed::plain(*ty), CastContext::Implicit)? else {
                panic!("a cast leaves no literal");
            };
            sql.push(arg);
        }
        let sql = resolved.sql(&sql, ZONE).expect("SQL");
        Ok(Node::Sql { sql, ty: Typed::plain(resolved.result) })
    }

    fn constant(&mut self, value: Value, ty: Typed) -> Node {
        self.params.push(value);
        Node::Sql { sql: format!("?{}", self.params.len()), ty }
    }

    fn number(&mut self, sign: &str) -> Result<Node, WireError> {
        let end = self
            .rest
            .char_indices()
            .find(|(i, c)| {
                !(c.is_ascii_digit() || *c == '.' || *c == 'e' || *c == '-' && self.rest[..*i].ends_with('e'))
            })
            .map_or(self.rest.len(), |(i, _)| i);
        let text = format!("{sign}{}", &self.rest[..end]);
        self.rest = &self.rest[end..];
        let ty = match text.parse::<i64>() {
            Ok(v) if i32::try_from(v).is_ok() => Type::Int4,
            Ok(_) => Type::Int8,
            Err(_) => Type::Numeric,
        };
        let value = io::input(Typed::plain(ty), &text, &TimeZone::utc())?;
        Ok(self.constant(value, Typed::plain(ty)))
    }

    fn cast(&mut self, node: Node, to: Typed, context: CastContext) -> Result<Node, WireError> {
        match node {
            Node::Literal(None) => Ok(self.constant(Value::Null, to)),
            Node::Literal(Some(text)) => {
                // A literal is read without a modifier, then cast to it as the context says.
                let value = io::input(Typed::plain(to.ty), &text, &TimeZone::utc())?;
                let read = self.constant(value, Typed::plain(to.ty));
                self.cast(read, to, context)
            }
            Node::Sql { sql, ty } => {
                let Some(cast): Option<Cast> = find_cast(ty, to, context) else {
                    return Err(refusal(SqlState::CANNOT_COERCE));
                };
                Ok(Node::Sql { sql: cast.sql(&sql, ZONE), ty: to })
            }
        }
    }
}

impl Node {
    fn ty(&self) -> Type {
        match self {
            Node::Sql { ty, .. } => ty.ty,
            Node::Literal(_) => Type::Unknown,
        }
    }
}

fn evaluate(connection: &Connection, expression: &str) -> Result<(Type, String), WireError> {
    let mut reader = Reader { rest: expression, params: Vec::new() };
    let node = reader.expression()?;
    assert!(reader.rest.is_empty(), "left over: {}", reader.rest);
    let node = match node {
        literal @ Node::Literal(_) => {
            reader.cast(literal, Typed::plain(Type::Text), CastContext::Implicit)?
        }
        sql => sql,
    };
    let Node::Sql { sql, ty } = node else { panic!("a cast leaves no literal") };
    let mut statement = connection.prepare(&format!("SELECT {sql}")).map_err(sqlite::error)?;
    for (i, value) in reader.params.iter().enumerate() {
        statement.raw_bind_parameter(i + 1, sqlite::parameter(value)).map_err(sqlite::error)?;
    }
    let mut rows = statement.raw_query();
    let row = rows.next().map_err(sqlite::error)?.expect("one row");
    let value = sqlite::value_ref(row.get_ref(0).map_err(sqlite::error)?)?;
    if value.is_null() {
        return Ok((ty.ty, "NULL".into()));
    }
    let mut out = Vec::new();
    io::output_text(ty, value, &OutputSettings::default(), &mut out)?;
    Ok((ty.ty, String::from_utf8(out).expect("UTF-8")))
}

fn connection() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    sqlite::register(&connection).unwrap();
    connection
}

#[test]
fn expressions_are_answered_as_postgresql_does() {
    let connection = connection();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("expressions/expressions.txt").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [expression, expected @ ..] = fields.as_slice() else { continue };
        if expression.is_empty() || expression.starts_with('#') {
            continue;
        }
        count += 1;
        let answer = match evaluate(&connection, expression) {
            Ok((ty, text)) => format!("{}\t{text}", type_name(ty)),
            Err(error) if error.sqlstate == SqlState::FEATURE_NOT_SUPPORTED => "refused".into(),
            Err(error) => format!("!{}", error.sqlstate),
        };
        let expected = expected.join("\t");
        let refused = answer == "refused" && expected == "!0A000";
        if answer != expected && !refused {
            wrong.push(format!("{expression}\n   expected {expected}\n   got      {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 1_000, "{count} expressions");
}

#[test]
fn every_template_prepares() {
    let connection = connection();
    let argument = |ty: Type| match ty {
        Type::Float4 | Type::Float8 => "1.5",
        Type::Text | Type::Varchar | Type::Bpchar | Type::Name | Type::Char => "'a'",
        Type::Numeric | Type::Bytea | Type::Uuid => "x'00'",
        _ => "1",
    };
    let prepare =
        |sql: &str| connection.prepare(&format!("SELECT {sql}")).map(drop).map_err(|e| format!("{sql}: {e}"));
    for function in dialect::functions::functions().chain(dialect::functions::operators()) {
        let Emit::Sql(_) = function.emit else { continue };
        let types: Vec<Type> = function
            .args
            .iter()
            .map(|arg| match arg {
                dialect::functions::Arg::Is(ty) => *ty,
                dialect::functions::Arg::AnyArray => Type::Array(Element::Text),
                _ => Type::Timestamptz,
            })
            .collect();
        let dialect::functions::Ret::Is(result) = function.result else {
            panic!("{} gives nothing", function.name)
        };
        let args: Vec<&str> = types.iter().map(|ty| argument(*ty)).collect();
        let resolved = dialect::functions::Resolved { function, args: types, result };
        prepare(&resolved.sql(&args, ZONE).unwrap()).unwrap();
    }
    for aggregate in dialect::functions::aggregates() {
        let args: Vec<&str> = aggregate.args.iter().map(|_| "1").collect();
        let types = vec![Type::Numeric; args.len()];
        let resolved =
            dialect::functions::ResolvedAggregate { aggregate, args: types, result: aggregate.result };
        prepare(&resolved.sql(&args, "", " FILTER (WHERE 1)")).unwrap();
        if let Some(sql) = resolved.distinct_sql(&args, "") {
            prepare(&sql).unwrap();
        }
        if let Some(partial) = &aggregate.partial {
            for column in partial.columns {
                prepare(&resolved.partial_sql(column, &args, " FILTER (WHERE 1)")).unwrap();
                prepare(&column.merge_sql("1")).unwrap();
            }
            prepare(&partial.finish_sql(&vec!["1"; partial.columns.len()])).unwrap();
        }
    }
    for (from, to, _) in dialect::functions::casts() {
        let cast = find_cast(Typed::plain(from), Typed::plain(to), CastContext::Explicit).unwrap();
        prepare(&cast.sql(argument(from), ZONE)).unwrap();
    }
}

#[test]
fn assignment_refuses_what_an_explicit_cast_cuts() {
    let connection = connection();
    let assigned = |sql: &str, from: Type, to: Type, modifier: i32| {
        let to = Typed { ty: to, modifier };
        let cast = find_cast(Typed::plain(from), to, CastContext::Assignment).expect("an assignment cast");
        let sql = format!("SELECT {}", cast.sql(sql, ZONE));
        connection.query_row(&sql, [], |row| row.get::<_, String>(0)).map_err(sqlite::error)
    };
    assert_eq!(assigned("'abc  '", Type::Text, Type::Varchar, 4 + 4).unwrap(), "abc ");
    assert_eq!(assigned("'ab  '", Type::Text, Type::Bpchar, 3 + 4).unwrap(), "ab");
    assert_eq!(assigned("12", Type::Int4, Type::Varchar, 2 + 4).unwrap(), "12");
    let long = assigned("'abcd'", Type::Text, Type::Varchar, 3 + 4).unwrap_err();
    assert_eq!(long.sqlstate, SqlState::STRING_DATA_RIGHT_TRUNCATION);
    assert_eq!(long.message, "value too long for type character varying(3)");
    let long = assigned("123", Type::Int4, Type::Bpchar, 2 + 4).unwrap_err();
    assert_eq!(long.message, "value too long for type character(2)");
    let find = |from, to, context| find_cast(Typed::plain(from), Typed::plain(to), context).is_some();
    assert!(
        !find(Type::Text, Type::Int4, CastContext::Assignment)
            && find(Type::Text, Type::Int4, CastContext::Explicit)
    );
    assert!(
        !find(Type::Int8, Type::Int4, CastContext::Implicit)
            && find(Type::Int8, Type::Int4, CastContext::Assignment)
    );
    assert!(
        !find(Type::Bool, Type::Int4, CastContext::Assignment)
            && !find(Type::Uuid, Type::Int4, CastContext::Explicit)
    );
}
