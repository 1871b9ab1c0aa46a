//! openraft's types to our protobuf messages and back: the one encoding, on disk and on the wire.
//!
//! Never a derived dump of openraft's structs: those change between its versions.

use bytes::Bytes;
use charthold_proto::internal as pb;
use openraft::vote::RaftLeaderId;
use prost::Message;

use super::entry::{Entry, EntryCode};
use super::types::{EntryPayload, LeaderId, LogId, Member, Membership, StoredMembership, Vote};
use crate::NodeId;

/// Bytes that are not what they should be: damage, or a defect.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a {0} that cannot be decoded")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for std::io::Error {
    fn from(malformed: Malformed) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, malformed)
    }
}

pub fn log_id_to_pb(log_id: &LogId) -> pb::LogId {
    pb::LogId { term: log_id.leader_id.term, leader: log_id.leader_id.node_id, index: log_id.index }
}

pub fn log_id_from_pb(log_id: &pb::LogId) -> LogId {
    LogId::new(LeaderId::new(log_id.term, log_id.leader), log_id.index)
}

pub fn encode_log_id(log_id: &LogId) -> Bytes {
    log_id_to_pb(log_id).encode_to_vec().into()
}

pub fn decode_log_id(bytes: Bytes) -> Result<LogId, Malformed> {
    pb::LogId::decode(bytes).map(|log_id| log_id_from_pb(&log_id)).map_err(|_| Malformed("log id"))
}

pub fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn vote_from_pb(vote: Option<pb::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed("vote"))?;
    Ok(Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed })
}

pub fn encode_vote(vote: &Vote) -> Bytes {
    vote_to_pb(vote).encode_to_vec().into()
}

pub fn decode_vote(bytes: Bytes) -> Result<Vote, Malformed> {
    vote_from_pb(pb::Vote::decode(bytes).ok())
}

pub fn encode_entry(entry: &Entry) -> Bytes {
    if let Some(bytes) = entry.encoded() {
        return bytes.clone();
    }
    use pb::log_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(proposal) => Payload::Command(proposal.0.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(membership_to_pb(membership)),
    };
    let (log_id, code) = (Some(log_id_to_pb(&entry.log_id)), Bytes::copy_from_slice(entry.code.as_bytes()));
    pb::LogEntry { log_id, payload: Some(payload), code }.encode_to_vec().into()
}

pub fn decode_entry(bytes: Bytes) -> Result<Entry, Malformed> {
    use pb::log_entry::Payload;
    let malformed = Malformed("log entry");
    let entry = pb::LogEntry::decode(bytes.clone()).map_err(|_| malformed)?;
    let whole = entry.encoded_len() == bytes.len();
    let log_id = log_id_from_pb(&entry.log_id.ok_or(malformed)?);
    let payload = match entry.payload.ok_or(malformed)? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Command(command) => EntryPayload::Normal(command.into()),
        Payload::Membership(membership) => EntryPayload::Membership(membership_from_pb(membership)?),
    };
    let code = EntryCode::told(&entry.code);
    // What is in them besides, of a newer version or of nobody, goes no further.
    let says_all = whole && code.as_bytes() == entry.code && matches!(payload, EntryPayload::Normal(_));
    Ok(match says_all {
        true => Entry::read(log_id, payload, code, bytes),
        false => Entry::of(log_id, payload, code),
    })
}

pub fn membership_to_pb(membership: &Membership) -> pb::Membership {
    let configs = membership.get_joint_config().iter();
    pb::Membership {
        configs: configs.map(|voters| pb::VoterSet { nodes: voters.iter().copied().collect() }).collect(),
        members: membership.nodes().map(|(id, member)| member_to_pb(*id, member)).collect(),
    }
}

/// As a leader's code is over it.
pub fn encode_membership(membership: &Membership) -> Vec<u8> {
    membership_to_pb(membership).encode_to_vec()
}

pub fn membership_from_pb(membership: pb::Membership) -> Result<Membership, Malformed> {
    let configs = membership.configs.into_iter().map(|voters| voters.nodes.into_iter().collect()).collect();
    let members = membership.members.into_iter().map(|member| (member.id, member_from_pb(member)));
    let members = members.collect::<std::collections::BTreeMap<_, _>>();
    Membership::new(configs, members).map_err(|_| Malformed("membership"))
}

pub fn stored_membership_to_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(stored.membership())),
    }
}

pub fn stored_membership_from_pb(stored: Option<pb::StoredMembership>) -> Result<StoredMembership, Malformed> {
    let Some(stored) = stored else { return Ok(StoredMembership::default()) };
    let membership = membership_from_pb(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from_pb), membership))
}

pub fn member_to_pb(id: NodeId, member: &Member) -> pb::Member {
    pb::Member {
        id,
        name: member.name.clone(),
        site: member.site.clone(),
        peer_address: member.peer_address.clone(),
        client_address: member.client_address.clone(),
        keyed: member.keyed,
        code: member.code.as_deref().map(|code| Bytes::copy_from_slice(code)).unwrap_or_default(),
    }
}

pub fn member_from_pb(member: pb::Member) -> Member {
    Member {
        name: member.name,
        site: member.site,
        peer_address: member.peer_address,
        client_address: member.client_address,
        keyed: member.keyed,
        code: member.code.as_ref().try_into().ok().map(Box::new),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn log_id() -> impl Strategy<Value = LogId> {
        any::<(u64, u64, u64)>().prop_map(|(term, node, index)| LogId::new(LeaderId::new(term, node), index))
    }

    fn membership() -> impl Strategy<Value = Membership> {
        prop::collection::btree_map(any::<u64>(), any::<[String; 4]>(), 1..5).prop_map(|nodes| {
            let voters = nodes.keys().copied().collect::<BTreeSet<_>>();
            let member = |[name, site, peer_address, client_address]: [String; 4]| Member {
                name,
                site,
                peer_address,
                client_address,
                keyed: true,
                code: Some(Box::new([7; 16])),
            };
            let nodes = nodes.into_iter().map(|(id, strings)| (id, member(strings))).collect::<BTreeMap<_, _>>();
            Membership::new(vec![voters], nodes).unwrap()
        })
    }

    proptest! {
        #[test]
        fn log_ids_and_votes_round_trip(log_id in log_id(), committed: bool) {
            prop_assert_eq!(decode_log_id(encode_log_id(&log_id)).unwrap(), log_id);
            let vote = Vote { leader_id: log_id.leader_id, committed };
            prop_assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
        }

        #[test]
        fn entries_round_trip(log_id in log_id(), command: Vec<u8>, membership in membership()) {
            let payloads = [
                EntryPayload::Blank,
                EntryPayload::Normal(Bytes::from(command).into()),
                EntryPayload::Membership(membership),
            ];
            for (payload, code) in payloads.into_iter().zip([EntryCode::Absent, EntryCode::Of([7; 16]), EntryCode::Absent]) {
                let entry = Entry::of(log_id, payload, code);
                let read = decode_entry(encode_entry(&entry)).unwrap();
                prop_assert_eq!(&read, &entry);
                prop_assert!(read.encoded().is_none_or(|bytes| *bytes == encode_entry(&entry)), "as they would be made");
            }
        }

        #[test]
        fn stored_memberships_round_trip(log_id in log_id(), membership in membership()) {
            let stored = StoredMembership::new(Some(log_id), membership);
            let decoded = stored_membership_from_pb(Some(stored_membership_to_pb(&stored))).unwrap();
            prop_assert_eq!(decoded, stored);
        }

        #[test]
        fn what_an_entry_does_not_say_is_not_passed_on(log_id in log_id(), junk: u64) {
            let entry = Entry::of(log_id, EntryPayload::Normal(Bytes::from_static(b"command").into()), EntryCode::Absent);
            prop_assert!(decode_entry(encode_entry(&entry)).unwrap().encoded().is_some());
            let mut bytes = encode_entry(&entry).to_vec();
            prost::encoding::uint64::encode(1_000, &junk, &mut bytes);
            let read = decode_entry(bytes.into()).unwrap();
            prop_assert_eq!(encode_entry(&read), encode_entry(&entry));
        }

        #[test]
        fn damage_is_an_error_not_a_panic(bytes: Vec<u8>) {
            let _ = decode_entry(bytes.clone().into());
            let _ = decode_vote(bytes.clone().into());
            let _ = decode_log_id(bytes.into());
        }
    }
}
