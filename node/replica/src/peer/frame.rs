//! Frames.
//!
//! ```text
//! length 4 | kind 1 | more 1 | shard 2 | id 8 | payload        big endian; length counts what follows it
//! ```
//! A message longer than a frame is cut; all but its last frame have `more` = 1. Frames of different ids may alternate,
//! those of one id are in order.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::ShardId;

/// The payload of a frame: small enough that a heartbeat never waits long behind one.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// A message: the largest append is 2 MiB of entries or one entry, and an entry is under the 8 MiB of a gRPC message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 12;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Ping = 0,
    Hello = 1,
    /// Answers the request with the same id.
    Reply = 2,
    /// The same, with a `CallError`.
    ReplyError = 3,
    /// Ends the stream with this id.
    StreamEnd = 4,
    /// The caller's clock, and how far its log is synced. Has no answer.
    Mark = 5,
    // Requests with one answer.
    Vote = 16,
    PreVote = 17,
    TransferLeader = 18,
    ReadIndex = 19,
    Forward = 20,
    /// How a node is, for whoever shows the whole cluster.
    NodeStatus = 21,
    /// Answered at once, with nothing: how long the way is.
    Echo = 22,
    /// Lead nothing, or lead again.
    GiveWay = 23,
    /// A node more or less, for the directory's leader.
    ChangeMember = 24,
    /// Rows of a slot, for a gateway whose node has no replica.
    ReadRows = 25,
    /// One request of the append stream with this id: answered in order, under the same id.
    Append = 32,
    /// One message of the snapshot stream with this id.
    Snapshot = 33,
    /// Asks for the next message of a snapshot that the called end sends.
    FetchSnapshot = 34,
}

impl Kind {
    fn from_u8(kind: u8) -> Option<Self> {
        let kinds = [
            Self::Ping,
            Self::Hello,
            Self::Reply,
            Self::ReplyError,
            Self::StreamEnd,
            Self::Mark,
            Self::Vote,
            Self::PreVote,
            Self::TransferLeader,
            Self::ReadIndex,
            Self::Forward,
            Self::NodeStatus,
            Self::Echo,
            Self::GiveWay,
            Self::ChangeMember,
            Self::ReadRows,
            Self::Append,
            Self::Snapshot,
            Self::FetchSnapshot,
        ];
        kinds.into_iter().find(|known| *known as u8 == kind)
    }
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub shard: ShardId,
    pub id: u64,
    pub payload: Bytes,
}

/// Bytes that are no frame: the connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes")]
    Length(usize),
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    #[error("a message longer than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    #[error("too many messages begun at once")]
    TooMany,
}

impl From<FrameError> for std::io::Error {
    fn from(error: FrameError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

impl Message {
    /// Writes the next frame of this message, takes its payload off; tells whether the message is done.
    pub fn write_frame(&mut self, out: &mut BytesMut) -> bool {
        let payload = self.payload.split_to(self.payload.len().min(PAYLOAD_BYTES_MAX));
        let more = !self.payload.is_empty();
        out.put_u32((HEADER_BYTES + payload.len()) as u32);
        out.put_u8(self.kind as u8);
        out.put_u8(u8::from(more));
        out.put_u16(self.shard);
        out.put_u64(self.id);
        out.put_slice(&payload);
        !more
    }
}

/// Puts frames together again.
#[derive(Default)]
pub struct Assembler {
    begun: Vec<(Kind, u64, BytesMut)>,
}

/// Messages that may be begun and not ended on one connection; one a shard is normal.
const BEGUN_MAX: usize = 16;
/// What they may hold together: what a sender's outbox may, twice.
const BEGUN_BYTES_MAX: usize = 32 << 20;

impl Assembler {
    /// Takes a message off the front of `input`, if one is complete.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Message>, FrameError> {
        while input.len() >= LENGTH_BYTES {
            let length = (&input[..LENGTH_BYTES]).get_u32() as usize;
            if !(HEADER_BYTES..=HEADER_BYTES + PAYLOAD_BYTES_MAX).contains(&length) {
                return Err(FrameError::Length(length));
            }
            if input.len() < LENGTH_BYTES + length {
                input.reserve(LENGTH_BYTES + length - input.len());
                return Ok(None);
            }
            input.advance(LENGTH_BYTES);
            if let Some(message) = self.take(input.split_to(length).freeze())? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn take(&mut self, mut frame: Bytes) -> Result<Option<Message>, FrameError> {
        let kind = frame.get_u8();
        let kind = Kind::from_u8(kind).ok_or(FrameError::Kind(kind))?;
        let (more, shard, id) = (frame.get_u8() != 0, frame.get_u16(), frame.get_u64());
        let begun = self.begun.iter().position(|(of_kind, of_id, _)| (*of_kind, *of_id) == (kind, id));
        let payload = match begun {
            None if !more => frame,
            None => {
                if self.begun.len() >= BEGUN_MAX {
                    return Err(FrameError::TooMany);
                }
                self.begun.push((kind, id, BytesMut::from(frame)));
                return Ok(None);
            }
            Some(at) => {
                let held_bytes = self.begun.iter().map(|(_, _, gathered)| gathered.len()).sum::<usize>();
                let gathered = &mut self.begun[at].2;
                if gathered.len() + frame.len() > MESSAGE_BYTES_MAX || held_bytes > BEGUN_BYTES_MAX {
                    return Err(FrameError::TooLong);
                }
                gathered.extend_from_slice(&frame);
                if more {
                    return Ok(None);
                }
                self.begun.swap_remove(at).2.freeze()
            }
        };
        Ok(Some(Message { kind, shard, id, payload }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(id: u64, length: usize) -> Message {
        Message { kind: Kind::Append, shard: id as u16, id, payload: vec![id as u8; length].into() }
    }

    #[test]
    fn interleaved_messages_come_back_whole_however_the_bytes_are_cut() {
        let messages = [message(1, 600 << 10), message(2, 0), message(3, 256 << 10), message(4, 257 << 10)];
        let mut bytes = BytesMut::new();
        let mut open = messages.to_vec();
        while !open.is_empty() {
            open.retain_mut(|message| !message.write_frame(&mut bytes));
        }
        for cut in [1, 7, 4_096, usize::MAX] {
            let (mut assembler, mut input, mut found) = (Assembler::default(), BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut.min(bytes.len())) {
                input.extend_from_slice(piece);
                while let Some(message) = assembler.next(&mut input).unwrap() {
                    found.push(message);
                }
            }
            found.sort_by_key(|message| message.id);
            assert_eq!(found, messages, "cut every {cut} bytes");
        }
    }

    #[test]
    fn refuses_wrong_lengths_kinds_and_endless_messages() {
        let next = |bytes: &[u8]| Assembler::default().next(&mut BytesMut::from(bytes));
        assert_eq!(next(&[0, 0, 0, 1, 0]), Err(FrameError::Length(1)));
        assert_eq!(next(&[255, 0, 0, 0]), Err(FrameError::Length(0xff00_0000)));
        let mut unknown = BytesMut::new();
        message(1, 0).write_frame(&mut unknown);
        unknown[4] = 99;
        assert_eq!(next(&unknown), Err(FrameError::Kind(99)));
        let mut endless = message(1, MESSAGE_BYTES_MAX + 1);
        let (mut assembler, mut result) = (Assembler::default(), Ok(None));
        while result == Ok(None) {
            let mut bytes = BytesMut::new();
            endless.write_frame(&mut bytes);
            result = assembler.next(&mut bytes);
        }
        assert_eq!(result, Err(FrameError::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_message_never_a_panic(bytes: Vec<u8>) {
            let (mut assembler, mut input) = (Assembler::default(), BytesMut::from(bytes.as_slice()));
            while let Ok(Some(_)) = assembler.next(&mut input) {}
        }
    }
}
