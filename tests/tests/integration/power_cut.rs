//! All nodes lose their power at once, again and again, and with it what was not synced: whatever was acknowledged is
//! there, and happened once.

use charthold_tests::fault_disk::FaultDisk;
use charthold_tests::harness::{Cluster, Options, Writers, until};
use charthold_tests::patients;

const CUTS: u64 = 10;
/// That the import of all patients makes, about; the cuts are spread over them.
const COMMITS: u64 = 240;
const WRITERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_ten_power_cuts() {
    let expected = patients::expected(1..=24);
    let fault_disks = FaultDisk::is_possible();
    if !fault_disks {
        say("without root and /dev/fuse nothing is lost that was not synced: nodes are only killed");
    }
    let mut cluster = Cluster::start_with(Options { fault_disks, ..Options::default() }).await;
    let everywhere = (0..cluster.size()).collect::<Vec<_>>();
    let mut random = fastrand::Rng::with_seed(1);
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
        if fault_disks {
            cluster.cut_power(&everywhere, &mut random);
        } else {
            cluster.kill_all();
        }
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
    cluster.assert_rows_equal().await;
}

#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}
