//! A client's session: its state, and the loop over its messages.
//!
//! The life of a message: the loop takes it from the socket ([`crate::protocol::framing`]), decodes it, and handles
//! it. While that lasts the loop goes on listening, so that a client that hangs up ends its statement. Answers gather
//! in the output buffer and are sent at the end of a simple query, at Sync and at Flush, or when they are much.
//!
//! [`simple`] and [`extended`] are the two protocols, [`run`] is what they have in common, [`command`] what the
//! session does by itself, [`copy`] COPY's part of the protocol, [`gtid`] what the session has seen and done, as its client knows it,
//! and [`role`] what it begins with.

pub mod block;
pub mod command;
pub mod copy;
pub mod extended;
mod gtid;
pub mod output;
pub mod role;
pub mod run;
pub mod settings;
pub mod simple;

#[cfg(test)]
mod tests;

use crate::cancel::{Interrupt, Reason, Registration};
use crate::error::Report;
use crate::executor::cut::Kept;
use crate::executor::scalars::{Facts, clock_time};
use crate::positions::{Forgotten, Positions};
use crate::protocol::backend::{self, Severity};
use crate::protocol::framing::{FrameError, Frames};
use crate::protocol::frontend::{self, Message};
use crate::server::Shared;
use crate::transaction::{Ending, ROLLBACK_PATIENCE, Transaction};
use block::Block;
use copy::CopyState;
use extended::{Portal, Prepared};
use output::Output;
use planner::plan::Notice;
use proto::gtid::Position;
use proto::machine;
use proto::{ShardId, SqlState, WireError};
use settings::Settings;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// A session.
pub struct Session<W> {
    shared: Arc<Shared>,
    interrupt: Arc<Interrupt>,
    /// What is answered.
    pub output: Output<W>,
    settings: Settings,
    /// The settings to go back to when the block, string or pipeline comes to nothing, and those that SET LOCAL hides.
    undo: Option<Box<Undo>>,
    block: Block,
    /// What the block, string or pipeline has written, from its first write on.
    transaction: Option<Box<Transaction>>,
    /// The idempotency key of the next transaction, or of the block that has run nothing yet.
    key: Option<String>,
    /// The state that all of the block's statements see, from its first one on.
    kept: Option<Box<Kept>>,
    /// The transaction before, which is still being rolled back.
    ending: Option<Ending>,
    /// The statement that runs is a transaction by itself.
    alone: bool,
    /// The pipeline is known to end after the message that is handled.
    ends_next: bool,
    facts: Facts,
    /// How far it has seen the shards' logs.
    positions: Positions,
    /// The positions that startup gave.
    token: Vec<(ShardId, Position)>,
    /// What commits have reached, to be told before ReadyForQuery.
    to_tell: Option<BTreeMap<ShardId, Position>>,
    /// It was said that there is too much to tell.
    is_too_long: bool,
    /// The implicit transaction has begun: its time stays.
    in_pipeline: bool,
    prepared: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
    /// How many portals there have been.
    portals_made: u64,
    mode: Mode,
}

/// Settings as they were before the block changed them.
#[derive(Clone, Debug)]
pub struct Undo {
    /// At its begin.
    before: Settings,
    /// Those that were set LOCAL, with what they are again after the block.
    local: Vec<(String, String)>,
    /// The positions that RESET took away.
    forgotten: Vec<Forgotten>,
}

impl Undo {
    /// Nothing has changed since these were what they are.
    fn before(settings: &Settings) -> Self {
        Self { before: settings.clone(), local: Vec::new(), forgotten: Vec::new() }
    }
}

/// What the loop expects.
enum Mode {
    /// Any message.
    Ready,
    /// An error has ended the pipeline: nothing is done until Sync.
    Skip,
    /// COPY's input.
    Copy(Box<CopyState>),
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Go,
    End,
}

impl<W: AsyncWrite + Unpin> Session<W> {
    /// A session whose startup is done.
    pub fn new(
        shared: Arc<Shared>,
        registration: &Registration,
        output: Output<W>,
        settings: Settings,
        token: Vec<(ShardId, Position)>,
    ) -> Self {
        let positions = Positions::default();
        positions.merge(token.iter().copied(), false);
        let now = clock_time(&shared.executor.config.machine);
        let facts = Facts {
            transaction_time: now,
            statement_time: now,
            zone: settings.output.zone.clone(),
            backend_pid: registration.pid,
            settings: Vec::new(),
            transactions: Vec::new(),
            replicas: Vec::new(),
            reshards: Vec::new(),
            shards: Vec::new(),
        };
        Self {
            shared,
            interrupt: registration.interrupt.clone(),
            output,
            settings,
            undo: None,
            block: Block::default(),
            transaction: None,
            key: None,
            kept: None,
            ending: None,
            alone: false,
            ends_next: false,
            facts,
            positions,
            token,
            to_tell: None,
            is_too_long: false,
            in_pipeline: false,
            prepared: HashMap::new(),
            portals: HashMap::new(),
            portals_made: 0,
            mode: Mode::Ready,
        }
    }

    /// Answers messages until the client leaves or the server stops.
    pub async fn run<R: AsyncRead + Unpin>(&mut self, frames: &mut Frames<R>) {
        loop {
            if self.interrupt.is_closing() && self.is_between() {
                return self.end(Reason::Shutdown.error()).await;
            }
            let frame = match frames.buffered() {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => match self.idle(frames).await {
                    Some(frame) => frame,
                    None => return,
                },
                Err(error) => Err(error),
            };
            let (tag, body) = match frame {
                Ok(frame) => frame,
                Err(FrameError::Closed) => return,
                Err(FrameError::Invalid(error)) => return self.end(error).await,
            };
            self.ends_next = frames.ends_next();
            let interrupt = self.interrupt.clone();
            let flow = attended(frames, &interrupt, self.handle(tag, frontend::decode(tag, body))).await;
            if flow == Flow::End {
                return;
            }
        }
    }

    /// Waits for the next message. `None`: the session has ended.
    async fn idle<R: AsyncRead + Unpin>(
        &mut self,
        frames: &mut Frames<R>,
    ) -> Option<Result<(u8, bytes::Bytes), FrameError>> {
        let limit = self.settings.idle_in_transaction.filter(|_| self.is_idle_in_transaction());
        let too_long = async move {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(too_long);
        loop {
            // A cancel request that finds nothing to cancel is forgotten.
            self.interrupt.rearm();
            let reason = tokio::select! {
                biased;
                frame = frames.next() => return Some(frame),
                reason = self.interrupt.wait() => reason,
                () = &mut too_long => {
                    let message = "terminating connection due to idle-in-transaction timeout";
                    self.end(WireError::new(SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT, message)).await;
                    return None;
                }
                () = self.interrupt.closing(), if self.is_between() => Reason::Shutdown,
            };
            match reason {
                Reason::Requested | Reason::Timeout => {}
                Reason::Lost => return None,
                Reason::Shutdown => {
                    self.end(reason.error()).await;
                    return None;
                }
            }
        }
    }

    /// Whether nothing is under way that would end with the session.
    fn is_between(&self) -> bool {
        !self.in_pipeline && !self.block.is_open() && matches!(self.mode, Mode::Ready)
    }

    /// Whether a block is open and its client was told that it may go on.
    fn is_idle_in_transaction(&self) -> bool {
        self.block.is_open() && !self.in_pipeline && matches!(self.mode, Mode::Ready)
    }

    async fn handle(&mut self, tag: u8, message: Result<Message, WireError>) -> Flow {
        let flow = match message {
            Ok(message) => match std::mem::replace(&mut self.mode, Mode::Ready) {
                Mode::Ready => self.handle_ready(message).await,
                Mode::Skip => {
                    match message {
                        Message::Sync => self.sync().await,
                        Message::Terminate => return Flow::End,
                        _ => self.mode = Mode::Skip,
                    }
                    Flow::Go
                }
                Mode::Copy(state) => self.handle_copy(*state, message).await,
            },
            // The message's bounds are known, so the session can go on after it.
            Err(error) => {
                match std::mem::replace(&mut self.mode, Mode::Ready) {
                    Mode::Copy(state) => self.end_copy(*state, Err(error.into())).await,
                    // Until Sync nothing is answered, whatever is sent.
                    Mode::Skip if tag != b'S' => self.mode = Mode::Skip,
                    Mode::Ready | Mode::Skip => {
                        self.fail(error.into());
                        match tag {
                            b'Q' | b'S' => self.sync().await,
                            _ => self.mode = Mode::Skip,
                        }
                    }
                }
                Flow::Go
            }
        };
        match self.interrupt.reason() {
            Some(Reason::Lost) => Flow::End,
            Some(reason @ Reason::Shutdown) => {
                self.end(reason.error()).await;
                Flow::End
            }
            _ => flow,
        }
    }

    async fn handle_ready(&mut self, message: Message) -> Flow {
        match message {
            Message::Query(sql) => self.simple(sql).await,
            Message::Sync => self.sync().await,
            Message::Flush => self.flush().await,
            Message::Terminate => return Flow::End,
            // What a COPY that has failed was still sent.
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => {}
            extended => {
                self.begin_pipeline();
                if let Err(report) = self.extended(extended).await {
                    self.fail(report);
                    self.mode = Mode::Skip;
                }
            }
        }
        Flow::Go
    }

    /// The first message of an implicit transaction.
    fn begin_pipeline(&mut self) {
        let now = clock_time(&self.shared.executor.config.machine);
        if !self.in_pipeline {
            self.in_pipeline = true;
            self.interrupt.rearm();
            if !self.block.is_open() {
                self.facts.transaction_time = now;
            }
        }
        self.facts.statement_time = now;
    }

    /// Sync: the implicit transaction ends, and with it portals that no block holds.
    async fn sync(&mut self) {
        self.in_pipeline = false;
        self.end_implicit().await;
    }

    /// The end of a string or pipeline. Outside a block that is the end of its transaction.
    async fn end_implicit(&mut self) {
        if let Err(report) = self.commit_implicit().await {
            self.fail(report);
        }
        self.block.end_implicit();
        if !self.block.is_open() {
            self.portals.clear();
            // What was set stays.
            self.undo = None;
        }
        // Who hears that its transaction has ended, or failed, may count on the locks being free.
        if let Some(ending) = self.ending.take() {
            ending.settle().await;
        }
        if let (Some(transaction), Some(mark)) = (&self.transaction, self.block.stands()) {
            // If it can't be undone now, it is tried again when the savepoint is gone back to.
            let _ = transaction.undo(mark, machine::now() + ROLLBACK_PATIENCE).await;
        }
        self.tell_gtid();
        backend::ready(&mut self.output.buffer, self.block.status());
        self.flush().await;
    }

    /// Commits what a string or pipeline has written, unless it's in a block.
    async fn commit_implicit(&mut self) -> Result<(), Box<Report>> {
        if self.block.is_open() {
            return Ok(());
        }
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        match self.commit(transaction).await {
            Ok(()) => {
                self.note_commit();
                Ok(())
            }
            Err(error) => Err(Report::named(error, &self.shared.executor.cluster.load().catalog)),
        }
    }

    async fn flush(&mut self) {
        if self.output.flush().await.is_err() {
            self.interrupt.raise(Reason::Lost);
        }
    }

    /// A statement begins: it is a transaction by itself if nothing came before it and, as `last` says, nothing will come
    /// after it. One with an idempotency key is committed by more than a shard.
    fn begin_statement(&mut self, last: bool) {
        self.alone = last && !self.block.is_open() && self.transaction.is_none() && self.key.is_none();
    }

    /// Tells of an error; in a block, the block fails.
    fn fail(&mut self, mut report: Box<Report>) {
        if let Some(state) = report.error.state.as_deref() {
            self.positions.failed(state.0, state.1);
        }
        if report.error.violation.is_some() && report.table.is_none() {
            let context = report.context.take();
            report = Report::named(report.error, &self.shared.executor.cluster.load().catalog);
            report.context = context;
        }
        let (over, notice) = self.block.fail(&report.error);
        if let Some(notice) = notice {
            self.notice(&notice);
        }
        if over && let Some(transaction) = self.transaction.take() {
            self.ending = Some(transaction.rollback());
        }
        if !self.block.is_open() {
            self.portals.clear();
            // Whoever uses the session next must not use up another's key.
            self.key = None;
            self.undo_settings();
        }
        backend::error(&mut self.output.buffer, Severity::Error, &report);
    }

    fn notice(&mut self, notice: &Notice) {
        let severity = match notice.severity {
            "WARNING" => 1,
            _ => 0,
        };
        if severity >= self.settings.least_notice {
            backend::notice(&mut self.output.buffer, notice);
        }
    }

    /// The last words of a session that ends with an error.
    pub async fn end(&mut self, error: WireError) {
        backend::error(&mut self.output.buffer, Severity::Fatal, &error.into());
        self.flush().await;
    }
}

/// Does some work, and listens to the client meanwhile: one that goes away ends the work where it can end.
async fn attended<R: AsyncRead + Unpin, T>(
    frames: &mut Frames<R>,
    interrupt: &Interrupt,
    work: impl Future<Output = T>,
) -> T {
    tokio::pin!(work);
    tokio::select! {
        // What is done at once isn't listened beside.
        biased;
        done = &mut work => return done,
        () = frames.until_closed() => interrupt.raise(Reason::Lost),
    }
    work.await
}
