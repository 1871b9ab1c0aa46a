//! Where the rows of a slot are read: from this node's state, or from a node that has a replica of the shard.
//!
//! Reads that belong to one barrier go to where that was passed. Whoever reads waits for another node on its own thread, as
//! it waits for a disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::read_rows_request::{Rows, Scan};
use prost::Message as _;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::Replica;
use super::barrier::{Moment, Place};
use super::documents::DocumentRows;
use super::index_rows::IndexRows;
use super::rows::ChartRows;
use crate::peer::Lane;
use crate::peer::client::PeerClient;
use crate::peer::frame::Kind;
use crate::platform::blocking;
use crate::store::EngineError;
use crate::store::state::flusher::StateStore;
use crate::store::state::{StateRows, Table};
use crate::{DIRECTORY, ShardId, Slot};

/// One question and its answer, of a megabyte at most.
const READ_MAX: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) enum Source {
    Here(StateStore),
    There(Arc<Elsewhere>),
    /// Nobody is known who has them.
    Nowhere,
}

/// A node with a replica that has applied enough.
pub(super) struct Elsewhere {
    pub client: Arc<PeerClient>,
    pub shard: ShardId,
    pub applied_index: u64,
}

impl Source {
    pub fn get(&self, slot: Slot, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self {
            Self::Here(state) => state.reader_of(slot)?.get(table, key),
            Self::There(there) => {
                let rows = there.read(slot, table, Rows::Key(Bytes::copy_from_slice(key)))?;
                Ok(rows.into_iter().next().map(|(_, value)| value))
            }
            Self::Nowhere => Err(EngineError::Unplaced),
        }
    }

    /// As [`crate::store::state::StateEngine::first`].
    pub fn first(&self, slot: Slot, table: Table, prefix: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        match self {
            Self::Here(state) => state.reader_of(slot)?.first(table, prefix),
            Self::There(there) => {
                let rows = there.read(slot, table, Rows::Prefix(Bytes::copy_from_slice(prefix)))?;
                Ok(rows.into_iter().next())
            }
            Self::Nowhere => Err(EngineError::Unplaced),
        }
    }

    /// As [`crate::store::state::StateEngine::scan`]. Fewer rows may come than are there; nothing at the end only.
    pub fn scan(
        &self,
        slot: Slot,
        table: Table,
        (from, to): (&[u8], &[u8]),
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        match self {
            Self::Here(state) => state.reader_of(slot)?.scan(table, from, to, rows_max, bytes_max),
            Self::There(there) => {
                let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
                let scan = Scan { from, to, rows_max: rows_max as u32, bytes_max: bytes_max as u32 };
                there.read(slot, table, Rows::Scan(scan))
            }
            Self::Nowhere => Err(EngineError::Unplaced),
        }
    }
}

impl Elsewhere {
    fn read(&self, slot: Slot, table: Table, rows: Rows) -> Result<StateRows, EngineError> {
        let request = pb::ReadRowsRequest {
            applied_index: self.applied_index,
            slot: slot.into(),
            table: table.name().to_owned(),
            rows: Some(rows),
        };
        let payload = request.encode_to_vec().into();
        let call = self.client.call(Lane::Bulk, Kind::ReadRows, self.shard, payload, READ_MAX);
        let unreachable = |error: &dyn std::fmt::Display| {
            tracing::debug!(shard = self.shard, %error, "rows were not read from another node");
            EngineError::Unreachable
        };
        let runtime = Handle::try_current().map_err(|error| unreachable(&error))?;
        if runtime.runtime_flavor() != RuntimeFlavor::MultiThread {
            return Err(unreachable(&"there is no thread to wait on"));
        }
        let answer = blocking(|| runtime.block_on(call)).map_err(|failure| unreachable(&failure))?;
        let answer = pb::ReadRowsResponse::decode(answer).map_err(|error| unreachable(&error))?;
        Ok(answer.rows.into_iter().map(|row| (row.key.into(), row.value)).collect())
    }
}

impl Replica {
    /// A shard's charts' rows, at a moment or later.
    pub fn rows(&self, moment: &Moment) -> ChartRows {
        ChartRows::new(self.source(moment.shard, moment.place))
    }

    /// The charts' rows of a slot, as they happen to be where they are.
    pub fn rows_of(&self, slot: Slot) -> ChartRows {
        let elsewhere = self.shard_of(slot).filter(|shard| !self.whereabouts.is_here(*shard));
        let Some(shard) = elsewhere else { return ChartRows::new(Source::Here(self.state.clone())) };
        let leader = self.whereabouts.keyed_leader(shard);
        ChartRows::new(
            leader.map_or(Source::Nowhere, |(node, _)| self.source(shard, Place::There { node, applied_index: 0 })),
        )
    }

    /// A shard's index's rows, at a moment of the term's shard or later.
    pub fn index(&self, moment: &Moment) -> IndexRows {
        IndexRows::new(self.source(moment.shard, moment.place))
    }

    /// A shard's documents' rows, likewise.
    pub fn documents(&self, moment: &Moment) -> DocumentRows {
        DocumentRows::new(self.source(moment.shard, moment.place))
    }

    fn source(&self, shard: ShardId, place: Place) -> Source {
        let Place::There { node, applied_index } = place else { return Source::Here(self.state.clone()) };
        let member = self.group(DIRECTORY).member(node);
        member.map_or(Source::Nowhere, |member| {
            let client = self.peers.client(node, &member.peer_address);
            Source::There(Arc::new(Elsewhere { client, shard, applied_index }))
        })
    }
}
