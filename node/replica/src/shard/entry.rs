//! An entry of a group's log, and the code of the leader that put it there.
//!
//! The code is over the shard, the entry's place, that of the entry before it, and what it holds. So of a log that a node
//! without keys brings, nothing that a leader with keys ordered can be changed, moved, or left out between two others: what
//! stands before an entry is fixed by its code. A leader without keys writes none, and orders nothing.
//!
//! Who checks codes, and what else, is in [`super::authors`].

use std::fmt;

use bytes::Bytes;
use openraft::entry::RaftEntry;

use super::authors::{AuthorKey, Code};
use super::codec;
use super::types::{CommittedLeaderId, EntryPayload, LogId, Member, Membership};
use crate::{NodeId, ShardId};

/// An entry as openraft holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub log_id: LogId,
    pub payload: EntryPayload,
    pub code: EntryCode,
    /// Private: whoever makes another entry of this one cannot take its bytes along.
    encoded: Encoded,
}

/// An entry's bytes, if it was read or came: for the log and for followers they need not be made again. They say nothing that
/// the entry does not, so that they make no difference between two.
#[derive(Clone, Default)]
struct Encoded(Option<Bytes>);

impl PartialEq for Encoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryCode {
    /// Openraft made the entry here, as leader: its code is written on its way into the log.
    Due,
    /// As it came, or was read.
    Of(Code),
    /// It came without: of a leader without keys, or of a version that wrote none.
    Absent,
}

impl EntryCode {
    /// As bytes that may be anything say.
    pub fn told(bytes: &[u8]) -> Self {
        bytes.try_into().map_or(Self::Absent, Self::Of)
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Of(code) => code,
            Self::Due | Self::Absent => &[],
        }
    }
}

impl Entry {
    /// An entry that is not to be signed here.
    pub fn of(log_id: LogId, payload: EntryPayload, code: EntryCode) -> Self {
        Self { log_id, payload, code, encoded: Encoded::default() }
    }

    /// The same, which these bytes are all of.
    pub fn read(log_id: LogId, payload: EntryPayload, code: EntryCode, bytes: Bytes) -> Self {
        Self { encoded: Encoded(Some(bytes)), ..Self::of(log_id, payload, code) }
    }

    /// What it was read from.
    pub fn encoded(&self) -> Option<&Bytes> {
        self.encoded.0.as_ref()
    }

    /// Writes its code, if it is due.
    pub fn sign(&mut self, key: &dyn AuthorKey, shard: ShardId, before: Option<LogId>) {
        if self.code == EntryCode::Due {
            self.code = EntryCode::Of(self.with_parts(shard, before, |parts| key.code(parts)));
        }
    }

    /// Whether a leader with keys has put this entry there, after that one.
    pub fn is_signed(&self, key: &dyn AuthorKey, shard: ShardId, before: Option<LogId>) -> bool {
        let EntryCode::Of(code) = &self.code else { return false };
        self.with_parts(shard, before, |parts| key.check(parts, code))
    }

    fn with_parts<T>(&self, shard: ShardId, before: Option<LogId>, act: impl FnOnce(&[&[u8]]) -> T) -> T {
        let before = before.as_ref().map(codec::encode_log_id).unwrap_or_default();
        let (shard, place) = (shard.to_be_bytes(), codec::encode_log_id(&self.log_id));
        let of = |kind: &[u8], content: &[u8]| act(&[b"entry", &shard, &before, &place, kind, content]);
        match &self.payload {
            EntryPayload::Blank => of(b"blank", b""),
            EntryPayload::Normal(proposal) => of(b"command", &proposal.0),
            EntryPayload::Membership(membership) => of(b"members", &codec::encode_membership(membership)),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.log_id, self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = CommittedLeaderId;
    type Payload = EntryPayload;

    /// Openraft makes entries as leader only.
    fn new(log_id: LogId, payload: EntryPayload) -> Self {
        Self::of(log_id, payload, EntryCode::Due)
    }

    fn log_id_parts(&self) -> (&CommittedLeaderId, u64) {
        (&self.log_id.leader_id, self.log_id.index)
    }

    fn set_log_id(&mut self, new: LogId) {
        self.log_id = new;
        self.encoded = Encoded::default();
    }

    fn get_membership(&self) -> Option<openraft::Membership<NodeId, Member>> {
        match &self.payload {
            EntryPayload::Membership(membership) => Some(Membership::clone(membership)),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::shard::types::LeaderId;
    use crate::testing::TestKey;

    const SHARD: ShardId = 5;

    fn at(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId::new(term, 1), index)
    }

    fn command(bytes: &'static [u8]) -> EntryPayload {
        EntryPayload::Normal(Bytes::from_static(bytes).into())
    }

    #[test]
    fn a_code_is_of_a_place_of_what_is_before_it_and_of_what_is_there() {
        let before = Some(at(2, 6));
        let mut entry = Entry::new(at(2, 7), command(b"command"));
        entry.sign(&TestKey, SHARD, before);
        assert!(entry.is_signed(&TestKey, SHARD, before));
        assert!(!entry.is_signed(&TestKey, SHARD + 1, before), "of another shard");
        for other in [None, Some(at(1, 6)), Some(at(2, 5))] {
            assert!(!entry.is_signed(&TestKey, SHARD, other), "after another entry");
        }
        for place in [at(2, 8), at(3, 7)] {
            assert!(!Entry { log_id: place, ..entry.clone() }.is_signed(&TestKey, SHARD, before), "moved");
        }
        for payload in [command(b"comman"), command(b"another"), EntryPayload::Blank] {
            assert!(!Entry { payload, ..entry.clone() }.is_signed(&TestKey, SHARD, before), "changed");
        }
        assert!(!Entry { code: EntryCode::Absent, ..entry }.is_signed(&TestKey, SHARD, before));
    }

    #[test]
    fn the_first_entry_is_after_nothing_and_members_count() {
        let members = |id: NodeId| {
            let voters = vec![BTreeSet::from([id])];
            Membership::new(voters, BTreeMap::from([(id, Member::default())])).unwrap_or_default()
        };
        let mut entry = Entry::new(at(0, 0), EntryPayload::Membership(members(1)));
        entry.sign(&TestKey, SHARD, None);
        assert!(entry.is_signed(&TestKey, SHARD, None));
        assert!(!Entry { payload: EntryPayload::Membership(members(2)), ..entry }.is_signed(&TestKey, SHARD, None));
    }

    /// Else a node would vouch for what a peer made up.
    #[test]
    fn what_came_without_a_code_is_not_given_one() {
        let mut entry = Entry { code: EntryCode::told(b""), ..Entry::new(at(2, 7), command(b"made up")) };
        entry.sign(&TestKey, SHARD, None);
        assert_eq!(entry.code, EntryCode::Absent);
        assert_eq!(EntryCode::told(&[7; 16]), EntryCode::Of([7; 16]));
        assert_eq!(EntryCode::told(&[7; 15]), EntryCode::Absent);
    }
}
