//! What can be seen of a cluster from outside: who leads, how far it is, whether its replicas agree.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use charthold_client::{ClusterStatus, Error, NodeStatus, ShardStatus};

use super::{Cluster, until};

impl Cluster {
    /// What one node knows; asked once.
    pub async fn status_of(&self, node: usize) -> Result<ClusterStatus, Error> {
        let operator = self.operator().with_deadline(Duration::from_secs(2));
        operator.admin().status_of(&self.endpoint(node)).await
    }

    /// What every node says of itself, the keyless ones too; by whatever gateway answers.
    pub async fn status_of_all(&self) -> Result<ClusterStatus, String> {
        let operator = self.operator().with_deadline(Duration::from_secs(5));
        operator.admin().status_of_all().await.map_err(|error| error.to_string())
    }

    /// Until a node's client port answers anything at all: before the initialization nobody may ask.
    pub async fn wait_answers(&self, node: usize) {
        until(&format!("node {node} answers"), || async {
            match self.status_of(node).await {
                Err(error @ (Error::Unavailable { .. } | Error::Unauthenticated { .. })) => {
                    Err(format!("{error}\n{}", self.last_words()))
                }
                _ => Ok(()),
            }
        })
        .await;
    }

    /// Until every running node with keys knows a leader of every shard that is such a one too.
    pub async fn wait_leaders(&self) {
        until("all running nodes know all leaders", || async {
            let mut all = Vec::new();
            for node in self.running() {
                all.push(self.status_of(node).await.map_err(|error| format!("node {node}: {error}"))?);
            }
            let alive: Vec<&String> = all.iter().map(|status| &status.node_id).collect();
            for status in &all {
                let led = |shard: &&ShardStatus| shard.leader_node_id.as_ref().is_some_and(|id| alive.contains(&id));
                let known = status.shards.iter().filter(led).count();
                if known == 0 || known < status.shards.len() {
                    return Err(format!("leaders of {known} of {} shards", status.shards.len()));
                }
            }
            Ok(())
        })
        .await;
    }

    /// The running node that leads most of the shards.
    pub async fn leader_of_most(&self) -> usize {
        self.wait_leaders().await;
        until("a node leads most shards", || async {
            let mut led = HashMap::<usize, usize>::new();
            for node in self.running() {
                let status = self.status_of(node).await.map_err(|error| error.to_string())?;
                let own = status.shards.iter().filter(|shard| shard.leader_node_id.as_ref() == Some(&status.node_id));
                led.insert(node, own.count());
            }
            let most = led.into_iter().max_by_key(|(node, led)| (*led, std::cmp::Reverse(*node)));
            most.filter(|(_, led)| *led > 0).map(|(node, _)| node).ok_or_else(|| "nobody leads".to_owned())
        })
        .await
    }

    /// How many outcomes the cluster has recorded, all shards together, as the node knows that knows most.
    pub async fn recorded(&self) -> u64 {
        let mut most = 0;
        for node in self.running() {
            if let Ok(status) = self.status_of(node).await {
                most = most.max(status.shards.iter().map(|shard| shard.seq).sum());
            }
        }
        most
    }

    /// Until all nodes have recorded the same number of outcomes in every shard; their roots must then be equal. Roots
    /// that differ at one seq on the way are a failure at once.
    pub async fn wait_roots_equal(&self) {
        until("all replicas are at one seq", || async {
            let status = self.status_of_all().await?;
            let of_node = |node: NodeStatus| match node.unreachable {
                None => Ok(node.shards),
                Some(why) => Err(format!("node {}: {why}", node.node_id)),
            };
            let all: Vec<Vec<ShardStatus>> = status.node_status.into_iter().map(of_node).collect::<Result<_, _>>()?;
            assert_eq!(all.len(), status.nodes.len(), "every node was asked");
            let first = &all[0];
            for shards in &all {
                assert_eq!(shards.len(), first.len(), "nodes have replicas of different shards");
                shards.iter().zip(first).for_each(|(one, other)| assert_roots_agree(one, other));
            }
            let seqs = |shards: &[ShardStatus]| shards.iter().map(|shard| shard.seq).collect::<Vec<_>>();
            match all.iter().all(|shards| seqs(shards) == seqs(first) && shards.iter().all(newest_root_is_known)) {
                true => Ok(()),
                false => Err(format!("{:?}", all.iter().map(|shards| seqs(shards)).collect::<Vec<_>>())),
            }
        })
        .await;
    }

    /// Has all replicas read all their rows, as an operator does: they must come to the same.
    pub async fn assert_rows_equal(&self) {
        until("all rows are compared", || async {
            let checked = self.operator_cli(&["shard", "check", "--rows"]).await;
            let differ = ["other rows", "different rows"].iter().any(|words| checked.stderr.contains(words));
            // Who came past the check by a snapshot has not read what the others have: nothing is known then.
            if checked.stderr.contains("were not compared") && !differ {
                return Err(checked.stderr);
            }
            assert_eq!(checked.code, 0, "{}{}", String::from_utf8_lossy(&checked.stdout), checked.stderr);
            Ok(())
        })
        .await;
    }

    /// Until these nodes, and no others, vote in every shard, as its leader sees it.
    pub async fn wait_voters(&self, nodes: &[usize]) {
        let names: Vec<String> = nodes.iter().map(|node| self.name(*node)).collect();
        until(&format!("{names:?} vote everywhere"), || async {
            let found = voters(&self.status_of_all().await?);
            match !found.is_empty() && found.iter().all(|voters| *voters == names) {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
    }

    /// Until a node leads no shard, as it says itself, and somebody else leads each.
    pub async fn wait_leads_nothing(&self, node: usize) {
        let name = self.name(node);
        until(&format!("{name} leads nothing"), || async {
            let status = self.status_of_all().await?;
            let id = status.nodes.iter().find(|node| node.name == name).map(|node| &node.id);
            let own = status.node_status.iter().find(|node| Some(&node.node_id) == id && node.unreachable.is_none());
            let own = own.ok_or_else(|| format!("{name} does not answer"))?;
            let others =
                own.shards.iter().filter(|shard| shard.leader_node_id.as_ref().is_some_and(|it| Some(it) != id));
            match others.count() {
                count if count == own.shards.len() => Ok(()),
                count => Err(format!("others lead {count} of {}", own.shards.len())),
            }
        })
        .await;
    }

    fn running(&self) -> Vec<usize> {
        (0..self.size()).filter(|node| self.is_started(*node) && self.is_keyed(*node)).collect()
    }
}

/// Of each shard, as its leader sees it: the names of the voters.
fn voters(status: &ClusterStatus) -> Vec<Vec<String>> {
    let name = |id: &String| status.nodes.iter().find(|node| node.id == *id).map_or("?", |node| &node.name).to_owned();
    let mut leaders = BTreeMap::<u32, &ShardStatus>::new();
    for node in &status.node_status {
        for shard in node.shards.iter().filter(|shard| shard.leader_node_id.as_ref() == Some(&node.node_id)) {
            let newest = leaders.entry(shard.shard).or_insert(shard);
            *newest = if shard.term > newest.term { shard } else { newest };
        }
    }
    let of_shard = |shard: &ShardStatus| {
        let mut names: Vec<String> = shard.voter_node_ids.iter().map(name).collect();
        names.sort();
        names
    };
    let shards = status.shards.iter();
    shards.map(|shard| leaders.get(&shard.shard).map(|leader| of_shard(leader)).unwrap_or_default()).collect()
}

/// At every seq that both replicas tell.
fn assert_roots_agree(one: &ShardStatus, other: &ShardStatus) {
    assert_eq!(one.shard, other.shard);
    assert_eq!((&one.stopped, &other.stopped), (&None, &None), "a replica of shard {} has stopped", one.shard);
    let roots: HashMap<u64, &[u8]> = other.recent_roots.iter().map(|root| (root.seq, root.sha256.as_slice())).collect();
    for root in &one.recent_roots {
        if let Some(sha256) = roots.get(&root.seq) {
            assert_eq!(root.sha256, *sha256, "replicas of shard {} differ at seq {}", one.shard, root.seq);
        }
    }
}

/// Otherwise equal seqs would prove nothing.
fn newest_root_is_known(shard: &ShardStatus) -> bool {
    shard.seq == 0 || shard.recent_roots.last().is_some_and(|root| root.seq == shard.seq)
}
