//! Whom a node has met: the addresses that it was told of, and who answers there.
//!
//! In come addresses and introductions, out go questions of who is there. Nodes that were told of one another in any
//! chain all get to know each other, for each answer names others. It must not know what a cluster is made of.

use futures::future::join_all;
use parking_lot::Mutex;
use proto::services::{BootstrapService, Identity, Introduction};
use proto::transport::NodeClient;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a node may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whom a node has met.
pub struct Meeting {
    told: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: BTreeMap<String, NodeClient>,
    /// By the addresses that nodes give as their own.
    known: BTreeMap<String, Identity>,
    /// Addresses that nobody has answered at.
    unmet: BTreeSet<String>,
}

impl Meeting {
    /// Nobody yet; these addresses are asked.
    pub fn new(told: Vec<String>) -> Self {
        let state = State { unmet: told.iter().cloned().collect(), ..State::default() };
        Self { told, state: Mutex::new(state) }
    }

    /// Somebody has introduced themselves.
    pub fn learn(&self, identity: Identity) {
        self.state.lock().known.insert(identity.address.clone(), identity);
    }

    /// Everyone that was met.
    pub fn known(&self) -> Vec<Identity> {
        self.state.lock().known.values().cloned().collect()
    }

    /// The addresses of those that were to be met and weren't.
    pub fn unmet(&self) -> Vec<String> {
        self.state.lock().unmet.iter().cloned().collect()
    }

    /// A node at this address.
    pub fn client(&self, address: &str) -> NodeClient {
        let mut state = self.state.lock();
        let client = state.clients.entry(address.to_owned());
        client.or_insert_with(|| NodeClient::connect(address)).clone()
    }

    /// Asks everyone, `more` among them, who they are. Whoever doesn't answer is forgotten, but for those that this
    /// node was told of. Answers with what was answered.
    pub async fn ask(&self, me: &Identity, more: impl IntoIterator<Item = String>) -> Vec<Introduction> {
        let addresses: BTreeSet<String> = {
            let state = self.state.lock();
            self.told.iter().chain(state.known.keys()).chain(&state.unmet).cloned().chain(more).collect()
        };
        let questions = addresses.into_iter().filter(|address| *address != me.address).map(|address| async {
            let client = self.client(&address);
            let answer = tokio::time::timeout(PATIENCE, client.identity(Some(me.clone()))).await;
            if let Ok(Err(error)) = &answer {
                tracing::debug!(%address, %error, "nobody has answered");
            }
            (address, answer.ok().and_then(Result::ok))
        });
        let answers = join_all(questions).await;
        let mut state = self.state.lock();
        state.unmet.remove(&me.address);
        let mut introductions = Vec::new();
        for (address, introduction) in answers {
            match introduction {
                None => {
                    state.known.remove(&address);
                    state.clients.remove(&address);
                    state.unmet.remove(&address);
                    if self.told.contains(&address) {
                        state.unmet.insert(address);
                    }
                }
                Some(introduction) => {
                    state.unmet.remove(&address);
                    if introduction.node.address != me.address {
                        state.known.insert(introduction.node.address.clone(), introduction.node.clone());
                    }
                    introductions.push(introduction);
                }
            }
        }
        for introduction in &introductions {
            let unheard = introduction.known.iter().map(|identity| &identity.address);
            for address in unheard.chain(&introduction.unmet) {
                // They are asked themselves the next time.
                if *address != me.address && !state.known.contains_key(address) {
                    state.unmet.insert(address.clone());
                }
            }
        }
        introductions
    }
}
