//! Checks of rows.

use super::*;
use crate::store::state::{StateOp, Table};
use crate::store::table::after_prefix;

/// Has the shard's rows checked while somebody writes; what each node's come to.
async fn check(cluster: &Cluster, name: &str) -> Vec<(u64, u64, u64, Bytes)> {
    let check_id = Bytes::copy_from_slice(&request_id(name, Platform::system().now_ms()));
    let command = Command::CheckRows(pb::CheckRows { check_id: check_id.clone() });
    assert!(matches!(propose(cluster.node(0), command).await, Answer::Done(_)));
    for number in 0..50 {
        propose(cluster.node(0), commit_of(&format!("{name} {number}"), &format!("{name}/{number}"))).await;
    }
    let of = |node: &Replica| node.status().into_iter().find(|status| status.shard == SHARD)?.rows_check;
    let done = |node: &Replica| {
        of(node).filter(|check| check.check_id == check_id && !(check.sha256.is_empty() && check.failed.is_empty()))
    };
    let found: Vec<pb::RowsCheck> =
        eventually("all rows are read", async || cluster.running().map(done).collect()).await;
    assert!(found.iter().all(|check| check.failed.is_empty() && check.bytes > 100 * check.rows));
    found.into_iter().map(|check| (check.log_index, check.seq, check.rows, check.sha256)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_well_have_the_same_rows_and_a_changed_one_is_seen() {
    let cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    for number in 1..200 {
        commit_at(cluster.node(0), number).await;
    }
    let first = check(&cluster, "first").await;
    assert!(first.iter().all(|check| *check == first[0]), "{first:?}");
    assert!(first[0].2 > 2 * 199);

    // One row of one replica loses a bit behind its back.
    let state = &cluster.node(1).state;
    let rows = state.engine().scan(Table::Version, &[], &after_prefix(&[]), 1, usize::MAX).unwrap();
    let (key, value) = rows.into_iter().next().unwrap();
    let mut changed = value.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    state.write(&[StateOp::Put { table: Table::Version, key, value: changed.into() }]).unwrap();
    let second = check(&cluster, "second").await;
    let [(place, seq, rows, good), (place_of_one, seq_of_one, rows_of_one, changed), other] = second.as_slice() else {
        panic!("{second:?}")
    };
    assert_eq!((place, seq, rows), (place_of_one, seq_of_one, rows_of_one));
    assert!(other.3 == good && changed != good && *good != first[0].3);
    cluster.end().await;
}
