//! Nothing of a patient is in any byte that a node writes: not in its data, not in its log at the lowest level.

use std::collections::BTreeSet;
use std::path::PathBuf;

use charthold_client::{
    Chart, Client, Error, FindQuery, ListQuery, Mutation, Order, Put, RecordId, RequestContext, Role,
};
use charthold_tests::canary::{Form, Scan, Texts, files_below, forms_of};
use charthold_tests::harness::{Cluster, Options, TENANT_NAME};
use charthold_tests::patients;

use super::collector::Collector;

/// Small ones; the names of the first two hold letters that are not ASCII.
const PATIENTS: [usize; 4] = [2, 3, 7, 14];
const TRACE: (&str, &str) = ("CHARTHOLD_LOG", "trace");

/// Made up here, in every field that a request has.
const WORDS: [&str; 14] = [
    "Zoë-Canary-Patient",
    "CanaryRecordType",
    "canary-record-ünique",
    "canary text of a note, with ÄÖÜ in it",
    "canary/content-type",
    "canary-status",
    "canary-author-Þóra",
    "canary-label",
    "practitioner/canary-actor",
    "canary-on-behalf-of",
    "canary reason: she is the actor's neighbour",
    "canary-session-and-device",
    "urn:canary-identifier-system",
    "canary-identifier-4711",
];

/// About; of parts of 256 KiB.
const DOCUMENT_BYTES: usize = 900 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_patient_is_in_any_file_or_log_line() {
    let scan = Scan::new(&texts());
    let collector = Collector::start();
    let options = Options { config: collector.config(1.0), ..Options::default() };
    let mut cluster = Cluster::start_with(options.environment(TRACE.0, TRACE.1)).await;
    let stderr = import(&cluster);
    assert!(stderr.len() > 10_000, "the import has logged nothing at TRACE");
    assert_eq!(scan.bytes(&stderr), [], "on the import's stderr");
    every_call(&cluster).await;
    every_error(&cluster).await;
    // A leader's death and a restart log other things, and open and compact the files.
    let leader = cluster.leader_of_most().await;
    cluster.kill(leader);
    every_call(&cluster).await;
    cluster.restart(leader);
    cluster.wait_ready().await;
    let served = |node: usize| cluster.metrics(node).text.contains("charthold.v1.Charts/Commit");
    assert!((0..cluster.size()).any(served), "no node has counted a commit");
    for node in 0..cluster.size() {
        let metrics = cluster.metrics(node).text;
        assert_eq!(scan.bytes(metrics.as_bytes()), [], "in the metrics of node {node}");
    }
    for node in 0..cluster.size() {
        let status = cluster.stop(node);
        assert!(status.success(), "node {node} did not stop cleanly: {status}\n{}", cluster.last_words());
    }

    assert_every_span_came(&cluster, &collector);
    assert_eq!(scan.bytes(&collector.bytes()), [], "in a span");

    for node in 0..cluster.size() {
        let log = cluster.log(node);
        let text = String::from_utf8(std::fs::read(&log).unwrap()).unwrap();
        assert!(
            text.lines().filter(|line| line.contains("TRACE")).count() > 1_000,
            "node {node} has not logged at TRACE"
        );
        let mut files = files_below(&cluster.data_dir(node));
        assert!(files.iter().any(|file| file.file_name().is_some_and(|name| name == "LOG")), "RocksDB's own log");
        assert_data_is_scannable(&cluster, &files);
        files.push(log);
        let (found, read) = scan.files(&files);
        assert_eq!(found, Vec::<String>::new(), "of {read} bytes of node {node}");
        assert!(read > 4 << 20, "only {read} bytes of node {node}");
    }
    assert_the_scan_bites(&cluster, &scan);
}

/// What a request can leave behind on its way: the calls, and the stages of them on each node that they pass.
const SPANS: [&str; 15] = [
    "charthold.v1.Charts/Commit",
    "charthold.v1.Charts/Get",
    "charthold.v1.Charts/List",
    "charthold.v1.Charts/History",
    "charthold.v1.Charts/FindCharts",
    "admit",
    "key",
    "seal",
    "propose",
    "answer",
    "forward",
    "leader",
    "log",
    "apply",
    "barrier",
];

/// Else the scan of the spans has seen nothing.
fn assert_every_span_came(cluster: &Cluster, collector: &Collector) {
    let spans = collector.spans();
    let nodes: BTreeSet<&str> = spans.iter().map(|span| span.node.as_str()).collect();
    assert_eq!(nodes.len(), cluster.size(), "of {nodes:?} only");
    let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let missing: Vec<_> = SPANS.into_iter().filter(|name| !names.contains(name)).collect();
    assert!(missing.is_empty(), "no {missing:?} among {names:?}");
}

fn texts() -> Texts {
    let mut texts = Texts::default();
    for entry in PATIENTS.into_iter().flat_map(|number| patients::bundle(number).entries) {
        texts.resource(&entry.body);
    }
    WORDS.into_iter().chain([TENANT_NAME]).for_each(|word| texts.secret(word));
    texts
}

/// With the program's own log at TRACE, on stderr.
fn import(cluster: &Cluster) -> Vec<u8> {
    let files: Vec<PathBuf> = PATIENTS.into_iter().map(patients::file).collect();
    let mut command = cluster.cli_command("client", &["import"]);
    let output = command.args(files).env(TRACE.0, TRACE.1).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stderr
}

fn context() -> RequestContext {
    RequestContext {
        on_behalf_of: WORDS[9].into(),
        reason: WORDS[10].into(),
        session: WORDS[11].into(),
        device: WORDS[11].into(),
        origin: WORDS[11].into(),
        ..RequestContext::new(WORDS[8])
    }
}

fn note() -> Put {
    Put {
        clinical_date: "2024-05-13".into(),
        status: WORDS[5].into(),
        author: WORDS[6].into(),
        labels: vec![WORDS[7].into()],
        ..Put::new(WORDS[4], WORDS[3]).with_index_term(WORDS[12], WORDS[13])
    }
}

async fn every_call(cluster: &Cluster) {
    let client = cluster.client().with_context(context());
    let (chart, id) = (Chart::patient(WORDS[0]), RecordId::new(WORDS[1], WORDS[2]));
    for node in 0..cluster.size() {
        // By each gateway that runs, so that each one leads, forwards, and reads from elsewhere.
        let Ok(_) = cluster.status_of(node).await else { continue };
        let client = cluster.client_at(node).with_context(context());
        client.put(&chart, &id, note()).await.unwrap();
        assert_eq!(client.get(&chart, &id).await.unwrap().body, WORDS[3].as_bytes());
        let found = client.find_charts(FindQuery::new(WORDS[12], WORDS[13])).all().await.unwrap();
        assert!(found.len() == 1 && found[0].chart == chart);
    }
    assert_eq!(client.list(&chart, None).await.unwrap().len(), 1);
    assert_eq!(client.list(&chart, Some(WORDS[1])).await.unwrap().len(), 1);
    let query = ListQuery::of_type(WORDS[1]).from("2024-05").until("2025").with_status(WORDS[5]).newest_first();
    let listed = client.list_page(&chart, &query, 1, None).await.unwrap();
    assert_eq!(client.at_position(&listed.position).list_where(&chart, query).all().await.unwrap().len(), 1);
    let history = client.history_page(&chart, &id, Order::NewestFirst, 1, None).await.unwrap();
    client.history_page(&chart, &id, Order::NewestFirst, 1, history.next.as_ref()).await.unwrap();
    client.batch_get(&chart, &[id.clone(), RecordId::new(WORDS[1], WORDS[0])]).await.unwrap();
    let newest = client.get(&chart, &id).await.unwrap().version();
    client.delete(&chart, &id, newest).await.unwrap();
    let found = client.get_version(&chart, &id, newest + 1).await.unwrap();
    assert!(found.header.deleted);
    client.put(&chart, &id, note()).await.unwrap();
    cluster.operator().admin().list_tenants().await.unwrap();
    // In several parts, some of which do not compress.
    let scan = RecordId::new(WORDS[1], WORDS[7]);
    let mut content = WORDS[3].repeat(DOCUMENT_BYTES / WORDS[3].len()).into_bytes();
    let mut noise = 1_u32;
    for byte in &mut content[DOCUMENT_BYTES / 2..] {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (noise >> 24) as u8;
    }
    content.extend_from_slice(WORDS[3].as_bytes());
    client.put_document(&chart, &scan, note(), content.as_slice()).await.unwrap();
    let mut read = Vec::new();
    client.read_document(&chart, &scan).await.unwrap().copy_to(&mut read).await.unwrap();
    assert!(read == content);
    let newest = client.get(&chart, &scan).await.unwrap().version();
    client.delete(&chart, &scan, newest).await.unwrap();

    let arguments = ["--patient", WORDS[0], "--type", WORDS[1], "--id", WORDS[2]];
    let body = cluster.cli(&[&["record", "get"], &arguments[..]].concat()).await.ok();
    assert_eq!(body.text(), WORDS[3]);
    cluster.cli(&[&["record", "history"], &arguments[..]].concat()).await.ok();
    cluster.cli(&["record", "list", "--patient", WORDS[0]]).await.ok();
    cluster.cli(&["chart", "export", WORDS[0]]).await.ok();
}

async fn every_error(cluster: &Cluster) {
    let client = cluster.client().with_context(context());
    let (chart, id) = (Chart::patient(WORDS[0]), RecordId::new(WORDS[1], WORDS[2]));
    let absent = RecordId::new(WORDS[1], WORDS[0]);
    let long = RecordId::new(WORDS[1], WORDS[2].repeat(20));
    let put = |id: &RecordId| Mutation::put(id.clone(), note());
    let refused = [
        client.commit(&chart, vec![put(&id).must_not_exist()]).await,
        client.commit(&chart, vec![put(&id).if_version(77)]).await,
        client.commit(&chart, vec![Mutation::delete(absent.clone()).if_version(1)]).await,
        client.commit(&chart, vec![put(&id), put(&id)]).await,
        client.commit(&chart, vec![put(&long)]).await,
        client.commit(&Chart::patient(WORDS[0].repeat(20)), vec![put(&id)]).await,
        client.commit(&chart, vec![Mutation::put(id.clone(), Put::new(WORDS[4], WORDS[3].repeat(40_000)))]).await,
        client.with_context(RequestContext { actor: String::new(), ..context() }).commit(&chart, vec![put(&id)]).await,
        client.get(&chart, &absent).await.map(|_| unreachable!("it is absent")),
        client.get(&chart, &long).await.map(|_| unreachable!("its id is too long")),
        client
            .find_charts(FindQuery::new(WORDS[12], WORDS[13].repeat(20)))
            .all()
            .await
            .map(|_| unreachable!("too long")),
    ];
    let mut spoken = String::new();
    for (number, refused) in refused.into_iter().enumerate() {
        let error = refused.err().unwrap_or_else(|| panic!("call {number} was to be refused"));
        spoken.push_str(&format!("{error} {error:?}\n"));
    }
    let stranger = cluster.service("stranger", &[]).await.with_context(context());
    spoken.push_str(&denied(&stranger, &chart, &id).await);
    let reader = cluster.service("reader", &[Role::Reader]).await.with_context(context());
    spoken.push_str(&reader.put(&chart, &id, note()).await.unwrap_err().to_string());
    let arguments = ["record", "get", "--patient", WORDS[0], "--type", WORDS[1], "--id", WORDS[0]];
    let not_found = cluster.cli(&arguments).await;
    assert_eq!(not_found.code, 3);
    spoken.push_str(&not_found.stderr);
    // The words of an error are logged by whoever gets them.
    for word in WORDS {
        assert!(!spoken.contains(word), "an error's text tells {word:?}: {spoken}");
    }
}

async fn denied(client: &Client, chart: &Chart, id: &RecordId) -> String {
    let error = client.get(chart, id).await.err().unwrap();
    assert_eq!(error, Error::Denied);
    error.to_string()
}

/// What is known to be in both engines' files is found there: they hold rows as they are, not compressed.
fn assert_data_is_scannable(cluster: &Cluster, files: &[PathBuf]) {
    let uid = hex::decode(cluster.tenant()).unwrap();
    for engine in ["log", "state"] {
        let holds = |file: &PathBuf| {
            file.components().any(|part| part.as_os_str() == engine)
                && std::fs::read(file).unwrap().windows(uid.len()).any(|window| window == uid)
        };
        assert!(files.iter().any(holds), "the tenant's uid is in no file of {engine}");
    }
}

/// Each form of a text is found where it is planted: in the middle of a data file, and in a line of a log.
fn assert_the_scan_bites(cluster: &Cluster, scan: &Scan) {
    let name = "Segovia";
    for (form, planted) in forms_of(name.as_bytes()) {
        let mut line = b"2026-01-01T00:00:00Z TRACE charthold: ".to_vec();
        line.extend_from_slice(&planted);
        line.push(b'\n');
        assert!(scan.bytes(&line).iter().any(|(found, text)| *found == form && text == name), "{form:?}");
    }
    assert!(forms_of(name.as_bytes()).iter().any(|(form, _)| *form == Form::Base64));
    assert!(scan.patterns() > 10_000);

    let files = files_below(&cluster.data_dir(0));
    let largest = files.into_iter().max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    let word = WORDS[2].as_bytes();
    bytes[middle..middle + word.len()].copy_from_slice(word);
    std::fs::write(&largest, bytes).unwrap();
    let (found, _) = scan.files(&[largest]);
    assert!(!found.is_empty() && found.iter().all(|line| line.contains("Plain")), "{found:?}");
}
