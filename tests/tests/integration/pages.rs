//! A chart that is small when sealed and large in clear: every page stays within what a message may hold.

use charthold_client::{Chart, Mutation, Put, RecordId};
use charthold_tests::harness::Cluster;

const RECORDS: usize = 40;
/// The largest body that is allowed by default: ten of these make a page that no message holds.
const BODY_BYTES: usize = 1 << 20;
/// As many as one commit may hold.
const COMMIT_RECORDS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_compresses_well_is_read_whole() {
    let cluster = Cluster::start(1).await;
    let (client, chart) = (cluster.client(), Chart::patient("p1"));
    let record = |number: usize| RecordId::new("Note", format!("n{number}"));
    let body = |number: usize| vec![b'a' + (number % 26) as u8; BODY_BYTES];
    for first in (0..RECORDS).step_by(COMMIT_RECORDS) {
        let numbers = first..first + COMMIT_RECORDS;
        let mutations = numbers.map(|number| Mutation::put(record(number), Put::new("text/plain", body(number))));
        client.commit(&chart, mutations.collect()).await.unwrap();
    }
    let sealed_bytes = std::fs::read_dir(cluster.data_dir(0).join("log")).unwrap();
    let sealed_bytes = sealed_bytes.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
    assert!(sealed_bytes < (RECORDS * BODY_BYTES / 4) as u64, "{sealed_bytes}: the bodies are not small when sealed");

    let mut stream = client.read_chart(&chart).await.unwrap();
    let mut found = Vec::new();
    while let Some(read) = stream.next().await {
        let read = read.unwrap();
        let number = read.header.record.id[1..].parse::<usize>().unwrap();
        assert!(read.body == body(number), "record {number}");
        found.push(number);
    }
    found.sort_unstable();
    assert_eq!(found, (0..RECORDS).collect::<Vec<_>>());

    let wanted = (0..RECORDS).map(record).collect::<Vec<_>>();
    let batch = client.batch_get(&chart, &wanted).await.unwrap();
    assert!(batch.iter().enumerate().all(|(number, read)| read.as_ref().is_some_and(|read| read.body == body(number))));
}
