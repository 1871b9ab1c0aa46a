//! A transport in memory, whose connections a test can cut.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::peer::transport::{PeerIdentity, Stream, Transport};

const PIPE_BYTES: usize = 256 << 10;

type Inbound = (Box<dyn Stream>, PeerIdentity);

/// All nodes of a test. An address is a node's name. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// With the certificate that is shown there.
    listening: HashMap<String, (mpsc::Sender<Inbound>, PeerIdentity)>,
    /// From, to, and the task that carries the bytes.
    connections: Vec<(String, String, tokio::task::JoinHandle<()>)>,
    cut_off: BTreeSet<String>,
    /// From, to.
    refused: BTreeSet<(String, String)>,
}

/// One node's end of the network.
pub struct MemoryTransport {
    network: MemoryNetwork,
    identity: PeerIdentity,
    inbound: tokio::sync::Mutex<mpsc::Receiver<Inbound>>,
}

impl MemoryNetwork {
    /// Joins as a node of the cluster `c`; who had the name before no longer gets connections.
    pub fn join(&self, name: &str) -> Arc<MemoryTransport> {
        self.join_as(name, identity(name))
    }

    /// Joins at an address with any certificate.
    pub fn join_as(&self, address: &str, identity: PeerIdentity) -> Arc<MemoryTransport> {
        let (connect, inbound) = mpsc::channel(64);
        self.shared.lock().listening.insert(address.to_owned(), (connect, identity.clone()));
        Arc::new(MemoryTransport { network: self.clone(), identity, inbound: inbound.into() })
    }

    /// Breaks the connections of a node; new ones can be made.
    pub fn cut(&self, name: &str) {
        self.shared.lock().connections.retain(|(from, to, carrier)| {
            let keep = from != name && to != name;
            if !keep {
                carrier.abort();
            }
            keep && !carrier.is_finished()
        });
    }

    /// Breaks them, and lets none be made until it is reconnected.
    pub fn cut_off(&self, name: &str) {
        self.shared.lock().cut_off.insert(name.to_owned());
        self.cut(name);
    }

    pub fn reconnect(&self, name: &str) {
        let mut shared = self.shared.lock();
        shared.cut_off.remove(name);
        shared.refused.retain(|(from, _)| from != name);
    }

    /// Breaks what one node has dialed to another, and lets it dial no more until it is reconnected. Not the other way.
    pub fn refuse(&self, from: &str, to: &str) {
        let mut shared = self.shared.lock();
        shared.refused.insert((from.to_owned(), to.to_owned()));
        let dialed = shared.connections.iter().filter(|(by, at, _)| by == from && at == to);
        dialed.for_each(|(_, _, carrier)| carrier.abort());
    }

    async fn dial(self, from: PeerIdentity, address: String) -> io::Result<Inbound> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (listening, shown) = {
            let shared = self.shared.lock();
            let is_cut = shared.cut_off.contains(&from.name) || shared.cut_off.contains(&address);
            if is_cut || shared.refused.contains(&(from.name.clone(), address.clone())) {
                return Err(refused());
            }
            shared.listening.get(&address).cloned().ok_or_else(refused)?
        };
        let (near, mut near_end) = tokio::io::duplex(PIPE_BYTES);
        let (mut far_end, far) = tokio::io::duplex(PIPE_BYTES);
        let carrier = tokio::spawn(async move {
            let _ended = tokio::io::copy_bidirectional(&mut near_end, &mut far_end).await;
        });
        self.shared.lock().connections.push((from.name.clone(), address.clone(), carrier));
        listening.send((Box::new(far), from)).await.map_err(|_| refused())?;
        Ok((Box::new(near), shown))
    }
}

/// The certificate of a node of the cluster `c`.
pub fn identity(name: &str) -> PeerIdentity {
    PeerIdentity { cluster: "c".to_owned(), name: name.to_owned(), keyed: true }
}

impl Transport for MemoryTransport {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Inbound>> {
        self.network.clone().dial(self.identity.clone(), address).boxed()
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Inbound>> {
        async move {
            match self.inbound.lock().await.recv().await {
                Some(inbound) => Ok(inbound),
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}
