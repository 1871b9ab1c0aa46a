#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use indicatif::ProgressBar;

use super::super::tally::Tally;
use super::super::tests::MemoryCharts;
use super::*;
use crate::fhir::read_bundle;

/// A patient with goals of the given body sizes, and one practitioner.
fn bundle(goals_bytes: &[usize]) -> Bundle {
    let mut entries = vec![
        r#"{"resource":{"resourceType":"Patient","id":"p"}}"#.to_owned(),
        r#"{"resource":{"resourceType":"Practitioner","id":"d"}}"#.to_owned(),
    ];
    for (number, bytes) in goals_bytes.iter().enumerate() {
        let note = "x".repeat(*bytes);
        entries.push(format!(r#"{{"resource":{{"resourceType":"Goal","id":"{number}","note":"{note}"}}}}"#));
    }
    let text = format!(r#"{{"resourceType":"Bundle","entry":[{}]}}"#, entries.join(","));
    read_bundle(text.as_bytes()).unwrap()
}

async fn load(charts: &MemoryCharts, bundle: Bundle) -> (Tally, Result<(), Error>) {
    let progress = Arc::new(Progress::new(ProgressBar::hidden()));
    let loader = Loader::new(charts.clone(), progress.clone());
    let done = loader.load(&Origin::new("x.json".as_ref()), bundle).await;
    (progress.tally(), done)
}

#[test]
fn commits_stay_within_their_limits() {
    let sizes: Vec<usize> = (0..600).map(|number| if number == 300 { 3 << 20 } else { 10_000 }).collect();
    let planned = bundle(&sizes).entries.into_iter();
    let planned = planned.map(|entry| Planned { entry, condition: Precondition::MustNotExist }).collect::<Vec<_>>();
    let ids: Vec<String> = planned.iter().map(|put| put.entry.id.clone()).collect();
    let commits = cut(planned);
    for commit in &commits {
        let bytes: usize = commit.iter().map(|put| put.entry.body.len()).sum();
        assert!(commit.len() <= COMMIT_RECORDS_MAX && (bytes <= COMMIT_BYTES_MAX || commit.len() == 1));
    }
    assert!(commits.iter().any(|commit| commit.len() > 90));
    assert!(commits.iter().flatten().map(|put| &put.entry.id).eq(&ids));
    let small = cut(bundle(&[1; 1_000]).entries.into_iter().map(planned_anew).collect());
    assert_eq!(small.iter().map(Vec::len).collect::<Vec<_>>(), [256, 256, 256, 234]);
}

fn planned_anew(entry: Entry) -> Planned {
    Planned { entry, condition: Precondition::MustNotExist }
}

#[tokio::test]
async fn what_others_wrote_meanwhile_is_kept_when_equal_and_replaced_when_not() {
    let races = AtomicU32::new(0);
    let charts = MemoryCharts::with_hook(move |charts, chart, puts| {
        // Just before the first commit of the patient's chart, another one comes in between.
        if puts[0].entry.record_type == "Patient" && races.fetch_add(1, Ordering::Relaxed) == 0 {
            charts.put(chart, record_id(&puts[0].entry), Some(puts[0].entry.body.clone()));
            charts.put(chart, record_id(&puts[1].entry), Some(Bytes::from_static(b"other")));
        }
        Ok(())
    });
    let (tally, done) = load(&charts, bundle(&[1, 2, 3])).await;
    done.unwrap();
    let expected = Tally { bundles: 1, read: 5, stored: 4, changed: 1, already_there: 1, ..Tally::default() };
    assert_eq!(tally, expected);
    let mut versions: Vec<u64> = charts.all().values().map(|(version, _)| *version).collect();
    versions.sort_unstable();
    assert_eq!(versions, [1, 1, 1, 1, 2]);
}

#[tokio::test]
async fn a_record_that_never_keeps_still_is_given_up() {
    let charts = MemoryCharts::with_hook(|charts, chart, puts| {
        if puts.iter().any(|put| put.entry.record_type == "Goal") {
            charts.put(chart, RecordId::new("Goal", "0"), Some(Bytes::from_static(b"other")));
        }
        Ok(())
    });
    let (tally, done) = load(&charts, bundle(&[1])).await;
    done.unwrap();
    assert_eq!((tally.stored, tally.failed), (1, 2));
}

#[tokio::test]
async fn a_record_that_the_cluster_refuses_fails_alone() {
    let charts = MemoryCharts::with_hook(|_, _, puts| {
        let refused = puts.iter().any(|put| put.entry.body.len() > 5_000);
        if refused { Err(Error::Invalid { message: "too large".into(), fields: Vec::new() }) } else { Ok(()) }
    });
    let sizes: Vec<usize> = (0..500).map(|number| if number % 200 == 7 { 5_000 } else { 1 }).collect();
    let (tally, done) = load(&charts, bundle(&sizes)).await;
    done.unwrap();
    assert_eq!((tally.stored, tally.failed, tally.complete()), (499, 3, false));
}

#[tokio::test]
async fn an_erased_chart_fails_and_shared_records_are_stored() {
    let charts = MemoryCharts::with_hook(|_, chart, _| match chart.kind() {
        charthold_client::ChartKind::Patient => Err(Error::Erased),
        charthold_client::ChartKind::Shared => Ok(()),
    });
    let (tally, done) = load(&charts, bundle(&[1, 2])).await;
    done.unwrap();
    assert_eq!((tally.stored, tally.failed), (1, 3));
}

#[tokio::test]
async fn what_was_seen_to_be_stored_is_not_asked_for_again() {
    let charts = MemoryCharts::default();
    let progress = Arc::new(Progress::new(ProgressBar::hidden()));
    let loader = Loader::new(charts.clone(), progress.clone());
    let entry = bundle(&[]).entries.remove(1);
    assert!(!loader.shared.knows(&entry));
    loader.load(&Origin::new("x.json".as_ref()), bundle(&[])).await.unwrap();
    assert!(loader.shared.knows(&entry));
    let other = Entry { body: Bytes::from_static(b"{}"), ..entry };
    assert!(!loader.shared.knows(&other));
}
