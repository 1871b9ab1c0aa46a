//! `charthold cluster init | status`: forms a cluster; shows how it is, on one screen.
//!
//! `status` asks every node that it can reach: a node alone knows its own replicas only. Positions come from a shard's
//! leader, and replicas' Merkle roots are compared at the newest number of outcomes that all of them report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use charthold_client::{Admin, Client, ClusterStatus, Error, Node, ShardStatus};
use futures::future::join_all;
use serde_json::{Value, json};

use super::exit::CliError;
use super::{Ctx, output};

/// For one node's answer: a dead one must not hold up the others' for long.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
const ROOT_PREFIX_BYTES: usize = 4;

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Form the cluster of the profile's first node and those that its configuration names; once
    Init {
        /// How many nodes must be there; 0: all that the configuration names
        #[arg(long, value_name = "N", default_value_t = 0)]
        nodes: u32,
    },
    /// Nodes and shards: who leads, how far everyone is, whether replicas agree
    Status,
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    match args.command {
        Command::Init { nodes } => {
            let topology = client.admin().init(nodes).await?;
            let as_json = || {
                let nodes: Vec<Value> = topology.nodes.iter().map(node_json).collect();
                json!({ "cluster": topology.cluster, "nodes": nodes })
            };
            ctx.show(as_json, || {
                let row = |node: &Node| vec![node.name.clone(), node.site.clone(), node.id.clone()];
                output::table(&["NODE", "SITE", "ID"], &[], topology.nodes.iter().map(row))
            })
        }
        Command::Status => {
            let report = Report::gather(&client).await?;
            ctx.show(|| report.as_json(), || report.as_table())
        }
    }
}

/// All nodes' answers.
struct Report {
    /// The first answer: for what all nodes agree about.
    first: ClusterStatus,
    answers: BTreeMap<String, Result<ClusterStatus, String>>,
}

impl Report {
    async fn gather(client: &Client) -> Result<Self, CliError> {
        let first = client.admin().status().await?;
        let admin = client.with_deadline(NODE_TIMEOUT).admin();
        let asked = first.nodes.iter().filter(|node| node.id != first.node_id);
        let mut answers: BTreeMap<_, _> = join_all(asked.map(|node| ask(&admin, node))).await.into_iter().collect();
        answers.insert(first.node_id.clone(), Ok(first.clone()));
        Ok(Self { first, answers })
    }

    fn answered(&self) -> impl Iterator<Item = &ClusterStatus> {
        self.answers.values().filter_map(|answer| answer.as_ref().ok())
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.first.nodes.iter().find(|node| node.id == id).map_or(id, |node| node.name.as_str())
    }

    /// Every replica's answer about a shard, with the node's id.
    fn replicas(&self, shard: u32) -> Vec<(&str, &ShardStatus)> {
        let of = |status: &'_ ClusterStatus| status.shards.iter().position(|other| other.shard == shard);
        self.answered().filter_map(|status| Some((status.node_id.as_str(), &status.shards[of(status)?]))).collect()
    }

    fn shards(&self) -> BTreeSet<u32> {
        self.answered().flat_map(|status| &status.shards).map(|shard| shard.shard).collect()
    }

    /// The node that leads, and its own view. With two that say so, the one with the higher term is right.
    fn leader(&self, shard: u32) -> Option<(&str, &ShardStatus)> {
        let replicas = self.replicas(shard).into_iter();
        replicas.filter(|(id, view)| view.leader_node_id.as_deref() == Some(*id)).max_by_key(|(_, view)| view.term)
    }

    fn as_table(&self) -> String {
        let head = format!("cluster {}, {}", self.first.cluster, state(&self.first));
        let nodes = output::table(
            &["NODE", "SITE", "ID", "CLIENTS", "VERSION", "LEADS", "STATE"],
            &[5],
            self.first.nodes.iter().map(|node| self.node_row(node)),
        );
        let shards = output::table(
            &["SHARD", "LEADER", "TERM", "APPLIED", "SEQ", "BEHIND", "ROOT"],
            &[2, 3, 4],
            self.shards().into_iter().map(|shard| self.shard_row(shard)),
        );
        format!("{head}\n\n{nodes}\n\n{shards}")
    }

    fn node_row(&self, node: &Node) -> Vec<String> {
        let answer = self.answers.get(&node.id);
        let leads = self.shards().into_iter().filter(|shard| self.leader(*shard).is_some_and(|(id, _)| id == node.id));
        let (version, leads, state) = match answer {
            Some(Ok(status)) => {
                let stopped = status.shards.iter().filter(|shard| shard.stopped.is_some()).count();
                let state = if stopped == 0 { "ok".to_owned() } else { format!("{stopped} shards stopped") };
                (status.version.clone(), leads.count().to_string(), state)
            }
            Some(Err(why)) => (String::new(), String::new(), why.clone()),
            None => (String::new(), String::new(), "not asked".to_owned()),
        };
        vec![node.name.clone(), node.site.clone(), node.id.clone(), node.client_endpoint.clone(), version, leads, state]
    }

    fn shard_row(&self, shard: u32) -> Vec<String> {
        let label = if shard == 0 { "directory".to_owned() } else { shard.to_string() };
        let replicas = self.replicas(shard);
        let leader = self.leader(shard);
        // Without a leader that answers: the replica that is the furthest.
        let Some((_, view)) = leader.or_else(|| replicas.iter().copied().max_by_key(|(_, view)| view.applied_index))
        else {
            return vec![label];
        };
        let leader_name = match (leader, &view.leader_node_id) {
            (Some((id, _)), _) => self.name(id).to_owned(),
            (None, Some(id)) => format!("{}?", self.name(id)),
            (None, None) => "none".to_owned(),
        };
        let behind: Vec<String> =
            view.followers.iter().map(|lag| format!("{} {}", self.name(&lag.node_id), lag.entries_behind)).collect();
        vec![
            label,
            leader_name,
            view.term.to_string(),
            view.applied_index.to_string(),
            view.seq.to_string(),
            if behind.is_empty() { "-".to_owned() } else { behind.join(", ") },
            agreement(&replicas),
        ]
    }

    fn as_json(&self) -> Value {
        let nodes = self.first.nodes.iter().map(|node| {
            let mut value = node_json(node);
            match self.answers.get(&node.id) {
                Some(Ok(status)) => {
                    value["answered"] = true.into();
                    value["version"] = status.version.as_str().into();
                    value["shards"] = status.shards.iter().map(shard_json).collect();
                }
                Some(Err(why)) => {
                    value["answered"] = false.into();
                    value["error"] = why.as_str().into();
                }
                None => value["answered"] = false.into(),
            }
            value
        });
        json!({
            "cluster": self.first.cluster,
            "initialized": self.first.initialized,
            "answered_by": self.first.node_id,
            "nodes": nodes.collect::<Vec<Value>>(),
        })
    }
}

async fn ask(admin: &Admin, node: &Node) -> (String, Result<ClusterStatus, String>) {
    let answer = match node.client_endpoint.as_str() {
        "" => Err("keyless: not asked".to_owned()),
        endpoint => admin.status_of(endpoint).await.map_err(|error| match error {
            Error::Unavailable { .. } => "does not answer".to_owned(),
            other => super::exit::one_line(&other.to_string()),
        }),
    };
    (node.id.clone(), answer)
}

fn state(status: &ClusterStatus) -> &'static str {
    if status.initialized { "initialized" } else { "not initialized: charthold cluster init" }
}

/// The newest root that all replicas report, or the news that they don't agree.
fn agreement(replicas: &[(&str, &ShardStatus)]) -> String {
    let root_at = |view: &ShardStatus, seq: u64| {
        view.recent_roots.iter().find(|root| root.seq == seq).map(|root| root.sha256.clone())
    };
    let mut seqs: BTreeSet<u64> =
        replicas.iter().flat_map(|(_, view)| &view.recent_roots).map(|root| root.seq).collect();
    while let Some(seq) = seqs.pop_last() {
        let roots: Vec<Option<Vec<u8>>> = replicas.iter().map(|(_, view)| root_at(view, seq)).collect();
        let known: BTreeSet<&Vec<u8>> = roots.iter().flatten().collect();
        if known.len() > 1 {
            return format!("DIFFERS at {seq}");
        }
        if let (Some(root), true) = (known.first(), roots.iter().all(Option::is_some)) {
            let prefix = root.get(..ROOT_PREFIX_BYTES).unwrap_or(root);
            return format!("{} at {seq}", hex::encode(prefix));
        }
    }
    "-".to_owned()
}

fn node_json(node: &Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "site": node.site,
        "client_endpoint": node.client_endpoint,
        "peer_endpoint": node.peer_endpoint,
        "keyed": node.keyed,
    })
}

fn shard_json(shard: &ShardStatus) -> Value {
    let root = |root: &charthold_client::Root| json!({ "seq": root.seq, "sha256": hex::encode(&root.sha256) });
    let lag =
        |lag: &charthold_client::FollowerLag| json!({ "node_id": lag.node_id, "entries_behind": lag.entries_behind });
    json!({
        "shard": shard.shard,
        "leader_node_id": shard.leader_node_id,
        "term": shard.term,
        "log_index": shard.log_index,
        "committed_index": shard.committed_index,
        "applied_index": shard.applied_index,
        "seq": shard.seq,
        "recent_roots": shard.recent_roots.iter().map(root).collect::<Vec<_>>(),
        "followers": shard.followers.iter().map(lag).collect::<Vec<_>>(),
        "stopped": shard.stopped,
    })
}

#[cfg(test)]
mod tests {
    use charthold_client::{FollowerLag, Root};

    use super::*;

    fn shard(leader: &str, term: u64, roots: &[(u64, u8)]) -> ShardStatus {
        ShardStatus {
            shard: 1,
            leader_node_id: Some(leader.to_owned()),
            term,
            log_index: 12,
            committed_index: 11,
            applied_index: 10,
            purged_index: 0,
            flushed_index: 0,
            seq: 9,
            recent_roots: roots.iter().map(|(seq, byte)| Root { seq: *seq, sha256: vec![*byte; 32] }).collect(),
            followers: Vec::new(),
            stopped: None,
        }
    }

    fn status(id: &str, shard: ShardStatus) -> ClusterStatus {
        let node = |id: &str, name: &str| Node {
            id: id.to_owned(),
            name: name.to_owned(),
            site: name[..1].to_owned(),
            client_endpoint: format!("{name}:7400"),
            peer_endpoint: format!("{name}:7401"),
            keyed: true,
        };
        ClusterStatus {
            cluster: "test".to_owned(),
            node_id: id.to_owned(),
            version: "0.1.0".to_owned(),
            initialized: true,
            nodes: vec![node("01", "a1"), node("02", "b1"), node("03", "c1")],
            shards: vec![shard],
        }
    }

    fn report() -> Report {
        let mut leading = shard("02", 3, &[(8, 1), (9, 2)]);
        leading.followers = vec![FollowerLag { node_id: "01".to_owned(), entries_behind: 4 }];
        let first = status("01", shard("01", 2, &[(7, 0), (8, 1)]));
        let answers = BTreeMap::from([
            ("01".to_owned(), Ok(first.clone())),
            ("02".to_owned(), Ok(status("02", leading))),
            ("03".to_owned(), Err("does not answer".to_owned())),
        ]);
        Report { first, answers }
    }

    #[test]
    fn status_on_one_screen() {
        let text = report().as_table();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["cluster", "test,", "initialized"]);
        assert_eq!(lines[3], ["a1", "a", "01", "a1:7400", "0.1.0", "0", "ok"]);
        assert_eq!(lines[4], ["b1", "b", "02", "b1:7400", "0.1.0", "1", "ok"]);
        assert_eq!(lines[5], ["c1", "c", "03", "c1:7400", "does", "not", "answer"]);
        // The higher term's view counts, and the newest root that both have.
        assert_eq!(lines[8], ["1", "b1", "3", "10", "9", "a1", "4", "01010101", "at", "8"]);
    }

    #[test]
    fn status_as_json_is_whole() {
        let value = report().as_json();
        assert_eq!(value["nodes"][1]["shards"][0]["followers"][0]["entries_behind"], 4);
        assert_eq!(value["nodes"][1]["shards"][0]["recent_roots"][1]["sha256"], "02".repeat(32));
        assert_eq!(value["nodes"][2]["answered"], false);
        assert_eq!(value["nodes"][2]["error"], "does not answer");
    }

    #[test]
    fn replicas_that_differ_are_told() {
        let (one, other) = (shard("01", 1, &[(7, 0), (8, 1)]), shard("01", 1, &[(8, 2)]));
        assert_eq!(agreement(&[("01", &one), ("02", &other)]), "DIFFERS at 8");
        assert_eq!(agreement(&[("01", &one)]), "01010101 at 8");
        assert_eq!(agreement(&[]), "-");
    }
}
