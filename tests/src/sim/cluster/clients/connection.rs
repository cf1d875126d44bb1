//! A client's connection to a router.
//!
//! In come statements, out come rows, or why there are none. It notes what the server warns of. It must never know which of the
//! cluster's nodes it talks to.

use super::super::super::random::Random;
use super::{PATIENCE, PAUSE, Shared, lock};
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_postgres::{AsyncMessage, Config, NoTls, SimpleQueryMessage};

/// Why a statement has no result.
#[derive(Debug)]
pub enum Trouble {
    /// The server said so.
    Refused(String, String),
    /// The connection is gone, or the client's patience.
    Lost,
}

/// A connection, while there is one.
pub struct Connection {
    client: Option<tokio_postgres::Client>,
    /// Where it goes to.
    node: u64,
    /// Whether the server has said that it doesn't know where something was committed.
    pub is_unheard: Arc<AtomicBool>,
}

impl Connection {
    /// None yet.
    pub fn new() -> Self {
        Self { client: None, node: 0, is_unheard: Arc::default() }
    }

    /// Connects to any router, however long that takes. Says whether it had to.
    pub async fn open(&mut self, shared: &Shared, random: &mut Random) -> bool {
        let is_closed = self.client.as_ref().is_none_or(tokio_postgres::Client::is_closed);
        while self.client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
            let theirs = {
                let doors = lock(&shared.doors);
                let nodes: Vec<u64> = doors.keys().copied().collect();
                random.pick(&nodes).map(|node| {
                    self.node = *node;
                    let door = &doors[node];
                    let (ours, theirs) = tokio::io::duplex(1 << 16);
                    let (reader, writer) = tokio::io::split(theirs);
                    door.tasks.spawn(door.router.converse(reader, writer));
                    ours
                })
            };
            if let Some(stream) = theirs {
                let mut config = Config::new();
                config.user("shoal").dbname("shoal");
                let connect = config.connect_raw(stream, NoTls);
                if let Ok(Ok((client, connection))) = tokio::time::timeout(5 * PAUSE, connect).await {
                    self.is_unheard = Arc::default();
                    tokio::spawn(listen(connection, self.is_unheard.clone()));
                    self.client = Some(client);
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        is_closed
    }

    /// The node whose router it goes to, while there is one.
    pub fn router(&self) -> Option<u64> {
        self.client.as_ref().map(|_| self.node)
    }

    /// Runs statements; gives the rows of the last.
    pub async fn run(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Trouble> {
        let Some(client) = &self.client else { return Err(Trouble::Lost) };
        let answer = tokio::time::timeout(PATIENCE, client.simple_query(sql)).await;
        let messages = match answer {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => {
                if let Some(error) = error.as_db_error() {
                    let message = format!("{} {}", error.message(), error.detail().unwrap_or_default());
                    return Err(Trouble::Refused(error.code().code().to_owned(), message));
                }
                self.client = None;
                return Err(Trouble::Lost);
            }
            Err(_) => {
                self.client = None;
                return Err(Trouble::Lost);
            }
        };
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => {
                    let value = |at| row.get(at).unwrap_or_default().to_owned();
                    rows.push((0..row.len()).map(value).collect());
                }
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                _ => {}
            }
        }
        Ok(rows)
    }
}

/// Lets a connection do its work, and notes what it warns of.
async fn listen(
    mut connection: tokio_postgres::Connection<tokio::io::DuplexStream, tokio_postgres::tls::NoTlsStream>,
    is_unheard: Arc<AtomicBool>,
) {
    let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
    while let Some(Ok(message)) = messages.next().await {
        if let AsyncMessage::Notice(notice) = message
            && notice.code().code() == "01000"
        {
            is_unheard.store(true, Ordering::Relaxed);
        }
    }
}
