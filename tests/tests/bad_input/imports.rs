//! Bundles that cannot be imported: named by file and position, and the rest unharmed.

use std::path::Path;

use charthold_client::{Chart, RecordId};
use charthold_tests::harness::Cluster;

fn bundle(patient: &str, more: &str) -> String {
    format!(
        r#"{{"resourceType":"Bundle","type":"collection","entry":[{{"resource":{{"resourceType":"Patient","id":"{patient}"}}}}{more}]}}"#
    )
}

fn observation(id: &str, value: &str) -> String {
    format!(r#",{{"resource":{{"resourceType":"Observation","id":"{id}","status":"final","value":{value}}}}}"#)
}

/// Bad ones, each with the place and the words that it must be named with.
fn bad_files(folder: &Path) -> Vec<(&'static str, &'static str, &'static str)> {
    let good = bundle("lost", &observation("o1", "1.50"));
    let compressed = zstd::encode_all(good.repeat(50).as_bytes(), 3).unwrap();
    let mut invalid = good.clone().into_bytes();
    let at = good.find("final").unwrap();
    invalid[at] = 0xff;
    let write = |name: &str, content: &[u8]| std::fs::write(folder.join(name), content).unwrap();
    write("cut.json", &good.as_bytes()[..good.len() - 20]);
    write("cut.json.zst", &compressed[..compressed.len() - 9]);
    write("no-zstd.json.zst", good.as_bytes());
    write("empty.json", b"");
    write("array.json", format!("[{good}]").as_bytes());
    write("after.json", format!("{good} {good}").as_bytes());
    write("text.json", &invalid);
    write("number.json", bundle("lost", &observation("o1", "01")).as_bytes());
    write("no-bundle.json", br#"{"resourceType":"Patient","id":"lost"}"#);
    write("no-patient.json", good.replacen("Patient", "Practitioner", 1).as_bytes());
    write("no-entry.json", br#"{"resourceType":"Bundle","type":"collection"}"#);
    write("no-id.json", good.replace(r#","id":"o1""#, "").as_bytes());
    write("no-resource.json", bundle("lost", r#",{"fullUrl":"urn:uuid:1"}"#).as_bytes());
    let contradiction = observation("o1", "1") + &observation("o1", "2");
    write("contradiction.json", bundle("lost", &contradiction).as_bytes());
    vec![
        ("cut.json", "Bundle.entry[1], byte", "ends too early"),
        ("cut.json.zst", "", "ends too early"),
        ("no-zstd.json.zst", "", "cannot be read"),
        ("empty.json", "byte 0", ""),
        ("array.json", "byte 0", "not a FHIR bundle"),
        ("after.json", "byte", ""),
        ("text.json", "byte", "UTF-8"),
        ("number.json", "Bundle.entry[1], byte", ""),
        ("no-bundle.json", "byte", "not a FHIR bundle"),
        ("no-patient.json", "Bundle.entry[0]", "not a patient bundle"),
        ("no-entry.json", "byte 0", "not a patient bundle"),
        ("no-id.json", "Bundle.entry[1]", "without an id"),
        ("no-resource.json", "Bundle.entry[1]", "without a resource"),
        ("contradiction.json", "Bundle.entry[2]", "other content"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bundles_are_named_and_the_rest_is_imported() {
    let cluster = Cluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let bad = bad_files(folder.path());
    std::fs::write(path("good.json"), bundle("p1", &observation("o1", "1.50"))).unwrap();
    let packed = zstd::encode_all(bundle("p2", &observation("o1", "2.0")).as_bytes(), 3).unwrap();
    std::fs::write(path("good.json.zst"), packed).unwrap();
    let lines = [bundle("p3", ""), "{broken".to_owned(), String::new(), bundle("p4", &observation("o1", "4e0"))];
    std::fs::write(path("lines.ndjson"), lines.join("\n")).unwrap();
    std::fs::write(path("notes.txt"), "not looked at").unwrap();

    let finished = cluster.cli(&["import", folder.path().to_str().unwrap(), "--output", "json"]).await;
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    for (file, place, words) in &bad {
        let file = path(file).display().to_string();
        let line = finished.stderr.lines().find(|line| line.contains(&format!("{file}: ")));
        let line = line.unwrap_or_else(|| panic!("{file} is not named:\n{}", finished.stderr));
        assert!(line.contains(place) && line.contains(words), "{line}");
        assert!(!line.contains("lost"), "content is shown: {line}");
    }
    let broken_line = format!("{}, line 2: byte", path("lines.ndjson").display());
    assert!(finished.stderr.contains(&broken_line), "{}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap();
    assert!(last.contains("not everything could be imported"), "{last}");
    let tally = finished.json();
    let count = |name: &str| tally[name].as_u64().unwrap_or_else(|| panic!("no {name}: {tally}"));
    assert_eq!((count("read"), count("stored"), count("failed")), (7, 7, 0), "{tally}");
    assert_eq!(count("bundles_refused"), bad.len() as u64 + 1, "{tally}");

    let client = cluster.client();
    for (patient, value) in [("p1", "1.50"), ("p2", "2.0"), ("p4", "4e0")] {
        let record = client.get(&Chart::patient(patient), &RecordId::new("Observation", "o1")).await.unwrap();
        let text = String::from_utf8(record.body.to_vec()).unwrap();
        assert!(text.contains(&format!("\"value\":{value}}}")), "{text}");
    }
    let lost = client.list(&Chart::patient("lost"), None).await.unwrap();
    assert!(lost.is_empty(), "a refused bundle is left out as a whole");

    // Mended, and run again: only what was missing is stored.
    std::fs::write(path("cut.json"), bundle("p5", "")).unwrap();
    for (file, _, _) in bad.iter().skip(1) {
        std::fs::remove_file(path(file)).unwrap();
    }
    std::fs::write(path("lines.ndjson"), bundle("p3", "")).unwrap();
    let finished = cluster.cli(&["import", folder.path().to_str().unwrap(), "--output", "json"]).await.ok();
    assert_eq!(finished.json()["stored"].as_u64(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_stops_an_import_before_it_begins() {
    let cluster = Cluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("good.json"), bundle("p1", "")).unwrap();
    std::fs::write(path("notes.txt"), "x").unwrap();
    std::fs::create_dir(path("empty")).unwrap();
    for (name, code, words) in
        [("missing.json", 1, "No such file"), ("notes.txt", 2, "neither"), ("empty", 1, "holds no")]
    {
        let finished = cluster.cli(&["import", &path("good.json"), &path(name)]).await;
        assert_eq!(finished.code, code, "{}", finished.stderr);
        assert!(finished.stderr.contains(name) && finished.stderr.contains(words), "{}", finished.stderr);
    }
    assert!(cluster.client().list(&Chart::patient("p1"), None).await.unwrap().is_empty());
    // Who may only read cannot import, and is told so once.
    cluster.service("reader", &[charthold_client::Role::Reader]).await;
    let finished = cluster.cli_with("reader", &["import", &path("good.json")], b"").await;
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("NO_GRANT"), "{}", finished.stderr);
}
