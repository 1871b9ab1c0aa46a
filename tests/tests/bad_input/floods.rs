//! Clients that hold on to what they do not use, or do too much of one thing: each is stopped at a limit, and who behaves
//! is served meanwhile, over an old connection and over a new one.

use std::net::SocketAddr;
use std::time::Duration;

use charthold_client::{Chart, Client, Put, RecordId};
use charthold_proto::v1;
use charthold_tests::harness::{Cluster, WAIT_MAX, resident_mib, until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::{TcpSocket, TcpStream};

use super::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, PING, RST_STREAM, frame, headers, message,
};

const GET: &str = "charthold.v1.Charts/Get";
const READ_CHART: &str = "charthold.v1.Charts/ReadChart";
const WINDOW: u32 = 65_535;
/// What a hundred readers that take nothing may hold: about three pages each.
const STALLED_MIB_MAX: u64 = 512;

/// A service with a connection of its own that is there before anything begins.
struct Witness {
    client: Client,
    version: u64,
}

impl Witness {
    async fn new(cluster: &Cluster) -> Self {
        let mut witness = Self { client: cluster.client().with_deadline(Duration::from_secs(20)), version: 0 };
        witness.is_served(cluster).await;
        witness
    }

    async fn is_served(&mut self, cluster: &Cluster) {
        self.version += 1;
        let (chart, record) = (Chart::patient("witness"), RecordId::new("Note", "n1"));
        let committed = self.client.put(&chart, &record, Put::new("text/plain", "x")).await.unwrap();
        assert_eq!(committed.versions, [self.version]);
        let newcomer = cluster.client().with_deadline(Duration::from_secs(20));
        assert_eq!(newcomer.get(&chart, &record).await.unwrap().version(), self.version);
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_MAX, work).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// From an address of its own, so that it is not the witness's share that is used up.
async fn connect_from(source: &str, to: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{source}:0").parse().unwrap())?;
    socket.connect(to.parse::<SocketAddr>().unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_shake_hands_keep_nobody_out() {
    let cluster = Cluster::start(1).await;
    let mut witness = Witness::new(&cluster).await;
    let mut held = Vec::new();
    for round in 0..10 {
        for port in [cluster.endpoint(0), cluster.peer_endpoint(0)] {
            for number in 0..150 {
                // The kernel may be slow to take so many: that is its business.
                let source = format!("127.0.0.{}", 2 + number % 3);
                let attempt = connect_from(&source, &port);
                if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(5), attempt).await {
                    held.push(stream);
                }
            }
        }
        if round % 3 == 0 {
            witness.is_served(&cluster).await;
        }
    }
    assert!(held.len() > 1_000, "{}", held.len());
    witness.is_served(&cluster).await;
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    let refusals = log.matches("refusing connections").count();
    assert!((1..=8).contains(&refusals), "a flood of lines: {refusals}");
    // All of them are closed, at once or when the time for a handshake is over.
    for stream in held {
        let closed = async {
            let mut buffer = [0];
            while let Ok(()) = stream.readable().await {
                match stream.try_read(&mut buffer) {
                    Ok(0) => return,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        within("a connection without a handshake is closed", closed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_file_descriptors_recovers() {
    let mut cluster = Cluster::start(1).await;
    let mut witness = Witness::new(&cluster).await;
    let id = Pid::from_raw(cluster.process(0).id().cast_signed()).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", id.as_raw_nonzero())).unwrap().count() as u64;
    let low = Rlimit { current: Some(open + 8), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(Some(id), Resource::Nofile, low).unwrap();
    let mut held = Vec::new();
    for _connection in 0..40 {
        held.push(connect_from("127.0.0.2", &cluster.endpoint(0)).await.unwrap());
    }
    until("the node says what is wrong", || async {
        let log = std::fs::read_to_string(cluster.log(0)).unwrap();
        if log.contains("accepting connections fails") { Ok(()) } else { Err(log) }
    })
    .await;
    let (chart, record) = (Chart::patient("witness"), RecordId::new("Note", "n1"));
    witness.client.get(&chart, &record).await.unwrap();
    drop(held);
    prlimit(Some(id), Resource::Nofile, before).unwrap();
    witness.is_served(&cluster).await;
    assert!(cluster.is_running(0));
}

/// CVE-2023-44487, CVE-2024-27316 and their kin.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_their_connection_only() {
    let cluster = Cluster::start(1).await;
    let mut witness = Witness::new(&cluster).await;
    let call = headers(GET, &[]);

    let mut resets = Vec::new();
    for number in 0..20_000 {
        resets.extend(frame(HEADERS, END_HEADERS, number * 2 + 1, &call));
        resets.extend(frame(RST_STREAM, 0, number * 2 + 1, &8_u32.to_be_bytes()));
    }
    flooded(&cluster, "rapid resets", &resets).await;
    witness.is_served(&cluster).await;

    let mut continuations = frame(HEADERS, 0, 1, &call);
    for _frame in 0..10_000 {
        // A header field that is taken from nowhere: literal, "x: x".
        continuations.extend(frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'x'].repeat(100)));
    }
    flooded(&cluster, "continuations", &continuations).await;
    witness.is_served(&cluster).await;

    // The call is refused, or the connection closed.
    let mut empty = frame(HEADERS, END_HEADERS, 1, &call);
    (0..10_000).for_each(|_| empty.extend(frame(DATA, 0, 1, &[])));
    let mut connection = Http2::connect(&cluster, "client", WINDOW).await;
    let _cut = connection.send(&empty).await;
    let answer = within("empty frames are refused", connection.next()).await;
    assert!(answer.is_none_or(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY)));
    witness.is_served(&cluster).await;

    let pings = frame(PING, 0, 0, &[7; 8]).repeat(50_000);
    let mut connection = Http2::connect(&cluster, "client", WINDOW).await;
    // Nobody reads the answers: the node stops reading more, or ends the connection.
    let _either_way = tokio::time::timeout(Duration::from_secs(2), connection.send(&pings)).await;
    witness.is_served(&cluster).await;
}

async fn flooded(cluster: &Cluster, what: &str, bytes: &[u8]) {
    let mut connection = Http2::connect(cluster, "client", WINDOW).await;
    let flood = async {
        // Closed on the way, perhaps.
        let _cut = connection.send(bytes).await;
        connection.closed().await;
    };
    within(what, flood).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_are_refused_one_by_one() {
    let cluster = Cluster::start(1).await;
    let mut witness = Witness::new(&cluster).await;
    // Of another tenant: calls whose requests never come hold places, of which each tenant has its share.
    let other = cluster.operator().admin().create_tenant("other").await.unwrap().uid;
    cluster.issue_service(&other, "flooder");
    let mut connection = Http2::connect(&cluster, "flooder", WINDOW).await;
    // Whoever knows the limit has no excuse: wait for it.
    let call = headers(GET, &[]);
    let mut calls = Vec::new();
    (0..300).for_each(|number| calls.extend(frame(HEADERS, END_HEADERS, number * 2 + 1, &call)));
    connection.send(&calls).await.unwrap();
    let mut refused = 0;
    within("the surplus is refused", async {
        while refused < 300 - 256 {
            let Some(frame) = connection.next().await else { break };
            assert!(frame.kind != HEADERS, "a call without a request was answered");
            refused += usize::from(frame.kind == RST_STREAM);
        }
    })
    .await;
    assert_eq!(refused, 300 - 256);
    witness.is_served(&cluster).await;
}

/// Each waits for about as long as its limit says; together, so that the test does not.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_nothing_is_not_waited_for() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.process(0).id();
    let mut witness = Witness::new(&cluster).await;
    let chart = Chart::patient("large");
    for number in 0..12 {
        let (record, body) = (RecordId::new("Note", format!("n{number}")), vec![b'x'; 900_000]);
        witness.client.put(&chart, &record, Put::new("text/plain", body)).await.unwrap();
    }
    let before_mib = resident_mib(id);

    let never_speaks = async {
        Http2::silent(&cluster, "client").await.closed().await;
    };
    let never_calls = async {
        Http2::connect(&cluster, "client", WINDOW).await.closed().await;
    };
    let never_asks = async {
        let mut connection = Http2::connect(&cluster, "client", WINDOW).await;
        connection.send(&frame(HEADERS, END_HEADERS, 1, &headers(GET, &[]))).await.unwrap();
        let answer = connection.first(HEADERS).await.expect("an answer");
        assert!(answer.stream == 1 && answer.flags & END_STREAM != 0, "refused, not served");
    };
    let gives_no_time = async {
        let mut connection = Http2::connect(&cluster, "client", WINDOW).await;
        let call = headers(GET, &[("grpc-timeout", "200m")]);
        connection.send(&frame(HEADERS, END_HEADERS, 1, &call)).await.unwrap();
        let answer = connection.first(HEADERS).await.expect("an answer");
        assert!(answer.flags & END_STREAM != 0);
    };
    let never_reads = async {
        let mut connection = Http2::connect(&cluster, "client", 0).await;
        let request = v1::ReadChartRequest {
            context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
            chart: Some(v1::ChartRef { id: "large".to_owned(), kind: v1::chart_ref::Kind::Patient as i32 }),
            ..Default::default()
        };
        for number in 0..100 {
            let stream = number * 2 + 1;
            connection.send(&frame(HEADERS, END_HEADERS, stream, &headers(READ_CHART, &[]))).await.unwrap();
            connection.send(&frame(DATA, END_STREAM, stream, &message(&request))).await.unwrap();
        }
        // Refused at once, or reset when nobody has read for too long.
        let mut ended = 0;
        while ended < 100 {
            let frame = connection.next().await.expect("the connection stays");
            assert_ne!(frame.kind, DATA, "there is no window for it");
            let refused = frame.kind == HEADERS && frame.flags & END_STREAM != 0;
            ended += usize::from(frame.kind == RST_STREAM || refused);
        }
        // The connection is as good as before.
        connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1001, &headers(GET, &[]))).await.unwrap();
        assert_eq!(connection.first(HEADERS).await.unwrap().stream, 1001);
    };
    let witnesses = async {
        for _second in 0..20 {
            witness.is_served(&cluster).await;
            let now_mib = resident_mib(id);
            assert!(now_mib < before_mib + STALLED_MIB_MAX, "{before_mib} to {now_mib} MiB");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::join!(
        within("a connection that never speaks is closed", never_speaks),
        within("a connection that never calls is closed", never_calls),
        within("a call whose request never comes is refused", never_asks),
        within("a deadline holds for the request's arrival", gives_no_time),
        within("streams that nobody reads are reset", never_reads),
        witnesses,
    );
}
