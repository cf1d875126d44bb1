//! Rows as COPY's lines.

use planner::plan::CopyFormat;

/// Appends the field at a place of its line: a text, or NULL. `alone`: the line has no other.
pub fn field(out: &mut Vec<u8>, format: &CopyFormat, place: usize, alone: bool, value: Option<&[u8]>) {
    if place > 0 {
        out.push(format.delimiter);
    }
    match value {
        None => out.extend_from_slice(format.null.as_bytes()),
        Some(value) if format.csv => {
            csv(out, format, value, format.force_quote.contains(&place), alone);
        }
        Some(value) => text(out, format, value),
    }
}

fn text(out: &mut Vec<u8>, format: &CopyFormat, value: &[u8]) {
    for &byte in value {
        let escaped = match byte {
            8 => b'b',
            12 => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            11 => b'v',
            b'\\' => b'\\',
            other if other == format.delimiter => other,
            other => {
                out.push(other);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', escaped]);
    }
}

fn csv(out: &mut Vec<u8>, format: &CopyFormat, value: &[u8], force: bool, alone: bool) {
    let special = |b: &u8| *b == format.delimiter || *b == format.quote || *b == b'\n' || *b == b'\r';
    // A lone `\.` would end the input when it's read again.
    let marker = alone && value == b"\\.";
    if !(force || marker || value == format.null.as_bytes() || value.iter().any(special)) {
        out.extend_from_slice(value);
        return;
    }
    out.push(format.quote);
    for &byte in value {
        if byte == format.quote || byte == format.escape {
            out.push(format.escape);
        }
        out.push(byte);
    }
    out.push(format.quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: &CopyFormat, fields: &[Option<&str>]) -> String {
        let mut out = Vec::new();
        for (place, value) in fields.iter().enumerate() {
            field(&mut out, format, place, fields.len() == 1, value.map(str::as_bytes));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_escaped() {
        let format = CopyFormat {
            csv: false,
            delimiter: b'|',
            null: "\\N".into(),
            header: false,
            quote: b'"',
            escape: b'"',
            force_quote: vec![],
        };
        assert_eq!(line(&format, &[Some("a|b\\c\n\td"), None, Some("")]), "a\\|b\\\\c\\n\\td|\\N|");
    }

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        let format = CopyFormat {
            csv: true,
            delimiter: b',',
            null: String::new(),
            header: false,
            quote: b'"',
            escape: b'"',
            force_quote: vec![3],
        };
        let fields = [Some("a,\"b\""), None, Some(""), Some("x"), Some("y z")];
        assert_eq!(line(&format, &fields), "\"a,\"\"b\"\"\",,\"\",\"x\",y z");
        assert_eq!(line(&format, &[Some("\\.")]), "\"\\.\"");
    }
}
