//! Keys as an admin types them: `1000`, `'m'`, `(7, 'm')`.
//!
//! In come a text and the columns' types, out come values in storage form. Numbers and booleans stand as they are, everything
//! else in quotes, as in SQL; nothing is computed.

use super::input;
use crate::datetime::TimeZone;
use crate::types::{Type, Typed};
use proto::{SqlState, Value, WireError};

/// Reads the first columns of a row, one at least.
pub fn row_literal(types: &[Typed], text: &str, zone: &TimeZone) -> Result<Vec<Value>, WireError> {
    let items = items(text).ok_or_else(|| wrong(format!("{text} is no literal")))?;
    if items.len() > types.len() {
        let columns = if types.len() == 1 { "column" } else { "columns" };
        return Err(wrong(format!(
            "{text} has {} values, and the key has {} {columns}",
            items.len(),
            types.len()
        )));
    }
    items.iter().zip(types).map(|(item, ty)| item.read(*ty, zone)).collect()
}

/// A value as it is written.
#[derive(Debug, PartialEq)]
enum Item {
    Bare(String),
    Quoted(String),
}

impl Item {
    fn read(&self, ty: Typed, zone: &TimeZone) -> Result<Value, WireError> {
        match self {
            Item::Quoted(text) => input(ty, text, zone),
            Item::Bare(word) if word.eq_ignore_ascii_case("null") => {
                Err(wrong("no row's key is NULL".to_owned()))
            }
            Item::Bare(word) if stands_bare(ty.ty) => input(ty, word, zone),
            Item::Bare(word) => Err(wrong(format!("a value of this type is written in quotes: '{word}'"))),
        }
    }
}

fn stands_bare(ty: Type) -> bool {
    use Type::*;
    matches!(ty, Bool | Int2 | Int4 | Int8 | Oid | Float4 | Float8 | Numeric)
}

/// The items of a row; a single one may stand without parentheses. `None` if it's none.
fn items(text: &str) -> Option<Vec<Item>> {
    let text = text.trim();
    let mut rest = match text.strip_prefix('(') {
        None => {
            let (item, rest) = item(text)?;
            return rest.is_empty().then(|| vec![item]);
        }
        Some(inner) => inner.strip_suffix(')')?.trim_start(),
    };
    let mut items = Vec::new();
    loop {
        let (item, after) = item(rest)?;
        items.push(item);
        if after.is_empty() {
            return Some(items);
        }
        rest = after.strip_prefix(',')?.trim_start();
    }
}

/// The first item, and what comes after it and the blanks behind it.
fn item(text: &str) -> Option<(Item, &str)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find(|c: char| c == ',' || c == '\'' || c == '(' || c == ')' || c.is_whitespace());
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        return (!word.is_empty()).then(|| (Item::Bare(word.to_owned()), rest.trim_start()));
    };
    let mut read = String::new();
    let mut rest = quoted;
    loop {
        let (part, after) = rest.split_once('\'')?;
        read.push_str(part);
        match after.strip_prefix('\'') {
            Some(after) => {
                read.push('\'');
                rest = after;
            }
            None => return Some((Item::Quoted(read), after.trim_start())),
        }
    }
}

fn wrong(message: String) -> WireError {
    WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, message)
        .with_hint("Keys are written as 1000, 'm', or (7, 'm').")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(types: &[Type], text: &str) -> Result<Vec<Value>, String> {
        let types: Vec<_> = types.iter().map(|ty| Typed::plain(*ty)).collect();
        row_literal(&types, text, &TimeZone::utc()).map_err(|error| error.message)
    }

    #[test]
    fn keys_are_read_as_their_columns_would_store_them() {
        use Type::*;
        let text = |text: &str| Value::Text(text.into());
        for (types, literal, expected) in [
            (&[Int8][..], "1000", vec![Value::Int(1000)]),
            (&[Int4], " -7 ", vec![Value::Int(-7)]),
            (&[Int4], "(5)", vec![Value::Int(5)]),
            (&[Int4], "'5'", vec![Value::Int(5)]),
            (&[Text], "'m'", vec![text("m")]),
            (&[Text], "'it''s, (so)'", vec![text("it's, (so)")]),
            (&[Text], "''", vec![text("")]),
            (&[Int4, Text], "(7, 'm')", vec![Value::Int(7), text("m")]),
            (&[Int4, Text], "( 7 ,'m' )", vec![Value::Int(7), text("m")]),
            (&[Int4, Text], "7", vec![Value::Int(7)]),
            (&[Bool, Float8], "(true, 1.5)", vec![Value::Int(1), Value::Real(1.5)]),
            (&[Date], "'2000-01-03'", vec![Value::Int(2)]),
            (&[Bytea], "'\\x00ff'", vec![Value::Blob(vec![0, 255])]),
        ] {
            assert_eq!(read(types, literal), Ok(expected), "{literal}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        use Type::*;
        for (types, literal, expected) in [
            (&[Int4][..], "", " is no literal"),
            (&[Int4], "()", "() is no literal"),
            (&[Int4], "(1", "(1 is no literal"),
            (&[Int4], "1)", "1) is no literal"),
            (&[Int4], "(1,)", "(1,) is no literal"),
            (&[Int4], "1 2", "1 2 is no literal"),
            (&[Text], "'m", "'m is no literal"),
            (&[Text], "'m' || 'n'", "'m' || 'n' is no literal"),
            (&[Text], "m", "a value of this type is written in quotes: 'm'"),
            (&[Date], "2000-01-03", "a value of this type is written in quotes: '2000-01-03'"),
            (&[Int4], "NULL", "no row's key is NULL"),
            (&[Int4], "x", "invalid input syntax for type integer: \"x\""),
            (&[Int2], "40000", "value \"40000\" is out of range for type smallint"),
            (&[Int4], "(1, 2)", "(1, 2) has 2 values, and the key has 1 column"),
        ] {
            assert_eq!(read(types, literal), Err(expected.to_owned()), "{literal}");
        }
    }
}
