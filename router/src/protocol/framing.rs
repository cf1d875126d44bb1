//! Bytes of a socket, cut into messages.
//!
//! A message is a type byte, a length that counts itself, and a body. The length is checked against the bound before
//! a byte of the body is waited for, and memory grows with what has come, not with what was announced.

use super::frontend::{is_message_type, violation};
use bytes::{Buf, Bytes, BytesMut};
use proto::{SqlState, WireError};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is asked of the socket at once.
const READ_BYTES: usize = 16 * 1024;

/// How much a client may send ahead while its statement runs, before it is left waiting.
const AHEAD_BYTES: usize = 1024 * 1024;

/// Cuts a stream into messages.
#[derive(Debug)]
pub struct Frames<R> {
    stream: R,
    buffer: BytesMut,
    max_bytes: usize,
}

/// Why there is no next message.
#[derive(Debug)]
pub enum FrameError {
    /// The client has gone.
    Closed,
    /// What it sent can't be a message. The stream has lost its frame and must be closed.
    Invalid(WireError),
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Messages of this stream, none longer than `max_bytes`.
    pub fn new(stream: R, max_bytes: usize) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(READ_BYTES), max_bytes }
    }

    /// A message that has already arrived.
    pub fn buffered(&mut self) -> Result<Option<(u8, Bytes)>, FrameError> {
        let Some(&tag) = self.buffer.first() else { return Ok(None) };
        if !is_message_type(tag) {
            return Err(FrameError::Invalid(violation(format!("invalid frontend message type {tag}"))));
        }
        let Some(len) = self.buffer.get(1..).and_then(|rest| rest.first_chunk::<4>()) else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*len) as usize;
        if len < 4 {
            return Err(FrameError::Invalid(violation("invalid message length")));
        }
        if len > self.max_bytes {
            let message = format!("a message of {len} bytes exceeds the limit of {} bytes", self.max_bytes);
            return Err(FrameError::Invalid(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)));
        }
        if self.buffer.len() < 1 + len {
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some((tag, self.buffer.split_to(len - 4).freeze())))
    }

    /// Whether the pipeline is known to end next: a Sync has arrived, and nothing before it runs anything.
    pub fn ends_next(&self) -> bool {
        let mut rest = &self.buffer[..];
        loop {
            match rest.first() {
                Some(b'S') => return true,
                // Close and Flush.
                Some(b'C' | b'H') => {}
                _ => return false,
            }
            let Some(len) = rest[1..].first_chunk::<4>() else { return false };
            let Some(next) = rest.get(1 + u32::from_be_bytes(*len) as usize..) else { return false };
            rest = next;
        }
    }

    /// The next message. Cancel safe: what was read stays.
    pub async fn next(&mut self) -> Result<(u8, Bytes), FrameError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await.map_err(|_| FrameError::Closed)?;
        }
    }

    /// Exactly so many bytes, for what comes before the first message.
    pub async fn exactly(&mut self, len: usize) -> Result<Bytes, FrameError> {
        while self.buffer.len() < len {
            self.fill().await.map_err(|_| FrameError::Closed)?;
        }
        Ok(self.buffer.split_to(len).freeze())
    }

    /// Waits until the client has gone, and takes in what it sends meanwhile, up to a bound. Cancel safe.
    pub async fn until_closed(&mut self) {
        loop {
            if self.buffer.len() > AHEAD_BYTES {
                return std::future::pending().await;
            }
            if self.fill().await.is_err() {
                return;
            }
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        // A type byte and a length that were read before tell how much is still to come; trust only a part of it.
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn first(bytes: &[u8], max: usize) -> Result<(u8, Bytes), FrameError> {
        Frames::new(bytes, max).next().await
    }

    fn sqlstate(result: Result<(u8, Bytes), FrameError>) -> String {
        match result {
            Err(FrameError::Invalid(error)) => error.sqlstate.to_string(),
            other => panic!("expected an invalid frame, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn messages_are_cut_at_their_lengths() {
        let bytes: &[u8] = b"Q\0\0\0\x06a\0S\0\0\0\x04X\0\0";
        let mut frames = Frames::new(bytes, 100);
        assert_eq!(frames.next().await.unwrap(), (b'Q', Bytes::from_static(b"a\0")));
        assert_eq!(frames.next().await.unwrap(), (b'S', Bytes::new()));
        assert!(matches!(frames.next().await, Err(FrameError::Closed)));
    }

    #[tokio::test]
    async fn the_end_of_a_pipeline_is_seen_ahead() {
        for (bytes, ends) in [
            (&b"S\0\0\0\x04"[..], true),
            (b"H\0\0\0\x04C\0\0\0\x06S\0S\0\0\0\x04", true),
            (b"C\0\0\0\x06S\0", false),
            (b"C\0\0\0\x06S", false),
            (b"C\0\0", false),
            (b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04", false),
            (b"C\xff\xff\xff\xff", false),
            (b"", false),
        ] {
            let mut frames = Frames::new(bytes, 100);
            let _ = frames.fill().await;
            assert_eq!(frames.ends_next(), ends, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn sizes_are_bounded_before_anything_is_waited_for() {
        assert_eq!(sqlstate(first(b"Q\x40\0\0\0", 64 << 20).await), "54000");
        assert_eq!(sqlstate(first(b"Q\0\0\0\x03", 100).await), "08P01");
        assert_eq!(sqlstate(first(b"\0\0\0\0\x03", 100).await), "08P01");
        assert_eq!(sqlstate(first(b"GET / HTTP/1.1\r\n", 100).await), "08P01");
    }
}
