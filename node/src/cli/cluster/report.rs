//! What all nodes said, put side by side. Knows nothing of how it is shown.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use charthold_client::{Certificate, ClusterStatus, Node, NodeStatus, ShardStatus, SlotRange};

/// The highest one.
const SLOT_MAX: u32 = 65_535;

/// One moment of a cluster.
pub struct Report {
    pub status: ClusterStatus,
    pub now: SystemTime,
}

/// Whether a shard's replicas have recorded the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The newest root that all replicas report.
    Equal {
        seq: u64,
        sha256: Vec<u8>,
    },
    Differs {
        seq: u64,
    },
    /// No seq that all of them report.
    Unknown,
}

impl Report {
    pub fn new(mut status: ClusterStatus) -> Self {
        status.nodes.sort_by(|one, other| (&one.site, &one.name).cmp(&(&other.site, &other.name)));
        Self { status, now: SystemTime::now() }
    }

    pub fn nodes(&self) -> &[Node] {
        &self.status.nodes
    }

    pub fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.nodes().iter().find(|node| node.id == id).map_or(id, |node| node.name.as_str())
    }

    /// What a node says of itself, or why it says nothing.
    pub fn node(&self, id: &str) -> Result<&NodeStatus, &str> {
        let found = self.status.node_status.iter().find(|node| node.node_id == id).ok_or("not asked")?;
        found.unreachable.as_deref().map_or(Ok(found), Err)
    }

    pub fn answered(&self) -> impl Iterator<Item = &NodeStatus> {
        self.status.node_status.iter().filter(|node| node.unreachable.is_none())
    }

    pub fn shards(&self) -> BTreeSet<u32> {
        self.answered().flat_map(|node| &node.shards).map(|shard| shard.shard).collect()
    }

    /// Every replica's own view of a shard, with its node's id. Where it is vacant there is none.
    pub fn replicas(&self, shard: u32) -> Vec<(&str, &ShardStatus)> {
        let views = self.answered().flat_map(|node| node.shards.iter().map(|view| (node.node_id.as_str(), view)));
        views.filter(|(_, view)| view.shard == shard && !view.vacant).collect()
    }

    /// The node that leads, and its view. With two that say so, the one with the higher term is right.
    pub fn leader(&self, shard: u32) -> Option<(&str, &ShardStatus)> {
        let replicas = self.replicas(shard).into_iter();
        replicas.filter(|(id, view)| view.leader_node_id.as_deref() == Some(*id)).max_by_key(|(_, view)| view.term)
    }

    /// The first slot that no shard holds.
    pub fn nobodys_slots(&self) -> Option<u32> {
        let furthest = |shard| self.replicas(shard).into_iter().max_by_key(|(_, view)| view.applied_index);
        let held = self.shards().into_iter().filter_map(furthest).filter_map(|(_, view)| view.slots);
        let mut held = held.collect::<Vec<SlotRange>>();
        held.sort_by_key(|slots| slots.first);
        let next = held.iter().fold(0, |next, slots| if slots.first <= next { next.max(slots.last + 1) } else { next });
        (next <= SLOT_MAX).then_some(next)
    }

    /// The newest format that all nodes know; none while not all answer.
    pub fn format_known_by_all(&self) -> Option<u32> {
        let known = self.nodes().iter().map(|node| self.node(&node.id).ok().map(|status| status.format_max));
        known.collect::<Option<Vec<u32>>>()?.into_iter().min()
    }

    /// Whether a shard is to be on a node.
    pub fn is_placed(&self, shard: u32, id: &str) -> bool {
        let placed = self.status.placements.iter().find(|(of, _)| *of == shard);
        placed.is_none_or(|(_, nodes)| nodes.iter().any(|node| node == id))
    }

    /// Shards that are to be on a node.
    pub fn placed(&self, id: &str) -> usize {
        self.shards().iter().filter(|shard| self.is_placed(**shard, id)).count()
    }

    /// Those of them in which it has a vote, as their leaders know it.
    pub fn votes(&self, id: &str) -> usize {
        let has_a_vote = |shard: &u32| {
            let leader = self.leader(*shard);
            leader.is_some_and(|(_, view)| view.voter_node_ids.iter().any(|voter| voter == id))
        };
        self.shards().iter().filter(|shard| self.is_placed(**shard, id) && has_a_vote(shard)).count()
    }

    /// How many entries a node lacks, over all shards, as their leaders know it.
    pub fn entries_behind(&self, id: &str) -> u64 {
        let lags = self.shards().into_iter().filter_map(|shard| self.leader(shard));
        let lags = lags.flat_map(|(_, view)| &view.followers).filter(|lag| lag.node_id == id);
        lags.map(|lag| lag.entries_behind).sum()
    }

    pub fn leads(&self, id: &str) -> usize {
        self.shards().into_iter().filter(|shard| self.leader(*shard).is_some_and(|(leader, _)| leader == id)).count()
    }

    /// The newest root that all replicas report, or the news that they don't agree.
    pub fn agreement(&self, shard: u32) -> Agreement {
        let replicas = self.replicas(shard);
        let root_at = |view: &ShardStatus, seq: u64| {
            view.recent_roots.iter().find(|root| root.seq == seq).map(|root| root.sha256.clone())
        };
        let roots = replicas.iter().flat_map(|(_, view)| &view.recent_roots);
        let mut seqs: BTreeSet<u64> = roots.map(|root| root.seq).collect();
        while let Some(seq) = seqs.pop_last() {
            let roots: Vec<Option<Vec<u8>>> = replicas.iter().map(|(_, view)| root_at(view, seq)).collect();
            let known: BTreeSet<&Vec<u8>> = roots.iter().flatten().collect();
            if known.len() > 1 {
                return Agreement::Differs { seq };
            }
            if let (Some(root), true) = (known.first(), roots.iter().all(Option::is_some)) {
                return Agreement::Equal { seq, sha256: (*root).clone() };
            }
        }
        Agreement::Unknown
    }

    /// What is left of a certificate, in whole days; less than none once it has ended.
    pub fn days_left(&self, certificate: &Certificate) -> Option<i64> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let expires_at = certificate.expires_at?;
        Some(match expires_at.duration_since(self.now) {
            Ok(left) => (left.as_secs() / DAY.as_secs()) as i64,
            Err(past) => -1 - (past.duration().as_secs() / DAY.as_secs()) as i64,
        })
    }
}

/// Of what a file system holds.
pub fn free_percent(node: &NodeStatus) -> Option<u64> {
    (node.disk_free_bytes.saturating_mul(100)).checked_div(node.disk_total_bytes)
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use charthold_client::{FollowerLag, Root};

    use super::*;

    pub(crate) fn shard(leader: &str, term: u64, roots: &[(u64, u8)]) -> ShardStatus {
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
            degraded: false,
            voter_node_ids: ["01", "02", "03"].map(str::to_owned).to_vec(),
            learner_node_ids: Vec::new(),
            slots: Some(SlotRange { first: 0, last: SLOT_MAX }),
            rows_check: None,
            vacant: false,
        }
    }

    pub(crate) fn node(id: &str, shard: ShardStatus) -> NodeStatus {
        NodeStatus {
            node_id: id.to_owned(),
            unreachable: None,
            version: "0.1.0".to_owned(),
            uptime: Duration::from_secs(93_784),
            disk_total_bytes: 100 << 30,
            disk_free_bytes: 60 << 30,
            resident_bytes: 500 << 20,
            clock_offset_ms: Some(3),
            connected_node_ids: ["01", "02", "03"]
                .into_iter()
                .filter(|other| *other != id)
                .map(str::to_owned)
                .collect(),
            certificates: vec![Certificate {
                port: "peer".to_owned(),
                expires_at: Some(now() + Duration::from_secs(90 * 86_400)),
            }],
            not_ready: None,
            shards: vec![shard],
            drained: false,
            format_max: 3,
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
    }

    /// Three nodes, all well: b1 leads.
    pub(crate) fn well() -> Report {
        let info = |id: &str, name: &str| Node {
            id: id.to_owned(),
            name: name.to_owned(),
            site: name[..1].to_owned(),
            client_endpoint: format!("{name}:7400"),
            peer_endpoint: format!("{name}:7401"),
            keyed: true,
        };
        let mut leading = shard("02", 3, &[(8, 1), (9, 2)]);
        let lag = |id: &str| FollowerLag { node_id: id.to_owned(), entries_behind: 0 };
        leading.followers = vec![lag("01"), lag("03")];
        let status = ClusterStatus {
            cluster: "test".to_owned(),
            node_id: "01".to_owned(),
            version: "0.1.0".to_owned(),
            initialized: true,
            format: 3,
            replicas: 0,
            placements: Vec::new(),
            nodes: vec![info("01", "a1"), info("02", "b1"), info("03", "c1")],
            shards: Vec::new(),
            node_status: vec![
                // It has not heard yet of the newer term.
                node("01", shard("01", 2, &[(7, 0), (8, 1)])),
                node("02", leading),
                node("03", shard("02", 3, &[(8, 1)])),
            ],
        };
        Report { status, now: now() }
    }

    #[test]
    fn the_higher_term_is_believed() {
        let report = well();
        assert_eq!(report.leader(1).map(|(id, view)| (id, view.term)), Some(("02", 3)));
        assert_eq!((report.leads("01"), report.leads("02")), (0, 1));
        assert_eq!(report.leader(2), None);
    }

    #[test]
    fn replicas_are_compared_where_all_report() {
        let mut report = well();
        assert_eq!(report.agreement(1), Agreement::Equal { seq: 8, sha256: vec![1; 32] });
        assert_eq!(report.agreement(2), Agreement::Unknown);
        report.status.node_status[2].shards = vec![shard("02", 3, &[(8, 9)])];
        assert_eq!(report.agreement(1), Agreement::Differs { seq: 8 });
    }

    #[test]
    fn who_has_no_replica_is_not_asked() {
        let mut report = well();
        report.status.node_status[2].shards = vec![shard("03", 9, &[(8, 9)])];
        report.status.node_status[2].shards[0].vacant = true;
        assert_eq!(report.agreement(1), Agreement::Equal { seq: 8, sha256: vec![1; 32] });
        assert_eq!((report.replicas(1).len(), report.leader(1).map(|(id, _)| id)), (2, Some("02")));
        assert_eq!((report.placed("03"), report.votes("03")), (1, 1));
        report.status.placements = vec![(1, vec!["01".to_owned(), "02".to_owned()])];
        assert_eq!((report.placed("03"), report.votes("03")), (0, 0));
        assert_eq!((report.placed("01"), report.votes("01")), (1, 1));
    }

    #[test]
    fn days_are_whole() {
        let report = well();
        let of = |seconds: i64| {
            let at = now().checked_add(Duration::from_secs(seconds.unsigned_abs())).filter(|_| seconds >= 0);
            let at = at.or_else(|| now().checked_sub(Duration::from_secs(seconds.unsigned_abs())));
            report.days_left(&Certificate { port: String::new(), expires_at: at })
        };
        assert_eq!((of(86_399), of(86_400), of(-1)), (Some(0), Some(1), Some(-1)));
    }
}
