//! Two sites with keys and a third without: it votes and stores, and reads and leads nothing.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use charthold_client::{Chart, Durability, Put, RecordId};
use charthold_tests::canary::{Scan, Texts, files_below};
use charthold_tests::harness::{Cluster, Options, RAFT, Writers, until};
use rustix::process::Signal;

const KEYLESS: usize = 2;
const SECRET: &str = "a diagnosis that nobody at the third site is to read";

#[tokio::test(flavor = "multi_thread")]
async fn a_keyless_site_votes_stores_and_reads_nothing() {
    let options = Options { keyless: vec![KEYLESS], ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    let writers = Writers::start(&cluster, 3);
    let (chart, record) = (Chart::patient("somebody"), RecordId::new("Note", "n1"));
    cluster.client().put(&chart, &record, Put::new("text/plain", SECRET)).await.unwrap();

    // Each keyed site is lost in turn: the other one and the keyless site are a majority, and the keyed one leads.
    for lost in [0, 1] {
        cluster.kill(lost);
        cluster.wait_leaders().await;
        let before = writers.acknowledged();
        until("the other two go on", || async {
            let more = writers.acknowledged() - before;
            if more > 30 { Ok(()) } else { Err(format!("{more} more commits")) }
        })
        .await;
        cluster.restart(lost);
        cluster.wait_ready().await;
    }
    let client = cluster.client();
    assert_eq!(client.get(&chart, &record).await.unwrap().body, SECRET.as_bytes());
    for log in writers.stop().await {
        log.check(&client).await;
    }
    cluster.wait_roots_equal().await;
    cluster.assert_rows_equal().await;
    // Without b there would be one with keys and one without.
    let refused = cluster.operator_cli(&["node", "remove", "b1"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("CANNOT_CHANGE"), "{}", refused.stderr);
    let shown = cluster.operator_cli(&["node", "list"]).await.ok();
    assert!(!shown.text().contains("drained"), "{}", shown.text());
    assert!(TcpStream::connect(cluster.endpoint(KEYLESS)).is_err(), "it opens no port for clients");
    let shown = cluster.operator_cli(&["site", "list"]).await.ok();
    assert!(shown.text().lines().any(|line| line.starts_with('c') && line.contains("keyless")), "{}", shown.text());

    assert!(cluster.stop(KEYLESS).success());
    let mut texts = Texts::default();
    texts.secret(SECRET);
    let mut files = files_below(&cluster.node_folder(KEYLESS));
    files.retain(|file| file.is_file());
    let (found, read) = Scan::new(&texts).files(&files);
    assert_eq!(found, Vec::<String>::new(), "of {read} bytes");
    let holds = |bytes: &[u8]| {
        let holds = |file: &PathBuf| std::fs::read(file).unwrap().windows(bytes.len()).any(|window| window == bytes);
        files.iter().any(holds)
    };
    assert!(holds(&hex::decode(cluster.tenant()).unwrap()), "it has the tenant's rows, as they are");
    // In digits, as in the key's file, and in bytes.
    let file = std::fs::read_to_string(cluster.folder().join("root.key")).unwrap();
    let digits = file.split_whitespace().last().unwrap();
    let key = hex::decode(digits).unwrap();
    assert_eq!(key.len(), 32);
    assert!(!holds(digits.as_bytes()) && !holds(&key));
}

/// It has the newest entries of all: it must lead, and hands over as soon as another has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyless_leader_is_a_caretaker() {
    let options = Options { keyless: vec![KEYLESS], ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    let (chart, client) = (Chart::patient("somebody"), cluster.client());
    for number in 0..6 {
        // One that was stopped lacks what the other two have, so these two are to elect one of them.
        let lost = number % 2;
        cluster.kill(lost);
        let record = RecordId::new("Note", format!("n{number}"));
        client.put(&chart, &record, Put::fhir("{}")).await.unwrap();
        cluster.kill(1 - lost);
        cluster.restart(lost);
        client.with_deadline(Duration::from_secs(60)).put(&chart, &record, Put::fhir("{}")).await.unwrap();
        cluster.restart(1 - lost);
        cluster.wait_leaders().await;
    }
    assert_eq!(client.list(&chart, None).await.unwrap().len(), 6);
    let log = std::fs::read_to_string(cluster.log(KEYLESS)).unwrap();
    assert!(log.contains("this node has no keys: handing over what it leads"), "it never had to lead");
}

/// Until commits are answered like this, at every gateway.
async fn wait_durability(cluster: &Cluster, wanted: Durability) {
    let client = cluster.client();
    until(&format!("all commits are {wanted:?}"), || async {
        for number in 0..32 {
            let chart = Chart::patient(format!("p{number}"));
            let found = client.put(&chart, &RecordId::new("Note", "n1"), Put::fhir("{}")).await;
            let found = found.map_err(|error| error.to_string())?.durability;
            if found != wanted {
                return Err(format!("{found:?} in chart {number}"));
            }
        }
        Ok(())
    })
    .await;
}

/// Both keyed sites have what was answered; when one is out, the answers say so, and all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_both_keyed_sites() {
    let config = format!("{RAFT}durability = \"both-keyed\"\ndegrade_after_ms = 1500\n");
    let options = Options { keyless: vec![KEYLESS], config, ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    wait_durability(&cluster, Durability::BothKeyed).await;

    // Nobody waits for the third.
    cluster.kill(KEYLESS);
    wait_durability(&cluster, Durability::BothKeyed).await;
    cluster.restart(KEYLESS);

    // One that is connected, and syncs nothing.
    cluster.process(1).signal(Signal::STOP);
    wait_durability(&cluster, Durability::Quorum).await;
    cluster.process(1).signal(Signal::CONT);
    wait_durability(&cluster, Durability::BothKeyed).await;

    cluster.kill(1);
    cluster.wait_leaders().await;
    let degraded = |cluster: &Cluster| cluster.metrics(0).text.contains("charthold_raft_degraded{shard=\"1\"} 1");
    // A shard's next leader finds out by its first commit.
    until("status and metrics say so, while there are commits", || async {
        wait_durability(&cluster, Durability::Quorum).await;
        let shown = cluster.operator_cli(&["cluster", "status"]).await.ok();
        match shown.text().contains("before they are at every site with keys") && degraded(&cluster) {
            true => Ok(()),
            false => Err(shown.text().to_owned()),
        }
    })
    .await;

    cluster.restart(1);
    cluster.wait_ready().await;
    wait_durability(&cluster, Durability::BothKeyed).await;
    assert!(!degraded(&cluster));
}

#[tokio::test(flavor = "multi_thread")]
async fn keyless_nodes_are_never_a_majority() {
    let mut cluster = Cluster::prepare(Options { keyless: vec![1, 2], ..Options::default() });
    cluster.restart_all();
    cluster.wait_answers(0).await;
    until("all nodes are there", || async {
        let refused = cluster.operator_cli(&["cluster", "init", "--nodes", "3"]).await;
        assert_ne!(refused.code, 0);
        match refused.stderr.contains("must be fewer than those with keys") {
            true => Ok(()),
            false => Err(refused.stderr),
        }
    })
    .await;
}
