//! Whether this node serves, and if not, why: what `grpc.health.v1`, `/readyz` and the status all say.
//!
//! Owns the one answer, and the order at a stop: not ready first, so that who asks goes elsewhere, then leadership is
//! handed over, then ports close. Must not know how it is asked for.
//!
//! What keeps a node from serving belongs into [`obstacle`].

use std::time::Duration;

use charthold_replica::all_shards;
use charthold_replica::replica::Replica;
use charthold_replica::store::disk::DiskLevel;
use tokio::sync::watch;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// What probes and watchers get to hear of a stop before anything is taken from them.
pub const NOTICE: Duration = Duration::from_millis(250);

const STARTING: &str = "the node is starting";
const DRAINING: &str = "the node is stopping";

/// Cheap to ask, also from many.
pub struct Health {
    state: watch::Sender<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    draining: bool,
    ready: Result<(), String>,
}

impl Default for Health {
    fn default() -> Self {
        let state = State { draining: false, ready: Err(STARTING.to_owned()) };
        Self { state: watch::Sender::new(state) }
    }
}

impl Health {
    /// Ready, or why not, in words that an operator can act on.
    pub fn ready(&self) -> Result<(), String> {
        let state = self.state.borrow();
        if state.draining { Err(DRAINING.to_owned()) } else { state.ready.clone() }
    }

    pub fn is_draining(&self) -> bool {
        self.state.borrow().draining
    }

    /// Takes what a check found. Says so in the log when it is news.
    pub fn set(&self, ready: Result<(), String>) {
        let changed = self.state.send_if_modified(|state| {
            let changed = state.ready != ready;
            state.ready.clone_from(&ready);
            changed
        });
        match &ready {
            Ok(()) if changed => tracing::info!("ready: this node serves"),
            Err(why) if changed => tracing::warn!(why, "not ready: this node does not serve until that is mended"),
            _ => {}
        }
    }

    /// Not ready from now on, whatever is found.
    pub fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
    }

    /// Waits until the answer may be another one than when this was called.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut state = self.state.subscribe();
        async move {
            // An error: nobody says anything any more.
            let _closed = state.changed().await;
        }
    }
}

/// What is wrong with this node itself, whatever the others do.
pub fn obstacle(replica: &Replica) -> Option<String> {
    if let Some((shard, why)) = replica.stopped_group() {
        return Some(format!("the replica of shard {shard} has stopped: {why}"));
    }
    match replica.disk() {
        (DiskLevel::Good | DiskLevel::Low, _) => replica.clock_error(),
        (DiskLevel::Critical, free_bytes) => Some(format!("the disk is full: {} MiB are left", free_bytes >> 20)),
        (DiskLevel::Stalled, _) => Some("the disk does not answer".to_owned()),
        (DiskLevel::Damaged, _) => {
            Some("a file of the state is damaged: it waits until all others are well".to_owned())
        }
        (DiskLevel::Refilling, _) => Some("its state is made anew".to_owned()),
    }
}

/// Keeps the health of a keyless node, which serves no client and needs no quorum: it is ready when it takes part.
pub async fn watch_keyless(replica: &Replica, health: &Health) {
    loop {
        let leaderless = || all_shards().find(|shard| replica.leader(*shard).is_none());
        let ready = match obstacle(replica) {
            Some(obstacle) => Err(obstacle),
            None if replica.members().is_empty() => Err("the cluster is not initialized".to_owned()),
            None => leaderless().map_or(Ok(()), |shard| Err(format!("shard {shard} has no leader that is known here"))),
        };
        health.set(ready);
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_stops_stays_unready() {
        let health = Health::default();
        assert_eq!(health.ready(), Err(STARTING.to_owned()));
        health.set(Ok(()));
        assert_eq!(health.ready(), Ok(()));
        let changed = health.changed();
        tokio::pin!(changed);
        assert!(futures::poll!(&mut changed).is_pending());
        health.drain();
        changed.await;
        health.set(Ok(()));
        assert_eq!(health.ready(), Err(DRAINING.to_owned()));
    }
}
