//! Both ends of a connection between nodes, over the network in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use charthold_proto::internal as pb;

use super::transport::MemoryNetwork;
use crate::NodeId;
use crate::peer::client::PeerClient;
use crate::peer::clock::ClusterClock;
use crate::peer::disks::ClusterDisks;
use crate::peer::hello::{Greeter, Roster, Standing};
use crate::peer::leadership::Leadership;
use crate::peer::registry::{Registry, Start};
use crate::peer::server::{Handler, serve};
use crate::peer::transport::Transport;
use crate::platform::Platform;
use crate::store::identity::Boot;
use crate::store::log::LogEngine;
use crate::store::log::memory::MemoryLog;
use crate::store::log::writer::LogWriter;

/// Remembers how many members it heard of last.
#[derive(Default)]
pub struct AllBut66 {
    pub heard: AtomicUsize,
    /// Of the cluster.
    pub format: Option<u32>,
}

impl Roster for AllBut66 {
    fn admit(&self, id: NodeId, _name: &str) -> Result<Standing, String> {
        if id == 66 { Err("no member".to_owned()) } else { Ok(Standing::Member) }
    }

    fn known(&self) -> (Option<pb::LogId>, Vec<pb::Member>) {
        Default::default()
    }

    fn hear(&self, _at: Option<pb::LogId>, members: Vec<pb::Member>) {
        self.heard.store(members.len(), Ordering::SeqCst);
    }

    fn format(&self) -> Option<u32> {
        self.format
    }
}

/// A node of the cluster `c` that admits all but the id 66.
pub fn greeter(id: NodeId, name: &str) -> Arc<Greeter> {
    Arc::new(new_greeter(id, name))
}

pub fn new_greeter(id: NodeId, name: &str) -> Greeter {
    let engine: Arc<dyn LogEngine> = Arc::new(MemoryLog::default());
    let writer = LogWriter::start(Arc::clone(&engine), None).unwrap();
    Greeter {
        cluster: "c".to_owned(),
        member: pb::Member { id, name: name.to_owned(), keyed: true, ..Default::default() },
        start: Start { boot: Boot { counter: 1, nonce: 1 }, previous: Boot::default(), recovered: 0 },
        key_check: bytes::Bytes::new(),
        roster: Arc::new(AllBut66::default()),
        registry: Registry::new(engine, writer.clone()),
        clock: Arc::new(ClusterClock::new(Platform::system())),
        disks: Arc::new(ClusterDisks::new(Arc::default())),
        leadership: Arc::new(Leadership::new(true)),
        log: writer,
        refused_by: Default::default(),
        callers: Default::default(),
    }
}

/// Serves as the node 2, `b`. Ends with the runtime.
pub fn serve_b(network: &MemoryNetwork, handler: Arc<dyn Handler>) {
    tokio::spawn(serve(network.join("b"), greeter(2, "b"), handler));
}

/// The node 1, `a`, calling `b`.
pub fn client_of_b(network: &MemoryNetwork) -> PeerClient {
    let transport: Arc<dyn Transport> = network.join("a");
    PeerClient::start(2, "b", &transport, &greeter(1, "a"))
}
