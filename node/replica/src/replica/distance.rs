//! How far away the peers are, and whether the groups' timing fits that.
//!
//! A heartbeat is also the life of its call: where a round trip and a sync take longer than one, followers do not answer in
//! time and elect for nothing. Only the least of some measurements counts: a busy machine or a lost packet is no distance.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;

use crate::NodeId;

const SAMPLES: usize = 10;
/// What a sync and the way through two processes may take beside the network.
const DISK: Duration = Duration::from_millis(20);

pub(super) struct Distances {
    heartbeat: Duration,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

#[derive(Default)]
struct Peer {
    name: String,
    round_trips: VecDeque<Duration>,
    too_far: bool,
}

/// What has changed with a measurement.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// For the heartbeat: this is the least round trip.
    TooFar(Duration),
    FitsAgain,
}

impl Distances {
    pub fn new(heartbeat: Duration) -> Self {
        Self { heartbeat, peers: Mutex::default() }
    }

    /// Forgets nodes that are no members any more. Answers their names.
    pub fn forget_all_but(&self, is_member: impl Fn(NodeId) -> bool) -> Vec<String> {
        let mut peers = self.peers.lock();
        let gone = peers.keys().copied().filter(|node| !is_member(*node)).collect::<Vec<_>>();
        gone.into_iter().filter_map(|node| peers.remove(&node)).map(|peer| peer.name).collect()
    }

    /// Takes one measurement; says so once when a peer turns out to be too far, and once when it no longer is.
    pub fn note(&self, node: NodeId, name: &str, round_trip: Duration) {
        let heartbeat_ms = self.heartbeat.as_millis() as u64;
        match self.take(node, name, round_trip) {
            Some(News::TooFar(least)) => tracing::warn!(
                peer = name,
                round_trip_ms = least.as_millis() as u64,
                heartbeat_ms,
                "a peer is too far for the heartbeat, so that there are elections for nothing: raise raft.heartbeat_ms and \
                 the election times on all nodes, see docs/operations/timing.md"
            ),
            Some(News::FitsAgain) => {
                tracing::info!(peer = name, heartbeat_ms, "a peer is near enough for the heartbeat again")
            }
            None => {}
        }
    }

    fn take(&self, node: NodeId, name: &str, round_trip: Duration) -> Option<News> {
        let mut peers = self.peers.lock();
        let peer = peers.entry(node).or_insert_with(|| Peer { name: name.to_owned(), ..Peer::default() });
        peer.round_trips.push_back(round_trip);
        if peer.round_trips.len() > SAMPLES {
            peer.round_trips.pop_front();
        }
        let least = *peer.round_trips.iter().min()?;
        let too_far = peer.round_trips.len() == SAMPLES && least + DISK > self.heartbeat;
        match (std::mem::replace(&mut peer.too_far, too_far), too_far) {
            (false, true) => Some(News::TooFar(least)),
            (true, false) => Some(News::FitsAgain),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_peer_is_too_far_if_it_always_was_lately() {
        let distances = Distances::new(ms(100));
        let take = |round_trip_ms: u64, times: usize| {
            (0..times).filter_map(|_| distances.take(1, "a1", ms(round_trip_ms))).collect::<Vec<_>>()
        };
        assert_eq!(take(500, SAMPLES - 1), []);
        assert_eq!(take(10, 1), []);
        assert_eq!(take(90, 2 * SAMPLES), [News::TooFar(ms(90))]);
        assert_eq!(take(79, 1), [News::FitsAgain]);
        assert_eq!(take(80, 2 * SAMPLES), [], "just enough");
        assert_eq!(distances.forget_all_but(|node| node == 1), Vec::<String>::new());
        assert_eq!(distances.forget_all_but(|_| false), ["a1"]);
    }
}
