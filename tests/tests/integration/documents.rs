//! Documents larger than a body may be: in and out again over kills, for one commit of one chart, dropped when abandoned.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use charthold_client::{Chart, Client, Document, Error, Mutation, Put, RecordId, Uuid, new_request_id};
use charthold_tests::away::{log_ends, wait_purged_beyond};
use charthold_tests::harness::{Cluster, Options, until};
use tokio::io::AsyncWriteExt as _;

const PART_BYTES: usize = 256 << 10;
const MIB: usize = 1 << 20;

fn record(id: &str) -> RecordId {
    RecordId::new("DocumentReference", id)
}

fn pdf() -> Put {
    Put { content_type: "application/pdf".into(), ..Put::default() }
}

fn refer(id: &str, document: Document) -> Mutation {
    Mutation::put(record(id), Put { document: Some(document), ..pdf() })
}

/// Half of it no zip program makes smaller, half of it any: by turns, a part and a half each.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let random = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    };
    let mut content: Vec<u8> = std::iter::repeat_with(random).flatten().take(length).collect();
    for even in content.chunks_mut(PART_BYTES * 3 / 2).step_by(2) {
        even.fill(b'.');
    }
    content
}

async fn read(client: &Client, chart: &Chart, id: &str) -> Result<Vec<u8>, Error> {
    let mut read = Vec::new();
    client.read_document(chart, &record(id)).await?.copy_to(&mut read).await?;
    Ok(read)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_comes_back_whole_whoever_dies() {
    let content = content(24 * MIB + 4_711, 1);
    let chart = Chart::patient("p1");
    let mut cluster = Cluster::start(3).await;
    // Each node dies once while parts come: one of them led the shard.
    let (source, mut sink) = tokio::io::duplex(PART_BYTES);
    let (client, to) = (cluster.client().with_deadline(Duration::from_secs(60)), chart.clone());
    let upload = tokio::spawn(async move { client.put_document(&to, &record("d1"), pdf(), source).await });
    for (node, part) in content.chunks(content.len() / 3 + 1).enumerate() {
        let (first, second) = part.split_at(part.len() / 2);
        sink.write_all(first).await.unwrap();
        cluster.kill(node);
        sink.write_all(second).await.unwrap();
        cluster.restart(node);
        cluster.wait_ready().await;
    }
    drop(sink);
    assert_eq!(upload.await.unwrap().unwrap().versions, [1]);

    for node in 0..cluster.size() {
        assert!(read(&cluster.client_at(node), &chart, "d1").await.unwrap() == content, "by gateway {node}");
    }
    // Each node dies once while it is read.
    for node in 0..cluster.size() {
        let mut stream = cluster.client().read_document(&chart, &record("d1")).await.unwrap();
        let mut read = stream.next().await.unwrap().unwrap().to_vec();
        cluster.kill(node);
        while let Some(chunk) = stream.next().await {
            read.extend_from_slice(&chunk.unwrap());
        }
        assert!(read == content, "read while node {node} died");
        cluster.restart(node);
        cluster.wait_ready().await;
    }
    cluster.kill_all();
    cluster.restart_all();
    cluster.wait_ready().await;
    assert!(read(&cluster.client(), &chart, "d1").await.unwrap() == content, "after all nodes were killed");
    cluster.wait_roots_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_a_version_like_any_other() {
    let cluster = Cluster::start(1).await;
    let (client, chart) = (cluster.client(), Chart::patient("p1"));
    let big = content(2 * MIB, 2);
    client.put(&chart, &record("d1"), Put::new("text/plain", "small")).await.unwrap();
    let put = Put { clinical_date: "2024-05".into(), ..pdf() };
    assert_eq!(client.put_document(&chart, &record("d1"), put, big.as_slice()).await.unwrap().versions, [2]);

    let got = client.get(&chart, &record("d1")).await.unwrap();
    assert!(got.header.document && got.body.is_empty());
    assert_eq!((got.header.length_bytes, got.header.clinical_date.as_str()), (big.len() as u64, "2024-05"));
    let batch = client.batch_get(&chart, &[record("d1")]).await.unwrap();
    assert!(batch[0].as_ref() == Some(&got));
    assert!(client.list(&chart, None).await.unwrap() == [got.header.clone()]);
    let history = client.history(&chart, &record("d1")).await.unwrap();
    assert_eq!(history.iter().map(|header| header.document).collect::<Vec<_>>(), [true, false]);
    let all = client.read_chart(&chart).await.unwrap().next().await.unwrap().unwrap();
    assert!(all == got);

    // Content of any size can be read as a stream, none of it too; a deleted record has none.
    let mut small = Vec::new();
    client.read_document_version(&chart, &record("d1"), 1).await.unwrap().copy_to(&mut small).await.unwrap();
    assert_eq!(small, b"small");
    for length in [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES] {
        let content = content(length, 3);
        client.put_document(&chart, &record("d2"), pdf(), content.as_slice()).await.unwrap();
        assert!(read(&client, &chart, "d2").await.unwrap() == content, "{length} bytes");
    }
    client.delete(&chart, &record("d1"), 2).await.unwrap();
    assert_eq!(
        read(&client, &chart, "d1").await.err(),
        Some(Error::NotFound { index: None, deleted_version: Some(3) })
    );
    let mut old = Vec::new();
    client.read_document_version(&chart, &record("d1"), 2).await.unwrap().copy_to(&mut old).await.unwrap();
    assert!(old == big);
}

/// Sends the first of two parts, and then nothing: until a commit that refers to it is told that there must be more.
async fn begin(client: &Client, id: Uuid, chart: &Chart, content: &[u8]) {
    let (source, mut sink) = tokio::io::duplex(content.len());
    sink.write_all(content).await.unwrap();
    let commit = vec![refer("d1", Document { upload_id: id, length_bytes: 0 })];
    let begun = until("the first part is stored", || async {
        match client.commit(chart, commit.clone()).await {
            Err(Error::UploadIncomplete) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    tokio::select! {
        ended = client.upload_with_id(id, chart, source) => panic!("the upload has ended: {ended:?}"),
        () = begun => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_for_one_commit_of_its_chart() {
    let cluster = Cluster::start(1).await;
    let (client, chart, other) = (cluster.client(), Chart::patient("p1"), Chart::patient("p2"));
    let content = content(3 * PART_BYTES + 5, 4);
    let id = new_request_id();
    let document = Document { upload_id: id, length_bytes: content.len() as u64 };
    let never = client.commit(&chart, vec![refer("d1", document)]).await;
    assert_eq!(never, Err(Error::UploadNotFound));
    begin(&client, id, &chart, &content[..2 * PART_BYTES]).await;
    let mut changed = content.clone();
    changed[7] ^= 1;
    let mixed = client.upload_with_id(id, &chart, changed.as_slice()).await;
    assert_eq!(mixed, Err(Error::RequestIdReused));

    // It goes on where it ended, and again: nothing is stored twice.
    for _ in 0..2 {
        assert_eq!(client.upload_with_id(id, &chart, content.as_slice()).await, Ok(document));
    }
    assert_eq!(client.commit(&other, vec![refer("d1", document)]).await, Err(Error::UploadNotFound));
    let failed = client.commit(&chart, vec![refer("d1", document).if_version(7)]).await;
    assert!(matches!(failed, Err(Error::VersionMismatch { .. })), "{failed:?}");
    let request_id = new_request_id();
    let commit = || client.commit_with_id(request_id, &chart, vec![refer("d1", document)]);
    let committed = commit().await.unwrap();
    assert_eq!(committed.versions, [1]);
    assert_eq!(commit().await, Ok(committed), "a repeated commit is answered as before");
    assert_eq!(client.commit(&chart, vec![refer("d2", document)]).await, Err(Error::UploadNotFound));
    assert_eq!(client.upload_with_id(id, &chart, content.as_slice()).await, Ok(document));
    assert!(read(&client, &chart, "d1").await.unwrap() == content);

    // So many may be open in one chart.
    for number in 0..17 {
        let upload = client.upload(&other, &b"x"[..]).await;
        assert_eq!(upload.err(), (number == 16).then_some(Error::TooManyUploads), "upload {number}");
    }
    client.upload(&chart, &b"x"[..]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_upload_is_dropped() {
    let config = "[limits]\nupload_idle_ms = 5000\n".to_owned();
    let mut cluster = Cluster::start_with(Options { config, ..Options::default() }).await;
    let (client, chart) = (cluster.client(), Chart::patient("p1"));
    let content = content(3 * PART_BYTES, 5);
    let kept = client.upload(&chart, content.as_slice()).await.unwrap();
    client.commit(&chart, vec![refer("d1", kept)]).await.unwrap();
    let abandoned = client.upload(&chart, content.as_slice()).await.unwrap();
    // Whoever leads then has to do it.
    let leader = cluster.leader_of_most().await;
    cluster.kill(leader);
    cluster.restart(leader);
    until("the upload is dropped", || async {
        match client.commit(&chart, vec![refer("d2", abandoned).if_version(9)]).await {
            Err(Error::UploadNotFound) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(read(&client, &chart, "d1").await.unwrap() == content, "what was committed stays");
    // The id is free again, for other content too.
    let again = client.upload_with_id(abandoned.upload_id, &chart, &b"other"[..]).await.unwrap();
    client.commit(&chart, vec![refer("d2", again)]).await.unwrap();
    assert_eq!(read(&client, &chart, "d2").await.unwrap(), b"other");
    cluster.wait_ready().await;
    cluster.wait_roots_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_by_hand() {
    let cluster = Cluster::start(1).await;
    let content = content(3 * MIB + 1, 6);
    let file = cluster.folder().join("scan.pdf");
    std::fs::write(&file, &content).unwrap();
    let of = ["--patient", "p1", "--type", "DocumentReference", "--id"];
    let json = format!("{{\"text\": \"{}\"}}", "x".repeat(2 * MIB));
    let put = |id: &'static str| [&["record", "put"], &of[..], &[id]].concat();
    let path = file.to_str().unwrap();
    let typed = [put("d1"), vec!["--file", path, "--content-type", "application/pdf"]].concat();
    assert_eq!(cluster.cli(&typed).await.ok().text(), "version 1");
    cluster.cli_with("client", &put("d2"), json.as_bytes()).await.ok();
    cluster.cli_with("client", &put("d3"), b"{\"small\": 1}").await.ok();
    let get = |id: &'static str| [&["record", "get"], &of[..], &[id]].concat();
    assert!(cluster.cli(&get("d1")).await.ok().stdout == content);
    assert!(cluster.cli(&get("d2")).await.ok().stdout == json.as_bytes());
    let header = cluster.cli(&[get("d1"), vec!["--output", "json"]].concat()).await.ok().json();
    assert_eq!((&header["document"], &header["length_bytes"]), (&true.into(), &content.len().into()));

    let export = cluster.cli(&["chart", "export", "p1"]).await.ok();
    let lines: Vec<&[u8]> = export.stdout.trim_ascii_end().split(|byte| *byte == b'\n').collect();
    assert_eq!(lines[0], b"{\"small\":1}");
    let mut documents = lines[1..].to_vec();
    documents.sort_by_key(|line| line.len());
    assert!(documents[0] == json.replace(": ", ":").as_bytes());
    let wrapped: serde_json::Value = serde_json::from_slice(documents[1]).unwrap();
    assert_eq!((lines.len(), &wrapped["content_type"]), (3, &"application/pdf".into()));
    let base64 = base64::engine::general_purpose::STANDARD;
    assert!(base64.decode(wrapped["base64"].as_str().unwrap()).unwrap() == content);
}

/// Entries are few, and none would go by their number.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_full_of_documents_lets_go_of_them() {
    let chart = Chart::patient("p1");
    let config = "[raft]\nkeep_bytes = 16777216\n".to_owned();
    let mut cluster = Cluster::start_with(Options { config, ..Options::default() }).await;
    let (client, away) = (cluster.client(), 2);
    let document = content(24 * MIB, 2);
    client.put_document(&chart, &record("d0"), pdf(), &document[..]).await.unwrap();
    let ends = log_ends(&cluster, away).await;
    cluster.kill(away);
    for id in ["d1", "d2"] {
        client.put_document(&chart, &record(id), pdf(), &document[..]).await.unwrap();
    }
    // The chart's shard, by what it was given.
    let parts = (document.len() / PART_BYTES) as u64;
    let now = log_ends(&cluster, 0).await;
    let of_chart = ends.into_iter().filter(|(shard, end)| now[shard] > end + parts).collect::<HashMap<_, _>>();
    assert_eq!(of_chart.len(), 1);
    for node in [0, 1] {
        wait_purged_beyond(&cluster, node, &of_chart).await;
    }
    cluster.restart(away);
    wait_purged_beyond(&cluster, away, &of_chart).await;
    // It has them all, by a snapshot.
    cluster.kill(0);
    for id in ["d0", "d1", "d2"] {
        assert!(read(&client, &chart, id).await.unwrap() == document, "{id}");
    }
}
