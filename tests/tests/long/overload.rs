//! Twice of what the cluster can take, for half an hour, most of it from one greedy tenant.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use charthold::seal::Token;
use charthold::tls::{Principal, Validity};
use charthold_client::Role;
use charthold_proto::v1;
use charthold_tests::harness::{CLUSTER, Cluster, Options, RAFT_AS_SHIPPED, resident_mib, until};
use rustix::process::{Pid, setpriority_process};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use self::wire::Wire;
use super::minutes;

#[path = "../bad_input/wire.rs"]
#[allow(dead_code)]
mod wire;

/// What a node's process may hold, as ARCHITECTURE.md states it.
const MEMORY_MIB_MAX: u64 = 2_560;
/// How much more the last third may need than the middle one, as a rule: by their medians, since what a moment needs is what
/// the bound is for. The first third fills the caches.
const GROWTH_PERCENT_MAX: u64 = 10;
/// How long the sustainable load is looked for, by so many callers at once.
const SEARCH: Duration = Duration::from_secs(20);
const SEARCHERS: usize = 96;
/// Not counted at the beginning.
const WARM_UP: Duration = Duration::from_secs(10);
const BODY_BYTES: usize = 2_048;
const CHARTS: u64 = 256;
const DEADLINE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(5);
/// Connections to each node, of each tenant: 256 calls at once fit on one.
const CONNECTIONS: usize = 4;
/// More calls under way would be the test's memory, not the cluster's load.
const UNDER_WAY_MAX: usize = 20_000;
/// The nodes' niceness: what loads them runs first, as if it had a machine of its own. Else they starve it, and it offers
/// less than it says.
const NODES_NICE: i32 = 5;
/// Acknowledged commits of each tenant that are read at the end.
const CHECKED: usize = 500;
/// Name, and what it offers in hundredths of the sustainable load: 200 together.
const TENANTS: [(&str, u64); 3] = [("greedy", 180), ("modest-a", 10), ("modest-b", 10)];

/// A tenant's service, at every gateway.
struct Tenant {
    name: &'static str,
    wires: Vec<Wire>,
    next: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    acknowledged: Vec<u64>,
    /// Refused with when to come again.
    refused: u64,
    /// Any other end, by code and text.
    others: HashMap<String, u64>,
    latencies: Vec<Duration>,
}

impl Tenant {
    async fn create(cluster: &Cluster, name: &'static str) -> Arc<Self> {
        let admin = cluster.operator();
        let uid = admin.admin().create_tenant(name).await.unwrap().uid;
        let mut token = Token::default();
        hex::decode_to_slice(&uid, &mut token).unwrap();
        cluster.authority().service(&token, name, &cluster.folder().join(name), Validity::default()).unwrap();
        let principal = Principal::service(CLUSTER, &token, name).unwrap().uri();
        admin.admin().add_grant(&principal, &[Role::Reader, Role::Writer]).await.unwrap();
        let nodes = (0..CONNECTIONS).flat_map(|_| 0..cluster.size());
        let wires = nodes.map(|node| Wire::connect(cluster, node, name)).collect();
        let tenant = Arc::new(Self { name, wires, next: AtomicU64::new(0), tally: Mutex::default() });
        until("the tenant may write", || async {
            let number = tenant.next.fetch_add(1, SeqCst);
            tenant.commit(number).await.map_err(|status| status.to_string())
        })
        .await;
        tenant
    }

    fn wire(&self, number: u64) -> &Wire {
        &self.wires[number as usize % self.wires.len()]
    }

    /// One new record.
    async fn commit(&self, number: u64) -> Result<(), Status> {
        let request = v1::CommitRequest {
            context: Some(v1::RequestContext { actor: "load".to_owned(), ..Default::default() }),
            request_id: Uuid::now_v7().to_string(),
            chart: Some(chart(number)),
            mutations: vec![v1::Mutation {
                record: Some(record(number)),
                precondition: None,
                operation: Some(v1::mutation::Operation::Put(v1::Put {
                    content_type: "text/plain".to_owned(),
                    body: body(number).into(),
                    ..Default::default()
                })),
            }],
        };
        let asked = self.wire(number).ask::<v1::CommitResponse>("charthold.v1.Charts/Commit", &request);
        tokio::time::timeout(DEADLINE, asked).await.unwrap_or(Err(Status::deadline_exceeded("the test's own")))?;
        Ok(())
    }

    /// One call of an open loop, and what became of it.
    async fn offer(self: Arc<Self>) {
        let (number, begun) = (self.next.fetch_add(1, SeqCst), Instant::now());
        let ended = self.commit(number).await;
        let mut tally = self.tally.lock().unwrap();
        match ended {
            Ok(()) => {
                tally.acknowledged.push(number);
                tally.latencies.push(begun.elapsed());
            }
            Err(status) if is_refusal(&status) => tally.refused += 1,
            Err(status) => *tally.others.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1,
        }
    }

    async fn check(&self, number: u64) {
        let request = v1::GetRequest {
            context: Some(v1::RequestContext { actor: "load".to_owned(), ..Default::default() }),
            chart: Some(chart(number)),
            record: Some(record(number)),
            version: 0,
            ..Default::default()
        };
        let found = until(&format!("{number} of {} is read", self.name), || async {
            let asked = self.wire(number).ask::<v1::GetResponse>("charthold.v1.Charts/Get", &request).await;
            match asked {
                Err(status) if status.code() == Code::NotFound => panic!("{number} was acknowledged"),
                asked => asked.map_err(|status| status.to_string()),
            }
        })
        .await;
        assert_eq!(found.record.unwrap().body, body(number));
    }
}

fn chart(number: u64) -> v1::ChartRef {
    v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: format!("p{}", number % CHARTS) }
}

fn record(number: u64) -> v1::RecordRef {
    v1::RecordRef { r#type: "Load".to_owned(), id: number.to_string() }
}

/// Of the number and nothing that compresses well.
fn body(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..BODY_BYTES).map(|_| next()).collect()
}

/// As the documentation promises it: the code, the reason, and when to come again.
fn is_refusal(status: &Status) -> bool {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    status.code() == Code::ResourceExhausted && reason == Some("OVERLOADED") && delay.is_some_and(|it| !it.is_zero())
}

/// Commits a second that callers who wait for their answers get.
async fn sustainable(tenants: &[Arc<Tenant>]) -> f64 {
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for number in 0..SEARCHERS {
        let tenant = Arc::clone(&tenants[number % tenants.len()]);
        callers.spawn(async move {
            let mut done = 0_u64;
            while begun.elapsed() < SEARCH {
                let number = tenant.next.fetch_add(1, SeqCst);
                match tenant.commit(number).await {
                    Ok(()) => done += 1,
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            done
        });
    }
    callers.join_all().await.into_iter().sum::<u64>() as f64 / begun.elapsed().as_secs_f64()
}

/// Calls at a fixed rate, whatever becomes of them.
async fn offer_all(tenant: Arc<Tenant>, per_second: f64, until: Instant) -> u64 {
    let (begun, mut offered, mut calls) = (Instant::now(), 0_u64, JoinSet::new());
    while Instant::now() < until {
        let due = (begun.elapsed().as_secs_f64() * per_second) as u64;
        for _ in offered..due {
            assert!(calls.len() < UNDER_WAY_MAX, "{}: calls pile up: they are not refused", tenant.name);
            calls.spawn(Arc::clone(&tenant).offer());
        }
        offered = due;
        while calls.try_join_next().is_some() {}
        tokio::time::sleep(TICK).await;
    }
    calls.join_all().await;
    offered
}

/// Each thread of a process: those that it starts later do as the one that starts them.
fn be_nice(process: u32) {
    for thread in std::fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let thread = thread.unwrap().file_name().to_str().unwrap().parse::<i32>().unwrap();
        setpriority_process(Pid::from_raw(thread), NODES_NICE).unwrap();
    }
}

/// Resident memory of each node, in MiB.
fn memory(processes: &[u32]) -> Vec<u64> {
    processes.iter().map(|id| resident_mib(*id)).collect()
}

/// Samples, one a second, and says every minute what became of the load and where the memory is.
async fn watch_memory(
    cluster: &Cluster,
    tenants: &[Arc<Tenant>],
    processes: Vec<u32>,
    until: Instant,
) -> Vec<Vec<u64>> {
    let (mut seen, mut before) = (Vec::new(), served_and_refused(tenants));
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        seen.push(memory(&processes));
        if seen.len().is_multiple_of(60) {
            let now = served_and_refused(tenants);
            let since = now.iter().zip(&before).map(|(now, before)| (now.0 - before.0, now.1 - before.1));
            let since = since.collect::<Vec<_>>();
            let held = (0..cluster.size()).map(|node| held_mib(cluster, node)).collect::<Vec<_>>();
            let resident = seen.last().expect("one was just taken");
            println!(
                "minute {}: served and refused {since:?}; resident {resident:?} MiB, memtables and caches {held:?} MiB",
                seen.len() / 60
            );
            before = now;
        }
    }
    seen
}

fn served_and_refused(tenants: &[Arc<Tenant>]) -> Vec<(u64, u64)> {
    let of = |tenant: &Arc<Tenant>| {
        let tally = tenant.tally.lock().unwrap();
        (tally.acknowledged.len() as u64, tally.refused)
    };
    tenants.iter().map(of).collect()
}

/// What a node's engines say that they hold.
fn held_mib(cluster: &Cluster, node: usize) -> (u64, u64) {
    let metrics = tokio::task::block_in_place(|| cluster.metrics(node));
    let mib = |name: &str| (metrics.sum(name, &[]) / f64::from(1 << 20)) as u64;
    (mib("charthold_engine_memtables_bytes"), mib("charthold_engine_cache_bytes"))
}

pub async fn run() {
    let time = minutes(30);
    let mut cluster = Cluster::start_with(Options { config: RAFT_AS_SHIPPED.to_owned(), ..Options::default() }).await;
    let mut tenants = Vec::new();
    for (name, _) in TENANTS {
        tenants.push(Tenant::create(&cluster, name).await);
    }
    let processes = (0..cluster.size()).map(|node| cluster.process(node).id()).collect::<Vec<_>>();
    processes.iter().for_each(|id| be_nice(*id));
    let capacity = sustainable(&tenants).await;
    println!("sustainable: {capacity:.0} commits of {BODY_BYTES} bytes a second");

    let warm = Instant::now() + WARM_UP;
    let end = warm + time;
    let loads = tenants.iter().zip(TENANTS).map(|(tenant, (_, hundredths))| {
        tokio::spawn(offer_all(Arc::clone(tenant), capacity * hundredths as f64 / 100.0, end))
    });
    let loads = loads.collect::<Vec<_>>();
    tokio::time::sleep_until(warm.into()).await;
    let before = tenants.iter().map(|tenant| tenant.tally.lock().unwrap().acknowledged.len()).collect::<Vec<_>>();
    let memory = watch_memory(&cluster, &tenants, processes, end).await;
    let counted =
        tenants.iter().zip(&before).map(|(tenant, before)| tenant.tally.lock().unwrap().acknowledged.len() - before);
    let goodput = counted.sum::<usize>() as f64 / time.as_secs_f64();
    let mut offered = Vec::new();
    for load in loads {
        offered.push(load.await.unwrap());
    }
    report(&tenants, &offered, goodput, capacity);
    for node in 0..cluster.size() {
        let seen = memory.iter().map(|nodes| nodes[node]).collect::<Vec<_>>();
        let most = *seen.iter().max().unwrap();
        let third = seen.len() / 3;
        let (middle, last) = (median(&seen[third..2 * third]), median(&seen[2 * third..]));
        println!("node {node}: at most {most} MiB; as a rule {middle} MiB in the middle third, {last} MiB in the last");
        assert!(most <= MEMORY_MIB_MAX, "node {node} is over the bound of {MEMORY_MIB_MAX} MiB");
        assert!(last * 100 <= middle * (100 + GROWTH_PERCENT_MAX), "node {node} grows");
    }
    assert!(goodput >= 0.7 * capacity, "{goodput:.0} of {capacity:.0} a second are left: it collapses");
    for (tenant, offered) in tenants.iter().zip(&offered).skip(1) {
        let served = tenant.tally.lock().unwrap().acknowledged.len() as u64;
        assert!(served * 100 >= offered * 90, "{} was served {served} of {offered}", tenant.name);
    }
    let unexplained =
        tenants.iter().map(|tenant| tenant.tally.lock().unwrap().others.values().sum::<u64>()).sum::<u64>();
    let all = offered.iter().sum::<u64>();
    assert!(unexplained * 100 <= all, "{unexplained} of {all} ended otherwise than answered or refused");
    cluster.wait_ready().await;
    cluster.wait_roots_equal().await;
    for tenant in &tenants {
        let acknowledged = std::mem::take(&mut tenant.tally.lock().unwrap().acknowledged);
        for number in acknowledged.iter().step_by((acknowledged.len() / CHECKED).max(1)) {
            tenant.check(*number).await;
        }
    }
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

fn report(tenants: &[Arc<Tenant>], offered: &[u64], goodput: f64, capacity: f64) {
    println!("goodput: {goodput:.0} a second of {capacity:.0}");
    for (tenant, offered) in tenants.iter().zip(offered) {
        let mut tally = tenant.tally.lock().unwrap();
        tally.latencies.sort();
        let at = |part: f64| tally.latencies.get((tally.latencies.len() as f64 * part) as usize).copied();
        println!(
            "{}: {offered} offered, {} served (median {:?}, p99 {:?}), {} refused, others {:?}",
            tenant.name,
            tally.acknowledged.len(),
            at(0.5).unwrap_or_default(),
            at(0.99).unwrap_or_default(),
            tally.refused,
            tally.others
        );
    }
}
