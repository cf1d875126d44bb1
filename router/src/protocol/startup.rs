//! What comes before the first message: encryption refused, cancel requests, and the session's parameters.
//!
//! In come the first bytes of a connection, which may be anything: an HTTP request, a TLS handshake, noise. Out goes
//! what the connection is for, or the error to end it with.

use super::framing::{FrameError, Frames};
use super::frontend::{utf8, violation};
use proto::{SqlState, WireError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// As in PostgreSQL: no packet before authentication is longer.
const MAX_PACKET_BYTES: usize = 10_000;

const SSL_REQUEST: u32 = (1234 << 16) | 5679;
const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;
const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;

/// What a connection is for.
#[derive(Debug, PartialEq)]
pub enum Purpose {
    /// A session.
    Session(Startup),
    /// To cancel what another session runs.
    Cancel {
        /// The session's process id, so called.
        pid: i32,
        /// Its secret.
        secret: i32,
    },
}

/// What a client says when a session starts.
#[derive(Debug, Default, PartialEq)]
pub struct Startup {
    /// The minor version of protocol 3 that it speaks.
    pub minor: u16,
    /// Its parameters, in order: `user`, `database`, `options`, and settings.
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// A parameter; the last one wins.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Protocol options that aren't known: those that begin with `_pq_.`.
    pub fn unknown_options(&self) -> Vec<String> {
        self.parameters.iter().filter(|(n, _)| n.starts_with("_pq_.")).map(|(n, _)| n.clone()).collect()
    }

    /// The settings that it makes, those in `options` (`-c name=value`, `--name=value`) first.
    pub fn settings(&self) -> Result<Vec<(String, String)>, WireError> {
        let mut settings = match self.get("options") {
            Some(options) => parse_options(options)?,
            None => Vec::new(),
        };
        for (name, value) in &self.parameters {
            if matches!(name.as_str(), "user" | "database" | "options") || name.starts_with("_pq_.") {
                continue;
            }
            settings.push((name.to_ascii_lowercase(), value.clone()));
        }
        Ok(settings)
    }
}

/// Reads packets until one says what the connection is for. Encryption is answered with no.
pub async fn read<R, W>(frames: &mut Frames<R>, writer: &mut W) -> Result<Purpose, FrameError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    // A client asks for each kind of encryption once at most.
    for _ in 0..3 {
        let len = frames.exactly(4).await?;
        let len = u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
        if !(8..=MAX_PACKET_BYTES).contains(&len) {
            return Err(FrameError::Invalid(violation("invalid length of startup packet")));
        }
        let body = frames.exactly(len - 4).await?;
        let code = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
        match code {
            SSL_REQUEST | GSSENC_REQUEST => {
                writer.write_all(b"N").await.map_err(|_| FrameError::Closed)?;
                writer.flush().await.map_err(|_| FrameError::Closed)?;
            }
            CANCEL_REQUEST => {
                let (Some(pid), Some(secret)) = (int(&body, 4), int(&body, 8)) else {
                    return Err(FrameError::Invalid(violation("invalid cancel request")));
                };
                return Ok(Purpose::Cancel { pid, secret });
            }
            _ => return parse(code, &body[4..]).map(Purpose::Session).map_err(FrameError::Invalid),
        }
    }
    Err(FrameError::Invalid(violation("too many requests for encryption")))
}

fn int(body: &[u8], at: usize) -> Option<i32> {
    body.get(at..)?.first_chunk::<4>().map(|bytes| i32::from_be_bytes(*bytes))
}

fn parse(code: u32, mut rest: &[u8]) -> Result<Startup, WireError> {
    let (major, minor) = ((code >> 16) as u16, code as u16);
    if major != 3 {
        let message = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0");
        return Err(WireError::new(SqlState::FEATURE_NOT_SUPPORTED, message));
    }
    let mut parameters = Vec::new();
    loop {
        let name = text(&mut rest)?;
        if name.is_empty() {
            break;
        }
        parameters.push((name, text(&mut rest)?));
    }
    if !rest.is_empty() {
        return Err(violation("invalid startup packet layout: expected terminator as last byte"));
    }
    Ok(Startup { minor, parameters })
}

fn text(rest: &mut &[u8]) -> Result<String, WireError> {
    let invalid = || violation("invalid startup packet layout: expected terminator as last byte");
    let end = rest.iter().position(|b| *b == 0).ok_or_else(invalid)?;
    let text = utf8(&rest[..end])?.to_owned();
    *rest = &rest[end + 1..];
    Ok(text)
}

/// Splits `options` as PostgreSQL's `pg_split_opts` does: at white space, with backslash before what is meant as is.
fn parse_options(options: &str) -> Result<Vec<(String, String)>, WireError> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = if word == "-c" {
            words.next()
        } else {
            word.strip_prefix("-c").or_else(|| word.strip_prefix("--")).map(str::to_owned)
        };
        let parsed = assignment.as_deref().and_then(|a| a.split_once('='));
        let Some((name, value)) = parsed else {
            let message = format!("invalid command-line argument for server process: {word}");
            return Err(WireError::new(SqlState::SYNTAX_ERROR, message));
        };
        settings.push((name.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn purpose(bytes: &[u8]) -> (Result<Purpose, FrameError>, Vec<u8>) {
        let mut written = Vec::new();
        let result = read(&mut Frames::new(bytes, 1000), &mut written).await;
        (result, written)
    }

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut packet = (body.len() as u32 + 8).to_be_bytes().to_vec();
        packet.extend(code.to_be_bytes());
        packet.extend(body);
        packet
    }

    #[tokio::test]
    async fn encryption_is_refused_and_the_session_goes_on() {
        let mut bytes = packet(SSL_REQUEST, b"");
        bytes.extend(packet(GSSENC_REQUEST, b""));
        bytes.extend(packet(3 << 16, b"user\0shoal\0options\0-c a.b=1\\ 2 --c-d=3\0TimeZone\0UTC\0\0"));
        let (result, written) = purpose(&bytes).await;
        let Ok(Purpose::Session(startup)) = result else { panic!("{result:?}") };
        assert_eq!((written.as_slice(), startup.get("user")), (&b"NN"[..], Some("shoal")));
        let settings = [("a.b", "1 2"), ("c_d", "3"), ("timezone", "UTC")].map(|(n, v)| (n.into(), v.into()));
        assert_eq!(startup.settings().unwrap(), settings);
    }

    #[tokio::test]
    async fn a_cancel_request_names_a_session() {
        let (result, _) = purpose(&packet(CANCEL_REQUEST, &[0, 0, 0, 7, 0, 0, 0, 9])).await;
        assert_eq!(result.unwrap(), Purpose::Cancel { pid: 7, secret: 9 });
    }

    #[tokio::test]
    async fn what_is_no_startup_packet_is_a_protocol_violation() {
        let mut noise: Vec<Vec<u8>> =
            vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]];
        noise.push(packet(CANCEL_REQUEST, &[0, 0]));
        noise.push(packet(3 << 16, b"user\0shoal"));
        noise.push([packet(SSL_REQUEST, b""), packet(SSL_REQUEST, b""), packet(SSL_REQUEST, b"")].concat());
        for bytes in noise {
            match purpose(&bytes).await.0 {
                Err(FrameError::Invalid(error)) => assert_eq!(error.sqlstate.as_str(), "08P01"),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(purpose(b"\0\0\0").await.0, Err(FrameError::Closed)));
    }
}
