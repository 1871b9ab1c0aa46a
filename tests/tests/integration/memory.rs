//! A node with little memory: it holds what its configuration allows, and serves all the same.

use charthold_client::{Chart, Put, RecordId};
use charthold_tests::harness::{Cluster, Options};

const CACHE_BYTES: usize = 8 << 20;
const FLUSH_BYTES: usize = 1 << 20;
/// As the configuration says, and a block of memory for each table.
const MEMTABLES_BYTES_MAX: usize = 4 * FLUSH_BYTES + (4 << 20);
const RECORDS: usize = 640;
const BODY_BYTES: usize = 64 << 10;

fn body(number: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    std::iter::repeat_with(|| random.u8(..)).take(BODY_BYTES).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_holds_in_memory_what_it_is_allowed() {
    let config =
        format!("[memory]\ncache_bytes = {CACHE_BYTES}\nflush_bytes = {FLUSH_BYTES}\nrequests_bytes = 16777216\n");
    let cluster = Cluster::start_with(Options { sites: 1, config, ..Options::default() }).await;
    let client = cluster.client();
    let (chart, id) = (Chart::patient("large"), |number: usize| RecordId::new("Binary", number.to_string()));
    let held = |name: &str| cluster.metrics(0).sum(name, &[("engine", "state")]) as usize;
    for number in 0..RECORDS {
        client.put(&chart, &id(number), Put::new("application/octet-stream", body(number))).await.unwrap();
        if number % 16 == 0 {
            let memtables = held("charthold_engine_memtables_bytes");
            assert!(memtables <= MEMTABLES_BYTES_MAX, "{memtables} bytes after {number} records");
        }
    }
    for number in 0..RECORDS {
        assert_eq!(client.get(&chart, &id(number)).await.unwrap().body, body(number));
    }
    let cached = held("charthold_engine_cache_bytes");
    assert!((1..=CACHE_BYTES).contains(&cached), "{cached} bytes");
}
