//! The peers of a node, one client each, shared by all groups.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::NodeId;
use crate::peer::client::PeerClient;
use crate::peer::hello::Greeter;
use crate::peer::transport::Transport;

/// Clients are made when a group first wants one.
pub struct Peers {
    transport: Arc<dyn Transport>,
    /// Set once: the greeter asks the directory whom it knows, and the directory is a group that needs its peers.
    greeter: OnceLock<Arc<Greeter>>,
    clients: Mutex<BTreeMap<NodeId, (String, Arc<PeerClient>)>>,
}

impl Peers {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, greeter: OnceLock::new(), clients: Mutex::default() }
    }

    pub fn set_greeter(&self, greeter: Arc<Greeter>) {
        let _already_set = self.greeter.set(greeter);
    }

    /// Lets go of the clients of nodes that are no members any more.
    pub fn forget_all_but(&self, is_member: impl Fn(NodeId) -> bool) {
        self.clients.lock().retain(|node, _| is_member(*node));
    }

    /// The client of a node; a new one when its address has changed.
    pub fn client(&self, node: NodeId, address: &str) -> Arc<PeerClient> {
        let greeter = self.greeter.get().expect("invariant: the greeter is set before any group starts");
        let mut clients = self.clients.lock();
        match clients.get(&node) {
            Some((known, client)) if known == address => Arc::clone(client),
            _ => {
                let client = Arc::new(PeerClient::start(node, address, &self.transport, greeter));
                clients.insert(node, (address.to_owned(), Arc::clone(&client)));
                client
            }
        }
    }
}
