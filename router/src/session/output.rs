//! The session's way to its client: one buffer, sent when the protocol says so or when it's big.

use crate::cancel::{Interrupt, Reason};
use proto::WireError;
use std::io;
use std::time::Instant;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Past this size a buffer is sent before more is put in: a client that reads slowly is waited for.
const FULL_BYTES: usize = 64 * 1024;

/// A buffer that grew beyond this for one big answer isn't kept.
const KEPT_BYTES: usize = 1024 * 1024;

/// What was answered and isn't sent yet.
pub struct Output<W> {
    writer: W,
    /// Messages are appended here.
    pub buffer: Vec<u8>,
    sent: usize,
}

impl<W: AsyncWrite + Unpin> Output<W> {
    /// An empty buffer before this writer.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::with_capacity(4096), sent: 0 }
    }

    /// The writer, for what precedes the first message.
    pub fn writer(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Sends everything. Cancel safe: what was sent isn't sent again.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.buffer.len() {
            match self.writer.write(&self.buffer[self.sent..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.sent += written,
            }
        }
        self.buffer.clear();
        self.sent = 0;
        if self.buffer.capacity() > KEPT_BYTES {
            self.buffer.shrink_to(FULL_BYTES);
        }
        Ok(())
    }

    /// Sends everything if it is much. A statement that nobody wants, or that has no time left, isn't held up.
    pub async fn relieve(&mut self, interrupt: &Interrupt, deadline: Instant) -> Result<(), WireError> {
        if self.buffer.len() - self.sent < FULL_BYTES {
            return Ok(());
        }
        tokio::select! {
            biased;
            sent = self.flush() => sent.map_err(|_| {
                interrupt.raise(Reason::Lost);
                Reason::Lost.error()
            }),
            reason = interrupt.wait() => Err(reason.error()),
            () = async { tokio::time::sleep_until(deadline.into()).await } => Err(Reason::Timeout.error()),
        }
    }
}
