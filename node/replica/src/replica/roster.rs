//! Who may connect: once the cluster is formed, its nodes.
//!
//! A directory's replica that is behind (its node was away, or is new and still reads old entries) knows none of the nodes
//! that came since. One of them may lead the directory, and would be refused by whoever it has to tell. So nodes tell each
//! other whom they know, once a second; what a node with keys says of a newer directory counts as long as the own one is
//! older. What is heard only opens the door: who votes, and who may be told what, is not decided by it.

use std::sync::{Arc, OnceLock};

use charthold_proto::internal as pb;
use parking_lot::Mutex;

use crate::directory::DirectoryView;
use crate::peer::hello::{Roster, Standing};
use crate::shard::codec;
use crate::shard::group::Group;
use crate::shard::members::MEMBERS_MAX;
use crate::shard::types::LogId;
use crate::{NodeId, format};

#[derive(Default)]
pub struct DirectoryRoster {
    directory: OnceLock<(Arc<Group>, DirectoryView)>,
    heard: Mutex<Heard>,
    /// What the cluster uses, and the directory's seq when that was read.
    format: Mutex<Option<(u64, u32)>>,
}

/// The newest members that others told of, and the directory's entry that says so.
#[derive(Default)]
struct Heard {
    at: Option<LogId>,
    nodes: Vec<(NodeId, String)>,
}

impl Heard {
    fn hear(&mut self, own: Option<LogId>, at: Option<LogId>, members: Vec<pb::Member>) {
        if at > self.at.max(own) && members.len() <= MEMBERS_MAX {
            self.at = at;
            self.nodes = members.into_iter().map(|member| (member.id, member.name)).collect();
        }
    }

    fn knows(&self, own: Option<LogId>, id: NodeId, name: &str) -> bool {
        self.at > own && self.nodes.iter().any(|node| (node.0, node.1.as_str()) == (id, name))
    }
}

impl DirectoryRoster {
    /// From now on it knows whom the directory knows.
    pub fn begin(&self, directory: Arc<Group>, view: DirectoryView) {
        let _first = self.directory.set((directory, view));
    }

    fn group(&self) -> Option<&Group> {
        self.directory.get().map(|(group, _)| &**group)
    }
}

impl Roster for DirectoryRoster {
    fn admit(&self, id: NodeId, name: &str) -> Result<Standing, String> {
        let formed = self.group().filter(|directory| directory.member_count() > 0);
        let Some(directory) = formed else { return Ok(Standing::Candidate) };
        let is_member = directory.member(id).is_some_and(|member| member.name == name);
        match is_member || self.heard.lock().knows(directory.members_at(), id, name) {
            true => Ok(Standing::Member),
            false => Err(format!("node {name} with id {id:016x} is no member of this cluster")),
        }
    }

    fn known(&self) -> (Option<pb::LogId>, Vec<pb::Member>) {
        let Some(directory) = self.group() else { return Default::default() };
        let members = directory.members().into_iter().map(|(id, member)| codec::member_to_pb(id, &member));
        (directory.members_at().as_ref().map(codec::log_id_to_pb), members.collect())
    }

    fn hear(&self, at: Option<pb::LogId>, members: Vec<pb::Member>) {
        let own = self.group().and_then(Group::members_at);
        self.heard.lock().hear(own, at.as_ref().map(codec::log_id_from_pb), members);
    }

    fn format(&self) -> Option<u32> {
        let (group, view) = self.directory.get()?;
        let (seq, mut known) = (group.seq(), self.format.lock());
        // Asked for by every mark of every peer: not each time from the engine.
        if known.is_none_or(|(at, _)| at != seq) {
            // What cannot be read is told where it is needed.
            *known = view.cluster().ok().flatten().map(|cluster| (seq, format::of(&cluster)));
        }
        known.map(|(_, format)| format)
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::shard::types::LeaderId;

    #[test]
    fn what_is_heard_counts_while_it_is_newer() {
        let at = |term, index| Some(LogId::new(LeaderId::new(term, 1), index));
        let member = |id: NodeId, name: &str| pb::Member { id, name: name.to_owned(), ..pb::Member::default() };
        let mut heard = Heard::default();
        assert!(!heard.knows(None, 1, "a"));
        heard.hear(at(2, 10), at(2, 20), vec![member(1, "a"), member(2, "b")]);
        assert!(heard.knows(at(2, 10), 1, "a") && heard.knows(at(2, 19), 2, "b"));
        assert!(!heard.knows(at(2, 20), 1, "a"), "the own directory is as new");
        assert!(!heard.knows(at(3, 15), 1, "a"), "of an earlier leader: it may never have been committed");
        assert!(!heard.knows(at(2, 10), 1, "b") && !heard.knows(at(2, 10), 3, "a"), "another id, another node");
        heard.hear(at(2, 10), at(2, 15), vec![member(3, "c")]);
        heard.hear(at(2, 30), at(2, 25), vec![member(3, "c")]);
        heard.hear(at(2, 10), at(2, 40), vec![member(3, "c"); MEMBERS_MAX + 1]);
        assert!(heard.knows(at(2, 10), 1, "a") && !heard.knows(at(2, 10), 3, "c"), "older, or too many");
        heard.hear(at(2, 10), at(3, 12), vec![member(3, "c")]);
        assert!(
            heard.knows(at(2, 10), 3, "c") && !heard.knows(at(2, 10), 1, "a"),
            "who is in it no more is none any more"
        );
    }
}
