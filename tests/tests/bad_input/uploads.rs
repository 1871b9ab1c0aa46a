//! What is no part of a document, and parts that are not what was committed.

use charthold_client::{Chart, Error, Put, RecordId};
use charthold_proto::v1;
use charthold_replica::store::state::rocks::RocksState;
use charthold_replica::store::state::{MemoryLimits, StateEngine, StateOp, StateRows, Table};
use charthold_tests::harness::{Cluster, Options};
use prost::Message;
use tonic::Code;
use uuid::Uuid;

use super::wire::{Refusal, Wire};

const PART_BYTES: usize = 256 << 10;

fn part(upload: Uuid, part: u32, size: usize, last: bool) -> v1::UploadPartRequest {
    v1::UploadPartRequest {
        context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
        chart: Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p1".to_owned() }),
        upload_id: upload.to_string(),
        part,
        data: vec![7; size].into(),
        last,
    }
}

async fn send(wire: &Wire, method: &str, request: &impl Message) -> Result<(), Refusal> {
    let answer = wire.call(&format!("charthold.v1.Charts/{method}"), request.encode_to_vec().into()).await;
    answer.map(|_| ()).map_err(|status| Refusal::of(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_whole_in_order_and_within_limits() {
    let config = format!("[limits]\ndocument_bytes_max = {}\n", 2 * PART_BYTES + 10);
    let cluster = Cluster::start_with(Options { sites: 1, config, ..Options::default() }).await;
    let wire = Wire::connect(&cluster, 0, "client");
    let id = Uuid::now_v7();
    let refused = async |request: v1::UploadPartRequest, reason: &str, field: &str| {
        let refusal = send(&wire, "UploadPart", &request).await.err().unwrap();
        let fields: Vec<&str> = refusal.fields.iter().map(|(field, _)| field.as_str()).collect();
        let expected = if field.is_empty() { vec![] } else { vec![field] };
        assert_eq!((refusal.reason.as_str(), fields), (reason, expected), "{}", refusal.message);
        refusal
    };
    refused(part(id, 0, 1, false), "INVALID_FIELD", "data").await;
    refused(part(id, 0, PART_BYTES + 1, true), "INVALID_FIELD", "data").await;
    refused(part(id, 2, 11, true), "INVALID_FIELD", "part").await;
    refused(part(id, u32::MAX, 1, true), "INVALID_FIELD", "part").await;
    refused(part(Uuid::nil(), 0, 1, true), "INVALID_FIELD", "upload_id").await;
    refused(v1::UploadPartRequest { chart: None, ..part(id, 0, 1, true) }, "INVALID_FIELD", "chart").await;
    refused(v1::UploadPartRequest { context: None, ..part(id, 0, 1, true) }, "INVALID_FIELD", "context").await;
    refused(part(id, 1, 1, true), "UPLOAD_NOT_FOUND", "").await;

    send(&wire, "UploadPart", &part(id, 0, PART_BYTES, false)).await.unwrap();
    send(&wire, "UploadPart", &part(id, 0, PART_BYTES, false)).await.unwrap();
    refused(part(id, 0, 1, true), "REQUEST_ID_REUSED", "").await;
    let order = refused(part(id, 2, 10, true), "UPLOAD_OUT_OF_ORDER", "").await;
    assert_eq!((order.code, order.message.contains("part 1")), (Code::FailedPrecondition, true), "{}", order.message);
    send(&wire, "UploadPart", &part(id, 1, PART_BYTES, false)).await.unwrap();
    send(&wire, "UploadPart", &part(id, 2, 10, true)).await.unwrap();

    let client = cluster.client();
    let (chart, record) = (Chart::patient("p1"), RecordId::new("Scan", "s1"));
    let document = charthold_client::Document { upload_id: id, length_bytes: 0 };
    client.put(&chart, &record, Put { document: Some(document), ..Put::default() }).await.unwrap();
    let length_bytes = client.get(&chart, &record).await.unwrap().header.length_bytes;
    assert_eq!(length_bytes, 2 * PART_BYTES as u64 + 10);

    let context = part(id, 0, 1, true).context;
    let asked = Some(v1::RecordRef { r#type: "Scan".to_owned(), id: "s1".to_owned() });
    let read =
        v1::ReadDocumentRequest { context, chart: part(id, 0, 1, true).chart, record: asked, ..Default::default() };
    for offset in [0, 1, PART_BYTES as u64 - 1, PART_BYTES as u64, length_bytes - 10, length_bytes - 1, length_bytes] {
        let request = v1::ReadDocumentRequest { offset, ..read.clone() };
        let answers = wire.call("charthold.v1.Charts/ReadDocument", request.encode_to_vec().into()).await.unwrap();
        let answers: Vec<_> = answers.into_iter().map(|it| v1::ReadDocumentResponse::decode(it).unwrap()).collect();
        let data: usize = answers.iter().map(|answer| answer.data.len()).sum();
        assert_eq!(data as u64, length_bytes - offset, "from {offset}");
        let complete = answers.iter().map(|answer| answer.complete).collect::<Vec<_>>();
        assert!(
            complete.iter().rposition(|it| *it) == complete.iter().position(|it| *it) && complete[complete.len() - 1]
        );
    }
    let behind = v1::ReadDocumentRequest { offset: length_bytes + 1, ..read };
    let refusal = send(&wire, "ReadDocument", &behind).await.err().unwrap();
    assert_eq!(refusal.fields[0].0, "offset");
}

/// A change of a stopped node's parts.
fn tamper(cluster: &Cluster, change: impl FnOnce(StateRows) -> Vec<StateOp>) {
    let state = RocksState::open(&cluster.data_dir(0).join("state"), MemoryLimits::default()).unwrap();
    let parts = state.scan(Table::Part, &[], &[0xff; 64], 100, 64 << 20).unwrap();
    state.write(&change(parts)).unwrap();
    state.begin_flush().unwrap();
    state.finish_flush().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_were_moved_or_lost_are_noticed() {
    let mut cluster = Cluster::start(1).await;
    let chart = Chart::patient("p1");
    let record = |id: &str| RecordId::new("Scan", id);
    let content = vec![7; 3 * PART_BYTES];
    cluster.client().put_document(&chart, &record("s1"), Put::default(), content.as_slice()).await.unwrap();
    let read = async |cluster: &Cluster| {
        let mut read = Vec::new();
        let stream = cluster.client().read_document(&chart, &record("s1")).await?;
        stream.copy_to(&mut read).await.map(|_| read)
    };
    assert!(read(&cluster).await.unwrap() == content);

    let put =
        |key: &[u8], value: &bytes::Bytes| StateOp::Put { table: Table::Part, key: key.to_vec(), value: value.clone() };
    let mut kept = StateRows::new();
    assert!(cluster.stop(0).success());
    tamper(&cluster, |parts| {
        assert_eq!(parts.len(), 3);
        kept = parts.clone();
        vec![put(&parts[0].0, &parts[1].1), put(&parts[1].0, &parts[0].1)]
    });
    cluster.restart(0);
    cluster.wait_ready().await;
    assert_eq!(read(&cluster).await.err(), Some(Error::DataLoss), "swapped");

    assert!(cluster.stop(0).success());
    tamper(&cluster, |_| {
        let lost = StateOp::Delete { table: Table::Part, key: kept[2].0.clone() };
        kept[..2].iter().map(|(key, value)| put(key, value)).chain([lost]).collect()
    });
    cluster.restart(0);
    cluster.wait_ready().await;
    assert_eq!(read(&cluster).await.err(), Some(Error::DataLoss), "the last one lost");

    assert!(cluster.stop(0).success());
    tamper(&cluster, |_| kept.iter().map(|(key, value)| put(key, value)).collect());
    cluster.restart(0);
    cluster.wait_ready().await;
    assert!(read(&cluster).await.unwrap() == content, "mended");
}
