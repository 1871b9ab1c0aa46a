//! More at once than a gateway has room for: refused with when to come again, and nobody else notices.

use std::time::Duration;

use charthold::seal::Token;
use charthold::tls::{Principal, Validity};
use charthold_client::{Chart, Put, RecordId, Role};
use charthold_proto::v1;
use charthold_tests::harness::{CLUSTER, Cluster, until};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::wire::{Refusal, Wire};

const COMMIT: &str = "charthold.v1.Charts/Commit";
const MIB: usize = 1 << 20;

/// A commit of one record with so large a body.
fn commit(bytes: usize) -> v1::CommitRequest {
    v1::CommitRequest {
        context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
        request_id: Uuid::now_v7().to_string(),
        chart: Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p".to_owned() }),
        mutations: vec![v1::Mutation {
            record: Some(v1::RecordRef { r#type: "Note".to_owned(), id: Uuid::now_v7().to_string() }),
            precondition: None,
            operation: Some(v1::mutation::Operation::Put(v1::Put {
                content_type: "text/plain".to_owned(),
                body: vec![b'x'; bytes].into(),
                ..Default::default()
            })),
        }],
    }
}

async fn try_commit(wire: &Wire, bytes: usize) -> Result<(), Status> {
    wire.ask::<v1::CommitResponse>(COMMIT, &commit(bytes)).await.map(|_| ())
}

/// A service of another tenant.
async fn other_tenant(cluster: &Cluster) -> Wire {
    let operator = cluster.operator();
    let uid = operator.admin().create_tenant("other").await.unwrap().uid;
    let mut token = Token::default();
    hex::decode_to_slice(&uid, &mut token).unwrap();
    cluster.authority().service(&token, "other", &cluster.folder().join("other"), Validity::default()).unwrap();
    let principal = Principal::service(CLUSTER, &token, "other").unwrap().uri();
    operator.admin().add_grant(&principal, &[Role::Reader, Role::Writer]).await.unwrap();
    Wire::connect(cluster, 0, "other")
}

/// Until a call like this is refused as overload; what the refusal says is checked.
async fn is_refused(wire: &Wire, bytes: usize) {
    let status = until("it is refused", || async {
        match try_commit(wire, bytes).await {
            Err(status) if status.code() == Code::ResourceExhausted => Ok(status),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(Refusal::of(&status).reason, "OVERLOADED");
    let delay = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    assert!(delay.is_some_and(|delay| !delay.is_zero()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_flood_is_its_own() {
    let cluster = Cluster::start(1).await;
    let other = other_tenant(&cluster).await;
    let chart = Chart::patient("p");
    cluster.client().put(&chart, &RecordId::new("Note", "n"), Put::new("text/plain", "kept")).await.unwrap();
    let wires = [Wire::connect(&cluster, 0, "client"), Wire::connect(&cluster, 0, "client")];

    // Three quarters of the room for messages that are being read, in nine that do not end.
    let mut held = JoinSet::new();
    let large = || Some(commit(5 * MIB).encode_to_vec().into());
    (0..9).for_each(|_| drop(held.spawn(hold(Wire::connect(&cluster, 0, "client"), large()))));
    is_refused(&wires[0], 5 * MIB).await;
    try_commit(&wires[0], 1_000).await.unwrap();
    try_commit(&other, MIB / 2).await.unwrap();
    held.shutdown().await;
    let too_large = until("there is room again", || async {
        match try_commit(&wires[0], 5 * MIB).await {
            Err(status) if status.code() == Code::InvalidArgument => Ok(status),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(too_large.message().contains("body"), "{too_large:?}");

    // All places that a tenant may have, by calls that say nothing.
    let mut held = JoinSet::new();
    for _ in 0..2 {
        let wire = Wire::connect(&cluster, 0, "client");
        (0..200).for_each(|_| drop(held.spawn(hold(wire.clone(), None))));
    }
    is_refused(&wires[1], 1_000).await;
    try_commit(&other, 1_000).await.unwrap();
    cluster.client().get(&chart, &RecordId::new("Note", "n")).await.unwrap();
    cluster.status_of(0).await.unwrap();
    held.shutdown().await;
    until("there are places again", || async {
        try_commit(&wires[1], 1_000).await.map_err(|status| status.to_string())
    })
    .await;
}

/// A call that does not end. One that is refused, since another's came first, comes again.
async fn hold(wire: Wire, request: Option<bytes::Bytes>) -> Status {
    loop {
        let status = wire.hold(COMMIT, request.clone()).await;
        if status.code() != Code::ResourceExhausted {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
