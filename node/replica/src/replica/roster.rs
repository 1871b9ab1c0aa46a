//! Who may connect: once the cluster is formed, its nodes.
//!
//! A directory's replica that is behind (its node was away, or is new and still reads old entries) knows none of the nodes
//! that came since. One of them may lead the directory, and would be refused by whoever it has to tell. So nodes tell each
//! other whom they know, once a second; what a node with keys says of a newer directory counts as long as the own one is
//! older. What is heard only opens the door: who votes, and who may be told what, is not decided by it.

use std::sync::{Arc, OnceLock};

use charthold_proto::internal as pb;
use parking_lot::Mutex;

use crate::NodeId;
use crate::peer::hello::{Roster, Standing};
use crate::shard::codec;
use crate::shard::group::Group;

/// More than any cluster has.
const MEMBERS_MAX: usize = 64;

#[derive(Default)]
pub struct DirectoryRoster {
    directory: OnceLock<Arc<Group>>,
    heard: Mutex<Heard>,
}

/// The newest members that others told of, and the index of the directory's entry that says so.
#[derive(Default)]
struct Heard {
    index: u64,
    nodes: Vec<(NodeId, String)>,
}

impl Heard {
    fn hear(&mut self, own_index: u64, index: u64, members: Vec<pb::Member>) {
        if index > self.index.max(own_index) && members.len() <= MEMBERS_MAX {
            self.index = index;
            self.nodes = members.into_iter().map(|member| (member.id, member.name)).collect();
        }
    }

    fn knows(&self, own_index: u64, id: NodeId, name: &str) -> bool {
        self.index > own_index && self.nodes.iter().any(|node| (node.0, node.1.as_str()) == (id, name))
    }
}

impl DirectoryRoster {
    /// From now on it knows whom the directory knows.
    pub fn begin(&self, directory: Arc<Group>) {
        let _first = self.directory.set(directory);
    }

    fn own_index(&self) -> u64 {
        self.directory.get().map_or(0, |directory| directory.members_index())
    }
}

impl Roster for DirectoryRoster {
    fn admit(&self, id: NodeId, name: &str) -> Result<Standing, String> {
        let formed = self.directory.get().filter(|directory| directory.member_count() > 0);
        let Some(directory) = formed else { return Ok(Standing::Candidate) };
        if directory.member(id).is_some_and(|member| member.name == name) {
            return Ok(Standing::Member);
        }
        match self.heard.lock().knows(directory.members_index(), id, name) {
            true => Ok(Standing::Member),
            false => Err(format!("node {name} with id {id:016x} is no member of this cluster")),
        }
    }

    fn known(&self) -> (u64, Vec<pb::Member>) {
        let Some(directory) = self.directory.get() else { return Default::default() };
        let members = directory.members().into_iter().map(|(id, member)| codec::member_to_pb(id, &member));
        (directory.members_index(), members.collect())
    }

    fn hear(&self, index: u64, members: Vec<pb::Member>) {
        self.heard.lock().hear(self.own_index(), index, members);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_counts_while_it_is_newer() {
        let member = |id: NodeId, name: &str| pb::Member { id, name: name.to_owned(), ..pb::Member::default() };
        let mut heard = Heard::default();
        assert!(!heard.knows(0, 1, "a"));
        heard.hear(10, 20, vec![member(1, "a"), member(2, "b")]);
        assert!(heard.knows(10, 1, "a") && heard.knows(19, 2, "b"));
        assert!(!heard.knows(20, 1, "a"), "the own directory is as new");
        assert!(!heard.knows(10, 1, "b") && !heard.knows(10, 3, "a"), "another id, another node");
        heard.hear(10, 15, vec![member(3, "c")]);
        heard.hear(30, 25, vec![member(3, "c")]);
        heard.hear(10, 40, vec![member(3, "c"); MEMBERS_MAX + 1]);
        assert!(heard.knows(10, 1, "a") && !heard.knows(10, 3, "c"), "older, older than the own one, too many");
        heard.hear(10, 30, vec![member(3, "c")]);
        assert!(heard.knows(10, 3, "c") && !heard.knows(10, 1, "a"), "who is in it no more is none any more");
    }
}
