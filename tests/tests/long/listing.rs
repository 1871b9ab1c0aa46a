//! Listing a large chart, page by page, while it is written to.

use charthold_tests::harness::Cluster;
use charthold_tests::listing::holds_still;

const RECORDS: usize = 100_000;
const PAGE_ROWS: u32 = 1_000;

/// No row missing, doubled or from the future. Prints what each listing took: a page in an order opens all headers.
pub async fn run() {
    let cluster = Cluster::start(3).await;
    for listed in holds_still(&cluster.client(), RECORDS, PAGE_ROWS).await {
        let each = listed.took / u32::try_from(listed.pages).unwrap();
        println!("{}: {} records on {} pages, {each:?} a page", listed.what, listed.records, listed.pages);
    }
}
