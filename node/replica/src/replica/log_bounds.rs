//! Logs are bounded in bytes, too: documents and large bodies would else keep their entries for as long as small ones.

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
        for group in groups.iter().filter(|group| !outgoing.held_logs.is_held(group.shard)) {
            group.keep_log_within(keep_bytes).await;
        }
    }
}
