//! Apply: what a log does to a group's state.
//!
//! A pure function of state and entries: no clock, no random number, no key, no I/O but the batch that comes out, which
//! also holds the applied log id. Any partition of the same entries into batches gives the same state.
//!
//! Knows neither openraft nor an engine's kind.

mod chart_key;
mod commit;
pub mod document;
mod index;
pub mod merkle;
pub mod overlay;
#[cfg(test)]
pub(super) mod partitions;
pub mod recorder;
#[cfg(test)]
mod scripts;
mod slots;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;

use self::merkle::{Frontier, Hash};
use self::overlay::{Overlay, Remembered};
use super::command::{Command, CommandError, Framed};
use crate::planted::{self, Bug};
use crate::store::EngineError;
use crate::store::state::{StateEngine, StateOp, Table};
use crate::store::table::{self, ChartAddress};
use crate::{DIRECTORY, ShardId, Slots};

/// Roots are kept at these seqs, so that replicas that are not equally far can be compared.
const ROOT_EVERY: u64 = 64;
const ROOTS_KEPT: usize = 16;
/// A command that is ordered so long after it was issued was held back. Twice the longest deadline of a call.
const LATE_AFTER_MS: u64 = 600_000;

/// An entry of the log.
pub struct Entry {
    pub log_id: pb::LogId,
    pub payload: Payload,
}

pub enum Payload {
    Blank,
    Command(Bytes),
    Membership(pb::Membership),
}

impl Entry {
    pub fn command(&self) -> Option<&Bytes> {
        match &self.payload {
            Payload::Command(command) => Some(command),
            Payload::Blank | Payload::Membership(_) => None,
        }
    }
}

/// Why a replica cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("a row of table {table} cannot be decoded")]
    Damaged { table: &'static str },
}

/// How far a group has come: its applied row in memory.
#[derive(Clone, PartialEq)]
pub struct Progress {
    pub log_id: Option<pb::LogId>,
    pub membership: Option<pb::StoredMembership>,
    /// Recorded outcomes.
    pub seq: u64,
    pub log_time_ms: u64,
    pub frontier: Frontier,
    pub roots: Vec<(u64, Hash)>,
    /// What the group holds; none: the directory, or a spare one.
    pub slots: Option<Slots>,
    /// Where it has them from, the nearest first.
    pub origins: Vec<pb::Origin>,
    /// The rows are not here, see [`super::vacancy`].
    pub vacant: bool,
}

/// One group's apply.
pub struct Applier {
    pub(crate) shard: ShardId,
    pub progress: Progress,
    remembered: Remembered,
}

impl Applier {
    /// Takes up where the state is.
    pub fn restore(shard: ShardId, engine: &dyn StateEngine) -> Result<Self, ApplyError> {
        let row = engine.get(Table::Applied, &table::applied::encode(shard))?;
        let row = row.map(table::applied::Row::decode).transpose();
        let row = row.map_err(|_| ApplyError::Damaged { table: "applied" })?.unwrap_or_default();
        let progress = Progress::from_row(row).ok_or(ApplyError::Damaged { table: "applied" })?;
        Ok(Self { shard, progress, remembered: Remembered::default() })
    }

    /// Executes entries in order: one batch to write, one answer an entry.
    ///
    /// The caller writes the batch before it answers. After an error the applier is no longer in step with the state.
    pub fn apply(
        &mut self,
        engine: &dyn StateEngine,
        entries: Vec<Entry>,
    ) -> Result<(Vec<StateOp>, Vec<pb::Outcome>), ApplyError> {
        let mut overlay = Overlay::new(engine, std::mem::take(&mut self.remembered));
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            let answer = match entry.payload {
                Payload::Blank => None,
                Payload::Command(bytes) => Some(self.execute(&mut overlay, Framed::decode(&bytes)?)?),
                Payload::Membership(membership) => {
                    let stored = pb::StoredMembership { log_id: Some(entry.log_id), membership: Some(membership) };
                    self.progress.membership = Some(stored);
                    None
                }
            };
            self.progress.log_id = Some(entry.log_id);
            outcomes.push(pb::Outcome { result: answer });
        }
        let row = self.progress.to_row().encode_to_vec();
        let left_out = planted::has(Bug::ApplyNotAtomic) && !self.progress.seq.is_multiple_of(2);
        if !left_out {
            overlay.put(Table::Applied, table::applied::encode(self.shard), row.into());
        }
        let (ops, remembered) = overlay.into_ops();
        self.remembered = remembered;
        Ok((ops, outcomes))
    }

    fn execute(&mut self, overlay: &mut Overlay, framed: Framed) -> Result<Answer, ApplyError> {
        // A leader's clock may be behind its predecessor's: log time never goes back.
        self.progress.log_time_ms = self.progress.log_time_ms.max(framed.log_time_ms);
        if planted::has(Bug::ApplyDiffers) {
            self.progress.log_time_ms += planted::of_this_process();
        }
        let late = self.progress.log_time_ms > framed.issued_ms.saturating_add(LATE_AFTER_MS);
        if late && !planted::has(Bug::LateExecuted) {
            return Ok(refused(Reason::Late));
        }
        let slot = framed.slot;
        let mine = match framed.command {
            Command::Commit(_)
            | Command::EnsureChartKey(_)
            | Command::PutIndex(_)
            | Command::DropIndex(_)
            | Command::PutPart(_)
            | Command::DropUpload(_) => self.progress.slots.is_some_and(|slots| slots.contains(slot)),
            Command::GiveSlots(_) | Command::TakeSlots(_) => self.shard != DIRECTORY,
            Command::CheckRows(_) => true,
            _ => self.shard == DIRECTORY,
        };
        if !mine {
            return Ok(refused(Reason::WrongShard));
        }
        match framed.command {
            Command::Commit(commit) => self.commit(overlay, slot, commit),
            Command::EnsureChartKey(ensure) => chart_key::ensure(overlay, slot, ensure, self.progress.seq),
            Command::PutIndex(put) => Ok(self.put_index(overlay, slot, &put)),
            Command::DropIndex(drop) => self.drop_index(overlay, slot, &drop),
            Command::PutPart(put) => document::put_part(overlay, slot, put, self.progress.log_time_ms),
            Command::DropUpload(drop) => document::drop_upload(overlay, slot, drop, self.progress.log_time_ms),
            Command::GiveSlots(give) => Ok(self.give_slots(overlay, &give)),
            Command::TakeSlots(take) => Ok(self.take_slots(overlay, take)),
            // Whoever applies it sees to it.
            Command::CheckRows(_) => Ok(self.done()),
            Command::InitCluster(init) => self.init_cluster(overlay, init),
            Command::PutTenant(put) => self.put_tenant(overlay, put),
            Command::PutGrant(put) => self.put_grant(overlay, put),
            Command::RemoveGrant(remove) => self.remove_grant(overlay, remove),
            Command::ChangeNode(change) => self.change_node(overlay, change),
            Command::SplitShard(split) => self.split_shard(overlay, split),
            Command::RaiseFormat(raise) => self.raise_format(overlay, raise),
            Command::PlaceShards(place) => self.place_shards(overlay, place),
        }
    }
}

impl Progress {
    /// The newest root and those kept on the way, the newest last.
    pub fn recent_roots(&self) -> Vec<(u64, Hash)> {
        let newest = (self.seq, self.frontier.root());
        let kept = self.roots.iter().copied().filter(|(seq, _)| *seq != self.seq);
        kept.chain([newest]).collect()
    }

    /// Counts an outcome.
    fn push(&mut self, leaf: Hash) {
        self.seq += 1;
        self.frontier.push(leaf);
        if self.seq.is_multiple_of(ROOT_EVERY) {
            self.roots.push((self.seq, self.frontier.root()));
            let excess = self.roots.len().saturating_sub(ROOTS_KEPT);
            self.roots.drain(..excess);
        }
    }

    fn from_row(row: table::applied::Row) -> Option<Self> {
        let hash = |bytes: &Bytes| Hash::try_from(bytes.as_ref()).ok();
        let subtrees = row.frontier.iter().map(hash).collect::<Option<Vec<_>>>()?;
        let root = |root: &pb::RootAt| Some((root.seq, hash(&root.sha256)?));
        Some(Self {
            log_id: row.log_id,
            membership: row.membership,
            seq: row.seq,
            log_time_ms: row.log_time_ms,
            frontier: Frontier::restore(row.seq, subtrees)?,
            roots: row.recent_roots.iter().map(root).collect::<Option<Vec<_>>>()?,
            slots: row.slots.as_ref().and_then(Slots::from_pb),
            origins: row.origins,
            vacant: row.vacant,
        })
    }

    pub(super) fn to_row(&self) -> table::applied::Row {
        let bytes = |hash: &Hash| Bytes::copy_from_slice(hash);
        let root = |(seq, hash): &(u64, Hash)| pb::RootAt { seq: *seq, sha256: bytes(hash) };
        table::applied::Row {
            log_id: self.log_id,
            seq: self.seq,
            log_time_ms: self.log_time_ms,
            membership: self.membership.clone(),
            frontier: self.frontier.subtrees().iter().map(bytes).collect(),
            recent_roots: self.roots.iter().map(root).collect(),
            slots: self.slots.map(Slots::to_pb),
            origins: self.origins.clone(),
            vacant: self.vacant,
        }
    }
}

pub(crate) fn refused(reason: Reason) -> Answer {
    Answer::Refused(pb::Refused { reason: reason as i32, next_part: 0 })
}

/// Why a chart takes nothing that was sealed with this key now.
fn chart_refuses(overlay: &mut Overlay, chart: &ChartAddress, key_id: &Bytes) -> Result<Option<Reason>, ApplyError> {
    let row = overlay.chart(table::chart::encode(chart))?.map(table::chart::Row::decode).transpose();
    let row = row.map_err(|_| ApplyError::Damaged { table: Table::Chart.name() })?;
    Ok(match row {
        Some(row) if row.state() == pb::chart_row::State::Erased => Some(Reason::ChartErased),
        Some(row) if row.key_id == *key_id => None,
        _ => Some(Reason::StaleChartKey),
    })
}

/// Reads a message row through the overlay.
pub(crate) fn read_row<Row: Message + Default>(
    overlay: &Overlay,
    table: Table,
    key: Vec<u8>,
) -> Result<Option<Row>, ApplyError> {
    let row = overlay.get(table, key)?.map(Row::decode).transpose();
    row.map_err(|_| ApplyError::Damaged { table: table.name() })
}
