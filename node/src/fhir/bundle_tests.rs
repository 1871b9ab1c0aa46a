#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::path::Path;

use proptest::prelude::*;

use super::super::DEPTH_MAX;
use super::*;
use crate::mutate::mutated;

const PATIENT: &str = r#"{"resource": {"resourceType": "Patient", "id": "p1"}}"#;

fn bundle(entries: &[&str]) -> String {
    format!(r#"{{"resourceType": "Bundle", "type": "transaction", "entry": [{}]}}"#, entries.join(", "))
}

fn check_refused(text: &str, entry: Option<usize>, fault: Fault) {
    let error = read_bundle(text.as_bytes()).unwrap_err();
    assert_eq!((error.position.entry, error.fault), (entry, fault), "{text}");
    assert!(error.position.byte <= text.len());
}

#[test]
fn sorts_resources_into_charts() {
    let text = bundle(&[
        PATIENT,
        r#"{"fullUrl": "urn:x", "resource": {"id": "o1", "resourceType": "Observation", "status": "final",
            "valueQuantity": {"value": 1.50}, "effectiveDateTime": "2020-01-01"}, "request": {}}"#,
        r#"{"resource": {"resourceType": "Practitioner", "id": "d1"}}"#,
    ]);
    let bundle = read_bundle(text.as_bytes()).unwrap();
    let [patient, observation, practitioner] = &bundle.entries[..] else { panic!("three entries") };
    assert!(patient.chart == ChartName::Patient("p1".into()) && observation.chart == patient.chart);
    assert!(practitioner.chart == ChartName::Shared("Practitioner".into()));
    assert_eq!((observation.record_type.as_str(), observation.id.as_str()), ("Observation", "o1"));
    assert_eq!((observation.clinical_date.as_str(), observation.status.as_str()), ("2020-01-01", "final"));
    let body = concat!(
        r#"{"id":"o1","resourceType":"Observation","status":"final","#,
        r#""valueQuantity":{"value":1.50},"effectiveDateTime":"2020-01-01"}"#
    );
    assert_eq!(observation.body, body.as_bytes());
    assert_eq!(observation.position.entry, Some(1));
    assert!(text[observation.position.byte..].starts_with(r#"{"id": "o1""#));
}

#[test]
fn refuses_what_is_no_patient_bundle() {
    check_refused(
        &bundle(&[r#"{"resource": {"resourceType": "Observation", "id": "1"}}"#]),
        Some(0),
        Fault::NotAPatient,
    );
    check_refused(&bundle(&[]), None, Fault::NotAPatient);
    check_refused(r#"{"resourceType": "Bundle"}"#, None, Fault::NotAPatient);
    check_refused(r#"{"resourceType": "Patient", "id": "p1"}"#, None, Fault::NotABundle);
    check_refused("{}", None, Fault::NotABundle);
    check_refused("[]", None, Fault::NotABundle);
    check_refused("17", None, Fault::Json(JsonFault::Unexpected));
    check_refused("", None, Fault::Json(JsonFault::Cut));
}

#[test]
fn refuses_bad_entries_by_index() {
    let with = |entry: &str| bundle(&[PATIENT, entry]);
    check_refused(&with("{}"), Some(1), Fault::NoResource);
    check_refused(&with("7"), Some(1), Fault::NoResource);
    check_refused(&with(r#"{"resource": []}"#), Some(1), Fault::NoResource);
    check_refused(&with(r#"{"resource": {"id": "1"}}"#), Some(1), Fault::BadType);
    check_refused(&with(r#"{"resource": {"resourceType": 1, "id": "1"}}"#), Some(1), Fault::BadType);
    check_refused(&with(r#"{"resource": {"resourceType": "Goal"}}"#), Some(1), Fault::BadId);
    check_refused(&with(r#"{"resource": {"resourceType": "Goal", "id": ""}}"#), Some(1), Fault::BadId);
    check_refused(&with(r#"{"resource": {"resourceType": "Goal", "id": "a\u0000"}}"#), Some(1), Fault::BadId);
    check_refused(&with(r#"{"resource": {"resourceType": "Goal", "id": "1", "id": "2"}}"#), Some(1), Fault::Repeated);
    check_refused(&with(r#"{"resource": {}, "resource": {}}"#), Some(1), Fault::Repeated);
    check_refused(&with(r#"{"resource": {"id": tru}}"#), Some(1), Fault::Json(JsonFault::Unexpected));
    let long = format!(r#"{{"resource": {{"resourceType": "Goal", "id": "{}"}}}}"#, "x".repeat(129));
    check_refused(&with(&long), Some(1), Fault::BadId);
    let large = format!(r#"{{"resource": {{"resourceType": "Goal", "id": "1", "x": "{}"}}}}"#, "x".repeat(4 << 20));
    check_refused(&with(&large), Some(1), Fault::TooLarge);
    let deep = format!(r#"{{"resource": {{"id": {}}}}}"#, "[".repeat(DEPTH_MAX));
    check_refused(&with(&deep), Some(1), Fault::Json(JsonFault::TooDeep));
}

#[test]
fn one_record_may_repeat_but_not_contradict_itself() {
    let goal = r#"{"resource": {"resourceType": "Goal", "id": "1", "n": 1.0}}"#;
    let spread = r#"{"resource": {"resourceType" :"Goal","id":"1" , "n":1.0 }}"#;
    let other = r#"{"resource": {"resourceType": "Goal", "id": "1", "n": 1.00}}"#;
    let bundle_with = |entries: &[&str]| bundle(&[&[PATIENT], entries].concat());
    let read = read_bundle(bundle_with(&[goal, spread]).as_bytes()).unwrap();
    assert_eq!((read.entries.len(), read.repeated), (2, 1));
    check_refused(&bundle_with(&[goal, other]), Some(2), Fault::Contradiction);
}

#[test]
fn a_cut_or_damaged_bundle_is_refused_everywhere() {
    let text = bundle(&[PATIENT, r#"{"resource": {"resourceType": "Goal", "id": "é1"}}"#]);
    for cut in 0..text.len() {
        let error = read_bundle(&text.as_bytes()[..cut]).unwrap_err();
        assert_eq!(error.fault, Fault::Json(JsonFault::Cut), "cut at {cut}");
        assert!(error.position.byte <= cut);
    }
    check_refused(&format!("{text}{text}"), None, Fault::Json(JsonFault::Trailing));
}

/// Of what was read.
fn bundle_of(entries: &[Entry]) -> String {
    let resource = |entry: &Entry| format!(r#"{{"resource": {}}}"#, std::str::from_utf8(&entry.body).unwrap());
    let resources = entries.iter().map(resource).collect::<Vec<_>>();
    bundle(&resources.iter().map(String::as_str).collect::<Vec<_>>())
}

fn good_bundles() -> Vec<Bytes> {
    let goal =
        r#"{"resource": {"resourceType": "Goal", "id": "é1", "n": [1.50, -2e9, true, null, "\u00e9\ud83d\ude00"]}}"#;
    let shared = r#"{"fullUrl": "urn:x", "resource": {"resourceType": "Practitioner", "id": "d1", "name": [{}]}}"#;
    let dated = r#"{"resource": {"id": "o1", "resourceType": "Observation", "effectiveDateTime": "2020-01-01"}, "request": {}}"#;
    let texts = [bundle(&[PATIENT]), bundle(&[PATIENT, goal, shared]), bundle(&[PATIENT, dated, goal, goal])];
    texts.map(Bytes::from).to_vec()
}

proptest! {
    /// What is read of it is read again, the same.
    #[test]
    fn a_changed_bundle_is_refused_or_read_whole(text in mutated(good_bundles())) {
        match read_bundle(&text) {
            Err(error) => prop_assert!(error.position.byte <= text.len()),
            Ok(found) => {
                let same = read_bundle(bundle_of(&found.entries).as_bytes()).unwrap();
                let of = |entry: &Entry| Entry { position: Position { entry: None, byte: 0 }, ..entry.clone() };
                prop_assert!(same.entries.iter().map(of).eq(found.entries.iter().map(of)));
            }
        }
    }
}

#[test]
fn errors_and_debug_hold_no_content() {
    let text = bundle(&[PATIENT, r#"{"resource": {"resourceType": "Goal", "id": "secret", "note": secret}}"#]);
    let error = read_bundle(text.as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"));
    let read = read_bundle(bundle(&[r#"{"resource": {"resourceType": "Patient", "id": "secret"}}"#]).as_bytes());
    assert!(!format!("{:?} {:?}", read, read.as_ref().unwrap().entries[0].chart).contains("secret"));
}

#[test]
fn the_test_patients_are_all_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/patients");
    let (mut read, mut bytes) = (0, 0);
    let mut distinct = HashSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = zstd::decode_all(std::fs::File::open(file.unwrap().path()).unwrap()).unwrap();
        bytes += text.len();
        let bundle = read_bundle(&text).unwrap();
        read += bundle.entries.len() + bundle.repeated;
        for entry in bundle.entries {
            // Independent of our scanner: the same value, and no white space left to strip.
            let ours: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
            assert!(ours["id"] == entry.id.as_str() && ours["resourceType"] == entry.record_type.as_str());
            distinct.insert((entry.chart, entry.record_type, entry.id));
        }
    }
    assert_eq!((read, distinct.len(), bytes), (51_934, 51_281, 99_248_886));
}
