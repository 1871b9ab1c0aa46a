//! Money that is moved between the accounts of one chart: each commit changes two records, so the sum never changes. Who
//! sees another sum has seen half a commit: in a read of the chart, in a batch, or over the pages of a list.
//!
//! Histories of the accounts are paged too: versions without a gap, and never fewer than were seen before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charthold_client::{Chart, Client, Error, ListQuery, Mutation, Order, Put, Record, RecordId};

use super::sweep::Violation;
use crate::harness::Cluster;

const ACCOUNTS: u64 = 8;
const BALANCE: u64 = 1_000;
const MOVERS: u64 = 2;
const READERS: u64 = 2;
const LISTERS: u64 = 2;
/// So that a list of all accounts takes three pages.
const LIST_ROWS: u32 = 3;
const HISTORY_ROWS: u32 = 20;
const HISTORY_PAGES: usize = 3;
const PAUSE: Duration = Duration::from_millis(20);

pub struct Transfers {
    clients: Vec<tokio::task::JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    moved: AtomicU64,
    gave_up: AtomicU64,
    violations: Mutex<Vec<Violation>>,
}

impl Shared {
    fn check_sum(&self, records: &[Record], how: &str) {
        self.check_balances(&records.iter().map(balance).collect::<Vec<_>>(), how);
    }

    fn check_balances(&self, balances: &[u64], how: &str) {
        let (accounts, sum) = (balances.len() as u64, balances.iter().sum::<u64>());
        if accounts != ACCOUNTS || sum != ACCOUNTS * BALANCE {
            let whole = ACCOUNTS * BALANCE;
            let detail = format!("{how} gives {accounts} accounts with {sum}, not {ACCOUNTS} with {whole}");
            self.found("half a commit was seen", "bank", detail);
        }
    }

    /// Whether an error is none that a client may not meet; it gave the call up.
    fn passes(&self, error: &Error) -> bool {
        self.gave_up.fetch_add(1, SeqCst);
        matches!(error, Error::Unavailable { .. } | Error::Overloaded { .. })
    }

    fn found(&self, what: &'static str, key: &str, detail: String) {
        self.violations.lock().unwrap().push(Violation { what, key: key.to_owned(), detail });
    }
}

impl Transfers {
    /// `deadline`: how long a client keeps at a call.
    pub async fn start(cluster: &Cluster, seed: u64, deadline: Duration) -> Self {
        let opened = (0..ACCOUNTS).map(|number| Mutation::put(account(number), amount(BALANCE))).collect();
        cluster.client().commit(&bank(), opened).await.expect("open the accounts");
        let shared = Arc::new(Shared::default());
        let client = || cluster.client().with_deadline(deadline);
        let movers = (0..MOVERS).map(|number| {
            let random = fastrand::Rng::with_seed(seed.wrapping_mul(77).wrapping_add(number));
            tokio::spawn(move_money(client(), random, Arc::clone(&shared)))
        });
        let readers = (0..READERS).map(|number| {
            let client = cluster.client_number(number as usize).with_deadline(deadline);
            tokio::spawn(read_sums(client, Arc::clone(&shared)))
        });
        let listers = (0..LISTERS).map(|number| {
            let client = cluster.client_number((number + READERS) as usize).with_deadline(deadline);
            tokio::spawn(list_all(client, Arc::clone(&shared)))
        });
        Self { clients: movers.chain(readers).chain(listers).collect(), shared }
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

    /// Calls that got no answer in time.
    pub fn gave_up(&self) -> u64 {
        self.shared.gave_up.load(SeqCst)
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

/// Told twice: a list shows no body.
fn amount(balance: u64) -> Put {
    Put { author: balance.to_string(), ..Put::new("text/plain", balance.to_string()) }
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
            Err(error) if shared.passes(&error) => continue,
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
            Err(Error::VersionMismatch { .. }) => continue,
            Err(Error::OutcomeUnknown { .. }) => shared.gave_up.fetch_add(1, SeqCst),
            Err(error) if shared.passes(&error) => continue,
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
            Err(error) => assert!(shared.passes(&error), "a reader: {error}"),
        }
        match client.batch_get(&bank(), &accounts).await {
            Ok(found) => shared.check_sum(&found.into_iter().flatten().collect::<Vec<_>>(), "BatchGet"),
            Err(error) => assert!(shared.passes(&error), "a reader: {error}"),
        }
    }
}

async fn list_all(client: Client, shared: Arc<Shared>) {
    let mut newest = [0; ACCOUNTS as usize];
    while !shared.stop.load(SeqCst) {
        tokio::time::sleep(PAUSE).await;
        match list_balances(&client).await {
            Ok(balances) => shared.check_balances(&balances, "List, page by page,"),
            Err(error) => assert!(shared.passes(&error), "a lister: {error}"),
        }
        for (number, newest) in (0..).zip(&mut newest) {
            let before = *newest;
            let versions = match newest_versions(&client, number).await {
                Ok(versions) => versions,
                Err(error) if shared.passes(&error) => continue,
                Err(error) => panic!("a lister: {error}"),
            };
            *newest = versions.first().copied().unwrap_or_default();
            let gap = versions.windows(2).any(|pair| pair[0] != pair[1] + 1);
            if gap || *newest < before {
                let detail = format!("versions {versions:?}, after {before} was seen");
                shared.found("a history has a gap, or went back", &format!("bank/{number}"), detail);
            }
        }
    }
}

async fn list_balances(client: &Client) -> Result<Vec<u64>, Error> {
    let (mut balances, mut token) = (Vec::new(), None);
    loop {
        let page = client.list_page(&bank(), &ListQuery::of_type("Account"), LIST_ROWS, token.as_ref()).await?;
        balances.extend(page.items.iter().map(|header| header.author.parse::<u64>().expect("a balance")));
        token = page.next;
        if token.is_none() {
            return Ok(balances);
        }
    }
}

async fn newest_versions(client: &Client, number: u64) -> Result<Vec<u64>, Error> {
    let (mut versions, mut token) = (Vec::new(), None);
    for _ in 0..HISTORY_PAGES {
        let newest_first = Order::NewestFirst;
        let page = client.history_page(&bank(), &account(number), newest_first, HISTORY_ROWS, token.as_ref()).await?;
        versions.extend(page.items.iter().map(|header| header.version));
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    Ok(versions)
}

async fn read_all(client: &Client) -> Result<Vec<Record>, Error> {
    let (mut stream, mut records) = (client.read_chart(&bank()).await?, Vec::new());
    while let Some(record) = stream.next().await {
        records.push(record?);
    }
    Ok(records)
}
