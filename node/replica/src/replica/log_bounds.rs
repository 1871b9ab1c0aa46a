//! Logs are bounded in bytes, too: documents and large bodies would else keep their entries for as long as small ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::shard::group::Group;
use crate::shard::transfer::Outgoing;

/// A disk takes in some hundred MB in that time.
const INTERVAL: Duration = Duration::from_secs(1);

/// For ever.
pub(super) async fn keep(groups: Vec<Arc<Group>>, outgoing: Arc<Outgoing>, keep_bytes: u64) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        // What was given lasts for as long as a taker's log has that it was taken: see [`super::slots`].
        let givers = groups.iter().filter_map(|taker| taker.took_by_log()).map(|origin| origin.shard);
        let givers = givers.collect::<BTreeSet<_>>();
        let may_go =
            |group: &&Arc<Group>| !outgoing.held_logs.is_held(group.shard) && !givers.contains(&u32::from(group.shard));
        for group in groups.iter().filter(may_go) {
            group.keep_log_within(keep_bytes).await;
        }
    }
}
