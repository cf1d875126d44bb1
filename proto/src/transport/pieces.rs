//! Messages cut into pieces, and put together again, under credit.
//!
//! A sender begins with [`WINDOW`] bytes of credit per request and pays for each piece. The receiver gives credit
//! back at once for pieces of an unfinished message (it needs the whole of it), and for the last piece when somebody
//! takes the message. So a receiver holds at most a window of messages that nobody has taken, and one unfinished one.

use super::lane::Closed;
use super::{MAX_MESSAGE, PIECE, PIECE_COST, WINDOW};
use crate::wire::generated::link::Part;
use bytes::Bytes;
use tokio::sync::Semaphore;

/// A message of one request as its pieces arrive.
#[derive(Debug)]
pub(super) struct Inbound {
    buffer: Vec<u8>,
    rest: u64,
    credit: usize,
}

/// What one more piece made.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// An unfinished message. The sender gets this much credit back.
    More(usize),
    /// A message. The sender gets this much credit back when somebody takes it.
    Message { bytes: Bytes, cost: usize, end: bool },
}

impl Inbound {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), rest: 0, credit: WINDOW }
    }

    /// Credit that the sender was told of.
    pub(super) fn grant(&mut self, credit: usize) {
        self.credit += credit;
    }

    /// Takes the next piece. Errors say how the sender broke the protocol.
    pub(super) fn accept(&mut self, part: Part) -> Result<Piece, String> {
        let Part { data, rest, end } = part;
        let cost = data.len() + PIECE_COST;
        self.credit = self.credit.checked_sub(cost).ok_or("it sent more than it had credit for")?;
        let length = (data.len() as u64).checked_add(rest).ok_or("a message without bounds")?;
        if self.rest != 0 && self.rest != length {
            return Err(format!("{length} bytes of a message where {} were to come", self.rest));
        }
        if self.buffer.len() as u64 + length > MAX_MESSAGE as u64 {
            return Err(format!("a message of more than {MAX_MESSAGE} bytes"));
        }
        if rest > 0 {
            if data.is_empty() || end {
                return Err("a piece that leads nowhere".to_owned());
            }
            self.buffer.extend_from_slice(&data);
            self.rest = rest;
            self.credit += cost;
            return Ok(Piece::More(cost));
        }
        self.rest = 0;
        let bytes = if self.buffer.is_empty() {
            data
        } else {
            self.buffer.extend_from_slice(&data);
            std::mem::take(&mut self.buffer).into()
        };
        Ok(Piece::Message { bytes, cost, end })
    }
}

/// Cuts a message into pieces, at least one.
#[derive(Debug)]
pub(super) struct Pieces {
    message: Option<Bytes>,
    end: bool,
}

impl Pieces {
    /// The message must not be longer than [`MAX_MESSAGE`]. `end` if nothing follows it.
    pub(super) fn new(message: Bytes, end: bool) -> Self {
        debug_assert!(message.len() <= MAX_MESSAGE);
        Self { message: Some(message), end }
    }

    /// What the next piece costs. `None` if there is none.
    pub(super) fn next_cost(&self) -> Option<usize> {
        Some((self.message.as_ref()?.len() + PIECE_COST).min(PIECE))
    }
}

impl Iterator for Pieces {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let mut data = self.message.take()?;
        if data.len() + PIECE_COST <= PIECE {
            return Some(Part { data, rest: 0, end: self.end });
        }
        let rest = data.split_off(PIECE - PIECE_COST);
        let part = Part { data, rest: rest.len() as u64, end: false };
        self.message = Some(rest);
        Some(part)
    }
}

/// Waits for credit and pays with it.
pub(super) async fn pay(credit: &Semaphore, cost: usize) -> Result<(), Closed> {
    let cost = u32::try_from(cost).expect("a piece is smaller than 4 GB");
    credit.acquire_many(cost).await.map_err(|_| Closed)?.forget();
    Ok(())
}

/// Adds what the peer granted. It can't grant more than it was sent.
pub(super) fn add_credit(credit: &Semaphore, granted: u32) -> Result<(), String> {
    let granted = granted as usize;
    if credit.available_permits() + granted > WINDOW {
        return Err("it granted more credit than it was sent bytes".to_owned());
    }
    credit.add_permits(granted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(length: usize) -> usize {
        let message = Bytes::from((0..length).map(|i| i as u8).collect::<Vec<_>>());
        let (mut inbound, mut count) = (Inbound::new(), 0);
        let mut pieces = Pieces::new(message.clone(), true);
        while let Some(cost) = pieces.next_cost() {
            let part = pieces.next().unwrap();
            assert_eq!(cost, part.data.len() + PIECE_COST);
            assert!(cost <= PIECE);
            count += 1;
            match inbound.accept(part).unwrap() {
                Piece::More(granted) => assert_eq!(granted, cost),
                Piece::Message { bytes, cost: granted, end } => {
                    assert_eq!((bytes, granted, end), (message.clone(), cost, true));
                }
            }
        }
        count
    }

    #[test]
    fn messages_of_every_length_come_back() {
        let most = PIECE - PIECE_COST;
        for (length, count) in [(0, 1), (1, 1), (most, 1), (most + 1, 2), (2 * most, 2), (40 * most + 5, 41)]
        {
            assert_eq!(round_trip(length), count);
        }
    }

    #[test]
    fn whoever_breaks_the_rules_is_found() {
        let part = |len: usize, rest| Part { data: vec![0; len].into(), rest, end: false };
        assert!(Inbound::new().accept(part(0, 5)).is_err());
        assert!(Inbound::new().accept(part(5, u64::MAX)).is_err());
        assert!(Inbound::new().accept(part(5, MAX_MESSAGE as u64)).is_err());
        assert!(Inbound::new().accept(Part { end: true, ..part(5, 5) }).is_err());
        let mut inbound = Inbound::new();
        inbound.accept(part(5, 5)).unwrap();
        assert!(inbound.accept(part(5, 5)).is_err());
        let mut inbound = Inbound::new();
        while inbound.accept(part(1000, 0)).is_ok() {}
        assert!(inbound.credit < 1000 + PIECE_COST);
        let credit = Semaphore::new(WINDOW - 10);
        assert!(add_credit(&credit, 11).is_err());
        assert_eq!(add_credit(&credit, 10), Ok(()));
    }
}
