//! Shards are split while clients write: none is lost, doubled or stale, and what was said before still means something.

use charthold_client::{Chart, ListQuery, Put, RecordId};
use charthold_tests::away::wait_purged_beyond;
use charthold_tests::harness::{Cluster, Options, Writers, until};
use serde_json::Value;

const CHARTS: usize = 12;
const RECORDS: usize = 5;

fn chart(number: usize) -> Chart {
    Chart::patient(format!("split-{number}"))
}

fn record(number: usize) -> RecordId {
    RecordId::new("Note", format!("n{number}"))
}

/// What each shard holds, in order; spare ones and the directory are left out.
async fn held(cluster: &Cluster) -> Vec<(u64, u64)> {
    let shards = cluster.operator_cli(&["shard", "list", "--output", "json"]).await.ok().json();
    let slots = |shard: &Value| Some((shard["slots"]["first"].as_u64()?, shard["slots"]["last"].as_u64()?));
    let mut held = shards.as_array().unwrap().iter().filter_map(slots).collect::<Vec<_>>();
    held.sort_unstable();
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_shard_is_split_by_itself() {
    let config = "[shards]\nsplit_above_commits_per_s = 5\nsplit_after_s = 3\n".to_owned();
    let cluster = Cluster::start_with(Options { config, ..Options::default() }).await;
    assert_eq!(held(&cluster).await.len(), 2);
    let writers = Writers::start(&cluster, 8);
    until("one is split", || async {
        let held = held(&cluster).await;
        if held.len() >= 3 { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    for log in writers.stop().await {
        log.check(&cluster.client()).await;
    }
    let nodes = (0..cluster.size()).map(|node| std::fs::read_to_string(cluster.log(node)).unwrap());
    assert!(nodes.collect::<String>().contains("a shard is over its bound: it is split"));
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_the_shards_while_clients_write() {
    let mut cluster = Cluster::start(3).await;
    assert_eq!(held(&cluster).await, [(0, 32_767), (32_768, 65_535)]);
    let client = cluster.client();
    for number in 0..CHARTS {
        for at in 0..RECORDS {
            client.put(&chart(number), &record(at), Put::fhir(r#"{"was":"before"}"#)).await.unwrap();
        }
    }
    let mut begun = Vec::new();
    for number in 0..CHARTS {
        begun.push(client.list_page(&chart(number), &ListQuery::default(), 2, None).await.unwrap());
    }
    let writers = Writers::start(&cluster, 4);
    for shard in ["1", "2", "3", "1", "2", "4"] {
        cluster.operator_cli(&["shard", "split", shard]).await.ok();
    }
    let shards = held(&cluster).await;
    assert_eq!(shards.len(), 8);
    assert!(shards.windows(2).all(|pair| pair[1].0 == pair[0].1 + 1), "{shards:?}");
    assert_eq!((shards[0].0, shards[7].1), (0, 65_535));
    let refused = cluster.operator_cli(&["shard", "split", "1"]).await;
    assert!(refused.code != 0 && refused.stderr.contains("CANNOT_CHANGE"), "{}", refused.stderr);

    // What lists and positions from before show is as it was.
    for (number, page) in begun.into_iter().enumerate() {
        client.put(&chart(number), &record(0), Put::fhir(r#"{"was":"after"}"#)).await.unwrap();
        let then = client.at_position(&page.position);
        assert_eq!(then.get(&chart(number), &record(0)).await.unwrap().body.as_ref(), br#"{"was":"before"}"#);
        let (mut headers, mut next) = (page.items, page.next);
        while let Some(token) = next {
            let page = client.list_page(&chart(number), &ListQuery::default(), 2, Some(&token)).await.unwrap();
            headers.extend(page.items);
            next = page.next;
        }
        assert!(headers.iter().all(|header| header.version == 1), "as of the first page");
        assert_eq!(headers.len(), RECORDS);
    }
    let before = writers.acknowledged();
    cluster.kill(0);
    until("writes go on", || async {
        let more = writers.acknowledged() - before;
        if more >= 30 { Ok(()) } else { Err(format!("{more} more commits")) }
    })
    .await;
    cluster.restart(0);
    cluster.wait_ready().await;
    for log in writers.stop().await {
        assert!(log.acknowledged() > 0);
        log.check(&client).await;
    }
    let checked = cluster.operator_cli(&["shard", "check", "--rows", "--output", "json"]).await.ok().json();
    let replicas = checked.as_array().unwrap();
    assert_eq!(replicas.len(), 3 * (1 + 8), "of all shards and the directory");
    let read = |replica: &Value| replica["rows"].as_u64() > Some(0) && replica["sha256"].is_string();
    assert!(replicas.iter().all(read), "{checked}");
}

/// A start applies again what no flush has made durable, and lets go of the log with which a shard took its slots: of
/// what is durable only.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_die_twice_after_a_split() {
    const WORDS: usize = 6_000;
    // Most is flushed while it is written, with what was split; the end is not.
    let config = "[memory]\nflush_bytes = 1048576\n".to_owned();
    let mut cluster = Cluster::start_with(Options { config, ..Options::default() }).await;
    let client = cluster.client();
    for shard in ["1", "2"] {
        cluster.operator_cli(&["shard", "split", shard]).await.ok();
    }
    let body = |number: usize, at: usize| {
        // Numbers that zstd makes half as long at best: a multiplicative hash (Knuth, vol. 3, 6.4).
        let digits = |word: usize| format!("{:016x}", (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        let words = (number * RECORDS + at) * WORDS..(number * RECORDS + at + 1) * WORDS;
        format!("{{\"of\":\"{}\"}}", words.map(digits).collect::<String>())
    };
    for at in 0..RECORDS {
        for number in 0..CHARTS {
            client.put(&chart(number), &record(at), Put::fhir(body(number, at))).await.unwrap();
        }
    }
    let takers = [3, 4].map(|shard| (shard, 0)).into_iter().collect();
    for _ in 0..2 {
        cluster.kill_all();
        cluster.restart_all();
        cluster.wait_ready().await;
        for node in 0..cluster.size() {
            wait_purged_beyond(&cluster, node, &takers).await;
        }
    }
    for at in 0..RECORDS {
        for number in 0..CHARTS {
            let found = client.get(&chart(number), &record(at)).await.unwrap();
            assert!(found.body.as_ref() == body(number, at).as_bytes(), "{number}, {at}");
        }
    }
}
