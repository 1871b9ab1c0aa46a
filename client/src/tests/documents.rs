//! Documents, against gateways that fail in chosen ways.

use tonic::Code;

use super::fake::{Gateway, Reply, refusal};
use super::{chart, client, id};
use crate::*;

const PART_BYTES: usize = 256 << 10;

/// Uploads so many bytes, through refusals; the sizes of the parts, and which of them said that they were the last.
async fn check(length: usize, script: Vec<Reply>, expected: &[(u32, usize, bool)]) {
    let gateway = Gateway::start(script).await;
    let content: Vec<u8> = (0..length).map(|at| (at / 1_000) as u8).collect();
    let document = client(&[&gateway.address]).upload(&chart(), content.as_slice()).await.unwrap();
    assert_eq!(document.length_bytes, length as u64);
    let parts = gateway.parts();
    let found: Vec<_> = parts.iter().map(|part| (part.part, part.data.len(), part.last)).collect();
    assert_eq!(found, expected);
    assert!(parts.iter().all(|part| part.upload_id == document.upload_id.to_string()));
    for part in parts {
        let begin = part.part as usize * PART_BYTES;
        assert!(part.data == content[begin..begin + part.data.len()]);
    }
}

#[tokio::test]
async fn content_is_cut_into_parts() {
    check(0, vec![], &[(0, 0, true)]).await;
    check(5, vec![], &[(0, 5, true)]).await;
    check(PART_BYTES, vec![], &[(0, PART_BYTES, true)]).await;
    check(PART_BYTES + 1, vec![], &[(0, PART_BYTES, false), (1, 1, true)]).await;
}

#[tokio::test]
async fn a_part_is_repeated_until_it_is_answered() {
    let script = vec![
        Reply::Refuse(refusal(Code::Unavailable, "NO_LEADER", None)),
        Reply::Done { leader: String::new() },
        Reply::Refuse(refusal(Code::ResourceExhausted, "OVERLOADED", None)),
    ];
    let first = (0, PART_BYTES, false);
    check(PART_BYTES + 2, script, &[first, first, (1, 2, true), (1, 2, true)]).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_not_uploaded() {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("the disk says no")))
        }
    }
    let gateway = Gateway::start([]).await;
    let error = client(&[&gateway.address]).upload(&chart(), Broken).await.unwrap_err();
    assert_eq!(error, Error::Content { why: "the disk says no".into() });
    assert!(gateway.parts().is_empty());
}

#[tokio::test]
async fn a_document_is_read_over_cuts() {
    let gateway = Gateway::start([Reply::Cut, Reply::Cut]).await;
    let stream = client(&[&gateway.address]).read_document(&chart(), &id()).await.unwrap();
    let mut read = Vec::new();
    assert_eq!(stream.copy_to(&mut read).await.unwrap(), 10);
    assert_eq!(read, b"0123456789");
}

#[tokio::test]
async fn a_document_is_read_on_where_it_is_not_damaged() {
    let (damaged, sound) = (Gateway::start([Reply::CutByError]).await, Gateway::start([]).await);
    let client = client(&[&damaged.address, &sound.address]);
    let mut read = Vec::new();
    let stream = client.read_document(&chart(), &id()).await.unwrap();
    assert_eq!(stream.copy_to(&mut read).await, Ok(10));
    assert_eq!(read, b"0123456789");
}

#[tokio::test]
async fn a_damaged_document_is_not_taken_for_whole() {
    let gateway = Gateway::start(std::iter::repeat_with(|| Reply::CutByError).take(100)).await;
    let stream = client(&[&gateway.address]).read_document(&chart(), &id()).await.unwrap();
    let mut read = Vec::new();
    assert_eq!(stream.copy_to(&mut read).await, Err(Error::DataLoss));
    assert_eq!(read, b"012");
}
