//! The simple protocol: strings of statements.

use super::copy::CopyState;
use super::run::{Started, at_length, failed_block};
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
        match at_length(sql.len(), || split_string(&sql)) {
            Ok(texts) if texts.is_empty() => {
                backend::empty_query(&mut self.output.buffer);
                self.end_implicit().await;
            }
            Ok(texts) => self.run_string(texts).await,
            Err(error) => {
                self.fail(error.into());
                self.end_implicit().await;
            }
        }
    }

    /// Runs the statements of a string that are left.
    pub(super) async fn run_string(&mut self, mut texts: VecDeque<Text>) {
        while let Some(text) = texts.pop_front() {
            self.interrupt.rearm();
            let last = texts.is_empty();
            self.begin_statement(last);
            match self.run_text(&text, last).await {
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
        self.end_implicit().await;
    }

    /// Runs one statement. What the string has written is committed before the last one is said to be done.
    async fn run_text(
        &mut self,
        text: &Text,
        last: bool,
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
                if last {
                    self.commit_implicit().await?;
                }
                result.tag.write(&mut self.output.buffer, sent);
            }
            Started::Done(tag) => {
                if last {
                    self.commit_implicit().await?;
                }
                tag.write(&mut self.output.buffer, 0);
            }
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
        check_schema_changes(&texts)?;
    }
    Ok(texts.into())
}

/// Refuses a string that mixes schema changes with each other or with writes before any of it is done. One with blocks in
/// it is left to the blocks.
fn check_schema_changes(texts: &[Text]) -> Result<(), WireError> {
    let count = |words: &[&str]| texts.iter().filter(|text| words.contains(&first_word(text))).count();
    if count(&["begin", "start", "commit", "end", "rollback", "abort"]) > 0 {
        return Ok(());
    }
    let (changes, writes) =
        (count(&["create", "alter", "drop"]), count(&["insert", "update", "delete", "truncate"]));
    if changes < 2 && (changes == 0 || writes == 0) {
        return Ok(());
    }
    Err(WireError::unsupported("a schema change in one string with other changes")
        .with_hint("Schema changes are not part of transactions: send each by itself."))
}

/// The word that a statement begins with, in lower case.
fn first_word(text: &Text) -> &str {
    // After the tag of its kind.
    let word = text.key.get(1..).unwrap_or_default();
    let len = word.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    std::str::from_utf8(&word[..len]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_changes_come_one_at_a_time() {
        let check = |sql: &str| split_string(sql).err().map(|error| error.sqlstate.to_string());
        let refused = Some("0A000".to_owned());
        assert_eq!(check("CREATE TABLE a (b int); DROP TABLE a"), refused);
        assert_eq!(check("/* x */ Delete from a; ALTER TABLE a ADD b int"), refused);
        assert_eq!(check("SET a = 1; CREATE TABLE a (b int); SELECT 1"), None);
        assert_eq!(check("INSERT INTO a VALUES (1); TRUNCATE a; DELETE FROM a"), None);
        assert_eq!(check("BEGIN; DROP TABLE a; COMMIT; DROP TABLE b"), None);
    }
}
