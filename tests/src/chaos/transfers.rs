//! Money that is moved between the accounts of one chart: each commit changes two records, so the sum never changes. Who
//! sees another sum has seen half a commit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charthold_client::{Chart, Client, Error, Mutation, Put, Record, RecordId};

use super::sweep::Violation;
use crate::harness::Cluster;

const ACCOUNTS: u64 = 8;
const BALANCE: u64 = 1_000;
const MOVERS: u64 = 2;
const READERS: u64 = 2;
const DEADLINE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

pub struct Transfers {
    clients: Vec<tokio::task::JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    moved: AtomicU64,
    violations: Mutex<Vec<Violation>>,
}

impl Shared {
    fn check_sum(&self, records: &[Record], how: &str) {
        let sum = records.iter().map(balance).sum::<u64>();
        if records.len() as u64 != ACCOUNTS || sum != ACCOUNTS * BALANCE {
            let detail = format!(
                "{how} gives {} accounts with {sum}, not {ACCOUNTS} with {}",
                records.len(),
                ACCOUNTS * BALANCE
            );
            let violation = Violation { what: "half a commit was seen", key: "bank".to_owned(), detail };
            self.violations.lock().unwrap().push(violation);
        }
    }
}

impl Transfers {
    pub async fn start(cluster: &Cluster, seed: u64) -> Self {
        let opened = (0..ACCOUNTS).map(|number| Mutation::put(account(number), amount(BALANCE))).collect();
        cluster.client().commit(&bank(), opened).await.expect("open the accounts");
        let shared = Arc::new(Shared::default());
        let client = || cluster.client().with_deadline(DEADLINE);
        let movers = (0..MOVERS).map(|number| {
            let random = fastrand::Rng::with_seed(seed.wrapping_mul(77).wrapping_add(number));
            tokio::spawn(move_money(client(), random, Arc::clone(&shared)))
        });
        let readers = (0..READERS).map(|number| {
            let client = cluster.client_at(number as usize % cluster.size()).with_deadline(DEADLINE);
            tokio::spawn(read_sums(client, Arc::clone(&shared)))
        });
        Self { clients: movers.chain(readers).collect(), shared }
    }

    pub async fn stop(mut self) -> Self {
        self.shared.stop.store(true, SeqCst);
        for client in self.clients.drain(..) {
            client.await.unwrap();
        }
        self
    }

    /// Commits that were acknowledged.
    pub fn done(&self) -> u64 {
        self.shared.moved.load(SeqCst)
    }

    /// What was found on the way, and the sum at the end.
    pub async fn check(&self, client: &Client) -> Vec<Violation> {
        self.shared.check_sum(&read_all(client).await.expect("read the accounts"), "the end");
        std::mem::take(&mut self.shared.violations.lock().unwrap())
    }
}

fn bank() -> Chart {
    Chart::shared("bank")
}

fn account(number: u64) -> RecordId {
    RecordId::new("Account", number.to_string())
}

fn amount(balance: u64) -> Put {
    Put::new("text/plain", balance.to_string())
}

fn balance(record: &Record) -> u64 {
    std::str::from_utf8(&record.body).expect("digits").parse().expect("a balance")
}

async fn move_money(client: Client, mut random: fastrand::Rng, shared: Arc<Shared>) {
    while !shared.stop.load(SeqCst) {
        tokio::time::sleep(PAUSE).await;
        let from = random.u64(0..ACCOUNTS);
        let to = (from + random.u64(1..ACCOUNTS)) % ACCOUNTS;
        let accounts = [account(from), account(to)];
        let found = match client.batch_get(&bank(), &accounts).await {
            Ok(found) => found.into_iter().flatten().collect::<Vec<_>>(),
            Err(error) if passes(&error) => continue,
            Err(error) => panic!("a mover: {error}"),
        };
        let [payer, payee] = found.as_slice() else { panic!("accounts do not go away") };
        let moved = random.u64(0..=balance(payer));
        let change = |record: &Record, balance: u64| {
            Mutation::put(record.header.record.clone(), amount(balance)).if_version(record.version())
        };
        let mutations = vec![change(payer, balance(payer) - moved), change(payee, balance(payee) + moved)];
        match client.commit(&bank(), mutations).await {
            Ok(_) => shared.moved.fetch_add(1, SeqCst),
            Err(Error::VersionMismatch { .. } | Error::OutcomeUnknown { .. }) => continue,
            Err(error) if passes(&error) => continue,
            Err(error) => panic!("a mover: {error}"),
        };
    }
}

async fn read_sums(client: Client, shared: Arc<Shared>) {
    let accounts = (0..ACCOUNTS).map(account).collect::<Vec<_>>();
    while !shared.stop.load(SeqCst) {
        tokio::time::sleep(PAUSE).await;
        match read_all(&client).await {
            Ok(records) => shared.check_sum(&records, "ReadChart"),
            Err(error) => assert!(passes(&error), "a reader: {error}"),
        }
        match client.batch_get(&bank(), &accounts).await {
            Ok(found) => shared.check_sum(&found.into_iter().flatten().collect::<Vec<_>>(), "BatchGet"),
            Err(error) => assert!(passes(&error), "a reader: {error}"),
        }
    }
}

async fn read_all(client: &Client) -> Result<Vec<Record>, Error> {
    let (mut stream, mut records) = (client.read_chart(&bank()).await?, Vec::new());
    while let Some(record) = stream.next().await {
        records.push(record?);
    }
    Ok(records)
}

fn passes(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Overloaded { .. })
}
