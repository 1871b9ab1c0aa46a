//! What Charthold is for: real patients, imported into three sites, while sites are lost.

use std::collections::HashMap;

use charthold_client::{Chart, RecordId};
use charthold_tests::harness::{Cluster, until};
use charthold_tests::patients::{self, Expected};

/// That the import of all patients makes, at least.
const COMMITS: u64 = 200;
const ALL: std::ops::RangeInclusive<usize> = 1..=24;

#[tokio::test(flavor = "multi_thread")]
async fn an_import_survives_the_loss_of_a_site() {
    let expected = patients::expected(ALL);
    assert_eq!(expected.values().map(HashMap::len).sum::<usize>(), patients::RECORDS);
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader_of_most().await;
    let before = cluster.recorded().await;

    let mut import = cluster.cli_start("client", &["import", folder()]);
    until("a third of the import is stored", || async {
        let recorded = cluster.recorded().await - before;
        if recorded >= COMMITS / 3 { Ok(()) } else { Err(format!("{recorded} commits")) }
    })
    .await;
    cluster.kill(leader);
    assert!(import.is_running(), "the import was over before the node was killed");
    cluster.wait_leaders().await;
    cluster.restart(leader);
    let finished = import.finish().await.ok();
    assert!(finished.text().starts_with("51,934 read, 51,281 stored"), "{}", finished.text());

    cluster.wait_ready().await;
    let versions = patients::assert_stored(&cluster.client(), &expected).await;
    assert!(versions.values().all(|version| *version == 1), "something was stored twice");
    cluster.wait_roots_equal().await;
    cluster.assert_rows_equal().await;
    // The gateway that was away serves everything too.
    patients::assert_stored(&cluster.client_at(leader), &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_run_again_restores_what_differs_and_nothing_else() {
    let cluster = Cluster::start(3).await;
    let expected = patients::expected(ALL);
    let first = cluster.cli(&["import", folder()]).await.ok();
    assert_eq!(first.text(), "51,934 read, 51,281 stored, 653 already there");
    let seqs = cluster.recorded().await;
    let second = cluster.cli(&["import", folder()]).await.ok();
    assert_eq!(second.text(), "51,934 read, 0 stored, 51,934 already there");
    assert_eq!(cluster.recorded().await, seqs, "an import with nothing to store has stored something");

    let (patient, changed) = some_record(&expected, "Observation");
    let (other, deleted) = some_record(&expected, "Practitioner");
    let arguments = ["record", "put", "--patient", patient.id(), "--type", "Observation", "--id", &changed.id];
    cluster.cli_with("client", &arguments, b"{\"resourceType\":\"Observation\"}").await.ok();
    let arguments = ["record", "delete", "--shared", other.id(), "--type", "Practitioner", "--id", &deleted.id];
    cluster.cli(&arguments).await.ok();
    let third = cluster.cli(&["import", folder()]).await.ok();
    assert_eq!(third.text(), "51,934 read, 2 stored (1 of them changed), 51,932 already there");

    let versions = patients::assert_stored(&cluster.client(), &expected).await;
    // Imported, changed or deleted by hand, restored.
    for ((chart, record), version) in versions {
        let by_hand = (chart == patient && record == changed) || (chart == other && record == deleted);
        assert_eq!(version, if by_hand { 3 } else { 1 }, "{} {}", record.type_, record.id);
    }
    cluster.wait_roots_equal().await;
}

/// The program and these tests read bundles with the same code: here is another reading of the same files.
#[test]
fn what_is_expected_is_what_the_files_say() {
    for number in ALL {
        let tokens = patients::tokens(number);
        let bundle = patients::bundle(number);
        assert_eq!(bundle.entries.len(), tokens.len());
        for entry in &bundle.entries {
            assert!(tokens[&patients::record_of(entry)].as_bytes() == entry.body, "{} {}", entry.record_type, entry.id);
        }
    }
}

fn folder() -> &'static str {
    static FOLDER: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| patients::folder().to_str().unwrap().to_owned());
    &FOLDER
}

fn some_record(expected: &Expected, record_type: &str) -> (Chart, RecordId) {
    let all = expected.iter().flat_map(|(chart, entries)| entries.keys().map(move |id| (chart, id)));
    let (chart, id) = all.filter(|(_, id)| id.type_ == record_type).min_by_key(|(_, id)| id.id.clone()).unwrap();
    (chart.clone(), id.clone())
}
