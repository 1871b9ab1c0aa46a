//! Slots that go from one shard to another: when this node's replicas may follow.
//!
//! Each replica applies its own log in its own time, and rows are found by their slots: were two shards to hold the same
//! ones here, two logs would write them. So the taker waits for the giver, here as on every node; the giver waits for
//! nobody. Behind a giver that let go by its log, all rows of the slots are here, and its row says so. Behind one that
//! came past that point by a snapshot they are not: then the taker needs a snapshot, too. It gets one as a rule (a taker's
//! log is purged before the giver's is, see [`crate::replica::slots`]); else this node's state is given up, and its next
//! start has it made anew.

use std::io;
use std::time::Duration;

use charthold_proto::internal as pb;
use openraft::async_runtime::WatchReceiver;

use super::apply::Entry;
use super::command::slots_taken;
use super::group::Group;
use crate::store::EngineError;
use crate::store::state::Table;
use crate::store::state::flusher::StateStore;
use crate::store::table::handover;
use crate::{ShardId, Slots};

/// The giver applies a few entries meanwhile, or gets a snapshot.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Before a spare group applies an entry: if it takes slots from another shard, their rows are here on return.
pub(super) async fn await_rows(shard: ShardId, state: &StateStore, entry: &Entry) -> io::Result<()> {
    let Some(take) = entry.command().and_then(slots_taken) else { return Ok(()) };
    let (Some(slots), Some(given)) = (take.slots.as_ref().and_then(Slots::from_pb), take.given) else { return Ok(()) };
    let Ok(giver) = ShardId::try_from(given.shard) else { return Ok(()) };
    await_given_up(shard, state, slots, &[giver]).await;
    let key = handover::Key { giver, taker: shard }.encode();
    if state.engine().get(Table::Handover, &key)?.is_some() {
        return Ok(());
    }
    let detail = format!("the rows of shard {shard} were given to it by shard {giver} while this node was away");
    state.engine().note_damage(&detail);
    Err(EngineError::Damaged { engine: "state", detail }.into())
}

/// Before a snapshot is installed: nobody else here holds its slots on return, nor ever will.
pub(super) async fn await_free(shard: ShardId, state: &StateStore, meta: &pb::SnapshotMeta) {
    if let Some(slots) = meta.slots.as_ref().and_then(Slots::from_pb) {
        let givers = meta.origins.iter().filter_map(|origin| ShardId::try_from(origin.shard).ok());
        await_given_up(shard, state, slots, &givers.collect::<Vec<_>>()).await;
    }
}

/// A giver that holds nothing has yet to come to where it held them, unless it has no replica here any more.
async fn await_given_up(shard: ShardId, state: &StateStore, slots: Slots, givers: &[ShardId]) {
    let map = state.slots();
    let is_to_come = |giver: &ShardId| map.of(*giver).is_none() && !map.is_vacant(*giver);
    while map.other_holder(shard, slots).is_some() || givers.iter().any(is_to_come) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

impl Group {
    /// Whether a position of another shard is one of this shard, too: it had its rows then.
    pub fn had(&self, shard: ShardId, seq: u64) -> bool {
        self.origins().iter().any(|origin| origin.shard == u32::from(shard) && seq <= origin.seq)
    }

    /// Where its shard has its slots from, while this replica's log still has the entry that took them.
    pub fn took_by_log(&self) -> Option<pb::Origin> {
        let origin = self.origins().first().copied()?;
        let purged = self.raft().metrics().borrow_watched().purged;
        purged.is_none_or(|purged| purged.index <= origin.taker_log_index).then_some(origin)
    }

    /// The end of this replica's log.
    pub fn log_index(&self) -> u64 {
        self.raft().metrics().borrow_watched().last_log_index.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::shard::apply::Payload;
    use crate::shard::command::Command;
    use crate::store::log::memory::MemoryLog;
    use crate::store::log::writer::LogWriter;
    use crate::store::state::MemoryLimits;
    use crate::store::state::StateOp;
    use crate::store::state::memory::MemoryState;

    const UPPER: Slots = Slots { first: 50, last: 99 };

    fn store() -> StateStore {
        let log = LogWriter::start(Arc::new(MemoryLog::default()), None).unwrap();
        StateStore::start(Arc::new(MemoryState::default()), log, MemoryLimits::default()).unwrap()
    }

    fn takes(given: Option<pb::Given>) -> Entry {
        let take = pb::TakeSlots { slots: Some(UPPER.to_pb()), given };
        let log_id = pb::LogId { term: 1, leader: 1, index: 1 };
        Entry { log_id, payload: Payload::Command(Command::TakeSlots(take).encode(0)) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_taker_waits_for_the_giver_and_needs_its_rows() {
        let state = store();
        await_rows(2, &state, &takes(None)).await.unwrap();
        let entry = takes(Some(pb::Given { shard: 1, ..Default::default() }));
        let waits = async || tokio::time::timeout(Duration::from_secs(1), await_rows(2, &state, &entry)).await;
        assert!(waits().await.is_err(), "the giver has not begun");
        state.slots().set(1, Some(Slots { first: 0, last: 99 }));
        assert!(waits().await.is_err(), "the giver holds them");
        let key = handover::Key { giver: 1, taker: 2 }.encode();
        state.write(&[StateOp::Put { table: Table::Handover, key: key.clone(), value: Bytes::new() }]).unwrap();
        state.slots().set(1, Some(Slots { first: 0, last: 49 }));
        waits().await.unwrap().unwrap();
        assert_eq!(state.engine().damage(), None);
        // The giver came past that point by a snapshot.
        state.write(&[StateOp::Delete { table: Table::Handover, key }]).unwrap();
        waits().await.unwrap().unwrap_err();
        assert!(state.engine().damage().unwrap().contains("shard 2"));
        state.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_waits_until_nobody_else_has_its_slots() {
        let state = store();
        let origins = vec![pb::Origin { shard: 1, seq: 7, ..Default::default() }];
        let meta = pb::SnapshotMeta { slots: Some(UPPER.to_pb()), origins, ..Default::default() };
        let waits = async || tokio::time::timeout(Duration::from_secs(1), await_free(2, &state, &meta)).await;
        assert!(waits().await.is_err(), "the giver would come to hold them");
        state.slots().set(1, Some(Slots { first: 0, last: 50 }));
        assert!(waits().await.is_err());
        state.slots().set(1, Some(Slots { first: 0, last: 49 }));
        waits().await.unwrap();
        state.slots().set(1, None);
        assert!(waits().await.is_err(), "the giver has yet to begin");
        state.slots().set_vacant(1);
        waits().await.unwrap();
        state.stop();
    }
}
