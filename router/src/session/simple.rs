//! The simple protocol: strings of statements.

use super::copy::CopyState;
use super::run::{Started, failed_block};
use super::{Mode, Session};
use crate::error::Report;
use crate::protocol::backend;
use planner::text::{Text, split};
use proto::{SqlState, WireError};
use std::collections::VecDeque;
use tokio::io::AsyncWrite;

impl<W: AsyncWrite + Unpin> Session<W> {
    /// Runs a string of statements, and answers up to ReadyForQuery.
    pub(super) async fn simple(&mut self, sql: String) {
        // A pipeline that was left without its Sync ends here.
        self.in_pipeline = false;
        self.begin_pipeline();
        self.in_pipeline = false;
        // The unnamed statement and portal don't outlive a simple query.
        self.prepared.remove("");
        self.portals.remove("");
        match split_string(&sql) {
            Ok(texts) if texts.is_empty() => {
                backend::empty_query(&mut self.output.buffer);
                self.end_string().await;
            }
            Ok(texts) => self.run_string(texts).await,
            Err(error) => {
                self.fail(error.into());
                self.end_string().await;
            }
        }
    }

    /// Runs the statements of a string that are left.
    pub(super) async fn run_string(&mut self, mut texts: VecDeque<Text>) {
        while let Some(text) = texts.pop_front() {
            self.interrupt.rearm();
            match self.run_text(&text).await {
                Ok(None) => {}
                Ok(Some(copying)) => {
                    backend::copy_in(&mut self.output.buffer, copying.columns());
                    self.flush().await;
                    self.mode =
                        Mode::Copy(Box::new(CopyState { copying: *copying, text, rest: Some(texts) }));
                    return;
                }
                Err(report) => {
                    self.fail(report);
                    break;
                }
            }
        }
        self.end_string().await;
    }

    async fn end_string(&mut self) {
        self.block.end_implicit();
        if !self.block.is_open() {
            self.portals.clear();
        }
        self.ready();
        self.flush().await;
    }

    async fn run_text(
        &mut self,
        text: &Text,
    ) -> Result<Option<Box<crate::executor::copy_in::Copying>>, Box<Report>> {
        let (plan, state) = match self.plan(text, &[]).await {
            Ok(planned) => planned,
            // A failed block looks at nothing but the syntax.
            Err(error) if self.block.is_failed() && error.sqlstate != SqlState::SYNTAX_ERROR => {
                return Err(failed_block().into());
            }
            Err(error) => return Err(error.into()),
        };
        self.check_failed(&plan)?;
        if !plan.parameters.is_empty() {
            let message = "there is no parameter $1";
            return Err(WireError::new(SqlState::UNDEFINED_PARAMETER, message).into());
        }
        match self.start(text, &[], plan, state, &[], false).await? {
            Started::Rows(mut result) => {
                backend::row_description(&mut self.output.buffer, result.columns.get(), &[]);
                let formats = result.columns.formats(&[]);
                let (sent, _) = self.send_rows(&mut result, &formats, u64::MAX).await?;
                result.tag.write(&mut self.output.buffer, sent);
            }
            Started::Done(tag) => tag.write(&mut self.output.buffer, 0),
            Started::Empty => backend::empty_query(&mut self.output.buffer),
            Started::CopyIn(copying) => return Ok(Some(copying)),
            Started::CopyOut(rows, plan, deadline) => self.copy_out(*rows, &plan, deadline).await?,
        }
        Ok(None)
    }
}

/// The statements of a string. PostgreSQL reads the whole string before it runs the first, so an error of syntax in
/// any of them comes before anything is done.
fn split_string(sql: &str) -> Result<VecDeque<Text>, WireError> {
    let texts = split(sql)?;
    if texts.len() > 1 {
        for text in &texts {
            text.parse()?;
        }
    }
    Ok(texts.into())
}
