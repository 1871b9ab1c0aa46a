//! Shards on a part of the nodes: they move while clients write, every gateway answers for all of them, and what is lost
//! with a node is made anew on others.

use std::collections::BTreeMap;

use charthold_client::{Chart, Client, FindQuery, Mutation, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, Writers, until};
use serde_json::Value;

const SITES: usize = 5;
const CHARTS: usize = 16;
const MRN: &str = "https://hospital.example/mrn";

fn chart(number: usize) -> Chart {
    Chart::patient(format!("placed-{number}"))
}

fn patient() -> RecordId {
    RecordId::new("Patient", "p")
}

fn document() -> RecordId {
    RecordId::new("DocumentReference", "d")
}

/// Of more than one part.
fn content(number: usize) -> Vec<u8> {
    vec![number as u8; 300 << 10]
}

async fn fill(client: &Client) {
    for number in 0..CHARTS {
        let put = Put::fhir(format!(r#"{{"number":{number}}}"#)).with_index_term(MRN, number.to_string());
        client.commit(&chart(number), vec![Mutation::put(patient(), put)]).await.unwrap();
        let pdf = Put { content_type: "application/pdf".into(), ..Put::default() };
        client.put_document(&chart(number), &document(), pdf, content(number).as_slice()).await.unwrap();
    }
}

/// A gateway answers every kind of read for every chart, wherever its shard is.
async fn check_reads(client: &Client) {
    for number in 0..CHARTS {
        let chart = chart(number);
        let got = client.get(&chart, &patient()).await.unwrap();
        assert_eq!(got.body, format!(r#"{{"number":{number}}}"#).as_bytes());
        assert_eq!(client.list(&chart, None).await.unwrap().len(), 2);
        assert_eq!(client.history(&chart, &patient()).await.unwrap().len(), 1);
        let batch = client.batch_get(&chart, &[patient(), document(), RecordId::new("Note", "none")]).await.unwrap();
        assert_eq!(batch.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
        let mut stream = client.read_chart(&chart).await.unwrap();
        let position = stream.position().to_owned();
        let mut records = 0;
        while let Some(record) = stream.next().await {
            record.unwrap();
            records += 1;
        }
        assert_eq!(records, 2);
        assert_eq!(client.at_position(&position).get(&chart, &patient()).await.unwrap().version(), 1);
        let mut read = Vec::new();
        client.read_document(&chart, &document()).await.unwrap().copy_to(&mut read).await.unwrap();
        assert!(read == content(number));
        let found = client.find_charts(FindQuery::new(MRN, number.to_string())).all().await.unwrap();
        assert!(found.len() == 1 && found[0].chart == chart, "chart {number} is found by its number");
    }
}

/// Which nodes vote in each shard that holds anything, by its leader.
async fn voters(cluster: &Cluster) -> Vec<Vec<String>> {
    let nodes = cluster.status_of_all().await.unwrap().nodes;
    let name = |id: &Value| nodes.iter().find(|node| Some(node.id.as_str()) == id.as_str()).unwrap().name.clone();
    let shards = cluster.operator_cli(&["shard", "list", "--output", "json"]).await.ok().json();
    let holding = shards.as_array().unwrap().iter().filter(|shard| shard["slots"].is_object());
    holding.map(|shard| shard["voter_node_ids"].as_array().unwrap().iter().map(name).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_move_while_clients_write_and_every_gateway_answers() {
    let config = "[shards]\nreplace_after_s = 5\n".to_owned();
    let mut cluster = Cluster::start_with(Options { sites: SITES, config, ..Options::default() }).await;
    for shard in ["1", "2"] {
        cluster.operator_cli(&["shard", "split", shard]).await.ok();
    }
    fill(&cluster.client()).await;
    let writers = Writers::start(&cluster, 6);
    // What is planned is shown, and nothing else happens.
    let plan = cluster.operator_cli(&["shard", "plan", "--replicas", "3"]).await.ok();
    assert_eq!(plan.text().lines().count(), 1 + 4, "{}", plan.text());
    assert!(voters(&cluster).await.iter().all(|voters| voters.len() == SITES));
    cluster.operator_cli(&["shard", "apply", "--replicas", "3"]).await.ok();
    let placed = voters(&cluster).await;
    assert!(placed.len() == 4 && placed.iter().all(|voters| voters.len() == 3), "{placed:?}");
    let mut count = BTreeMap::<_, usize>::new();
    placed.iter().flatten().for_each(|name| *count.entry(name).or_default() += 1);
    assert!(count.len() == SITES && count.values().all(|shards| (2..=3).contains(shards)), "{count:?}");
    for node in 0..SITES {
        check_reads(&cluster.client_at(node)).await;
    }
    // A new shard is where the one was that it came from.
    cluster.operator_cli(&["shard", "split", "1"]).await.ok();
    assert!(voters(&cluster).await.iter().all(|voters| voters.len() == 3));
    for node in 0..SITES {
        check_reads(&cluster.client_at(node)).await;
    }
    // A node that is gone for long: others get what it had.
    cluster.kill(4);
    until("its replicas are made anew", || async {
        let placed = voters(&cluster).await;
        let gone = placed.iter().flatten().filter(|name| *name == "e1").count();
        if gone == 0 && placed.iter().all(|voters| voters.len() == 3) { Ok(()) } else { Err(format!("{placed:?}")) }
    })
    .await;
    for node in 0..SITES - 1 {
        check_reads(&cluster.client_at(node)).await;
    }
    cluster.restart(4);
    cluster.wait_ready().await;
    check_reads(&cluster.client_at(4)).await;
    cluster.operator_cli(&["shard", "check", "--rows"]).await.ok();
    let status = cluster.operator_cli(&["cluster", "status"]).await.ok();
    assert!(status.text().contains("nothing is wrong"), "{}", status.text());
    // A node that is to go has nothing any more.
    cluster.operator_cli(&["shard", "apply", "--leave", "a1"]).await.ok();
    let placed = voters(&cluster).await;
    assert!(placed.iter().all(|voters| voters.len() == 3 && !voters.contains(&"a1".to_owned())), "{placed:?}");
    // And back: every node has all.
    cluster.operator_cli(&["shard", "apply", "--replicas", "0"]).await.ok();
    assert!(voters(&cluster).await.iter().all(|voters| voters.len() == SITES));
    for log in writers.stop().await {
        assert!(log.acknowledged() > 0);
        log.check(&cluster.client()).await;
    }
    cluster.wait_roots_equal().await;
}
