//! GiveSlots, TakeSlots: what a shard holds, and how a part of it becomes another shard's.
//!
//! Rows are found by their slots, so none is moved: only whose they are changes. The giver's log says where they were when it
//! let go, the taker begins there: its ledger goes on from the giver's seq and root, and what is recorded of requests
//! lies with the rows. In between nobody holds the slots, and who asks for them asks again.
//!
//! They are no outcomes: the ledger does not know them. Doing one twice is doing it once.

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;

use super::merkle::{Frontier, Hash};
use super::overlay::Overlay;
use super::{Applier, refused};
use crate::store::state::Table;
use crate::store::table::handover;
use crate::{ShardId, Slots};

impl Applier {
    /// The upper part of what it holds, never all.
    pub(super) fn give_slots(&mut self, overlay: &mut Overlay, give: &pb::GiveSlots) -> Answer {
        let (given, taker) = (give.slots.as_ref().and_then(Slots::from_pb), ShardId::try_from(give.to));
        let (Some(given), Ok(taker), Some(held)) = (given, taker, self.progress.slots) else {
            return refused(Reason::Malformed);
        };
        if !held.overlaps(given) {
            return self.done();
        }
        if given.last != held.last || given.first <= held.first {
            return refused(Reason::Malformed);
        }
        self.progress.slots = Some(Slots { last: given.first - 1, ..held });
        overlay.forget_charts();
        let row = handover::Row { slots: Some(given.to_pb()), given: Some(self.as_giver()) };
        overlay.put(Table::Handover, handover::Key { giver: self.shard, taker }.encode(), row.encode_to_vec().into());
        self.done()
    }

    fn as_giver(&self) -> pb::Given {
        let subtrees = self.progress.frontier.subtrees();
        pb::Given {
            shard: self.shard.into(),
            seq: self.progress.seq,
            log_time_ms: self.progress.log_time_ms,
            frontier: subtrees.iter().map(|hash| Bytes::copy_from_slice(hash)).collect(),
            origins: self.progress.origins.clone(),
            log_index: self.log_index(),
        }
    }

    /// Of the entry before this one.
    fn log_index(&self) -> u64 {
        self.progress.log_id.map_or(0, |log_id| log_id.index)
    }

    /// That all rows of the slots are here is for whoever applies to see, before.
    pub(super) fn take_slots(&mut self, overlay: &mut Overlay, take: pb::TakeSlots) -> Answer {
        let Some(slots) = take.slots.as_ref().and_then(Slots::from_pb) else { return refused(Reason::Malformed) };
        if self.progress.slots.is_some() {
            return self.done();
        }
        if let Some(given) = take.given {
            let Some((giver, frontier)) = decode(&given) else { return refused(Reason::Malformed) };
            self.progress.seq = given.seq;
            self.progress.frontier = frontier;
            self.progress.log_time_ms = self.progress.log_time_ms.max(given.log_time_ms);
            let (shard, seq, log_index) = (given.shard, given.seq, given.log_index);
            self.progress.origins = vec![pb::Origin { shard, seq, log_index, taker_log_index: self.log_index() }];
            self.progress.origins.extend(given.origins);
            overlay.delete(Table::Handover, handover::Key { giver, taker: self.shard }.encode());
        }
        self.progress.slots = Some(slots);
        overlay.forget_charts();
        self.done()
    }
}

fn decode(given: &pb::Given) -> Option<(ShardId, Frontier)> {
    let hash = |bytes: &Bytes| Hash::try_from(bytes.as_ref()).ok();
    let subtrees = given.frontier.iter().map(hash).collect::<Option<Vec<_>>>()?;
    Some((given.shard.try_into().ok()?, Frontier::restore(given.seq, subtrees)?))
}
