//! What is known of every peer's starts, on disk: it tells a data directory that was rolled back or copied.
//!
//! A node says which start of its directory this is, which one was before, and how far its log reached then; and from
//! there on, every second, how far its log is synced. One that comes back with less than it once said has lost what it
//! acknowledged, and must not vote. Two that say they are the same start, or follow another start than the one that was
//! seen, are copies.
//!
//! The row is in the log's engine: `boot counter 8 | nonce 8 | synced 8`. Only members have one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::NodeId;
use crate::planted::{self, Bug};
use crate::store::identity::Boot;
use crate::store::log::writer::LogWriter;
use crate::store::log::{LogEngine, LogOp, peer_key};

/// Nodes that are remembered in memory: far more than a cluster has.
const NODES_MAX: usize = 1_024;
const WHAT_TO_DO: &str = "remove it and join a new node with an empty data directory";

/// What a node says of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub boot: Boot,
    pub previous: Boot,
    /// The last write that its log had.
    pub recovered: u64,
}

/// The newest start of a node, and the highest write that it said was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    boot: Boot,
    synced: u64,
}

struct Peer {
    row: Row,
    /// What the disk has.
    kept: Option<Row>,
    member: bool,
    newest: watch::Sender<Boot>,
}

/// One start of a node, for as long as no newer one is seen.
#[derive(Clone)]
pub struct Presence {
    boot: Boot,
    newest: watch::Receiver<Boot>,
}

pub struct Registry {
    engine: Arc<dyn LogEngine>,
    writer: LogWriter,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// Held while rows are written: they reach the disk in the order in which they were made.
    writing: tokio::sync::Mutex<()>,
}

impl Presence {
    pub fn is_current(&self) -> bool {
        *self.newest.borrow() == self.boot
    }

    /// Waits until it no longer is.
    pub async fn superseded(&mut self) {
        // An error: nobody remembers it any more.
        let _newer = self.newest.wait_for(|newest| *newest != self.boot).await;
    }
}

impl Registry {
    pub fn new(engine: Arc<dyn LogEngine>, writer: LogWriter) -> Self {
        Self { engine, writer, peers: Mutex::default(), writing: tokio::sync::Mutex::default() }
    }

    /// Registers a start, or says why the node must not take part. A member's is on disk on return.
    pub async fn meet(&self, node: NodeId, start: &Start, member: bool) -> Result<Presence, String> {
        let _writing = self.writing.lock().await;
        let (row, presence) = self.admit(node, start, member)?;
        let Some(row) = row else { return Ok(presence) };
        let written = self.writer.write_and_wait(vec![row.put(node)], true).await;
        written.map_err(|error| error.to_string())?;
        if let Some(peer) = self.peers.lock().get_mut(&node) {
            peer.kept = Some(row);
        }
        Ok(presence)
    }

    /// Also answers the row that is to be written before the node is admitted.
    fn admit(&self, node: NodeId, start: &Start, member: bool) -> Result<(Option<Row>, Presence), String> {
        let mut peers = self.peers.lock();
        if !peers.contains_key(&node) {
            if peers.len() >= NODES_MAX {
                return Err("too many nodes".to_owned());
            }
            let kept = self.read(node)?;
            let first = Row { boot: start.boot, synced: start.recovered };
            let row = kept.map_or(Ok(first), |kept| kept.followed_by(start))?;
            peers.insert(node, Peer { row, kept, member, newest: watch::Sender::new(row.boot) });
        }
        let peer = peers.get_mut(&node).ok_or("unknown node")?;
        peer.row = peer.row.followed_by(start)?;
        peer.member |= member;
        peer.newest.send_replace(start.boot);
        let presence = Presence { boot: start.boot, newest: peer.newest.subscribe() };
        let on_disk = peer.kept.is_some_and(|kept| kept.boot == start.boot);
        Ok(((member && !on_disk).then_some(peer.row), presence))
    }

    /// Takes what a node, of this start, says to be synced. Kept at the next [`Registry::keep`].
    pub fn note(&self, node: NodeId, presence: &Presence, synced: u64, member: bool) {
        if let Some(peer) = self.peers.lock().get_mut(&node)
            && peer.row.boot == presence.boot
        {
            peer.row.synced = peer.row.synced.max(synced);
            peer.member |= member;
        }
    }

    /// Writes what is new of the members. Not synced: a power loss takes what a peer said last, and a peer says it
    /// again.
    pub async fn keep(&self) {
        let _writing = self.writing.lock().await;
        let take_new = |(node, peer): (&NodeId, &mut Peer)| {
            let new = peer.member && peer.kept != Some(peer.row);
            new.then(|| peer.kept.insert(peer.row).put(*node))
        };
        let rows = self.peers.lock().iter_mut().filter_map(take_new).collect::<Vec<_>>();
        if rows.is_empty() {
            return;
        }
        if let Err(error) = self.writer.write(rows, false, Box::new(|| ())).await {
            tracing::warn!(%error, "cannot keep how far the peers' logs are: the log has ended, this node is stopping or its disk fails");
        }
    }

    #[cfg(test)]
    pub fn synced(&self, node: NodeId) -> Option<u64> {
        self.peers.lock().get(&node).map(|peer| peer.row.synced)
    }

    fn read(&self, node: NodeId) -> Result<Option<Row>, String> {
        let row = self.engine.get(&peer_key(node)).map_err(|error| error.to_string())?;
        row.map(|row| Row::decode(row).ok_or("what is known of the node is damaged".to_owned())).transpose()
    }
}

impl Row {
    /// What is known of a node after it said this.
    fn followed_by(self, start: &Start) -> Result<Self, String> {
        let Start { boot, previous, recovered } = *start;
        let (counter, seen) = (boot.counter, self.boot.counter);
        if boot == self.boot {
            return Ok(self);
        }
        if planted::has(Bug::RolledBackAccepted) || planted::has(Bug::WipedNodeAccepted) {
            return Ok(Self { boot, synced: recovered });
        }
        if counter < seen {
            let what = format!("its start {counter} is older than its start {seen}, which was seen");
            return Err(format!("{what}: its data directory was rolled back; {WHAT_TO_DO}"));
        }
        if counter == seen || (previous.counter == seen && previous.nonce != self.boot.nonce) {
            return Err(format!("another start {seen} was seen: its data directory is a copy; {WHAT_TO_DO}"));
        }
        if recovered < self.synced {
            let what = format!("its log ends at write {recovered}, but it had synced write {}", self.synced);
            return Err(format!("{what}: its data directory was rolled back; {WHAT_TO_DO}"));
        }
        Ok(Self { boot, synced: recovered })
    }

    fn put(self, node: NodeId) -> LogOp {
        let mut value = BytesMut::with_capacity(24);
        value.put_u64(self.boot.counter);
        value.put_u64(self.boot.nonce);
        value.put_u64(self.synced);
        LogOp::Put { key: peer_key(node), value: value.freeze() }
    }

    fn decode(mut row: Bytes) -> Option<Self> {
        let whole = row.len() == 24;
        whole.then(|| Self { boot: Boot { counter: row.get_u64(), nonce: row.get_u64() }, synced: row.get_u64() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::log::memory::MemoryLog;

    const NODE: NodeId = 1;

    struct Disk {
        engine: Arc<dyn LogEngine>,
        writer: LogWriter,
    }

    impl Disk {
        fn new() -> Self {
            let engine: Arc<dyn LogEngine> = Arc::new(MemoryLog::default());
            let writer = LogWriter::start(Arc::clone(&engine), None).unwrap();
            Self { engine, writer }
        }

        /// As after a start of the node that remembers.
        fn registry(&self) -> Registry {
            Registry::new(Arc::clone(&self.engine), self.writer.clone())
        }
    }

    fn boot(counter: u64, nonce: u64) -> Boot {
        Boot { counter, nonce }
    }

    /// Start `counter` with that nonce, after one with the nonce `previous`.
    fn start(counter: u64, nonce: u64, previous: u64, recovered: u64) -> Start {
        Start { boot: boot(counter, nonce), previous: boot(counter - 1, previous), recovered }
    }

    #[tokio::test]
    async fn refuses_whatever_does_not_follow_what_was_seen() {
        for remembered_on_disk in [false, true] {
            let disk = Disk::new();
            let mut registry = disk.registry();
            let presence = registry.meet(NODE, &start(5, 50, 40, 100), true).await.unwrap();
            registry.note(NODE, &presence, 200, true);
            if remembered_on_disk {
                registry.keep().await;
                registry.writer.write_and_wait(Vec::new(), true).await.unwrap();
                registry = disk.registry();
            }
            for (start, wanted) in [
                (start(4, 40, 30, 900), "older than its start 5"),
                (start(5, 51, 40, 900), "is a copy"),
                (start(6, 60, 51, 900), "is a copy"),
                (start(6, 60, 50, 199), "ends at write 199, but it had synced write 200"),
                (start(9, 90, 80, 199), "was rolled back"),
            ] {
                let error = registry.meet(NODE, &start, true).await.err().unwrap();
                assert!(error.contains(wanted), "{error}");
            }
            registry.meet(NODE, &start(5, 50, 40, 100), true).await.unwrap();
            registry.meet(NODE, &start(6, 60, 50, 200), true).await.unwrap();
            // Some starts saw none of the peers.
            registry.meet(NODE, &start(9, 90, 80, 250), true).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_newer_start_ends_the_older() {
        let registry = Disk::new().registry();
        let mut old = registry.meet(NODE, &start(5, 50, 40, 0), true).await.unwrap();
        let again = registry.meet(NODE, &start(5, 50, 40, 0), true).await.unwrap();
        assert!(old.is_current() && again.is_current());
        let new = registry.meet(NODE, &start(6, 60, 50, 0), true).await.unwrap();
        assert!(!old.is_current() && !again.is_current() && new.is_current());
        old.superseded().await;
        // What it still says is not the new one's.
        registry.note(NODE, &old, 900, true);
        registry.meet(NODE, &start(7, 70, 60, 10), true).await.unwrap();
    }

    #[tokio::test]
    async fn only_members_leave_a_row() {
        let disk = Disk::new();
        let registry = disk.registry();
        let row = async || {
            registry.keep().await;
            registry.writer.write_and_wait(Vec::new(), true).await.unwrap();
            registry.read(NODE).unwrap()
        };
        let presence = registry.meet(NODE, &start(1, 10, 0, 0), false).await.unwrap();
        registry.note(NODE, &presence, 5, false);
        assert_eq!(row().await, None);
        // The cluster was formed while it was connected.
        registry.note(NODE, &presence, 7, true);
        assert_eq!(row().await, Some(Row { boot: boot(1, 10), synced: 7 }));
    }
}
