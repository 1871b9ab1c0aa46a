//! Ours: three nodes as the harness runs them, by the client library. Sealed, with mTLS, exactly once, in the ledger.

use std::time::Duration;

use charthold_client::{Chart, Client, Put, RecordId};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::Store;
use super::servers::cpu_s_of_tree;
use crate::harness::{Cluster, Options, RAFT_AS_SHIPPED};

/// All shards take part, and no chart is where calls meet.
const CHARTS: u64 = 256;
/// Until leaders are where they belong.
const SETTLED: Duration = Duration::from_secs(30);

pub struct Charthold {
    client: Client,
    processes: Vec<u32>,
    _cluster: Cluster,
}

impl Charthold {
    pub async fn start() -> Self {
        let mut cluster =
            Cluster::start_with(Options { config: RAFT_AS_SHIPPED.to_owned(), ..Options::default() }).await;
        tokio::time::sleep(SETTLED).await;
        let processes = (0..cluster.size()).map(|node| cluster.process(node).id()).collect();
        Self { client: cluster.client(), processes, _cluster: cluster }
    }
}

fn place(key: u64) -> (Chart, RecordId) {
    (Chart::patient(format!("p{}", key % CHARTS)), RecordId::new("Versus", key.to_string()))
}

impl Store for Charthold {
    fn put(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (chart, record) = place(key);
            let put = Put::new("application/octet-stream", value);
            self.client.put(&chart, &record, put).await.map(|_| ()).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn get(&self, key: u64) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (chart, record) = place(key);
            self.client.get(&chart, &record).await.map(|_| ()).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn cpu_s(&self) -> f64 {
        self.processes.iter().map(|process| cpu_s_of_tree(*process)).sum()
    }
}
