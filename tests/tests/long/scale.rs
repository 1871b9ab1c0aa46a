//! A store of 3,000,000 records in 300,000 charts beside one of a hundredth of that: what grows with it, and what must not.
//!
//! Both are clusters of three nodes of their own, on one disk, one after the other, loaded by the client library. What is
//! read is read by one client at one node, one call at a time. `CHARTHOLD_SCALE_RECORDS` makes both smaller.
//!
//! ```text
//! records.rs  charts made of the synthetic patients' resources      store.rs    a cluster, its memory, its disk
//! load.rs     many commits under way at once                        returns.rs  a node that was away
//! reads.rs    gets and lists, with cold caches and with warm ones   report.rs   the table, and what must hold
//! ```

mod load;
mod reads;
mod records;
mod report;
mod returns;
mod store;

use std::ops::Range;
use std::sync::Arc;

use self::load::Loaded;
use self::reads::{Call, Reads, Sums};
use self::records::Charts;
use self::report::report;
use self::returns::Returns;
use self::store::{Budget, Store};

const RECORDS: u64 = 3_000_000;
/// How much smaller the other store is.
const SMALLER: u64 = 100;
/// Charts of which one record is read, or one page: all of them different.
const READS: usize = 2_000;
/// Cold is what is read first: even a small store is warm after a few hundred reads. So many each time, after so many starts.
const COLD_READS: usize = 30;
const COLD_STARTS: usize = 10;

/// What one store is like.
struct Figures {
    loaded: Loaded,
    /// Of one node: its state, its log, and all of it.
    state_bytes: u64,
    log_bytes: u64,
    node_bytes: u64,
    peak_resident_mib: u64,
    get: [Reads; 2],
    list: [Reads; 2],
}

pub async fn run() {
    let records = std::env::var("CHARTHOLD_SCALE_RECORDS").map_or(RECORDS, |records| records.parse().unwrap());
    let charts = Arc::new(Charts::read());
    let budget = Budget::of(records + returns::CHARTS * records::RECORDS);
    budget.check_room(&std::env::temp_dir());
    let (store, small) = fill_and_read(&charts, records / SMALLER, budget).await;
    drop(store);
    let (mut store, mut large) = fill_and_read(&charts, records, budget).await;
    let returns = Returns::measure(&mut store, records / records::RECORDS).await;
    large.peak_resident_mib = store.peak_resident_mib();
    report(&small, &large, &returns);
}

/// A new store, and what it is like.
async fn fill_and_read(charts: &Arc<Charts>, records: u64, budget: Budget) -> (Store, Figures) {
    let numbers = 0..records / records::RECORDS;
    let mut store = Store::create(Arc::clone(charts), budget).await;
    let loaded = store.load(numbers.clone()).await;
    println!("scale: {loaded}");
    let get = cold_and_warm(&mut store, Call::Get, &numbers).await;
    let list = cold_and_warm(&mut store, Call::List, &numbers).await;
    // Since the last start all has been flushed, and compacted as far as it is going to be.
    let [state_bytes, log_bytes, node_bytes] = store.bytes_of_node();
    let peak_resident_mib = store.peak_resident_mib();
    (store, Figures { loaded, state_bytes, log_bytes, node_bytes, peak_resident_mib, get, list })
}

/// The first calls after each of several starts, with nothing in the system's page cache; then the same calls again and again.
async fn cold_and_warm(store: &mut Store, call: Call, charts: &Range<u64>) -> [Reads; 2] {
    let sample = reads::sample(charts, READS);
    let (mut cold, mut warm) = (Sums::default(), Sums::default());
    // One more, which warms up what is not the store.
    for places in sample.chunks(COLD_READS + 1).take(COLD_STARTS) {
        store.restart_cold().await;
        cold.add(store, call, places).await;
    }
    Sums::default().add(store, call, &sample).await;
    warm.add(store, call, &sample).await;
    let (cold, warm) = (cold.means(), warm.means());
    println!("scale: cold {call:?}: {cold}\nscale: warm {call:?}: {warm}");
    [cold, warm]
}
