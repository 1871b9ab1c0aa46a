//! Reads that need not be linearizable: what they may show where nobody is reached, and what they may not.

use std::time::Duration;

use charthold_client::{Chart, Client, Error, Freshness, Put, RecordId};
use charthold_tests::harness::{Cluster, Link, Options, Wan, until};

const MINUTE: Freshness = Freshness::Stale(Duration::from_secs(60));
const MOMENT: Freshness = Freshness::Stale(Duration::from_millis(100));
/// Long enough to find a leader, if there is one.
const DEADLINE: Duration = Duration::from_secs(2);

/// Three sites, each in a network of its own; a record of version 1.
async fn start() -> Option<Cluster> {
    if !Wan::is_possible() {
        skip();
        return None;
    }
    let options = Options { round_trip: Some(Duration::from_millis(4)), ..Options::default() };
    let cluster = Cluster::start_with(options).await;
    assert_eq!(write(&cluster.client()).await, 1);
    Some(cluster)
}

#[allow(clippy::print_stderr)]
fn skip() {
    eprintln!("SKIPPED: only root may make networks between sites");
}

fn place() -> (Chart, RecordId) {
    (Chart::patient("p1"), RecordId::new("Note", "n1"))
}

async fn write(client: &Client) -> u64 {
    let (chart, record) = place();
    client.put(&chart, &record, Put::new("text/plain", "x")).await.unwrap().versions[0]
}

/// At this site, by a client that has not heard yet who leads: it would go there.
async fn read(cluster: &Cluster, site: usize, freshness: Freshness) -> Result<u64, Error> {
    let (chart, record) = place();
    let client = cluster.client_at(site).with_freshness(freshness).with_deadline(DEADLINE);
    client.get(&chart, &record).await.map(|record| record.version())
}

fn cut_off(cluster: &Cluster, site: usize) {
    let cut = |link: &mut Link| link.cut = true;
    for other in (0..cluster.size()).filter(|other| *other != site) {
        cluster.wan().unwrap().change(site, other, cut);
        cluster.wan().unwrap().change(other, site, cut);
    }
}

/// Every mode but the patient one refuses.
async fn knows_nothing_new(cluster: &Cluster, site: usize) {
    for freshness in [Freshness::Linearizable, Freshness::Lease, MOMENT] {
        let answer = read(cluster, site, freshness).await;
        assert!(matches!(answer, Err(Error::Unavailable { .. })), "{freshness:?}: {answer:?}");
    }
}

async fn is_like_all_others_again(cluster: &Cluster, site: usize) {
    cluster.wan().unwrap().heal();
    cluster.wait_ready().await;
    for freshness in [Freshness::Linearizable, Freshness::Lease, MOMENT, MINUTE] {
        // A stale answer may be old for as long as it says.
        until(&format!("{freshness:?} shows version 2"), || async {
            match read(cluster, site, freshness).await {
                Ok(2) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_modes_show_what_was_just_written_where_all_is_well() {
    let Some(cluster) = start().await else { return };
    for version in 2..20 {
        assert_eq!(write(&cluster.client_at(version % 3)).await, version as u64);
        for site in 0..3 {
            assert_eq!(read(&cluster, site, Freshness::Linearizable).await.unwrap(), version as u64);
            assert_eq!(read(&cluster, site, Freshness::Lease).await.unwrap(), version as u64);
            assert!((1..=version as u64).contains(&read(&cluster, site, MINUTE).await.unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_cut_off_tells_no_more_than_it_may() {
    let Some(cluster) = start().await else { return };
    let leader = cluster.leader_of_most().await;
    let follower = (leader + 1) % cluster.size();
    assert_eq!(read(&cluster, follower, Freshness::Linearizable).await.unwrap(), 1);
    cut_off(&cluster, follower);
    assert_eq!(write(&cluster.client_at(leader)).await, 2);
    assert_eq!(read(&cluster, follower, MINUTE).await.unwrap(), 1, "it may be a minute old, and is not");
    knows_nothing_new(&cluster, follower).await;
    is_like_all_others_again(&cluster, follower).await;
}

/// It thinks that it leads, and so does another.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_does_not_answer_as_one() {
    let Some(cluster) = start().await else { return };
    let leader = cluster.leader_of_most().await;
    assert_eq!(read(&cluster, leader, Freshness::Lease).await.unwrap(), 1);
    cut_off(&cluster, leader);
    assert_eq!(write(&cluster.client_at((leader + 1) % cluster.size())).await, 2);
    knows_nothing_new(&cluster, leader).await;
    is_like_all_others_again(&cluster, leader).await;
}
