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
    /// Of the newest directory that others told of: the index of its entry, ids and names.
    heard: Mutex<(u64, Vec<(NodeId, String)>)>,
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
        let heard = self.heard.lock();
        let is_newer = heard.0 > directory.members_index();
        match is_newer && heard.1.iter().any(|(heard_id, heard_name)| *heard_id == id && heard_name == name) {
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
        let mut heard = self.heard.lock();
        if index > heard.0.max(self.own_index()) && members.len() <= MEMBERS_MAX {
            *heard = (index, members.into_iter().map(|member| (member.id, member.name)).collect());
        }
    }
}
