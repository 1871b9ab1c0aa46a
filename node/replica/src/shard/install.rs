//! Putting a received snapshot in the place of a group's rows, so that a crash at any point leaves either the old state
//! whole or an install that the next start does again.
//!
//! 1. the file is whole and synced ([`Received`])
//! 2. it is renamed: from here on the state does not count ([`Received::decide`])
//! 3. the group's rows are deleted, the snapshot's written; flushes in between do no harm
//! 4. the state is flushed, with the snapshot's applied row in it
//! 5. the file is removed
//!
//! The log needs no step of its own: at a start that finds the state ahead of it, [`super::repair`] drops it.

use std::io;

use charthold_proto::internal as pb;
use prost::Message;

use super::snapshot::ranges;
use crate::store::incoming::{Incoming, Install, Received};
use crate::store::state::flusher::StateStore;
use crate::store::state::{StateOp, Table};
use crate::store::table::{applied, handover};
use crate::{ShardId, Slots};

/// Installs what was received. Durable on return. Blocks.
pub fn install(shard: ShardId, state: &StateStore, received: Received) -> io::Result<()> {
    // What another shard has given up is not to come back, were this node to lose power after the decision.
    if slots_of(&received.head())? != held(shard, state)? {
        state.flush()?;
    }
    // From before the decision on: no reader takes for absent what is not there yet.
    let replacing = state.begin_replacing(shard);
    replace(shard, state, received.decide()?)?;
    replacing.done();
    Ok(())
}

/// Before a group starts: does again what a crash broke off.
pub fn redo(shard: ShardId, state: &StateStore, incoming: &Incoming) -> io::Result<()> {
    let Some(install) = incoming.pending(shard)? else { return Ok(()) };
    tracing::info!(shard, "a snapshot was being installed when this node stopped: installing it again");
    let replacing = state.begin_replacing(shard);
    replace(shard, state, install)?;
    replacing.done();
    Ok(())
}

fn replace(shard: ShardId, state: &StateStore, install: Install) -> io::Result<()> {
    let mut chunks = install.chunks()?;
    let meta = meta_of(&chunks.next().ok_or_else(damaged)??)?;
    let slots = meta.slots.as_ref().and_then(Slots::from_pb);
    let rows = ranges(shard, held(shard, state)?).into_iter().chain(ranges(shard, slots));
    let deletes = rows.map(|(table, from, to)| StateOp::DeleteRange { table, from, to });
    state.write(&deletes.chain(handed_over(shard, &meta)).collect::<Vec<_>>())?;
    for chunk in chunks {
        let chunk = pb::SnapshotChunk::decode(chunk?).map_err(|_| damaged())?;
        let table = Table::named(&chunk.table).ok_or_else(damaged)?;
        let put = |row: pb::SnapshotRow| StateOp::Put { table, key: row.key.into(), value: row.value };
        state.write(&chunk.rows.into_iter().map(put).collect::<Vec<_>>())?;
    }
    state.flush()?;
    state.slots().set(shard, slots);
    install.done()
}

/// The slots that were between the group and another one here no longer are: those that it has given lie in no snapshot of
/// it, those that it was to take come with the snapshot.
fn handed_over(shard: ShardId, meta: &pb::SnapshotMeta) -> impl Iterator<Item = StateOp> {
    let (from, to) = handover::giver_range(shard);
    let given = StateOp::DeleteRange { table: Table::Handover, from, to };
    let giver = meta.origins.first().and_then(|origin| ShardId::try_from(origin.shard).ok());
    let taken = giver.map(|giver| handover::Key { giver, taker: shard }.encode());
    [given].into_iter().chain(taken.map(|key| StateOp::Delete { table: Table::Handover, key }))
}

/// What the group holds before.
fn held(shard: ShardId, state: &StateStore) -> io::Result<Option<Slots>> {
    let row = state.engine().get(Table::Applied, &applied::encode(shard))?;
    let row = row.map(applied::Row::decode).transpose().map_err(|_| damaged())?;
    Ok(row.and_then(|row| row.slots).as_ref().and_then(Slots::from_pb))
}

/// What it holds after, by the snapshot's head.
pub fn slots_of(head: &[u8]) -> io::Result<Option<Slots>> {
    Ok(meta_of(head)?.slots.as_ref().and_then(Slots::from_pb))
}

fn meta_of(head: &[u8]) -> io::Result<pb::SnapshotMeta> {
    pb::SnapshotMeta::decode(head).map_err(|_| damaged())
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a received snapshot, or what it replaces, cannot be decoded")
}
