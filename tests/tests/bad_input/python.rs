//! What must not be refused: a client that is not ours. Python's stock gRPC, the .proto files and the certificates.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use charthold_client::{Chart, RecordId};
use charthold_tests::harness::{Cluster, program};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The one in CHARTHOLD_TEST_PYTHON, else one of our own, made once beside the program under test.
fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("CHARTHOLD_TEST_PYTHON") {
        return python.into();
    }
    let folder = program().parent().unwrap().join("test-python");
    let (python, done) = (folder.join("bin/python"), folder.join("requirements-installed"));
    let requirements = root().join("deploy/test-requirements.txt");
    let wanted = std::fs::read(&requirements).unwrap();
    if std::fs::read(&done).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
    std::fs::write(done, wanted).unwrap();
    python
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_commits_and_reads() {
    let python = python();
    let cluster = Cluster::start(3).await;
    let port = cluster.endpoint(1).rsplit_once(':').unwrap().1.to_owned();
    let mut script = tokio::process::Command::new(python);
    script.arg(root().join("tests/python/first_patient.py")).arg(format!("localhost:{port}"));
    script.arg(cluster.folder().join("client")).arg(root().join("proto"));
    let output = script.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    let mut lines: Vec<&str> = said.lines().collect();
    let patient = lines.remove(1).strip_prefix("patient ").unwrap().to_owned();
    let expected = [
        "services Charts Cluster Tenants",
        "committed version 1",
        "the same request again changes nothing",
        "read it back as version 1",
        "read the chart of 1",
        "a second first version is refused: the record exists",
    ];
    assert_eq!(lines, expected, "{errors}");
    // The same bytes for our own client, at another gateway.
    let (chart, id) = (Chart::patient(patient.as_str()), RecordId::new("Patient", patient.as_str()));
    let record = cluster.client_at(0).get(&chart, &id).await.unwrap();
    let body = format!(r#"{{"resourceType":"Patient","id":"{patient}","name":[{{"text":"Þórunn"}}]}}"#);
    assert_eq!(record.body.as_ref(), body.as_bytes());
    assert_eq!(record.header.content_type, "application/fhir+json");
}
