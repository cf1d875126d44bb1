//! What clients send, decoded.
//!
//! In comes the body of one message, whole; out goes a [`Message`] or an error that names what was wrong. A body
//! that is too short, too long or not UTF-8 is an error here and never a panic, never a replacement character.

use bytes::Bytes;
use proto::{SqlState, WireError};

/// A message of a client whose session has started.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// A string of statements.
    Query(String),
    /// Makes a prepared statement.
    Parse {
        /// Its name; empty for the unnamed one.
        name: String,
        /// Its text.
        sql: String,
        /// The declared types of its first parameters; 0 for none.
        types: Vec<u32>,
    },
    /// Makes a portal of a prepared statement.
    Bind(Bind),
    /// Asks what a statement or portal takes and gives.
    Describe(Object, String),
    /// Runs a portal.
    Execute {
        /// Its name.
        portal: String,
        /// Rows to return at most; 0 for all.
        max_rows: u32,
    },
    /// Forgets a statement or portal.
    Close(Object, String),
    /// Asks for everything that was answered so far.
    Flush,
    /// Ends a pipeline.
    Sync,
    /// A piece of COPY's input.
    CopyData(Bytes),
    /// The end of COPY's input.
    CopyDone,
    /// COPY's input can't be completed, and why.
    CopyFail(String),
    /// Goodbye.
    Terminate,
}

/// What a name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

/// The fields of Bind.
#[derive(Debug, Default, PartialEq)]
pub struct Bind {
    /// The portal to make; empty for the unnamed one.
    pub portal: String,
    /// The statement it runs.
    pub statement: String,
    /// The parameters' formats: none (all text), one for all, or one for each.
    pub formats: Vec<Format>,
    /// The parameters; `None` is NULL.
    pub parameters: Vec<Option<Bytes>>,
    /// The result columns' formats: none (all text), one for all, or one for each.
    pub results: Vec<Format>,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As psql would show it.
    #[default]
    Text,
    /// As the type's binary form.
    Binary,
}

/// Whether a byte begins a message that clients may send.
pub fn is_message_type(tag: u8) -> bool {
    matches!(
        tag,
        b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'S' | b'd' | b'c' | b'f' | b'X' | b'p' | b'F'
    )
}

/// Decodes one message's body.
pub fn decode(tag: u8, body: Bytes) -> Result<Message, WireError> {
    let mut fields = Fields { body };
    let message = match tag {
        b'Q' => Message::Query(fields.text()?),
        b'P' => {
            let name = fields.text()?;
            let sql = fields.text()?;
            let count = fields.count()?;
            let types = (0..count).map(|_| fields.u32()).collect::<Result<_, _>>()?;
            Message::Parse { name, sql, types }
        }
        b'B' => {
            let portal = fields.text()?;
            let statement = fields.text()?;
            let formats = fields.formats()?;
            let count = fields.count()?;
            let parameters = (0..count).map(|_| fields.value()).collect::<Result<_, _>>()?;
            let results = fields.formats()?;
            Message::Bind(Bind { portal, statement, formats, parameters, results })
        }
        b'D' => Message::Describe(fields.object()?, fields.text()?),
        b'C' => Message::Close(fields.object()?, fields.text()?),
        b'E' => {
            let portal = fields.text()?;
            // PostgreSQL takes a negative limit for none, too.
            let max_rows = (fields.u32()? as i32).max(0) as u32;
            Message::Execute { portal, max_rows }
        }
        b'H' => Message::Flush,
        b'S' => Message::Sync,
        b'd' => return Ok(Message::CopyData(fields.body)),
        b'c' => Message::CopyDone,
        b'f' => Message::CopyFail(fields.text()?),
        b'X' => Message::Terminate,
        b'F' => return Err(WireError::unsupported("the function call message")),
        _ => return Err(violation(format!("unexpected message of type {tag}"))),
    };
    if !fields.body.is_empty() {
        return Err(violation("invalid message format"));
    }
    Ok(message)
}

/// `08P01` with this text.
pub fn violation(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::PROTOCOL_VIOLATION, message)
}

/// Checks that bytes are text that PostgreSQL would take.
pub fn utf8(bytes: &[u8]) -> Result<&str, WireError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.contains(&0) => Ok(text),
        Ok(_) => Err(bad_sequence(&[0])),
        Err(error) => {
            let bad = &bytes[error.valid_up_to()..];
            let len = error.error_len().unwrap_or(bad.len()).clamp(1, 4).min(bad.len());
            Err(bad_sequence(&bad[..len]))
        }
    }
}

fn bad_sequence(bytes: &[u8]) -> WireError {
    let hex: Vec<_> = bytes.iter().map(|b| format!("0x{b:02x}")).collect();
    let message = format!("invalid byte sequence for encoding \"UTF8\": {}", hex.join(" "));
    WireError::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, message)
}

struct Fields {
    body: Bytes,
}

impl Fields {
    fn take(&mut self, len: usize) -> Result<Bytes, WireError> {
        if len > self.body.len() {
            return Err(violation("insufficient data left in message"));
        }
        Ok(self.body.split_to(len))
    }

    fn count(&mut self) -> Result<u16, WireError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String, WireError> {
        let end = self.body.iter().position(|b| *b == 0);
        let end = end.ok_or_else(|| violation("invalid string in message"))?;
        let bytes = self.take(end)?;
        self.take(1)?;
        utf8(&bytes).map(str::to_owned)
    }

    fn object(&mut self) -> Result<Object, WireError> {
        match self.take(1)?[0] {
            b'S' => Ok(Object::Statement),
            b'P' => Ok(Object::Portal),
            other => Err(violation(format!("invalid message subtype {other}"))),
        }
    }

    fn formats(&mut self) -> Result<Vec<Format>, WireError> {
        let count = self.count()?;
        (0..count)
            .map(|_| match self.count()? {
                0 => Ok(Format::Text),
                1 => Ok(Format::Binary),
                other => Err(WireError::new(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("unsupported format code: {}", other as i16),
                )),
            })
            .collect()
    }

    fn value(&mut self) -> Result<Option<Bytes>, WireError> {
        match self.u32()? as i32 {
            -1 => Ok(None),
            len => match usize::try_from(len) {
                Ok(len) => self.take(len).map(Some),
                Err(_) => Err(violation("insufficient data left in message")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_field_by_field() {
        let parse = decode(b'P', Bytes::from_static(b"s\0SELECT $1\0\0\x01\0\0\0\x17")).unwrap();
        assert_eq!(parse, Message::Parse { name: "s".into(), sql: "SELECT $1".into(), types: vec![23] });
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0";
        let bind = decode(b'B', Bytes::from_static(body)).unwrap();
        let expected = Bind {
            portal: "p".into(),
            statement: "s".into(),
            formats: vec![Format::Binary],
            parameters: vec![Some(Bytes::from_static(b"ab")), None],
            results: vec![],
        };
        assert_eq!(bind, Message::Bind(expected));
        let execute = decode(b'E', Bytes::from_static(b"\0\xff\xff\xff\xff")).unwrap();
        assert_eq!(execute, Message::Execute { portal: String::new(), max_rows: 0 });
    }

    #[test]
    fn a_body_cut_anywhere_is_an_error() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\x01\0\x01";
        for cut in 0..body.len() {
            let error = decode(b'B', Bytes::copy_from_slice(&body[..cut])).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::PROTOCOL_VIOLATION);
        }
        assert!(decode(b'B', Bytes::from_static(b"\0\0\0\0\0\x01\xff\xff\xff\xf0\0\0")).is_err());
        assert!(decode(b'S', Bytes::from_static(b"x")).is_err());
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let error = decode(b'Q', Bytes::from_static(b"SELECT '\xc3(';\0")).unwrap_err();
        assert_eq!(error.sqlstate.as_str(), "22021");
        assert_eq!(error.message, "invalid byte sequence for encoding \"UTF8\": 0xc3");
    }
}
