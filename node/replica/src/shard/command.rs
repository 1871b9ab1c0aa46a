//! Commands as the log holds them.
//!
//! ```text
//! format 1 | kind 1 | log time 8 | slot 2 | payload: a protobuf message of charthold.internal.v1, without maps
//! ```
//! A gateway leaves the log time zero; the leader stamps it. A replica that meets a format or kind that it does not
//! know stops: to skip it would make its state another than its peers'.

use bytes::{BufMut, Bytes, BytesMut};
use charthold_proto::internal as pb;
use prost::Message;

use crate::Slot;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 12;
/// With what wraps it, an entry must fit into one message between nodes: else it could not be replicated.
const COMMAND_BYTES_MAX: usize = 8 << 20;

/// What apply executes.
pub enum Command {
    Commit(pb::Commit),
    EnsureChartKey(pb::EnsureChartKey),
    PutIndex(pb::PutIndex),
    DropIndex(pb::DropIndex),
    PutPart(pb::PutPart),
    DropUpload(pb::DropUpload),
    InitCluster(pb::InitCluster),
    PutTenant(pb::PutTenant),
    PutGrant(pb::PutGrant),
    RemoveGrant(pb::RemoveGrant),
    ChangeNode(pb::ChangeNode),
}

/// A command with its header.
pub struct Framed {
    pub log_time_ms: u64,
    pub slot: Slot,
    pub command: Command,
}

/// Why a command cannot be executed by this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("a command of format {0}: this node is older than the one that wrote it; upgrade it")]
    UnknownFormat(u8),
    #[error("a command of kind {0}: this node is older than the one that wrote it; upgrade it")]
    UnknownKind(u8),
    #[error("a command that cannot be decoded")]
    Malformed,
    #[error("a command of {0} bytes")]
    TooLong(usize),
}

impl Command {
    fn kind(&self) -> u8 {
        match self {
            Self::Commit(_) => 1,
            Self::EnsureChartKey(_) => 2,
            Self::PutIndex(_) => 3,
            Self::DropIndex(_) => 4,
            Self::PutPart(_) => 5,
            Self::DropUpload(_) => 6,
            Self::InitCluster(_) => 16,
            Self::PutTenant(_) => 17,
            Self::PutGrant(_) => 18,
            Self::RemoveGrant(_) => 19,
            Self::ChangeNode(_) => 20,
        }
    }

    /// Encodes with the log time left open.
    pub fn encode(&self, slot: Slot) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(FORMAT);
        bytes.put_u8(self.kind());
        bytes.put_u64(0);
        bytes.put_u16(slot);
        let written = match self {
            Self::Commit(payload) => payload.encode(&mut bytes),
            Self::EnsureChartKey(payload) => payload.encode(&mut bytes),
            Self::PutIndex(payload) => payload.encode(&mut bytes),
            Self::DropIndex(payload) => payload.encode(&mut bytes),
            Self::PutPart(payload) => payload.encode(&mut bytes),
            Self::DropUpload(payload) => payload.encode(&mut bytes),
            Self::InitCluster(payload) => payload.encode(&mut bytes),
            Self::PutTenant(payload) => payload.encode(&mut bytes),
            Self::PutGrant(payload) => payload.encode(&mut bytes),
            Self::RemoveGrant(payload) => payload.encode(&mut bytes),
            Self::ChangeNode(payload) => payload.encode(&mut bytes),
        };
        written.expect("invariant: a growing buffer has room");
        bytes.freeze()
    }
}

impl Framed {
    pub fn decode(bytes: &Bytes) -> Result<Self, CommandError> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(CommandError::Malformed)?;
        let [format, kind, time @ .., slot_high, slot_low] = *header;
        if format != FORMAT {
            return Err(CommandError::UnknownFormat(format));
        }
        let payload = bytes.slice(HEADER_BYTES..);
        Ok(Self {
            log_time_ms: u64::from_be_bytes(time),
            slot: u16::from_be_bytes([slot_high, slot_low]),
            command: decode_payload(kind, payload)?,
        })
    }
}

fn decode_payload(kind: u8, payload: Bytes) -> Result<Command, CommandError> {
    let command = match kind {
        1 => pb::Commit::decode(payload).map(Command::Commit),
        2 => pb::EnsureChartKey::decode(payload).map(Command::EnsureChartKey),
        3 => pb::PutIndex::decode(payload).map(Command::PutIndex),
        4 => pb::DropIndex::decode(payload).map(Command::DropIndex),
        5 => pb::PutPart::decode(payload).map(Command::PutPart),
        6 => pb::DropUpload::decode(payload).map(Command::DropUpload),
        16 => pb::InitCluster::decode(payload).map(Command::InitCluster),
        17 => pb::PutTenant::decode(payload).map(Command::PutTenant),
        18 => pb::PutGrant::decode(payload).map(Command::PutGrant),
        19 => pb::RemoveGrant::decode(payload).map(Command::RemoveGrant),
        20 => pb::ChangeNode::decode(payload).map(Command::ChangeNode),
        unknown => return Err(CommandError::UnknownKind(unknown)),
    };
    command.map_err(|_| CommandError::Malformed)
}

/// Puts the leader's log time into an encoded command. Refuses what no replica could execute or receive: once it is in
/// the log, it would stop them all.
pub fn stamp(command: &Bytes, log_time_ms: u64) -> Result<Bytes, CommandError> {
    if command.len() > COMMAND_BYTES_MAX {
        return Err(CommandError::TooLong(command.len()));
    }
    Framed::decode(command)?;
    let mut stamped = BytesMut::from(command.as_ref());
    stamped[2..10].copy_from_slice(&log_time_ms.to_be_bytes());
    Ok(stamped.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn round_trips_with_a_stamp() {
        let commit = pb::Commit { tenant: Bytes::from_static(b"t"), ..Default::default() };
        let bytes = stamp(&Command::Commit(commit.clone()).encode(513), 77).unwrap();
        assert_eq!(&bytes[..12], &[1, 1, 0, 0, 0, 0, 0, 0, 0, 77, 2, 1]);
        let framed = Framed::decode(&bytes).unwrap();
        assert_eq!((framed.log_time_ms, framed.slot), (77, 513));
        assert!(matches!(framed.command, Command::Commit(found) if found == commit));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let mut bytes = Command::RemoveGrant(pb::RemoveGrant::default()).encode(0).to_vec();
        bytes[1] = 99;
        assert_eq!(Framed::decode(&bytes.clone().into()).err(), Some(CommandError::UnknownKind(99)));
        bytes[0] = 2;
        assert_eq!(Framed::decode(&bytes.clone().into()).err(), Some(CommandError::UnknownFormat(2)));
        assert_eq!(stamp(&bytes.into(), 7).err(), Some(CommandError::UnknownFormat(2)));
        let long = pb::EnsureChartKey { wrapped_key: vec![0; COMMAND_BYTES_MAX].into(), ..Default::default() };
        assert!(matches!(stamp(&Command::EnsureChartKey(long).encode(0), 7), Err(CommandError::TooLong(_))));
        assert_eq!(Framed::decode(&Bytes::from_static(b"\x01\x01")).err(), Some(CommandError::Malformed));
    }
}
