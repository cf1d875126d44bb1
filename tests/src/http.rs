//! As much of HTTP as the tests speak: one request on a connection, and the whole answer.

use crate::wait::PATIENCE;
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status line and the headers.
    pub head: String,
    /// What came after them.
    pub body: String,
}

impl Answer {
    /// The value of a header, by its name in the case that the server writes.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends a request and reads until the server closes the connection.
pub fn ask(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: shoal\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("{text:?}")))?;
    Ok(Answer { head: head.to_owned(), body: body.to_owned() })
}

/// `GET` without anything further.
pub fn get(address: &str, path: &str) -> io::Result<Answer> {
    ask(address, "GET", path, &[], "")
}
