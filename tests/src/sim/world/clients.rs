//! A world's clients: what they want next, where they send it, and what an answer tells them.

use super::super::client::{Answer, Call, Kept, Operation, Wish};
use super::super::history::Rows;
use super::super::rows::{self, REGISTERS};
use super::super::trace::{MILLISECOND, SECOND, Time};
use super::{Outcome, World};
use proto::{Retry, WireError};
use replica::{Snapshot, Written};
use std::time::Duration;

/// For how long clients are eager to read.
const EAGERNESS: Time = 500 * MILLISECOND;

/// What is known after an attempt.
enum Known {
    /// It has no effect: go on at this node, if any is better than another.
    Nothing(Option<u64>),
    /// It may have an effect, or may still get one.
    Unknown,
}

impl World {
    /// It's a client's turn.
    pub(super) fn client_turn(&mut self, number: usize) -> Outcome {
        if let Some(kept) = self.clients[number].kept.take() {
            self.let_go(number, &kept)?;
            let pause = self.clients[number].random.within(0..100 * MILLISECOND);
            self.client_at(number, self.now() + pause);
            return Ok(());
        }
        if self.clients[number].call.take().is_some() {
            self.count("calls without an answer");
            return self.again(number, Known::Unknown);
        }
        if self.clients[number].operation.is_none() {
            if self.now() < self.quiet_until && !self.healed {
                let pause = self.clients[number].random.within(0..100 * MILLISECOND);
                self.client_at(number, self.quiet_until + pause);
                return Ok(());
            }
            let operation = self.wish(number);
            self.clients[number].operation = Some(operation);
        }
        self.attempt(number)
    }

    /// Every other client that has nothing to do wants to read, as soon as may be.
    pub(super) fn read_now(&mut self) {
        self.eager_until = self.now() + EAGERNESS;
        for number in (0..self.clients.len()).step_by(2) {
            let client = &mut self.clients[number];
            if client.operation.is_none() && client.kept.is_none() {
                let pause = client.random.within(0..EAGERNESS);
                self.client_at(number, self.now() + pause);
            }
        }
    }

    fn is_eager(&self, number: usize) -> bool {
        number.is_multiple_of(2) && self.now() < self.eager_until
    }

    fn wish(&mut self, number: usize) -> Operation {
        let until = self.now() + 6 * SECOND;
        let eager = self.is_eager(number);
        let client = &mut self.clients[number];
        let sequence = client.next_sequence();
        let value = client.value(sequence);
        let wish = match client.random.within(0..100) {
            _ if eager => Wish::Read,
            0..40 => {
                self.history.append_called(value);
                Wish::Append { value }
            }
            40..60 => {
                let key = client.random.within(1..REGISTERS.cast_unsigned() + 1).cast_signed();
                let call = self.history.swap_called(key, value);
                Wish::Swap { key, value, call }
            }
            60..63 => Wish::Schema { job: value.cast_unsigned() },
            63..83 => Wish::Read,
            83..91 => Wish::SessionRead,
            91..97 => Wish::BoundedRead { staleness: client.random.within(50 * MILLISECOND..3 * SECOND) },
            _ => Wish::AnyRead,
        };
        Operation { wish, sequence, uncertain: false, attempts: 0, until }
    }

    /// Sends a client's operation to a node.
    fn attempt(&mut self, number: usize) -> Outcome {
        let now = self.now();
        let all = self.ids();
        let least = if self.is_eager(number) { 2 * SECOND } else { 200 * MILLISECOND };
        let client = &mut self.clients[number];
        let Some(mut operation) = client.operation.take() else { return Ok(()) };
        operation.attempts += 1;
        let anywhere = *client.random.pick(&all).expect("there are nodes");
        let to_leader =
            !matches!(operation.wish, Wish::SessionRead | Wish::BoundedRead { .. } | Wish::AnyRead);
        let node = match client.leader {
            Some(leader) if to_leader && client.random.permille(950) => leader,
            _ => anywhere,
        };
        let Some(replica) = self.nodes[&node].replica() else {
            client.operation = Some(operation);
            return self.again(number, Known::Nothing(None));
        };
        let patience = client.random.within(least..4 * SECOND);
        let read = matches!(operation.wish, Wish::Read).then(|| self.history.read_called());
        let deadline = Duration::from_nanos(patience);
        let answer = client.send(replica, &operation, deadline);
        // The client waits a little longer than the replica, which mostly has the last word.
        let until = now + patience + 20 * MILLISECOND;
        client.call = Some(Call { node, life: self.nodes[&node].life, answer, read });
        client.operation = Some(operation);
        self.client_at(number, until);
        self.touch(node);
        Ok(())
    }

    /// Looks after all clients' answers.
    pub(super) fn poll_clients(&mut self) -> Outcome {
        for number in 0..self.clients.len() {
            let Some(call) = &self.clients[number].call else { continue };
            let (id, life) = (call.node, call.life);
            let node = &self.nodes[&id];
            if node.life != life || node.process.is_none() {
                self.clients[number].call = None;
                self.count("calls to a node that died");
                self.again(number, Known::Unknown)?;
            } else if !node.paused && self.clients[number].wants_poll() {
                let answer = self.clients[number].poll();
                // Whether it has its answer or not, it may have given the loops something to do.
                self.touch(id);
                if let Some(answer) = answer {
                    let call = self.clients[number].call.take().expect("it was just polled");
                    self.answer(number, &call, answer)?;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, number: usize, call: &Call, answer: Answer) -> Outcome {
        let lost = !self.healed && self.network.loses_answer();
        match answer {
            Answer::Written(Ok(_)) | Answer::Changed(Ok(_)) if lost => {
                self.count("answers lost");
                self.again(number, Known::Unknown)
            }
            Answer::Written(Ok(written)) => self.written(number, call, &written),
            Answer::Changed(Ok(index)) => {
                self.history.heard(index.0, self.clock.now());
                let client = &mut self.clients[number];
                client.session = client.session.max(index.0);
                client.leader = Some(call.node);
                self.count("schema entries");
                self.finish(number)
            }
            Answer::Opened(Ok(snapshot)) => self.opened(number, call, snapshot),
            Answer::Written(Err(error)) | Answer::Changed(Err(error)) => {
                let known = self.refused(&error)?;
                self.again(number, known)
            }
            Answer::Opened(Err(error)) => {
                self.count("reads refused");
                match error.retry {
                    Retry::NotLeader(leader) => {
                        self.again(number, Known::Nothing(leader.map(|leader| leader.0)))
                    }
                    _ => self.again(number, Known::Nothing(None)),
                }
            }
        }
    }

    fn refused(&mut self, error: &WireError) -> Result<Known, String> {
        match error.retry {
            Retry::NotLeader(leader) => {
                self.count("writes sent elsewhere");
                Ok(Known::Nothing(leader.map(|leader| leader.0)))
            }
            Retry::Later => {
                self.count("writes too late for their turn");
                Ok(Known::Nothing(None))
            }
            Retry::Unknown => {
                self.count("writes of unknown outcome");
                Ok(Known::Unknown)
            }
            // What a client cancels while it runs is interrupted; nothing of it happened.
            _ if error.sqlstate == proto::SqlState::QUERY_CANCELED => Ok(Known::Nothing(None)),
            _ => Err(format!("a write was refused for good: {error:?}")),
        }
    }

    fn written(&mut self, number: usize, call: &Call, written: &Written) -> Outcome {
        let client = &mut self.clients[number];
        client.session = client.session.max(written.index.0);
        client.leader = Some(call.node);
        client.acknowledged += 1;
        self.history.heard(written.index.0, self.clock.now());
        let client = &mut self.clients[number];
        let operation = client.operation.clone().ok_or("an answer without an operation")?;
        let what = match operation.wish {
            Wish::Append { value } => {
                client.own.insert(value);
                self.history.append_acknowledged(value, self.clock.now());
                format!("append {value}")
            }
            Wish::Swap { key, value, call } => {
                let old = rows::swapped(&written.output).ok_or("a swap without a value")?;
                self.history.swap_acknowledged(key, call, value, old);
                format!("swap {old} for {value} in {key}")
            }
            _ => return Err("a read was answered as a write".into()),
        };
        self.count("writes acknowledged");
        if written.repeated {
            self.count("writes repeated");
        }
        let (node, index) = (call.node, written.index);
        let repeated = if written.repeated { ", a second time" } else { "" };
        self.note(format_args!("client {number}: {what} at {index} by node {node}{repeated}"));
        self.finish(number)
    }

    fn opened(&mut self, number: usize, call: &Call, snapshot: Snapshot) -> Outcome {
        let rows = match rows::read(&snapshot) {
            Ok(rows) => rows,
            // It was ended, for the WAL's sake or by its deadline.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
                self.count("reads ended");
                return self.again(number, Known::Nothing(None));
            }
            Err(error) => return Err(format!("client {number} can't read at node {}: {error}", call.node)),
        };
        let who = format!("client {number} at node {}", call.node);
        if call.read.is_some() {
            let opened = self.nodes[&call.node].clock.earliest(snapshot.age());
            self.history.opened(rows.position, opened, &who, self.clock.now())?;
        }
        self.judge_read(number, call, &rows, &who)?;
        self.note(format_args!("{who}: reads {} rows at {}", rows.appended.len(), rows.position));
        self.count("reads");
        self.finish(number)?;
        let few = self.plan.setup.max_snapshots <= 2;
        let client = &mut self.clients[number];
        if client.random.permille(if few { 300 } else { 50 }) && !self.healed {
            let until = self.clock.now() + client.random.within(10 * MILLISECOND..3 * SECOND);
            let (node, life) = (call.node, call.life);
            client.kept = Some(Kept { node, life, snapshot, position: rows.position, hash: rows.hash });
            self.client_at(number, until);
        }
        Ok(())
    }

    fn judge_read(&mut self, number: usize, call: &Call, rows: &Rows, who: &str) -> Outcome {
        let client = &mut self.clients[number];
        let operation = client.operation.as_ref().ok_or("an answer without an operation")?;
        match operation.wish {
            Wish::Read => {
                let begun = call.read.as_ref().ok_or("a read without a beginning")?;
                self.history.read_returned(begun, rows, who, self.clock.now())?;
                client.leader = Some(call.node);
            }
            Wish::SessionRead => {
                self.history.session_returned(client.session, &client.own, rows, who)?;
            }
            // Clocks may differ by a sixth.
            Wish::BoundedRead { staleness } => {
                let since = self.clock.now().saturating_sub(staleness * 6 / 5);
                self.history.bounded_returned(since, rows, who)?;
                self.counts.entry("bounded reads".into()).and_modify(|count| *count += 1).or_insert(1);
            }
            _ => self.history.saw(rows, who)?,
        }
        if matches!(operation.wish, Wish::Read | Wish::SessionRead) {
            client.session = client.session.max(rows.position);
        }
        Ok(())
    }

    /// A snapshot that was kept must be as it was.
    fn let_go(&mut self, number: usize, kept: &Kept) -> Outcome {
        if self.nodes[&kept.node].life != kept.life {
            return Ok(());
        }
        if let Ok(rows) = rows::read(&kept.snapshot) {
            self.count("snapshots kept");
            if (rows.position, rows.hash) != (kept.position, kept.hash) {
                return Err(format!("client {number}: a snapshot at {} has changed", kept.position));
            }
        }
        self.touch(kept.node);
        Ok(())
    }

    /// Tries again, or gives up.
    fn again(&mut self, number: usize, known: Known) -> Outcome {
        let now = self.clock.now();
        let client = &mut self.clients[number];
        let Some(operation) = &mut client.operation else { return Ok(()) };
        match known {
            Known::Nothing(leader) => client.leader = leader,
            Known::Unknown => {
                operation.uncertain = true;
                client.leader = None;
            }
        }
        if now < operation.until {
            let pause = client.random.within(5 * MILLISECOND..150 * MILLISECOND);
            self.client_at(number, now + pause);
            return Ok(());
        }
        let Operation { wish, uncertain, .. } = operation.clone();
        self.count(if uncertain { "operations of unknown outcome" } else { "operations refused" });
        if !uncertain {
            match wish {
                Wish::Append { value } => self.history.append_refused(value),
                Wish::Swap { key, call, .. } => self.history.swap_refused(key, call),
                _ => {}
            }
        }
        self.note(format_args!("client {number} gives up {wish:?}"));
        self.finish(number)
    }

    fn finish(&mut self, number: usize) -> Outcome {
        let client = &mut self.clients[number];
        client.operation = None;
        client.finished += 1;
        let think: Time = match client.random.within(0..4) {
            0 => 0,
            1 => client.random.within(0..20 * MILLISECOND),
            // Whether the group serves is told by who asks it; a client that thinks for long tells nothing.
            _ if self.healed => client.random.within(0..200 * MILLISECOND),
            _ => client.random.within(0..self.plan.setup.think),
        };
        self.client_at(number, self.clock.now() + think);
        Ok(())
    }
}
