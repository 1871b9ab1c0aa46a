//! Forming a cluster: finding the nodes that the configuration names, then one membership for all groups.

use std::collections::BTreeMap;
use std::time::Duration;

use charthold_proto::internal as pb;
use tokio::time::Instant;

use super::Replica;
use crate::peer::Lane;
use crate::peer::hello::Greeter;
use crate::peer::transport::Transport;
use crate::shard::codec;
use crate::shard::members::keyless_are_few;
use crate::shard::types::Member;
use crate::{NodeId, format};

/// So long a node is waited for that is to be a member.
const REACH_MAX: Duration = Duration::from_secs(5);

/// Why no cluster was formed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FormError {
    #[error("cannot reach {address}: {detail}")]
    Unreachable { address: String, detail: String },
    #[error("found {found} nodes, expected {expected}")]
    Count { found: usize, expected: usize },
    #[error("two nodes have the name {0}")]
    Name(String),
    #[error("{0}")]
    Refused(String),
}

/// What a cluster was formed of.
#[derive(Debug)]
pub struct Formed {
    pub members: Vec<(NodeId, Member)>,
    /// The newest that all of them know.
    pub format: u32,
}

impl Replica {
    /// Gives all groups the same members: this node and those it was told to join. Fine to repeat.
    pub async fn form(&self, expected: Option<usize>) -> Result<Formed, FormError> {
        let mut members = BTreeMap::from([(self.node_id, self.member.clone())]);
        let mut format = format::NEWEST;
        for address in &self.join {
            let hello = self.probe(address).await?;
            let member = hello.member.unwrap_or_default();
            if member.keyed && hello.key_check != self.greeter.key_check {
                return Err(FormError::Refused(format!("node {} holds another root key than this one", member.name)));
            }
            format = format.min(hello.format_max);
            members.insert(member.id, codec::member_from_pb(member));
        }
        let expected = expected.unwrap_or(self.join.len() + 1);
        if members.len() != expected {
            return Err(FormError::Count { found: members.len(), expected });
        }
        let mut names = members.values().map(|member| member.name.as_str()).collect::<Vec<_>>();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(FormError::Name(pair[0].to_owned()));
        }
        if !keyless_are_few(members.values()) {
            let what = "nodes without keys must be fewer than those with keys: they store and vote, and never decide";
            return Err(FormError::Refused(what.to_owned()));
        }
        let vouched = members.into_iter().map(|(id, member)| (id, self.authors.vouch(id, member)));
        let members = vouched.collect::<Vec<_>>();
        self.connect(&members).await?;
        // A group that is formed campaigns at once: not before the restart rule allows.
        let silence = self.timing.restart_silence() + Duration::from_millis(50);
        tokio::time::sleep_until(self.started + silence).await;
        for group in &self.groups {
            group.initialize(&members).await.map_err(FormError::Refused)?;
        }
        Ok(Formed { members, format })
    }

    /// Waits for the connections: without them the first campaign of every group would fail, and the next one comes an
    /// election timeout later.
    async fn connect(&self, members: &[(NodeId, Member)]) -> Result<(), FormError> {
        let limit = Instant::now() + REACH_MAX;
        for (id, member) in members.iter().filter(|(id, _)| *id != self.node_id) {
            let address = member.peer_address.clone();
            let client = self.peers.client(*id, &address);
            let connected = tokio::time::timeout_at(limit, client.connected()).await;
            connected.map_err(|_| FormError::Unreachable { address, detail: "no connection".to_owned() })?;
        }
        Ok(())
    }

    /// Asks an address who is there.
    pub(super) async fn probe(&self, address: &str) -> Result<pb::Hello, FormError> {
        ask_who_is_there(&*self.transport, &self.greeter, address).await
    }
}

/// Asks an address who is there.
pub(super) async fn ask_who_is_there(
    transport: &dyn Transport,
    greeter: &Greeter,
    address: &str,
) -> Result<pb::Hello, FormError> {
    let unreachable = |detail: String| FormError::Unreachable { address: address.to_owned(), detail };
    let dialed = async {
        let (mut stream, identity) = transport.dial(address.to_owned()).await.map_err(|error| error.to_string())?;
        let hello = greeter.call(&mut *stream, &identity, Lane::Control, 0).await;
        hello.map(|introduced| introduced.hello).map_err(|error| error.to_string())
    };
    let hello = tokio::time::timeout(REACH_MAX, dialed).await;
    hello.map_err(|_| unreachable("no answer".to_owned()))?.map_err(unreachable)
}
