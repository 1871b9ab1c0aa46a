//! Ours: three nodes as the harness runs them, by the client library. Sealed, with mTLS, exactly once, in the ledger.

use std::path::Path;
use std::time::Duration;

use charthold_client::{Chart, Client, Put, RecordId};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::Store;
use crate::harness::{Cluster, Options, RAFT_AS_SHIPPED};

/// All shards take part, and no chart is where calls meet.
pub const CHARTS: u64 = 256;
/// Until leaders are where they belong.
const SETTLED: Duration = Duration::from_secs(30);

pub struct Charthold {
    client: Client,
    /// With connections of its own; its calls go by themselves.
    alone: Client,
    record_type: &'static str,
    processes: Vec<u32>,
    /// Nothing: it is somebody else's.
    _cluster: Option<Cluster>,
}

impl Charthold {
    /// `program`: another one than the one under test.
    pub async fn start(program: Option<&Path>) -> Self {
        let mut cluster = Cluster::prepare(Options { config: RAFT_AS_SHIPPED.to_owned(), ..Options::default() });
        (0..cluster.size()).for_each(|node| cluster.set_program(node, program));
        cluster.restart_all();
        cluster.initialize().await;
        tokio::time::sleep(SETTLED).await;
        let processes = (0..cluster.size()).map(|node| cluster.process(node).id()).collect();
        let of_running = Self::of_running(cluster.client(), "Versus", processes);
        Self { alone: cluster.client().without_streams(), _cluster: Some(cluster), ..of_running }
    }

    /// By a client of a cluster that runs. What has another type does not meet its records.
    pub fn of_running(client: Client, record_type: &'static str, processes: Vec<u32>) -> Self {
        Self { alone: client.without_streams(), client, record_type, processes, _cluster: None }
    }

    async fn put_by(&self, client: &Client, key: u64, value: Vec<u8>) -> Result<(), String> {
        let (chart, record) = self.place(key);
        let put = Put::new("application/octet-stream", value);
        client.put(&chart, &record, put).await.map(|_| ()).map_err(|error| error.to_string())
    }

    fn place(&self, key: u64) -> (Chart, RecordId) {
        (Chart::patient(format!("p{}", key % CHARTS)), RecordId::new(self.record_type, key.to_string()))
    }
}

impl Store for Charthold {
    fn put(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>> {
        self.put_by(&self.client, key, value).boxed()
    }

    fn put_alone(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>> {
        self.put_by(&self.alone, key, value).boxed()
    }

    fn get(&self, key: u64) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (chart, record) = self.place(key);
            self.client.get(&chart, &record).await.map(|_| ()).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.clone()
    }
}
