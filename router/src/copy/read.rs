//! COPY's input, as records of fields.

use super::bad_format;
use super::lines::Lines;
use crate::protocol::frontend::utf8;
use planner::plan::CopyFormat;
use proto::WireError;
use std::ops::Range;

/// As much of a line or value as a message shows.
const MOST_SHOWN_BYTES: usize = 100;

/// Reads records.
#[derive(Debug)]
pub struct Reader {
    format: CopyFormat,
    columns: Vec<String>,
    lines: Lines,
    header: bool,
    record: Record,
}

/// One record: a line's fields, unescaped.
#[derive(Debug, Default)]
pub struct Record {
    data: Vec<u8>,
    fields: Vec<Option<Range<usize>>>,
}

impl Record {
    /// A field; `None` is NULL. Checked to be UTF-8.
    pub fn get(&self, column: usize) -> Option<&str> {
        let range = self.fields.get(column)?.clone()?;
        Some(std::str::from_utf8(&self.data[range]).expect("checked when the record was read"))
    }
}

/// An error, and the line that it's about.
#[derive(Debug)]
pub struct LineError {
    /// The error.
    pub error: WireError,
    /// The line as messages show it, if it was cut.
    pub line: Option<String>,
}

impl Reader {
    /// A reader of these columns.
    pub fn new(format: CopyFormat, columns: Vec<String>) -> Self {
        let lines = Lines::new(&format);
        let header = format.header;
        Self { format, columns, lines, header, record: Record::default() }
    }

    /// Takes in more input.
    pub fn push(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// The number of the last line that was read, from 1.
    pub fn line_number(&self) -> u64 {
        self.lines.number()
    }

    /// The next record. `last`: there is no more input. `None`: none, or not enough input.
    pub fn next(&mut self, last: bool) -> Result<Option<&Record>, Box<LineError>> {
        let without_line = |error| Box::new(LineError { error, line: None });
        let mut line = self.lines.next(last).map_err(without_line)?;
        if self.header && line.is_some() {
            self.header = false;
            line = self.lines.next(last).map_err(without_line)?;
        }
        let Some(line) = line else { return Ok(None) };
        let line = self.lines.bytes(line);
        match self.record.read(line, &self.format, &self.columns) {
            Ok(()) => Ok(Some(&self.record)),
            Err(error) => {
                Err(Box::new(LineError { error, line: Some(shown(&String::from_utf8_lossy(line))) }))
            }
        }
    }
}

impl Record {
    fn read(&mut self, line: &[u8], format: &CopyFormat, columns: &[String]) -> Result<(), WireError> {
        self.data.clear();
        self.fields.clear();
        utf8(line)?;
        let mut rest = Some(line);
        while let Some(field) = rest {
            if self.fields.len() == columns.len() {
                // A table of no columns has empty lines.
                if columns.is_empty() && field.is_empty() {
                    return Ok(());
                }
                return Err(bad_format("extra data after last expected column"));
            }
            rest = match format.csv {
                true => self.csv_field(field, format)?,
                false => self.text_field(field, format)?,
            };
        }
        if let Some(missing) = columns.get(self.fields.len()) {
            return Err(bad_format(format!("missing data for column \"{missing}\"")));
        }
        Ok(())
    }

    /// Reads one field; what follows its delimiter is the rest.
    fn text_field<'a>(
        &mut self,
        field: &'a [u8],
        format: &CopyFormat,
    ) -> Result<Option<&'a [u8]>, WireError> {
        let start = self.data.len();
        let mut at = 0;
        // Escapes can make what isn't UTF-8 of a line that is.
        let mut made_bytes = false;
        while let Some(&byte) = field.get(at) {
            if byte == format.delimiter {
                break;
            }
            at += 1;
            if byte != b'\\' {
                self.data.push(byte);
                continue;
            }
            let Some(&escaped) = field.get(at) else {
                self.data.push(b'\\');
                break;
            };
            at += 1;
            self.data.push(match escaped {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 11,
                b'0'..=b'7' => {
                    made_bytes = true;
                    let (value, used) = digits(&field[at - 1..], 3, 8);
                    at += used - 1;
                    value
                }
                b'x' if field.get(at).is_some_and(u8::is_ascii_hexdigit) => {
                    made_bytes = true;
                    let (value, used) = digits(&field[at..], 2, 16);
                    at += used;
                    value
                }
                other => other,
            });
        }
        let null = field[..at] == *format.null.as_bytes();
        if null {
            self.data.truncate(start);
        } else if made_bytes {
            utf8(&self.data[start..])?;
        }
        self.fields.push((!null).then_some(start..self.data.len()));
        Ok(field.get(at).map(|_| &field[at + 1..]))
    }

    fn csv_field<'a>(&mut self, field: &'a [u8], format: &CopyFormat) -> Result<Option<&'a [u8]>, WireError> {
        let start = self.data.len();
        let (mut at, mut quoted, mut in_quotes) = (0, false, false);
        loop {
            let Some(&byte) = field.get(at) else {
                if in_quotes {
                    return Err(bad_format("unterminated CSV quoted field"));
                }
                break;
            };
            if !in_quotes && byte == format.delimiter {
                break;
            }
            at += 1;
            if !in_quotes && byte == format.quote {
                (quoted, in_quotes) = (true, true);
                continue;
            }
            if in_quotes && byte == format.escape {
                let next = field.get(at).copied().filter(|b| *b == format.escape || *b == format.quote);
                if let Some(next) = next {
                    self.data.push(next);
                    at += 1;
                    continue;
                }
            }
            if in_quotes && byte == format.quote {
                in_quotes = false;
                continue;
            }
            self.data.push(byte);
        }
        let null = !quoted && field[..at] == *format.null.as_bytes();
        if null {
            self.data.truncate(start);
        }
        self.fields.push((!null).then_some(start..self.data.len()));
        Ok(field.get(at).map(|_| &field[at + 1..]))
    }
}

/// A byte from as many digits as there are, at most so many.
fn digits(text: &[u8], most: usize, radix: u32) -> (u8, usize) {
    let (mut value, mut used) = (0u32, 0);
    while let Some(digit) = text.get(used).and_then(|b| char::from(*b).to_digit(radix)) {
        if used == most {
            break;
        }
        value = value * radix + digit;
        used += 1;
    }
    // As PostgreSQL does: octal 777 is cut to its low byte.
    (value as u8, used)
}

/// A text as messages show it: no more than its beginning.
pub fn shown(text: &str) -> String {
    if text.len() <= MOST_SHOWN_BYTES {
        return text.to_owned();
    }
    let end = (0..=MOST_SHOWN_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(csv: bool) -> CopyFormat {
        CopyFormat {
            csv,
            delimiter: if csv { b',' } else { b'\t' },
            null: if csv { String::new() } else { "\\N".into() },
            header: false,
            quote: b'"',
            escape: b'"',
            force_quote: vec![],
        }
    }

    type Rows = Vec<Vec<Option<String>>>;

    fn read_pieces(format: &CopyFormat, columns: usize, pieces: &[&[u8]]) -> Result<Rows, (String, u64)> {
        let names = ["a", "b", "c"][..columns].iter().map(|n| n.to_string()).collect();
        let mut reader = Reader::new(format.clone(), names);
        let mut rows = Vec::new();
        for piece in pieces.iter().map(Some).chain([None]) {
            if let Some(piece) = piece {
                reader.push(piece);
            }
            loop {
                match reader.next(piece.is_none()) {
                    Ok(Some(record)) => {
                        rows.push((0..columns).map(|c| record.get(c).map(str::to_owned)).collect())
                    }
                    Ok(None) => break,
                    Err(error) => return Err((error.error.message, reader.line_number())),
                }
            }
        }
        Ok(rows)
    }

    /// Reads input whole and byte by byte: where it is cut must not matter.
    fn read(format: &CopyFormat, columns: usize, input: &[u8]) -> Result<Rows, (String, u64)> {
        let whole = read_pieces(format, columns, &[input]);
        let bytes: Vec<_> = input.chunks(1).collect();
        assert_eq!(read_pieces(format, columns, &bytes), whole);
        whole
    }

    fn row(fields: &[Option<&str>]) -> Vec<Option<String>> {
        fields.iter().map(|f| f.map(str::to_owned)).collect()
    }

    #[test]
    fn text_fields_are_unescaped() {
        let rows = read(&format(false), 2, b"1\t\\N\n\\\\N\ta\\tb\\101\\x41\\q\n\tx\\\ny\n").unwrap();
        let expected =
            [row(&[Some("1"), None]), row(&[Some("\\N"), Some("a\tbAAq")]), row(&[Some(""), Some("x\ny")])];
        assert_eq!(rows, expected);
    }

    #[test]
    fn any_line_end_will_do_but_only_one() {
        for input in [&b"1\n2\n"[..], b"1\r\n2\r\n", b"1\r2\r", b"1\n2"] {
            let rows = read(&format(false), 1, input).unwrap();
            assert_eq!(rows, [row(&[Some("1")]), row(&[Some("2")])]);
        }
        let error = read(&format(false), 1, b"1\n2\r\n").unwrap_err();
        assert_eq!(error, ("literal carriage return found in data".into(), 2));
        let error = read(&format(true), 1, b"1\r\n2\n").unwrap_err();
        assert_eq!(error, ("unquoted newline found in data".into(), 2));
    }

    #[test]
    fn the_marker_ends_the_input() {
        assert_eq!(read(&format(false), 1, b"1\n\\.\nrubbish\tx\n").unwrap(), [row(&[Some("1")])]);
        assert_eq!(read(&format(true), 1, b"1\n\\.\n2\n").unwrap(), [row(&[Some("1")])]);
        let error = read(&format(false), 1, b"1\nx\\.y\n").unwrap_err();
        assert_eq!(error, ("end-of-copy marker corrupt".into(), 2));
    }

    #[test]
    fn a_record_must_have_each_column_once() {
        let error = read(&format(false), 2, b"1\t2\n3\n").unwrap_err();
        assert_eq!(error, ("missing data for column \"b\"".into(), 2));
        let error = read(&format(false), 1, b"1\t2\n").unwrap_err();
        assert_eq!(error, ("extra data after last expected column".into(), 1));
        let error = read(&format(false), 1, b"\\xff\n").unwrap_err();
        assert_eq!(error.0, "invalid byte sequence for encoding \"UTF8\": 0xff");
    }

    #[test]
    fn csv_tells_empty_from_null() {
        let rows = read(&format(true), 3, b"1,,\"\"\n\"a,\"\"b\"\"\",\"two\nlines\",x\"y z\"\n").unwrap();
        let expected =
            [row(&[Some("1"), None, Some("")]), row(&[Some("a,\"b\""), Some("two\nlines"), Some("xy z")])];
        assert_eq!(rows, expected);
        let error = read(&format(true), 1, b"1\n\"x\ny").unwrap_err();
        assert_eq!(error.0, "unterminated CSV quoted field");
    }

    #[test]
    fn csv_with_another_escape_and_a_header() {
        let format = CopyFormat { escape: b'\\', header: true, null: "NIL".into(), ..format(true) };
        let rows = read(&format, 2, b"a,b\n\"x\\\"y\",NIL\n\"NIL\",\n").unwrap();
        assert_eq!(rows, [row(&[Some("x\"y"), None]), row(&[Some("NIL"), Some("")])]);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "é".repeat(80);
        assert_eq!(shown(&text), format!("{}...", "é".repeat(50)));
    }
}
