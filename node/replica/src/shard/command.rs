//! Commands as the log holds them.
//!
//! ```text
//! format 1 | kind 1 | log time 8 | slot 2 | author 8 | issued 8 | code 16 | payload
//! ```
//! The payload is a protobuf message of charthold.internal.v1, without maps. Times are milliseconds since 1970. Who proposes
//! the command signs it: author, when it was issued, and the author's code over all but log time and code (see
//! [`super::authors`]). The leader stamps the log time. A replica that meets a format or kind that it does not know stops:
//! to skip it would make its state another than its peers'.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use charthold_proto::internal as pb;
use prost::Message;

use crate::{NodeId, Slot};

/// 1 had no author.
const FORMAT: u8 = 2;
const LOG_TIME: Range<usize> = 2..10;
const AUTHOR: Range<usize> = 12..28;
const CODE: Range<usize> = 28..44;
const HEADER_BYTES: usize = CODE.end;
pub const CODE_BYTES: usize = 16;
/// Kinds.
const TAKE_SLOTS: u8 = 8;
const CHECK_ROWS: u8 = 9;
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
    GiveSlots(pb::GiveSlots),
    TakeSlots(pb::TakeSlots),
    CheckRows(pb::CheckRows),
    InitCluster(pb::InitCluster),
    PutTenant(pb::PutTenant),
    PutGrant(pb::PutGrant),
    RemoveGrant(pb::RemoveGrant),
    ChangeNode(pb::ChangeNode),
    SplitShard(pb::SplitShard),
    RaiseFormat(pb::RaiseFormat),
    PlaceShards(pb::PlaceShards),
}

/// A command with its header.
pub struct Framed {
    pub log_time_ms: u64,
    pub issued_ms: u64,
    pub slot: Slot,
    pub command: Command,
}

/// What an author's code is over, and the code.
pub struct Signed<'a> {
    /// Format, kind and slot.
    pub head: [&'a [u8]; 2],
    /// Who, and when.
    pub author: &'a [u8],
    pub payload: &'a [u8],
    pub code: &'a [u8],
}

/// Why a command cannot be executed by this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("a command of format {0}, here is {FORMAT}: this node is not of the version that wrote it")]
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
            Self::GiveSlots(_) => 7,
            Self::TakeSlots(_) => TAKE_SLOTS,
            Self::CheckRows(_) => CHECK_ROWS,
            Self::InitCluster(_) => 16,
            Self::PutTenant(_) => 17,
            Self::PutGrant(_) => 18,
            Self::RemoveGrant(_) => 19,
            Self::ChangeNode(_) => 20,
            Self::SplitShard(_) => 21,
            Self::RaiseFormat(_) => 22,
            Self::PlaceShards(_) => 23,
        }
    }

    /// Encodes with log time, author and code left open.
    pub fn encode(&self, slot: Slot) -> Bytes {
        match self {
            Self::Commit(payload) => self.frame(slot, payload),
            Self::EnsureChartKey(payload) => self.frame(slot, payload),
            Self::PutIndex(payload) => self.frame(slot, payload),
            Self::DropIndex(payload) => self.frame(slot, payload),
            Self::PutPart(payload) => self.frame(slot, payload),
            Self::DropUpload(payload) => self.frame(slot, payload),
            Self::GiveSlots(payload) => self.frame(slot, payload),
            Self::TakeSlots(payload) => self.frame(slot, payload),
            Self::CheckRows(payload) => self.frame(slot, payload),
            Self::InitCluster(payload) => self.frame(slot, payload),
            Self::PutTenant(payload) => self.frame(slot, payload),
            Self::PutGrant(payload) => self.frame(slot, payload),
            Self::RemoveGrant(payload) => self.frame(slot, payload),
            Self::ChangeNode(payload) => self.frame(slot, payload),
            Self::SplitShard(payload) => self.frame(slot, payload),
            Self::RaiseFormat(payload) => self.frame(slot, payload),
            Self::PlaceShards(payload) => self.frame(slot, payload),
        }
    }

    fn frame(&self, slot: Slot, payload: &impl Message) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + payload.encoded_len());
        bytes.put_u8(FORMAT);
        bytes.put_u8(self.kind());
        bytes.put_u64(0);
        bytes.put_u16(slot);
        bytes.put_bytes(0, HEADER_BYTES - AUTHOR.start);
        payload.encode(&mut bytes).expect("invariant: there is room for its length");
        bytes.freeze()
    }
}

impl Framed {
    pub fn decode(bytes: &Bytes) -> Result<Self, CommandError> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(CommandError::Malformed)?;
        let mut header = header.as_slice();
        let (format, kind) = (header.get_u8(), header.get_u8());
        if format != FORMAT {
            return Err(CommandError::UnknownFormat(format));
        }
        let (log_time_ms, slot, _author, issued_ms) =
            (header.get_u64(), header.get_u16(), header.get_u64(), header.get_u64());
        let command = decode_payload(kind, bytes.slice(HEADER_BYTES..))?;
        Ok(Self { log_time_ms, issued_ms, slot, command })
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
        7 => pb::GiveSlots::decode(payload).map(Command::GiveSlots),
        TAKE_SLOTS => pb::TakeSlots::decode(payload).map(Command::TakeSlots),
        CHECK_ROWS => pb::CheckRows::decode(payload).map(Command::CheckRows),
        16 => pb::InitCluster::decode(payload).map(Command::InitCluster),
        17 => pb::PutTenant::decode(payload).map(Command::PutTenant),
        18 => pb::PutGrant::decode(payload).map(Command::PutGrant),
        19 => pb::RemoveGrant::decode(payload).map(Command::RemoveGrant),
        20 => pb::ChangeNode::decode(payload).map(Command::ChangeNode),
        21 => pb::SplitShard::decode(payload).map(Command::SplitShard),
        22 => pb::RaiseFormat::decode(payload).map(Command::RaiseFormat),
        23 => pb::PlaceShards::decode(payload).map(Command::PlaceShards),
        unknown => return Err(CommandError::UnknownKind(unknown)),
    };
    command.map_err(|_| CommandError::Malformed)
}

impl<'a> Signed<'a> {
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        let (header, payload) = bytes.split_at_checked(HEADER_BYTES)?;
        let head = [&header[..LOG_TIME.start], &header[LOG_TIME.end..AUTHOR.start]];
        Some(Self { head, author: &header[AUTHOR], payload, code: &header[CODE] })
    }
}

/// Names the author of an encoded command, and when it was issued, and puts the author's code on it.
pub fn sign(
    command: &Bytes,
    author: NodeId,
    issued_ms: u64,
    code_of: impl FnOnce(&Signed) -> [u8; CODE_BYTES],
) -> Result<Bytes, CommandError> {
    let mut signed = BytesMut::from(command.as_ref());
    let header = signed.first_chunk_mut::<HEADER_BYTES>().ok_or(CommandError::Malformed)?;
    header[AUTHOR][..8].copy_from_slice(&author.to_be_bytes());
    header[AUTHOR][8..].copy_from_slice(&issued_ms.to_be_bytes());
    let code = code_of(&Signed::of(&signed).ok_or(CommandError::Malformed)?);
    signed[CODE].copy_from_slice(&code);
    Ok(signed.freeze())
}

/// What a command takes, if it is one that takes slots.
pub fn slots_taken(command: &Bytes) -> Option<pb::TakeSlots> {
    payload_if(command, TAKE_SLOTS)
}

/// What a command asks for, if it is one that has rows checked.
pub fn rows_check(command: &Bytes) -> Option<pb::CheckRows> {
    payload_if(command, CHECK_ROWS)
}

fn payload_if<Payload: Message + Default>(command: &Bytes, kind: u8) -> Option<Payload> {
    let is_of_kind = command.get(1).is_some_and(|of| *of == kind);
    is_of_kind.then(|| Payload::decode(command.slice(HEADER_BYTES.min(command.len())..)).ok()).flatten()
}

/// The log time of a command that its leader has stamped.
pub fn log_time_ms(command: &Bytes) -> Option<u64> {
    command.get(LOG_TIME).map(|mut bytes| bytes.get_u64())
}

/// Puts the leader's log time into an encoded command. Refuses what no replica could execute or receive: once it is in
/// the log, it would stop them all.
pub fn stamp(command: &Bytes, log_time_ms: u64) -> Result<Bytes, CommandError> {
    if command.len() > COMMAND_BYTES_MAX {
        return Err(CommandError::TooLong(command.len()));
    }
    Framed::decode(command)?;
    let mut stamped = BytesMut::from(command.as_ref());
    stamped[LOG_TIME].copy_from_slice(&log_time_ms.to_be_bytes());
    Ok(stamped.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn round_trips_with_a_stamp() {
        let commit = pb::Commit { tenant: Bytes::from_static(b"t"), ..Default::default() };
        let bytes = sign(&Command::Commit(commit.clone()).encode(513), 3, 76, |_| [9; 16]).unwrap();
        let bytes = stamp(&bytes, 77).unwrap();
        assert_eq!(bytes[..12], [2, 1, 0, 0, 0, 0, 0, 0, 0, 77, 2, 1]);
        assert_eq!(bytes[12..28], [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 76]);
        assert_eq!(bytes[28..44], [9; 16]);
        let framed = Framed::decode(&bytes).unwrap();
        assert_eq!((log_time_ms(&bytes), framed.log_time_ms, framed.issued_ms, framed.slot), (Some(77), 77, 76, 513));
        assert!(matches!(framed.command, Command::Commit(found) if found == commit));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let mut bytes = Command::RemoveGrant(pb::RemoveGrant::default()).encode(0).to_vec();
        bytes[1] = 99;
        assert_eq!(Framed::decode(&bytes.clone().into()).err(), Some(CommandError::UnknownKind(99)));
        bytes[0] = 1;
        assert_eq!(Framed::decode(&bytes.clone().into()).err(), Some(CommandError::UnknownFormat(1)));
        assert_eq!(stamp(&bytes.into(), 7).err(), Some(CommandError::UnknownFormat(1)));
        let long = pb::EnsureChartKey { wrapped_key: vec![0; COMMAND_BYTES_MAX].into(), ..Default::default() };
        assert!(matches!(stamp(&Command::EnsureChartKey(long).encode(0), 7), Err(CommandError::TooLong(_))));
        assert_eq!(Framed::decode(&Bytes::from_static(b"\x01\x01")).err(), Some(CommandError::Malformed));
        assert_eq!(sign(&Bytes::from_static(b"\x02\x01"), 1, 1, |_| [0; 16]).err(), Some(CommandError::Malformed));
    }

    /// All but what the leader adds.
    #[test]
    fn a_code_is_over_all_that_its_author_wrote() {
        let over = |bytes: &[u8]| {
            let Signed { head, author, payload, .. } = Signed::of(bytes).unwrap();
            [head[0], head[1], author, payload].concat()
        };
        let grant = pb::RemoveGrant { tenant: Bytes::from_static(b"tenant"), ..Default::default() };
        let bytes = sign(&Command::RemoveGrant(grant).encode(5), 1, 2, |_| [7; 16]).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            let added_later = LOG_TIME.contains(&at) || CODE.contains(&at);
            assert_eq!(over(&changed) == over(&bytes), added_later, "byte {at}");
        }
    }
}
