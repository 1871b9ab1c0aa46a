//! What this node's state lacks and its log no longer has, from the peers: before its groups start.
//!
//! That is so after a state was set aside ([`crate::store::set_aside`]), and after a disk has lost what was flushed. The log
//! is whole (else the node would not start at all): whom this node has voted for and what it has acknowledged stands, and
//! until a group has its rows the node is for it as one that is down.
//!
//! It asks all whose addresses it knows or learns, until one of them leads and gives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use pb::call_error::Kind as ErrorKind;
use prost::Message as _;
use tokio::time::Instant;

use super::form::ask_who_is_there;
use super::peers::Peers;
use super::stores::Stores;
use crate::directory::{DirectoryView, placement};
use crate::peer::frame::Kind;
use crate::peer::hello::Greeter;
use crate::peer::server::{self, Caller, Handler};
use crate::peer::transport::Transport;
use crate::platform::blocking;
use crate::shard::fetch::{FetchError, fetch};
use crate::shard::inbound::Describe;
use crate::shard::types::LogId;
use crate::shard::{codec, install, repair, vacancy};
use crate::store::incoming::Received;
use crate::store::log::Mark;
use crate::store::log::group::GroupLog;
use crate::store::table::applied;
use crate::store::{EngineError, StoreError};
use crate::{DIRECTORY, ShardId};

/// After all were asked in vain.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// For a connection to one that has answered just now.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How often it says that it still waits.
const SAY_INTERVAL: Duration = Duration::from_secs(60);

/// Who fetches, and where.
pub(super) struct Refill<'a> {
    pub stores: &'a Stores,
    pub peers: &'a Peers,
    pub transport: Arc<dyn Transport>,
    pub greeter: Arc<Greeter>,
    /// What the configuration names.
    pub join: &'a [String],
    /// Whether a node without keys may give.
    pub from_keyless: bool,
    pub describe: Describe,
}

impl Refill<'_> {
    /// Returns when every group's state reaches to where its log begins.
    pub async fn run(&self, logs: &[GroupLog]) -> Result<(), StoreError> {
        let mut lacking = Vec::new();
        for log in logs {
            if self.lacks(log)? {
                lacking.push(log);
            }
        }
        // Until it votes again: see `Replica::start`.
        self.stores.disk.note_refilling(self.stores.refilling.is_some() || !lacking.is_empty());
        if !lacking.is_empty() {
            // All of one age: slots that one shard took from another must not come back with the other's log. In order:
            // who took slots has a higher number than who gave them.
            let begun = logs.iter().filter(|log| log.mark(Mark::Vote).is_some());
            self.fetch_all(&begun.collect::<Vec<_>>()).await?;
        }
        blocking(|| {
            self.stores.state.flush()?;
            self.stores.set_aside.done()
        })
    }

    /// Meanwhile peers are told how it goes.
    async fn fetch_all(&self, lacking: &[&GroupLog]) -> Result<(), StoreError> {
        let shards = lacking.iter().map(|log| log.shard()).collect::<Vec<_>>();
        tracing::warn!(?shards, "the state lacks what the log no longer has: the peers are asked for it");
        let fetched = Arc::new(AtomicUsize::new(0));
        let (done, of, above) = (Arc::clone(&fetched), lacking.len(), Arc::clone(&self.describe));
        let describe: Describe = Arc::new(move || {
            let done = done.load(Ordering::Relaxed);
            let not_ready = format!("its state is made anew: {done} of {of} shards are fetched from the peers");
            pb::NodeStatus { not_ready, ..above() }
        });
        let handler = Arc::new(OutOfService { describe });
        let answering = server::serve(Arc::clone(&self.transport), Arc::clone(&self.greeter), handler);
        let fetching = async {
            for log in lacking {
                let fetched_rows = if self.is_elsewhere(log.shard())? { None } else { self.fetch(log).await? };
                let Some(received) = fetched_rows else {
                    self.leave_vacant(log)?;
                    fetched.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                // Whoever took slots did so after they were given away: by now the giver's leader has, too.
                while let Some(giver) = self.held_elsewhere(log.shard(), &received)? {
                    let giver = lacking.iter().find(|log| log.shard() == giver);
                    let giver = giver.expect("invariant: what was fetched before is one of them");
                    match self.fetch(giver).await? {
                        Some(received) => self.install(giver.shard(), received)?,
                        None => self.leave_vacant(giver)?,
                    }
                }
                self.install(log.shard(), received)?;
                fetched.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        tokio::select! {
            fetched = fetching => fetched,
            () = answering => Err(EngineError::new("state", "the node is stopping").into()),
        }
    }

    fn lacks(&self, log: &GroupLog) -> Result<bool, StoreError> {
        let (shard, state) = (log.shard(), &self.stores.state);
        let lacks = blocking(|| {
            install::redo(shard, state, &self.stores.incoming)?;
            repair::lacks(log, state.flushed(shard).and_then(|row| row.log_id).as_ref())
        });
        lacks.map_err(|source| self.io(source))
    }

    /// Another shard whose rows here are some of those that were received.
    fn held_elsewhere(&self, shard: ShardId, received: &Received) -> Result<Option<ShardId>, StoreError> {
        let slots = install::slots_of(&received.head()).map_err(|source| self.io(source))?;
        Ok(slots.and_then(|slots| self.stores.state.slots().other_holder(shard, slots)))
    }

    fn install(&self, shard: ShardId, received: Received) -> Result<(), StoreError> {
        blocking(|| install::install(shard, &self.stores.state, received)).map_err(|source| self.io(source))
    }

    /// Whether the directory, which comes first, has a shard on other nodes: then nobody need be asked.
    fn is_elsewhere(&self, shard: ShardId) -> Result<bool, StoreError> {
        let cluster = DirectoryView::new(self.stores.state.clone()).cluster()?;
        let on = cluster.as_ref().and_then(|cluster| placement::of(cluster, shard.into()));
        Ok(on.is_some_and(|nodes| !nodes.contains(&self.stores.data.node_id)))
    }

    /// The shard is on other nodes: nothing of it is to be here, and the log says no more than whom this node voted for.
    fn leave_vacant(&self, log: &GroupLog) -> Result<(), StoreError> {
        let (shard, state) = (log.shard(), &self.stores.state);
        let log_id = repair::begins_after(log).map_err(|source| self.io(source))?.as_ref().map(codec::log_id_to_pb);
        let row = applied::Row { log_id, vacant: true, ..Default::default() };
        let held = state.slots().of(shard);
        state.slots().set_vacant(shard);
        let ops = vacancy::ops(shard, state, held, &row).map_err(|source| self.io(source))?;
        blocking(|| state.write(&ops))?;
        tracing::info!(shard, "the shard is placed on other nodes: nothing of it is fetched");
        Ok(())
    }

    fn io(&self, source: std::io::Error) -> StoreError {
        StoreError::Io { path: self.stores.data.state_path(), source }
    }

    /// Nothing: by the word of its leader this node has no replica of the shard.
    async fn fetch(&self, log: &GroupLog) -> Result<Option<Received>, StoreError> {
        let shard = log.shard();
        let begins_after = repair::begins_after(log).map_err(|source| self.io(source))?;
        let mut said = Instant::now();
        loop {
            let mut refusals = Vec::new();
            for address in self.addresses() {
                match self.fetch_from(&address, shard, begins_after).await {
                    Ok(received) => {
                        tracing::info!(shard, from = address, "the shard's rows were fetched");
                        return Ok(Some(received));
                    }
                    Err(Refusal::NoMember) => return Ok(None),
                    Err(Refusal::Other(why)) => refusals.push(format!("{address}: {why}")),
                }
            }
            if said.elapsed() > SAY_INTERVAL {
                said = Instant::now();
                tracing::warn!(
                    shard,
                    ?refusals,
                    "no peer gives the shard's rows: a majority of its other nodes must be up and have a leader"
                );
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn fetch_from(
        &self,
        address: &str,
        shard: ShardId,
        begins_after: Option<LogId>,
    ) -> Result<Received, Refusal> {
        let hello = ask_who_is_there(&*self.transport, &self.greeter, address).await;
        let member = hello.map_err(|error| Refusal::Other(error.to_string()))?.member.unwrap_or_default();
        if !member.keyed && !self.from_keyless {
            return Err(Refusal::Other("it has no keys, and raft.keyless_snapshots is not set".to_owned()));
        }
        let client = self.peers.client(member.id, address);
        let connected = tokio::time::timeout(CONNECT_MAX, client.connected()).await;
        connected.map_err(|_| Refusal::Other("no connection".to_owned()))?;
        match fetch(&client, self.stores.data.node_id, shard, &self.stores.incoming, begins_after).await {
            Ok(fetched) => Ok(fetched.received),
            // The directory is on every node: what says otherwise is older than this node.
            Err(FetchError::NoMember) if shard != DIRECTORY => Err(Refusal::NoMember),
            Err(error) => Err(Refusal::Other(error.to_string())),
        }
    }

    /// Where peers may be: the configuration's, those of when the state was found damaged, and whoever calls here.
    fn addresses(&self) -> BTreeSet<String> {
        let marked = self.stores.refilling.iter().flat_map(|mark| mark.peers.clone());
        let callers = self.greeter.callers.lock().values().cloned().collect::<Vec<_>>();
        self.join.iter().cloned().chain(marked).chain(callers).collect()
    }
}

/// Why a peer gave nothing.
enum Refusal {
    /// It leads, and this node is none of its group's members.
    NoMember,
    Other(String),
}

/// Answers peers while the groups are not there yet.
struct OutOfService {
    describe: Describe,
}

fn unavailable() -> pb::CallError {
    pb::CallError { kind: ErrorKind::Unavailable as i32, leader: 0 }
}

impl Handler for OutOfService {
    fn call(
        self: Arc<Self>,
        _: Caller,
        kind: Kind,
        _: ShardId,
        _: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, pb::CallError>> {
        let answer = match kind {
            Kind::NodeStatus => Ok((self.describe)().encode_to_vec().into()),
            Kind::Echo => Ok(Bytes::new()),
            _ => Err(unavailable()),
        };
        async { answer }.boxed()
    }

    fn stream(
        self: Arc<Self>,
        _: Caller,
        _: Kind,
        _: ShardId,
        _: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, pb::CallError>> {
        stream::iter([Err(unavailable())]).boxed()
    }
}
