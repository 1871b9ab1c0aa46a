//! From three nodes to five and back to three under the load of `chaos`, with all its checkers: no request fails.

use std::time::Duration;

use charthold_tests::chaos::{self, Plan};
use charthold_tests::harness::Wan;

use super::{minutes, seed};

const SITES: usize = 5;
const ROUND_TRIP: Duration = Duration::from_millis(10);

pub async fn run() {
    let round_trip = Wan::is_possible().then_some(ROUND_TRIP);
    let plan = Plan { time: minutes(5), seed: seed(), sites: SITES, round_trip, faults: Vec::new(), history: None };
    let report = chaos::grow(&plan).await;
    println!("{}", serde_json::to_string(&report).unwrap());
    assert!(report.found.is_empty(), "{:?}", report.found);
    let gave_up = (report.failed, report.unknown, report.transfers_gave_up);
    assert_eq!(gave_up, (0, 0, 0), "a request failed, or its outcome stayed unknown");
}
