//! A request id has one outcome, whoever dies.

use charthold_client::{Chart, Client, Committed, Error, Mutation, Put, RecordId, Uuid, new_request_id};
use charthold_tests::harness::Cluster;

/// A commit and how it first ended.
struct Asked {
    request_id: Uuid,
    mutations: Vec<Mutation>,
    first: Result<Committed, Error>,
}

impl Asked {
    async fn ask(client: &Client, chart: &Chart, mutations: Vec<Mutation>) -> Self {
        let request_id = new_request_id();
        let first = client.commit_with_id(request_id, chart, mutations.clone()).await;
        Self { request_id, mutations, first }
    }

    async fn again(&self, client: &Client, chart: &Chart) -> Result<Committed, Error> {
        client.commit_with_id(self.request_id, chart, self.mutations.clone()).await
    }
}

fn record(id: &str) -> RecordId {
    RecordId::new("Observation", id)
}

fn put(id: &str, value: u32) -> Mutation {
    Mutation::put(record(id), Put::fhir(format!("{{\"value\":{value}}}")))
}

/// Commits of every kind of outcome, and changes after them that would give each another one today.
async fn history(client: &Client, chart: &Chart) -> Vec<Asked> {
    let mut asked = Vec::new();
    asked.push(Asked::ask(client, chart, vec![put("a", 1).must_not_exist(), put("b", 1)]).await);
    asked.push(Asked::ask(client, chart, vec![put("b", 2), put("a", 2).must_not_exist()]).await);
    asked.push(Asked::ask(client, chart, vec![put("a", 2).if_version(7)]).await);
    asked.push(Asked::ask(client, chart, vec![Mutation::check(record("c")).if_version(1), put("a", 2)]).await);
    asked.push(Asked::ask(client, chart, vec![Mutation::delete(record("b")).if_version(1)]).await);
    asked.push(Asked::ask(client, chart, vec![Mutation::check(record("a")).if_version(1)]).await);

    let versions = |asked: &Asked| asked.first.clone().map(|committed| committed.versions);
    assert_eq!(versions(&asked[0]), Ok(vec![1, 1]));
    assert_eq!(versions(&asked[1]), Err(Error::AlreadyExists { index: Some(1) }));
    assert_eq!(versions(&asked[2]), Err(Error::VersionMismatch { index: Some(0), current: Some(1) }));
    assert!(
        matches!(asked[3].first, Err(Error::NotFound { .. } | Error::VersionMismatch { .. })),
        "a check of nothing"
    );
    assert_eq!(versions(&asked[4]), Ok(vec![2]));
    assert_eq!(versions(&asked[5]), Ok(vec![1]));

    let steps = [
        vec![Mutation::delete(record("a")).if_version(1)],
        vec![put("a", 3).must_not_exist()],
        vec![put("b", 3).must_not_exist(), put("c", 3)],
    ];
    for step in steps {
        client.commit(chart, step).await.unwrap();
    }
    asked
}

async fn assert_first_outcomes(client: &Client, chart: &Chart, asked: &[Asked], when: &str) {
    for (number, asked) in asked.iter().enumerate() {
        assert_eq!(asked.again(client, chart).await, asked.first, "commit {number} {when}");
        let other = client.commit_with_id(asked.request_id, chart, vec![put("a", 9)]).await;
        assert_eq!(other, Err(Error::RequestIdReused), "another content under id {number} {when}");
    }
    let mut versions = Vec::new();
    for id in ["a", "b", "c"] {
        versions.push(client.history(chart, &record(id)).await.unwrap().len());
    }
    assert_eq!(versions, [3, 3, 1], "a repeated commit has changed something {when}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_id_gives_the_first_outcome() {
    let mut cluster = Cluster::start(3).await;
    // Several, so that every node leads some of their shards, now or after another one's death.
    let charts: Vec<Chart> = (0..6).map(|number| Chart::patient(format!("p{number}"))).collect();
    let mut all = Vec::new();
    for chart in &charts {
        all.push(history(&cluster.client(), chart).await);
    }
    for node in 0..cluster.size() {
        cluster.kill(node);
        let client = cluster.client();
        for (chart, asked) in charts.iter().zip(&all) {
            assert_first_outcomes(&client, chart, asked, &format!("while node {node} was dead")).await;
        }
        cluster.restart(node);
        cluster.wait_ready().await;
        for (chart, asked) in charts.iter().zip(&all) {
            let when = format!("by gateway {node} after its restart");
            assert_first_outcomes(&cluster.client_at(node), chart, asked, &when).await;
        }
    }
    cluster.kill_all();
    cluster.restart_all();
    for (chart, asked) in charts.iter().zip(&all) {
        assert_first_outcomes(&cluster.client(), chart, asked, "after all nodes were killed").await;
    }
    for node in 0..cluster.size() {
        cluster.stop(node);
    }
    cluster.restart_all();
    for (chart, asked) in charts.iter().zip(&all) {
        assert_first_outcomes(&cluster.client(), chart, asked, "after all nodes were stopped").await;
    }
    cluster.wait_roots_equal().await;
}
