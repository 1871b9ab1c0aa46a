//! Authors: a node with keys puts a code on every command that it proposes and on every node that it makes a member, and
//! takes from a node without keys only what carries one.
//!
//! A keyless node that leads, as caretaker, passes on what keyed leaders ordered, and orders nothing itself: gateways do
//! not ask it. What it writes, makes up, alters or moves to another shard is refused here, and so is a membership in which
//! keyless nodes decide; what it held back and brings late is refused by apply (see [`super::apply`]). From one that
//! tried, nothing more is taken: another leader is elected.
//!
//! Every entry that a leader with keys writes has its code, over its place too ([`super::entry`]): so what a caretaker passes on
//! stands where it stood. Nor may it take back what is applied here, whatever log it claims to have.
//!
//! Knows no key: [`AuthorKey`] is given from above. What is asked of a keyless node beside this, and not proven:
//! that it keeps what it acknowledged, and votes honestly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::command::{self, Signed};
use super::entry::{Entry, EntryCode};
use super::group::{Group, GroupError};
use super::members::keyless_are_few;
use super::types::{EntryPayload, LogId, Member, Membership, TypeConfig, Vote};
use crate::metrics::METRICS;
use crate::peer::clock::ClusterClock;
use crate::peer::hello::Roster;
use crate::peer::server::Caller;
use crate::planted::{self, Bug};
use crate::{NodeId, ShardId, format};

/// The first 128 bits of a MAC.
pub type Code = [u8; command::CODE_BYTES];

/// The key that all nodes with keys share. A code is over the parts, and where each ends.
pub trait AuthorKey: Send + Sync {
    fn code(&self, parts: &[&[u8]]) -> Code;

    /// Takes the same time whatever is wrong.
    fn check(&self, parts: &[&[u8]], code: &[u8]) -> bool;
}

/// So far a leader's clock may be ahead of this node's: five times of what nodes tolerate of each other's.
const AHEAD_MAX: Duration = Duration::from_secs(10);

/// So long a node without keys may lead and bring nothing. It hands over within a second if another can lead.
const CARETAKER_MAX: Duration = Duration::from_secs(30);
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Why something is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    #[error("an entry that it wrote itself")]
    Own,
    #[error("a command that no node with keys wrote")]
    Command,
    #[error("a command at a time that has not come")]
    Time,
    #[error("a member that no node with keys made one")]
    Member,
    #[error("members among which those without keys decide")]
    Majority,
    #[error("an entry that no leader with keys put there")]
    Place,
    #[error("another log than the one that was applied here")]
    Past,
}

/// This node as author, and as judge of what others bring.
pub struct Authors {
    node: NodeId,
    /// Nothing: this node has no keys, writes nothing and cannot judge.
    key: Option<Arc<dyn AuthorKey>>,
    clock: Arc<ClusterClock>,
    /// Knows the cluster's format.
    roster: Arc<dyn Roster>,
    /// Whether a snapshot may come from a node without keys: it has no codes.
    keyless_snapshots: bool,
    /// Who brought something forged, until this node is restarted.
    distrusted: Mutex<BTreeSet<(ShardId, NodeId)>>,
    /// Since when each shard's newest leader without keys has brought nothing.
    caretakers: Mutex<BTreeMap<ShardId, (Vote, Instant)>>,
    /// When something of a shard that was refused was last told.
    told: Mutex<BTreeMap<ShardId, Instant>>,
}

impl Authors {
    pub fn new(
        node: NodeId,
        key: Option<Arc<dyn AuthorKey>>,
        clock: Arc<ClusterClock>,
        roster: Arc<dyn Roster>,
        keyless_snapshots: bool,
    ) -> Self {
        let (distrusted, caretakers, told) = Default::default();
        Self { node, key, clock, roster, keyless_snapshots, distrusted, caretakers, told }
    }

    pub fn has_keys(&self) -> bool {
        self.key.is_some()
    }

    /// A command as this node proposes it to a group now. Each try is signed anew: what is brought late is refused.
    ///
    /// Issued at the group's log time, if that is ahead of this node's clock: then that is later by the log's own measure.
    pub fn sign(&self, group: &Group, command: &Bytes) -> Result<Bytes, GroupError> {
        let key = self.key.as_ref().ok_or(GroupError::Malformed)?;
        let issued_ms = self.clock.own_ms().max(group.applied_time_ms());
        let shard = group.shard.to_be_bytes();
        let signed = command::sign(command, self.node, issued_ms, |signed| key.code(&command_parts(&shard, signed)));
        signed.map_err(|_| GroupError::Malformed)
    }

    /// Whether a command was written by a node with keys, for this shard.
    pub fn check_command(&self, shard: ShardId, bytes: &Bytes) -> Result<(), Forged> {
        let Some(key) = &self.key else { return Ok(()) };
        let signed = Signed::of(bytes).ok_or(Forged::Command)?;
        match key.check(&command_parts(&shard.to_be_bytes(), &signed), signed.code) {
            true => Ok(()),
            false => Err(Forged::Command),
        }
    }

    /// The member that a node is made by this one.
    pub fn vouch(&self, id: NodeId, member: Member) -> Member {
        let code = self.key.as_ref().map(|key| key.code(&member_parts(&id.to_be_bytes(), &member)));
        Member { code: code.map(Box::new), ..member }
    }

    /// Whether a group takes from a peer what it brings as leader.
    pub fn take(&self, group: &Group, from: Caller, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        if from.keyed || !self.has_keys() || planted::has(Bug::AuthorUnchecked) {
            return true;
        }
        let by = (group.shard, from.id);
        if self.distrusted.lock().contains(&by) || self.leads_idly(group.shard, request) {
            return false;
        }
        match self.check(group, from, request) {
            Ok(()) => true,
            // It may be this node's clock.
            Err(Forged::Time) => {
                if self.is_worth_a_line(group.shard) {
                    let what = "an entry of a later time than it is here is not taken: set the nodes' clocks right";
                    tracing::warn!(shard = group.shard, peer = %format_args!("{:016x}", from.id), "{what}");
                }
                false
            }
            Err(forged) => {
                self.distrusted.lock().insert(by);
                METRICS.forged.inc();
                tracing::error!(
                    shard = group.shard,
                    peer = %format_args!("{:016x}", from.id),
                    term = request.vote.leader_id.term,
                    %forged,
                    "a node without keys led, and brought what it may not: nothing more is taken from it; find out who has \
                     that node, or another without keys that led before it, and remove it"
                );
                false
            }
        }
    }

    /// Whether a caretaker has had time enough to hand over, and brings nothing.
    fn leads_idly(&self, shard: ShardId, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let now = Instant::now();
        let brings = request.entries.iter().any(|entry| !matches!(entry.payload, EntryPayload::Blank));
        let mut caretakers = self.caretakers.lock();
        let (vote, since) = caretakers.entry(shard).or_insert((request.vote, now));
        if *vote != request.vote || brings {
            (*vote, *since) = (request.vote, now);
        }
        now - *since > CARETAKER_MAX
    }

    /// Whether a snapshot may come from a peer.
    pub fn take_snapshot(&self, shard: ShardId, from: Caller) -> bool {
        if from.keyed || self.keyless_snapshots || !self.has_keys() {
            return true;
        }
        if self.is_worth_a_line(shard) {
            tracing::warn!(
                shard,
                peer = %format_args!("{:016x}", from.id),
                "a snapshot from a node without keys is not taken: start a node with keys that has the shard's data, or, \
                 if there is none any more, set raft.keyless_snapshots"
            );
        }
        false
    }

    /// What is refused is brought again and again.
    fn is_worth_a_line(&self, shard: ShardId) -> bool {
        let (now, mut told) = (Instant::now(), self.told.lock());
        let due = told.get(&shard).is_none_or(|at| now - *at > TELL_AGAIN);
        if due {
            told.insert(shard, now);
        }
        due
    }

    fn check(&self, group: &Group, from: Caller, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Forged> {
        let mut before = request.prev_log_id;
        is_not_taken_back(group, request.prev_log_id)?;
        for entry in &request.entries {
            is_not_taken_back(group, Some(entry.log_id))?;
            self.check_entry(group, from, before, entry)?;
            before = Some(entry.log_id);
        }
        Ok(())
    }

    fn check_entry(&self, group: &Group, from: Caller, before: Option<LogId>, entry: &Entry) -> Result<(), Forged> {
        let Some(key) = &self.key else { return Ok(()) };
        if let EntryCode::Of(_) = entry.code {
            let signed = entry.is_signed(key.as_ref(), group.shard, before);
            return if signed { Ok(()) } else { Err(Forged::Place) };
        }
        let leader = entry.log_id.leader_id.node_id;
        let (own, all_sign) = (leader == from.id, self.roster.format() >= Some(format::SIGNS_ENTRIES));
        match &entry.payload {
            EntryPayload::Blank if own || group.member(leader).is_some_and(|member| !member.keyed) => Ok(()),
            _ if own => Err(Forged::Own),
            _ if all_sign => Err(Forged::Place),
            EntryPayload::Blank => Ok(()),
            EntryPayload::Normal(proposal) => {
                self.check_command(group.shard, &proposal.0)?;
                check_time(&proposal.0, group.now_ms(), group.applied_time_ms())
            }
            EntryPayload::Membership(membership) => self.check_membership(membership),
        }
    }

    fn check_membership(&self, membership: &Membership) -> Result<(), Forged> {
        let Some(key) = &self.key else { return Ok(()) };
        let vouched_for = |id: NodeId, member: &Member| {
            let code = member.code.as_deref();
            code.is_some_and(|code| key.check(&member_parts(&id.to_be_bytes(), member), code))
        };
        if !membership.nodes().all(|(id, member)| vouched_for(*id, member)) {
            return Err(Forged::Member);
        }
        let nodes = membership.nodes().collect::<BTreeMap<_, _>>();
        let few = |voters: &BTreeSet<NodeId>| keyless_are_few(voters.iter().filter_map(|id| nodes.get(id).copied()));
        let configs = membership.get_joint_config();
        match !configs.is_empty() && configs.iter().all(few) {
            true => Ok(()),
            false => Err(Forged::Majority),
        }
    }
}

/// A leader that a majority could have elected has all that was applied anywhere. Openraft believes one that says otherwise.
fn is_not_taken_back(group: &Group, told: Option<LogId>) -> Result<(), Forged> {
    let Some(told) = told.filter(|told| Some(told.index) <= group.applied_index()) else { return Ok(()) };
    match group.entry(told.index) {
        Some(own) if own.log_id != told => Err(Forged::Past),
        // Purged here: openraft leaves it alone.
        _ => Ok(()),
    }
}

/// `now_ms`: nothing, if others contradict this node's clock; then it cannot tell.
fn check_time(command: &Bytes, now_ms: Option<u64>, applied_ms: u64) -> Result<(), Forged> {
    let Some(now_ms) = now_ms else { return Ok(()) };
    let latest_ms = now_ms.saturating_add(AHEAD_MAX.as_millis() as u64).max(applied_ms);
    match command::log_time_ms(command).is_some_and(|log_time_ms| log_time_ms <= latest_ms) {
        true => Ok(()),
        false => Err(Forged::Time),
    }
}

fn command_parts<'a>(shard: &'a [u8], signed: &Signed<'a>) -> [&'a [u8]; 6] {
    [b"command", shard, signed.head[0], signed.head[1], signed.author, signed.payload]
}

/// All that a member is but its code.
fn member_parts<'a>(id: &'a [u8], member: &'a Member) -> [&'a [u8]; 7] {
    let Member { name, site, peer_address, client_address, keyed, code: _ } = member;
    let keyed: &[u8] = if *keyed { b"keyed" } else { b"keyless" };
    [b"member", id, name.as_bytes(), site.as_bytes(), peer_address.as_bytes(), client_address.as_bytes(), keyed]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::platform::Platform;
    use crate::shard::command::Command;
    use crate::shard::members::tests::nodes;
    use crate::testing::peers::AllBut66;
    use crate::testing::{TestKey, ensure_key};

    fn authors(key: bool, keyless_snapshots: bool) -> Authors {
        let key = key.then(|| Arc::new(TestKey) as _);
        let clock = Arc::new(ClusterClock::new(Platform::system()));
        Authors::new(1, key, clock, Arc::new(AllBut66::default()), keyless_snapshots)
    }

    #[test]
    fn a_command_is_of_its_author_and_its_shard() {
        let (authors, command) = (authors(true, false), Command::EnsureChartKey(ensure_key("chart", "k1")).encode(9));
        let code = |signed: &Signed| TestKey.code(&command_parts(&5_u16.to_be_bytes(), signed));
        let signed = command::sign(&command, 1, 1_000, code).unwrap();
        assert_eq!(authors.check_command(5, &signed), Ok(()));
        assert_eq!(authors.check_command(5, &command::stamp(&signed, 2_000).unwrap()), Ok(()));
        assert_eq!(authors.check_command(6, &signed), Err(Forged::Command));
        assert_eq!(authors.check_command(5, &command), Err(Forged::Command));
        assert_eq!(authors.check_command(5, &signed.slice(..20)), Err(Forged::Command));
    }

    #[test]
    fn a_time_is_not_far_ahead_of_the_clock_nor_of_what_was_applied() {
        let at = |log_time_ms| {
            command::stamp(&Command::EnsureChartKey(ensure_key("chart", "k1")).encode(9), log_time_ms).unwrap()
        };
        assert_eq!(check_time(&at(30_000), Some(20_000), 0), Ok(()));
        assert_eq!(check_time(&at(30_001), Some(20_000), 0), Err(Forged::Time));
        assert_eq!(check_time(&at(50_000), Some(20_000), 50_000), Ok(()), "log time stood there already");
        assert_eq!(check_time(&at(50_001), Some(20_000), 50_000), Err(Forged::Time), "nobody moves on from there");
        assert_eq!(check_time(&at(50_001), None, 0), Ok(()));
        assert_eq!(check_time(&Bytes::from_static(b"short"), Some(20_000), 0), Err(Forged::Time));
    }

    /// Capital letters have keys.
    fn membership(authors: &Authors, configs: &[&str]) -> Membership {
        let voters = configs.iter().map(|names| nodes(names).into_keys().collect()).collect();
        let all = nodes(&configs.concat()).into_iter().map(|(id, member)| (id, authors.vouch(id, member)));
        Membership::new(voters, all.collect::<BTreeMap<_, _>>()).unwrap()
    }

    #[test]
    fn members_are_vouched_for_and_those_without_keys_few() {
        let (own, none) = (authors(true, false), authors(false, false));
        assert_eq!(own.check_membership(&membership(&own, &["ABk"])), Ok(()));
        assert_eq!(own.check_membership(&membership(&own, &["ABk", "ABCk"])), Ok(()));
        assert_eq!(own.check_membership(&membership(&own, &["ABk", "Ak"])), Err(Forged::Majority));
        assert_eq!(own.check_membership(&Membership::default()), Err(Forged::Majority));
        assert_eq!(own.check_membership(&membership(&none, &["ABk"])), Err(Forged::Member));
        let (id, member) = nodes("k").pop_first().unwrap();
        let posing = Member { keyed: true, ..own.vouch(id, member) };
        let posing = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, posing)])).unwrap();
        assert_eq!(own.check_membership(&posing), Err(Forged::Member));
    }

    #[test]
    fn a_snapshot_comes_from_a_node_with_keys_unless_an_operator_says_otherwise() {
        let (keyed, keyless) = (Caller { id: 2, keyed: true }, Caller { id: 3, keyed: false });
        assert!(authors(true, false).take_snapshot(1, keyed));
        assert!(!authors(true, false).take_snapshot(1, keyless));
        assert!(authors(true, true).take_snapshot(1, keyless));
        assert!(authors(false, false).take_snapshot(1, keyless), "it cannot judge");
    }
}
