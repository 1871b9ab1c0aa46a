//! Who rather leads nothing, and who leads what: this node and its peers, as each tells every second.
//!
//! A node says so while it has no keys (it may lead when it alone holds the newest entries, and then only until another
//! can) and after it was told to give way. That is forgotten when it restarts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{NodeId, ShardId};

/// What was heard longer ago says nothing.
const HEARD_MAX: Duration = Duration::from_secs(4);

pub struct Leadership {
    pub keyed: bool,
    told: AtomicBool,
    /// What this node leads: told at once when it changes.
    leads: watch::Sender<Vec<Led>>,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

/// A shard that somebody leads, as he knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    pub shard: ShardId,
    pub term: u64,
}

/// What a peer said last, and since when it says that it may lead.
struct Heard {
    at: Instant,
    willing_since: Option<Instant>,
    leads: Vec<Led>,
}

impl Leadership {
    pub fn new(keyed: bool) -> Self {
        Self { keyed, told: AtomicBool::new(false), leads: watch::Sender::default(), heard: Mutex::default() }
    }

    /// What this node's operator wants.
    pub fn tell(&self, give_way: bool) {
        self.told.store(give_way, Ordering::Relaxed);
    }

    /// Whether an operator wants it.
    pub fn was_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Whether this node leads nothing that another can lead.
    pub fn gives_way(&self) -> bool {
        !self.keyed || self.was_told()
    }

    /// What this node leads from now on.
    pub fn note_leads(&self, leads: Vec<Led>) {
        self.leads.send_if_modified(|known| {
            let changed = *known != leads;
            *known = leads;
            changed
        });
    }

    /// What it leads, as it changes.
    pub fn leads(&self) -> watch::Receiver<Vec<Led>> {
        self.leads.subscribe()
    }

    /// Which peer leads a shard, by what they told lately. Of two that say so the one of the newer term is right.
    pub fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        let heard = self.heard.lock();
        let lately = heard.iter().filter(|(_, heard)| heard.at.elapsed() < HEARD_MAX);
        let terms = lately.flat_map(|(node, heard)| heard.leads.iter().map(|led| (*node, *led)));
        terms.filter(|(_, led)| led.shard == shard).max_by_key(|(_, led)| led.term).map(|(node, _)| node)
    }

    /// Takes what a peer says.
    pub fn hear(&self, node: NodeId, gives_way: bool, leads: Vec<Led>) {
        let now = Instant::now();
        let mut heard = self.heard.lock();
        heard.retain(|_, heard| now - heard.at < HEARD_MAX);
        let before = heard.get(&node).and_then(|heard| heard.willing_since);
        heard.insert(node, Heard { at: now, willing_since: (!gives_way).then(|| before.unwrap_or(now)), leads });
    }

    /// The connection on which a peer says it has ended: it may have died, and must not be given what it would have to lead.
    /// If it lives it says so again in a moment.
    pub fn forget(&self, node: NodeId) {
        self.heard.lock().remove(&node);
    }

    /// For how long a peer has said without a pause that it may lead; nothing if it does not.
    pub fn willing_for(&self, node: NodeId) -> Option<Duration> {
        let heard = self.heard.lock();
        let lately = heard.get(&node).filter(|heard| heard.at.elapsed() < HEARD_MAX)?;
        lately.willing_since.map(|since| since.elapsed())
    }

    /// Whether anything that a peer said is still here, however old.
    #[cfg(test)]
    pub fn remembers(&self, node: NodeId) -> bool {
        self.heard.lock().contains_key(&node)
    }

    /// Whether a peer was heard of lately, whatever it said.
    pub fn is_heard(&self, node: NodeId) -> bool {
        self.heard.lock().get(&node).is_some_and(|heard| heard.at.elapsed() < HEARD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_says_so_may_lead() {
        let leadership = Leadership::new(true);
        leadership.hear(1, false, Vec::new());
        leadership.hear(2, true, Vec::new());
        assert_eq!([1, 2, 3].map(|node| leadership.willing_for(node).is_some()), [true, false, false]);
        assert_eq!([1, 2, 3].map(|node| leadership.is_heard(node)), [true, true, false]);
        let since = leadership.willing_for(1);
        leadership.hear(1, false, Vec::new());
        assert!(leadership.willing_for(1) >= since, "it goes on being willing");
        leadership.hear(1, true, Vec::new());
        assert_eq!(leadership.willing_for(1), None);
        leadership.hear(1, false, Vec::new());
        leadership.forget(1);
        assert!(leadership.willing_for(1).is_none() && !leadership.is_heard(1));
    }

    #[test]
    fn the_newer_leader_is_believed_until_its_connection_ends() {
        let leadership = Leadership::new(true);
        let led = |shard, term| Led { shard, term };
        leadership.hear(1, false, vec![led(1, 3), led(2, 7)]);
        leadership.hear(2, false, vec![led(1, 4)]);
        assert_eq!([1, 2, 3].map(|shard| leadership.leader_of(shard)), [Some(2), Some(1), None]);
        leadership.forget(2);
        assert_eq!(leadership.leader_of(1), Some(1));
    }

    #[test]
    fn who_has_no_keys_always_gives_way() {
        let (keyed, keyless) = (Leadership::new(true), Leadership::new(false));
        assert!(!keyed.gives_way() && keyless.gives_way());
        for leadership in [&keyed, &keyless] {
            leadership.tell(true);
            assert!(leadership.gives_way() && leadership.was_told());
            leadership.tell(false);
        }
        assert!(!keyed.gives_way() && keyless.gives_way());
    }
}
