//! COPY's input, cut into lines.
//!
//! What ends a line is learned from the first one: a line feed, a carriage return, or both. Later lines must end the
//! same way, and a loose one of the others is an error. A line end within CSV's quotes, or after a backslash in
//! text, is data.

use super::bad_format;
use planner::plan::CopyFormat;
use proto::{SqlState, WireError};
use std::ops::Range;

/// The longest line.
const MOST_LINE_BYTES: usize = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    Newline,
    Return,
    Both,
}

/// Cuts bytes into lines.
#[derive(Debug)]
pub struct Lines {
    csv: bool,
    quote: u8,
    /// CSV's escape where it's another byte than the quote.
    escape: Option<u8>,
    line_end: Option<LineEnd>,
    pending: Vec<u8>,
    /// Where the current line begins in `pending`.
    start: usize,
    /// How far it was searched for its end.
    at: usize,
    in_quotes: bool,
    escaped: bool,
    ended: bool,
    /// Lines so far, those within quotes too.
    number: u64,
    inner_lines: u64,
}

impl Lines {
    /// Lines of input in this format.
    pub fn new(format: &CopyFormat) -> Self {
        Self {
            csv: format.csv,
            quote: format.quote,
            escape: (format.escape != format.quote).then_some(format.escape),
            line_end: None,
            pending: Vec::new(),
            start: 0,
            at: 0,
            in_quotes: false,
            escaped: false,
            ended: false,
            number: 0,
            inner_lines: 0,
        }
    }

    /// Takes in more input.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.pending.drain(..self.start);
            self.at -= self.start;
            self.start = 0;
        }
        if !self.ended {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// The number of the line that was cut last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// A line's bytes.
    pub fn bytes(&self, line: Range<usize>) -> &[u8] {
        &self.pending[line]
    }

    /// The next line, without its end. `last`: there is no more input. `None`: none, or not enough input.
    pub fn next(&mut self, last: bool) -> Result<Option<Range<usize>>, WireError> {
        if self.ended {
            return Ok(None);
        }
        while let Some(&byte) = self.pending.get(self.at) {
            let next = self.pending.get(self.at + 1).copied();
            if self.csv {
                if self.in_quotes && Some(byte) == self.escape {
                    self.escaped = !self.escaped;
                } else {
                    if byte == self.quote && !self.escaped {
                        self.in_quotes = !self.in_quotes;
                    }
                    self.escaped = false;
                }
            }
            match byte {
                b'\n' if self.in_quotes => self.inner_lines += 1,
                b'\r' if self.in_quotes => {}
                b'\n' => {
                    if self.line_end.is_some_and(|end| end != LineEnd::Newline) {
                        return Err(self.loose("newline", "\\n"));
                    }
                    self.line_end = Some(LineEnd::Newline);
                    return self.cut(1);
                }
                b'\r' => {
                    if next.is_none() && !last {
                        return Ok(None);
                    }
                    let both = next == Some(b'\n');
                    match self.line_end {
                        None => {
                            self.line_end = Some(if both { LineEnd::Both } else { LineEnd::Return });
                        }
                        Some(LineEnd::Return) => {}
                        Some(LineEnd::Both) if both => {}
                        Some(_) => return Err(self.loose("carriage return", "\\r")),
                    }
                    return self.cut(if self.line_end == Some(LineEnd::Both) { 2 } else { 1 });
                }
                b'\\' if !self.csv || (self.at == self.start && !self.in_quotes) => match next {
                    None if !last => return Ok(None),
                    Some(b'.') => match self.marker(last)? {
                        None => return Ok(None),
                        Some(true) => {
                            self.ended = true;
                            return Ok(None);
                        }
                        Some(false) => {}
                    },
                    // What follows a backslash is data, a line end too.
                    Some(following) if !self.csv => {
                        self.inner_lines += u64::from(following == b'\n');
                        self.at += 1;
                    }
                    _ => {}
                },
                _ => {}
            }
            self.at += 1;
        }
        if self.pending.len() - self.start > MOST_LINE_BYTES {
            let message = format!("a line of COPY's input is longer than {MOST_LINE_BYTES} bytes");
            return Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
        }
        if !last || self.start == self.pending.len() {
            return Ok(None);
        }
        if self.in_quotes {
            self.number += 1;
            return Err(bad_format("unterminated CSV quoted field"));
        }
        // The last line needs no end.
        self.cut(0)
    }

    fn cut(&mut self, end_bytes: usize) -> Result<Option<Range<usize>>, WireError> {
        let line = self.start..self.at.min(self.pending.len());
        self.at = line.end + end_bytes;
        self.start = self.at;
        self.number += 1 + std::mem::take(&mut self.inner_lines);
        (self.in_quotes, self.escaped) = (false, false);
        Ok(Some(line))
    }

    /// Whether `\.` stands alone in its line and ends the input. `None`: not enough input to tell.
    fn marker(&mut self, last: bool) -> Result<Option<bool>, WireError> {
        let alone = match self.pending.get(self.at + 2) {
            None if !last => return Ok(None),
            None | Some(b'\n' | b'\r') => self.at == self.start,
            Some(_) => false,
        };
        if !alone && !self.csv {
            self.number += 1;
            return Err(bad_format("end-of-copy marker corrupt"));
        }
        Ok(Some(alone))
    }

    fn loose(&mut self, what: &str, written: &str) -> WireError {
        self.number += 1;
        if self.csv {
            bad_format(format!("unquoted {what} found in data"))
                .with_hint(format!("Use quoted CSV field to represent {what}."))
        } else {
            bad_format(format!("literal {what} found in data"))
                .with_hint(format!("Use \"{written}\" to represent {what}."))
        }
    }
}
