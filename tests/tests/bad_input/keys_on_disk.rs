//! No key lies open on a disk but the root key in its own file: not in the data, not in a log.
//!
//! The keys are found out with the root key, from a copy of a node's state, by nothing but the documented formats: a
//! search for keys that were never there would prove nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use charthold::seal::{Address, Key, Kind, open};
use charthold_client::{Chart, Put, RecordId};
use charthold_proto::internal::TenantRow;
use charthold_replica::store::state::rocks::RocksState;
use charthold_replica::store::state::{MemoryLimits, StateEngine, StateRows, Table};
use charthold_replica::store::table;
use charthold_tests::harness::{Cluster, Options};
use charthold_tests::strangers::copy;
use prost::Message;

const CHARTS: usize = 20;
/// `op` of a wrapped key's address.
const TENANT_KEY: u8 = 1;
const AUDIT_KEY: u8 = 2;
const ADDRESS_SECRET: u8 = 3;
const CHART_KEY: u8 = 4;

type KeyBytes = [u8; 32];

fn root_key(cluster: &Cluster) -> KeyBytes {
    let line = std::fs::read_to_string(cluster.folder().join("root.key")).unwrap();
    let digits = line.trim_end().strip_prefix("charthold-root-key-v1 ").unwrap();
    hex::decode(digits).unwrap().try_into().unwrap()
}

fn unwrap(under: &KeyBytes, op: u8, address: Address, sealed: &[u8]) -> KeyBytes {
    let address = Address { kind: Kind::WrappedKey, op, ..address };
    let clear = open(&Key::from_bytes(under), &address, sealed).unwrap_or_else(|error| panic!("key {op}: {error}"));
    clear.expose().try_into().unwrap()
}

fn rows(state: &RocksState, table: Table) -> StateRows {
    state.scan(table, &[], &[0xff; 64], 10_000, 64 << 20).unwrap()
}

/// Every key of the cluster, as a stopped node's state has them wrapped.
fn keys(cluster: &Cluster) -> Vec<KeyBytes> {
    let root = root_key(cluster);
    let folder = cluster.folder().join("state-copy");
    copy(&cluster.data_dir(0).join("state"), &folder);
    let state = RocksState::open(&folder, MemoryLimits::default()).unwrap();
    let mut keys = vec![root];
    let mut tenant_keys = Vec::new();
    for (key, row) in rows(&state, Table::Tenant) {
        let tenant = table::tenant::decode(&key).unwrap();
        let row = TenantRow::decode(row).unwrap();
        let address = Address { tenant, ..Address::of(Kind::WrappedKey) };
        let tenant_key = unwrap(&root, TENANT_KEY, address, &row.tenant_key);
        keys.extend([tenant_key, unwrap(&root, AUDIT_KEY, address, &row.audit_key)]);
        keys.push(unwrap(&root, ADDRESS_SECRET, address, &row.address_secret));
        tenant_keys.push((tenant, tenant_key));
    }
    for (key, wrapped) in rows(&state, Table::Key) {
        let at = table::key::Key::decode(&key).unwrap();
        let (tenant, tenant_key) = tenant_keys.iter().find(|(tenant, _)| *tenant == at.chart.tenant).unwrap();
        let mut record = [0; 16];
        record[..at.key_id.len()].copy_from_slice(&at.key_id);
        let address = Address { tenant: *tenant, chart: at.chart.chart, record, ..Address::of(Kind::WrappedKey) };
        keys.push(unwrap(tenant_key, CHART_KEY, address, &wrapped));
    }
    keys
}

/// Each key as it is and as text, in halves: a key is no less told for being cut.
fn patterns(keys: &[KeyBytes]) -> AhoCorasick {
    let base64 = |key: &KeyBytes| base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, key);
    let forms = keys.iter().flat_map(|key| {
        [key.to_vec(), hex::encode(key).into_bytes(), hex::encode_upper(key).into_bytes(), base64(key).into_bytes()]
    });
    let halves = forms.flat_map(|form| [form[..form.len() / 2].to_vec(), form[form.len() / 2..].to_vec()]);
    AhoCorasick::new(halves).unwrap()
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, files) } else { files.push(path) }
    }
}

/// The nodes' files (data, logs), and those of them in which a key is.
fn search(cluster: &Cluster, patterns: &AhoCorasick) -> (usize, Vec<PathBuf>) {
    let mut files = cluster.logs();
    cluster.data_dirs().iter().for_each(|folder| files_below(folder, &mut files));
    let count = files.len();
    files.retain(|path| patterns.is_match(&std::fs::read(path).unwrap()));
    files.sort();
    (count, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_on_a_disk_unwrapped() {
    let mut cluster = Cluster::start_with(Options::default().environment("CHARTHOLD_LOG", "trace")).await;
    for patient in 0..CHARTS {
        let chart = Chart::patient(format!("p{patient}"));
        cluster.client().put(&chart, &RecordId::new("Note", "n1"), Put::new("text/plain", "x")).await.unwrap();
    }
    cluster.operator().admin().create_tenant("another").await.unwrap();
    cluster.wait_roots_equal().await;
    // One is killed, so that what it had only in its log is searched too; the others flush their state.
    cluster.kill(2);
    assert!(cluster.stop(1).success() && cluster.stop(0).success());

    let keys = keys(&cluster);
    let expected = 1 + 2 * 3 + CHARTS;
    assert!(keys.len() >= expected, "{} keys were found, at least {expected} were made", keys.len());
    let patterns = patterns(&keys);
    let (searched, found) = search(&cluster, &patterns);
    assert!(found.is_empty() && searched > 30, "keys are in {found:?} of {searched} files");

    // The search bites: a chart's key in a table, the root key's digits in a log.
    let planted = [cluster.data_dir(1).join("SYNCED"), cluster.log(2)];
    let texts = [keys[keys.len() - 1][16..].to_vec(), hex::encode(keys[0]).into_bytes()];
    for (path, text) in planted.iter().zip(texts) {
        let content = [std::fs::read(path).unwrap(), text].concat();
        std::fs::write(path, content).unwrap();
    }
    assert_eq!(search(&cluster, &patterns).1, planted);
    let mode = std::fs::metadata(cluster.folder().join("root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
