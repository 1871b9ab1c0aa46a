//! A group without rows on this node: its shard is placed on others, or was until now.
//!
//! A replica that is taken out of its group becomes *vacant*: the shard's rows go, the log stays, and with it whom this node
//! voted for and what it acknowledged. So nothing is forgotten that Raft relies on, and the node may come back at any time.
//! Until then it takes no entries: it could not apply them. When it is a member again, it fetches all rows from the
//! leader ([`super::fetch`]), and only then takes part.
//!
//! ```text
//! member → taken out → closed (what is under way ends) → vacant → member again, fetches → member
//! ```
//! Knows nothing of where shards are to be: that is `crate::replica::placement`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use openraft::async_runtime::WatchReceiver;
use prost::Message;

use super::codec;
use super::fetch::Fetched;
use super::group::{Group, GroupError};
use super::types::{LogId, Vote};
use super::{snapshot, transfer};
use crate::store::state::flusher::StateStore;
use crate::store::state::{Scope, StateOp, Table};
use crate::store::table::{after_prefix, applied, handover};
use crate::{NodeId, ShardId, Slots};

/// How a group is here.
pub(super) struct Presence {
    /// The shard is to have a replica here.
    placed: AtomicBool,
    /// It takes no entries.
    closed: AtomicBool,
    /// It does not campaign, since it was vacant.
    silenced: AtomicBool,
    /// It was filled, and the leader has not gone on from there yet.
    arriving: AtomicBool,
}

impl Default for Presence {
    /// A group is to be everywhere until something else is heard.
    fn default() -> Self {
        let (closed, silenced, arriving) = Default::default();
        Self { placed: AtomicBool::new(true), closed, silenced, arriving }
    }
}

/// What makes a group vacant that holds these slots: its rows go, and those that it was given and has not taken, or has given
/// and nobody is to take here. `row` is what is known of it from then on.
pub fn ops(shard: ShardId, state: &StateStore, slots: Option<Slots>, row: &applied::Row) -> io::Result<Vec<StateOp>> {
    let mut ranges = snapshot::ranges(shard, slots);
    let mut ops = Vec::new();
    for (key, slots) in handed_over(state)? {
        if (key.giver == shard || key.taker == shard) && state.slots().other_holder(shard, slots).is_none() {
            let of_slots = Table::ALL.into_iter().filter(|table| table.scope() == Scope::Slot);
            let (from, to) = (slots.first.to_be_bytes().to_vec(), after_prefix(&slots.last.to_be_bytes()));
            ranges.extend(of_slots.map(|table| (table, from.clone(), to.clone())));
            ops.push(StateOp::Delete { table: Table::Handover, key: key.encode() });
        }
    }
    ops.extend(ranges.into_iter().map(|(table, from, to)| StateOp::DeleteRange { table, from, to }));
    let (key, value) = (applied::encode(shard), row.encode_to_vec().into());
    ops.push(StateOp::Put { table: Table::Applied, key, value });
    Ok(ops)
}

/// Slots that are between two shards on this node.
fn handed_over(state: &StateStore) -> io::Result<Vec<(handover::Key, Slots)>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a row of table handover cannot be decoded");
    let rows = state.engine().scan(Table::Handover, &[], &after_prefix(&[]), HANDOVERS_MAX, usize::MAX)?;
    let decode = |(key, row): (Vec<u8>, bytes::Bytes)| {
        let row = handover::Row::decode(row).map_err(|_| damaged())?;
        let slots = row.slots.as_ref().and_then(Slots::from_pb).ok_or_else(damaged)?;
        Ok((handover::Key::decode(&key).ok_or_else(damaged)?, slots))
    };
    rows.into_iter().map(decode).collect()
}

/// Whether a shard has given slots away whose taker is still to take them on this node: it must not go before.
pub fn has_to_hand_over(shard: ShardId, state: &StateStore) -> io::Result<bool> {
    let rows = handed_over(state)?;
    Ok(rows.iter().any(|(key, _)| key.giver == shard && !state.slots().is_vacant(key.taker)))
}

/// More than all shards can have between them.
const HANDOVERS_MAX: usize = 1_000;

impl Group {
    /// Whether the rows are not here.
    pub fn is_vacant(&self) -> bool {
        self.progress.read().vacant
    }

    /// Whether the shard is to have a replica here.
    pub fn is_placed(&self) -> bool {
        self.presence.placed.load(Ordering::Relaxed)
    }

    pub fn set_placed(&self, placed: bool) {
        self.presence.placed.store(placed, Ordering::Relaxed);
    }

    /// Whether this replica is one to read and to write at: it is to be here, or leads yet, has rows, and gets more.
    pub fn is_here(&self) -> bool {
        let arriving = self.presence.arriving.load(Ordering::Relaxed);
        !self.is_vacant() && !arriving && (self.is_placed() || self.leads())
    }

    /// The leader brings something that is taken.
    pub(super) fn note_arrival(&self) {
        self.presence.arriving.store(false, Ordering::Relaxed);
    }

    /// Takes no entries, until that is undone: what it has taken before is applied in a moment.
    pub fn close(&self, closed: bool) {
        self.presence.closed.store(closed, Ordering::SeqCst);
    }

    /// Whether it may take entries of a leader, or a snapshot.
    pub(super) fn takes_part(&self) -> bool {
        !self.presence.closed.load(Ordering::SeqCst) && !self.is_vacant()
    }

    /// Whom this replica follows, or which vote it gave last.
    pub(crate) fn vote(&self) -> Vote {
        self.raft().server_metrics().borrow_watched().vote
    }

    /// How far this replica has come.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.progress.read().log_id.as_ref().map(codec::log_id_from_pb)
    }

    /// On the leader: how many entries each other replica lacks, of those that have come as far as an entry.
    pub(crate) fn followers_since(&self, entry: Option<LogId>) -> BTreeMap<NodeId, u64> {
        let since = entry.map_or(0, |entry| entry.index);
        let log_index = self.log_index();
        self.followers().into_iter().filter(|(_, behind)| log_index.saturating_sub(*behind) >= since).collect()
    }

    /// Whether exactly these nodes are the members, all with a vote, by what is committed.
    pub(crate) fn is_settled_on(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let composition = self.composition();
        let is_committed = self.members_at() <= self.known_committed();
        is_committed && !composition.changing && composition.voters == *nodes && composition.members.keys().eq(nodes)
    }

    /// Whether a node is a member by what is committed. While that is being changed, it may be.
    pub(super) fn may_have_member(&self, node: NodeId) -> bool {
        let committed = self.known_committed();
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        stored.log_id() > &committed || stored.membership().get_node(&node).is_some()
    }

    /// Lets go of the rows. The caller has seen that this node is no member, and has closed the group long enough before.
    pub async fn vacate(&self) -> Result<(), GroupError> {
        self.raft().runtime_config().elect(false);
        self.presence.silenced.store(true, Ordering::SeqCst);
        let vacated = self.raft().with_state_machine(|machine| async move { machine.vacate() }.boxed()).await;
        let stopped = |why: String| GroupError::Stopped(why);
        vacated.map_err(|fatal| stopped(fatal.to_string()))?.map_err(|error| stopped(error.to_string()))
    }

    /// It has rows again, and this node may campaign: so may it.
    pub fn allow_elections_again(&self) {
        if self.presence.silenced.swap(false, Ordering::SeqCst) {
            self.allow_elections();
        }
    }

    /// Takes all rows, as the group's leader gave them.
    pub async fn fill(&self, leader: NodeId, fetched: Fetched) -> Result<(), GroupError> {
        let stopped = |why: &dyn std::fmt::Display| GroupError::Stopped(why.to_string());
        let (vote, snapshot) = transfer::to_install(self, leader, fetched).map_err(|error| stopped(&error))?;
        self.presence.arriving.store(true, Ordering::Relaxed);
        let installed = self.raft().install_full_snapshot(vote, snapshot).await;
        installed.map_err(|error| stopped(&error))?;
        match self.is_vacant() {
            false => Ok(()),
            true => Err(stopped(&"what was fetched is not newer than what was here")),
        }
    }
}
