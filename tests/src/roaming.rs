//! A client that goes on over another router when its connection breaks, and keeps count of what it was warned of.
//!
//! In come the addresses of routers; out comes a connection for as long as the work goes on. What was under way on the
//! connection that broke is its caller's to think of.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it waits before it tries the next router.
const PAUSE: Duration = Duration::from_millis(50);

/// A client of several routers.
pub struct Roaming {
    routers: Vec<Config>,
    turn: usize,
    client: Option<Client>,
    warnings: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Roaming {
    /// A client that begins with the router of this number, and ends when it is told to stop.
    pub fn new(routers: &[Config], first: usize, stop: Arc<AtomicBool>) -> Roaming {
        let warnings = Arc::new(AtomicU64::new(0));
        Roaming { routers: routers.to_vec(), turn: first, client: None, warnings, stop }
    }

    /// A connection; nothing if the work is over.
    pub async fn client(&mut self) -> Option<&Client> {
        while self.client.as_ref().is_none_or(Client::is_closed) {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let router = &self.routers[self.turn % self.routers.len()];
            self.turn += 1;
            match tokio::time::timeout(PATIENCE, connect(router, self.warnings.clone())).await {
                Ok(Ok(client)) => self.client = Some(client),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        self.client.as_ref().filter(|_| !self.stop.load(Ordering::Relaxed))
    }

    /// How many warnings (`01000`) have come. One that belongs to a statement has been counted when its answer is there.
    pub fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Relaxed)
    }

    /// Takes note of an error. A connection on which nothing answers is given up.
    pub fn failed(&mut self, error: Option<&tokio_postgres::Error>, errors: &mut HashMap<String, u64>) {
        let name = match error {
            None => "no answer".to_owned(),
            Some(error) => error.code().map_or("connection lost".to_owned(), |code| code.code().to_owned()),
        };
        if error.is_none() {
            self.client = None;
        }
        *errors.entry(name).or_default() += 1;
    }
}

async fn connect(config: &Config, warnings: Arc<AtomicU64>) -> Result<Client, tokio_postgres::Error> {
    let (client, mut connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // The connection's error reaches the client's next call.
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if matches!(&message, AsyncMessage::Notice(notice) if *notice.code() == SqlState::WARNING) {
                warnings.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Ok(client)
}
