//! A snapshot as messages: how they are made of rows at one end, and kept in a file at the other.
//!
//! ```text
//! begin  part part part …  end
//! ```
//! Must not know who asked for it, nor what becomes of it: see [`super::transfer`] and [`super::fetch`].

use std::io;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::snapshot_request::Request;
use prost::Message;

use super::snapshot::{Checker, PinnedRows, RunningHash, Snapshot};
use crate::ShardId;
use crate::platform::blocking;
use crate::store::incoming::{Incoming, Part, Received};

/// Messages that may wait for their answers.
pub const WINDOW: usize = 4;
/// A message, or a step of the install, that takes longer ends the transfer.
pub const PROGRESS_MAX: Duration = Duration::from_secs(20);

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("{0}")]
    Refused(&'static str),
    #[error("it cannot be kept: {0}")]
    Keep(#[from] io::Error),
    #[error("the sender has gone, or is too slow")]
    Gone,
    #[error("the replica has stopped")]
    Stopped,
}

/// A snapshot on its way out.
pub struct Parts {
    begin: Option<pb::SnapshotBegin>,
    rows: PinnedRows,
    hash: RunningHash,
    ended: bool,
}

impl Parts {
    /// `vote`: under which its sender leads, where the receiver wants to know.
    pub fn new(vote: Option<pb::Vote>, snapshot: &Snapshot) -> io::Result<Self> {
        let rows = snapshot.snapshot.take_pinned()?;
        let begin = Some(pb::SnapshotBegin { vote, meta: Some(rows.meta.clone()) });
        Ok(Self { begin, rows, hash: RunningHash::default(), ended: false })
    }

    /// The next message; nothing after the end.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        let request = match self.begin.take() {
            Some(begin) => Request::Begin(begin),
            None => self.next_part().await?,
        };
        self.ended = matches!(request, Request::End(_));
        Ok(Some(pb::SnapshotRequest { request: Some(request) }.encode_to_vec().into()))
    }

    async fn next_part(&mut self) -> io::Result<Request> {
        let Some(chunk) = self.rows.next().await else {
            return Ok(Request::End(pb::SnapshotEnd { running_sha256: self.hash.to_bytes() }));
        };
        let chunk = Bytes::from(chunk.map_err(io::Error::from)?.encode_to_vec());
        self.hash.add(&chunk);
        Ok(Request::Part(pb::SnapshotPart { chunk, running_sha256: self.hash.to_bytes() }))
    }
}

/// A snapshot on its way in, after its beginning.
pub struct Kept {
    checker: Checker,
    part: Part,
}

impl Kept {
    pub fn begin(shard: ShardId, meta: &pb::SnapshotMeta, incoming: &Incoming) -> io::Result<Self> {
        let part = blocking(|| incoming.receive(shard, &meta.encode_to_vec()))?;
        Ok(Self { checker: Checker::new(shard, meta), part })
    }

    /// Takes the next message; answers whether it was the last.
    pub fn take(&mut self, request: &Request) -> Result<bool, TakeError> {
        match request {
            Request::Begin(_) => Err(TakeError::Refused("it begins twice")),
            Request::Part(part) => {
                self.checker.part(part).map_err(TakeError::Refused)?;
                blocking(|| self.part.push(&part.chunk))?;
                Ok(false)
            }
            Request::End(end) => self.checker.end(end).map(|()| true).map_err(TakeError::Refused),
        }
    }

    /// After the last. Durable on return, see [`Part::finish`].
    pub fn finish(self) -> io::Result<Received> {
        blocking(|| self.part.finish())
    }
}

/// One of its messages.
pub fn decode(bytes: Bytes) -> Result<Request, TakeError> {
    let request = pb::SnapshotRequest::decode(bytes).ok().and_then(|request| request.request);
    request.ok_or(TakeError::Refused("a message that cannot be decoded"))
}
