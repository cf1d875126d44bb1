//! COPY's part of the protocol.

use super::{Flow, Mode, Session};
use crate::copy::write;
use crate::error::Report;
use crate::executor::copy_in::Copying;
use crate::executor::rows::RowStream;
use crate::protocol::backend;
use crate::protocol::frontend::Message;
use dialect::io;
use planner::plan::{Action, Plan};
use planner::text::Text;
use proto::{SqlState, WireError};
use std::collections::VecDeque;
use std::time::Instant;
use tokio::io::AsyncWrite;

/// A COPY FROM that takes input.
pub struct CopyState {
    /// What it does.
    pub copying: Copying,
    /// Its text.
    pub text: Text,
    /// The rest of the string that it came in; `None` in the extended protocol.
    pub rest: Option<VecDeque<Text>>,
}

impl<W: AsyncWrite + Unpin> Session<W> {
    pub(super) async fn handle_copy(&mut self, mut state: CopyState, message: Message) -> Flow {
        let result = match message {
            Message::CopyData(piece) => match self.copy_step(&mut state, Some(&piece)).await {
                Ok(_) => {
                    self.mode = Mode::Copy(Box::new(state));
                    return Flow::Go;
                }
                Err(report) => Err(report),
            },
            Message::CopyDone => self.copy_step(&mut state, None).await,
            Message::CopyFail(why) => {
                let message = format!("COPY from stdin failed: {why}");
                Err(WireError::new(SqlState::QUERY_CANCELED, message).into())
            }
            // The protocol lets clients send these at any time in a COPY, and means nothing by it.
            Message::Flush | Message::Sync => {
                self.mode = Mode::Copy(Box::new(state));
                return Flow::Go;
            }
            Message::Terminate => return Flow::End,
            _ => {
                Err(crate::protocol::frontend::violation("unexpected message during COPY from stdin").into())
            }
        };
        self.end_copy(state, result).await;
        Flow::Go
    }

    /// Tells how a COPY has ended, and goes on with the string that it was part of.
    pub(super) async fn end_copy(&mut self, state: CopyState, result: Result<u64, Box<Report>>) {
        let CopyState { mut copying, text: _, rest } = state;
        let mut result = result;
        if result.is_err() {
            self.ending = copying.abandon();
        } else if rest.as_ref().is_some_and(VecDeque::is_empty)
            && let Err(report) = self.commit_implicit().await
        {
            result = Err(report);
        }
        if result.is_ok() && self.transaction.is_none() && !self.block.is_open() {
            self.note_commit();
        }
        match (result, rest) {
            (Ok(rows), rest) => {
                super::run::Tag::Count("COPY", rows).write(&mut self.output.buffer, 0);
                if let Some(rest) = rest {
                    self.run_string(rest).await;
                }
            }
            (Err(report), Some(_)) => {
                self.fail(report);
                // The rest of the string isn't run; what is still sent of the input is ignored.
                self.run_string(VecDeque::new()).await;
            }
            (Err(report), None) => {
                self.fail(report);
                self.mode = Mode::Skip;
                self.flush().await;
            }
        }
    }

    /// Takes a piece of the input, or its end: the rows that were copied then.
    async fn copy_step(&mut self, state: &mut CopyState, piece: Option<&[u8]>) -> Result<u64, Box<Report>> {
        self.interrupt.check()?;
        let shared = self.shared.clone();
        let plan = state.copying.plan.clone();
        // Each piece has a statement's time: how long the whole takes is up to the client.
        let run = self.statement(&plan, &state.text, &[], state.copying.state.clone(), self.deadline());
        match piece {
            Some(piece) => shared.executor.copy_feed(&run, &mut state.copying, piece).await.map(|()| 0),
            None => shared.executor.copy_end(&run, &mut state.copying).await,
        }
    }

    /// Sends COPY's output.
    pub(super) async fn copy_out(
        &mut self,
        mut rows: RowStream,
        plan: &Plan,
        deadline: Instant,
    ) -> Result<(), Box<Report>> {
        let Action::CopyOut(copy) = &plan.action else {
            return Err(WireError::internal("not a COPY TO").into());
        };
        let (columns, format) = (&copy.columns, &copy.format);
        backend::copy_out(&mut self.output.buffer, columns.len());
        if format.header {
            backend::message(&mut self.output.buffer, b'd', |out| {
                for (place, column) in columns.iter().enumerate() {
                    write::field(out, format, place, columns.len() == 1, Some(column.name.as_bytes()));
                }
                out.push(b'\n');
            });
        }
        let mut sent = 0;
        let mut text = Vec::new();
        while let Some(chunk) = rows.next().await? {
            for row in chunk.rows() {
                let out = &mut self.output.buffer;
                out.push(b'd');
                let start = out.len();
                out.extend_from_slice(&[0; 4]);
                for ((place, column), value) in columns.iter().enumerate().zip(row) {
                    text.clear();
                    let shown = if value.is_null() {
                        None
                    } else {
                        io::output_text(column.ty, value, &self.settings.output, &mut text).inspect_err(
                            |_| {
                                out.truncate(start - 1);
                            },
                        )?;
                        Some(text.as_slice())
                    };
                    write::field(out, format, place, columns.len() == 1, shown);
                }
                out.push(b'\n');
                let len = (out.len() - start) as u32;
                out[start..start + 4].copy_from_slice(&len.to_be_bytes());
                sent += 1;
                self.output.relieve(&self.interrupt, deadline).await?;
            }
        }
        backend::copy_done(&mut self.output.buffer);
        super::run::Tag::Count("COPY", sent).write(&mut self.output.buffer, 0);
        Ok(())
    }
}
