//! An operator: has nodes that are gone for ever removed, and those in their places added; has shards split, and moved.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charthold_replica::NodeId;
use tokio::time::sleep;

use super::SHARDS_MAX;
use super::clients::ask;
use super::gateway::{What, made_at};
use super::node::Node;
use crate::chaos::Status;

/// A gateway gets so long for one step.
const STEP_MAX: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Operator {
    /// Steps to take, one after the other; each until it is done.
    steps: Mutex<VecDeque<What>>,
}

impl Operator {
    /// A node was wiped: what it was goes, what it is comes. First every shard is everywhere: then it has a place in each.
    pub fn replace(&self, old: NodeId, address: String, made_at_ms: u64) {
        self.place_everywhere(made_at_ms);
        self.steps.lock().unwrap().extend([
            What::Remove(old),
            What::Add { address: address.clone() },
            What::Votes { address },
        ]);
    }

    pub fn split(&self, shard: u16, request_id: [u8; 16]) {
        self.steps.lock().unwrap().push_back(What::Split { shard, request_id });
    }

    pub fn place(&self, shard: u16, nodes: Vec<NodeId>, request_id: [u8; 16]) {
        self.steps.lock().unwrap().push_back(What::Place { shard, nodes, request_id });
    }

    pub fn place_everywhere(&self, made_at_ms: u64) {
        for shard in 1..=SHARDS_MAX {
            self.place(shard, Vec::new(), made_at(made_at_ms + u64::from(shard)));
        }
    }

    pub fn is_idle(&self) -> bool {
        self.steps.lock().unwrap().is_empty()
    }

    /// Until it is told to stop, and nothing is left to do.
    pub async fn work(&self, nodes: &[Arc<Node>], stopping: &AtomicBool) {
        let keyed = nodes.iter().filter(|node| node.keyed).collect::<Vec<_>>();
        let mut done_by = 0;
        for node in keyed.iter().cycle() {
            let step = self.steps.lock().unwrap().front().cloned();
            let Some(step) = step else {
                if stopping.load(SeqCst) {
                    return;
                }
                sleep(PAUSE).await;
                continue;
            };
            let done = ask(node, &step, STEP_MAX).await.status == Status::Ok;
            // What one node has done is done; what one knows another may not, and the first may have to take back.
            let needed = if let What::Votes { .. } = step { keyed.len() } else { 1 };
            done_by = if done { done_by + 1 } else { 0 };
            if done_by == needed {
                self.steps.lock().unwrap().pop_front();
                done_by = 0;
            }
            sleep(PAUSE).await;
        }
    }
}
