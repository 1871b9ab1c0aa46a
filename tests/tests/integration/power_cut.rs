//! All nodes die at once, again and again: whatever was acknowledged is there, and happened once.

use charthold_tests::harness::{Cluster, Writers, until};
use charthold_tests::patients;

const CUTS: u64 = 10;
/// That the import of all patients makes, about; the cuts are spread over them.
const COMMITS: u64 = 240;
const WRITERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_ten_power_cuts() {
    let expected = patients::expected(1..=24);
    let mut cluster = Cluster::start(3).await;
    let before = cluster.recorded().await;
    let folder = patients::folder();
    // One import that lives through all of it; `--jobs 1` so that it takes its time.
    let mut import = cluster.cli_start("client", &["import", "--jobs", "1", folder.to_str().unwrap()]);
    let writers = Writers::start(&cluster, WRITERS);

    for cut in 1..=CUTS {
        let goal = cut * COMMITS / (CUTS + 2);
        until(&format!("{goal} commits of the import are stored"), || async {
            let stored = cluster.recorded().await.saturating_sub(before + writers.acknowledged());
            if stored >= goal { Ok(()) } else { Err(format!("{stored} are")) }
        })
        .await;
        assert!(import.is_running(), "the import was over before power cut {cut}");
        cluster.kill_all();
        assert!(import.is_running(), "the import gave up at power cut {cut}");
        cluster.restart_all();
        cluster.wait_ready().await;
    }
    let finished = import.finish().await.ok();
    assert!(finished.text().starts_with("51,934 read, 51,281 stored"), "{}", finished.text());
    let logs = writers.stop().await;
    assert!(logs.iter().all(|log| log.acknowledged() > CUTS), "the writers have hardly written");

    cluster.wait_ready().await;
    let client = cluster.client();
    for log in &logs {
        log.check(&client).await;
    }
    let versions = patients::assert_stored(&client, &expected).await;
    assert!(versions.values().all(|version| *version == 1), "something was stored twice");
    cluster.wait_roots_equal().await;
}
