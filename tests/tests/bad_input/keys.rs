//! The root key: read from a file that nobody else reads, the same one on every node, and written nowhere else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use charthold::seal::create_root_key_file;
use charthold_client::{Chart, Put, RecordId};
use charthold_proto::v1;
use charthold_tests::harness::{Cluster, Options, until};
use tonic::Code;

use super::configs::refuses_to_start;
use super::wire::{Refusal, Wire};

fn flag(path: &Path) -> Vec<String> {
    vec![format!("keys.root=file:{}", path.display())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_key_file_must_be_private_and_whole() {
    let cluster = Cluster::prepare(Options { sites: 1, ..Options::default() });
    let path = cluster.folder().join("root.key");
    let good = std::fs::read_to_string(&path).unwrap();
    for mode in [0o640, 0o604, 0o660, 0o644, 0o610, 0o700] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let last = refuses_to_start(&cluster, 0, &[], 1).await;
        assert!(
            last.contains(&format!("root.key: mode {mode:04o} lets others read the root key; make it 0600")),
            "{last}"
        );
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let digits = good.trim_end().rsplit_once(' ').unwrap().1;
    let bad = [
        String::new(),
        digits.to_owned(),
        good.replace("v1", "v2"),
        good.replacen(digits, &digits[2..], 1),
        good.clone() + &good,
    ];
    for text in bad {
        std::fs::write(&path, &text).unwrap();
        let last = refuses_to_start(&cluster, 0, &[], 1).await;
        assert!(last.contains("root.key: this is not a root key file") && !last.contains(&digits[2..]), "{last}");
    }
    let last = refuses_to_start(&cluster, 0, &flag(&cluster.folder().join("none.key")), 1).await;
    assert!(last.contains("none.key: No such file"), "{last}");
    let last = refuses_to_start(&cluster, 0, &["keys.root=vault:secret".to_owned()], 1).await;
    assert!(last.contains("file:/path/to/root.key"), "{last}");
}

/// A node that could seal what no other opens must not serve for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_root_key_does_not_start() {
    let mut cluster = Cluster::start(3).await;
    let (chart, id) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
    cluster.client().put(&chart, &id, Put::new("text/plain", "kept")).await.unwrap();
    cluster.wait_roots_equal().await;
    let other = cluster.folder().join("other.key");
    create_root_key_file(&other).unwrap();
    assert!(cluster.stop(2).success());
    let last = refuses_to_start(&cluster, 2, &flag(&other), 1).await;
    let words = "the root key of this node is not the cluster's: the cluster was made with another root key";
    assert!(last.contains(words), "{last}");
    // With its own key it is as before.
    cluster.restart(2);
    cluster.wait_ready().await;
    assert_eq!(cluster.client_at(2).get(&chart, &id).await.unwrap().body.as_ref(), b"kept");
    cluster.wait_roots_equal().await;
}

/// Before there is a cluster nobody can know which key is the right one; but no cluster is formed of two.
#[tokio::test(flavor = "multi_thread")]
async fn no_cluster_is_formed_with_two_root_keys() {
    let mut cluster = Cluster::prepare(Options::default());
    let other = cluster.folder().join("other.key");
    create_root_key_file(&other).unwrap();
    let good = std::fs::read_to_string(cluster.config(2)).unwrap();
    std::fs::write(cluster.config(2), good.replace("../root.key", other.to_str().unwrap())).unwrap();
    cluster.restart_all();
    for node in 0..3 {
        cluster.wait_answers(node).await;
    }
    let init = v1::InitRequest {
        context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
        expected_nodes: 3,
    };
    for (asked, refused) in [(0, "node c1 holds another root key than this one"), (2, "another root key than this one")]
    {
        let operator = Wire::connect(&cluster, asked, "operator");
        let refusal = until("both ports are open", || async {
            let status = operator.ask::<v1::InitResponse>("charthold.v1.Cluster/Init", &init).await.err();
            let refusal = Refusal::of(&status.expect("it was initialized"));
            if refusal.code == Code::Unavailable { Err(refusal.message) } else { Ok(refusal) }
        })
        .await;
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::FailedPrecondition, "CANNOT_FORM"), "{refusal:?}");
        assert!(refusal.message.contains(refused), "{refusal:?}");
    }
    // Nothing was begun: with the right key everywhere it is formed as if nothing had been.
    cluster.stop(2);
    std::fs::write(cluster.config(2), good).unwrap();
    cluster.restart(2);
    cluster.initialize().await;
}

/// What must not be found: the key as it is, and as text.
fn patterns(cluster: &Cluster) -> aho_corasick::AhoCorasick {
    let line = std::fs::read_to_string(cluster.folder().join("root.key")).unwrap();
    let digits = line.trim_end().rsplit_once(' ').unwrap().1.to_owned();
    let bytes = hex::decode(&digits).unwrap();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, &bytes);
    // Halves are found too: a key is no less told for being cut.
    let whole = [bytes.clone(), digits.clone().into_bytes(), digits.to_uppercase().into_bytes(), base64.into_bytes()];
    let halves = whole.iter().flat_map(|it| [it[..it.len() / 2].to_vec(), it[it.len() / 2..].to_vec()]);
    aho_corasick::AhoCorasick::new(halves).unwrap()
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, files) } else { files.push(path) }
    }
}

/// Files of the nodes (data, logs) in which the key is, and how many were searched.
fn search(cluster: &Cluster) -> (Vec<PathBuf>, usize) {
    let patterns = patterns(cluster);
    let mut files = cluster.logs();
    cluster.data_dirs().iter().for_each(|folder| files_below(folder, &mut files));
    let count = files.len();
    // One may be removed while we look: it was an older one's name, then.
    files.retain(|path| std::fs::read(path).is_ok_and(|bytes| patterns.is_match(&bytes)));
    (files, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_is_on_no_disk_but_in_its_file() {
    let options = Options::default().environment("CHARTHOLD_LOG", "trace");
    let mut cluster = Cluster::start_with(options).await;
    for patient in 0..20 {
        let chart = Chart::patient(format!("p{patient}"));
        cluster.client().put(&chart, &RecordId::new("Note", "n1"), Put::new("text/plain", "x")).await.unwrap();
    }
    cluster.operator().admin().create_tenant("another").await.unwrap();
    let (found, searched) = search(&cluster);
    assert!(found.is_empty() && searched > 30, "{found:?} of {searched}");
    for node in 0..3 {
        assert!(cluster.stop(node).success());
    }
    let (found, _) = search(&cluster);
    assert!(found.is_empty(), "after a clean stop, when the state is on disk: {found:?}");

    // The search bites: in a file that is already there, and in a log.
    let key = std::fs::read(cluster.folder().join("root.key")).unwrap();
    let digits = key.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap().to_owned();
    let planted = [cluster.data_dir(1).join("SYNCED"), cluster.log(2)];
    for (path, bytes) in planted.iter().zip([hex::decode(&digits).unwrap(), digits]) {
        let mut content = std::fs::read(path).unwrap();
        content.extend(bytes);
        std::fs::write(path, content).unwrap();
    }
    let (mut found, _) = search(&cluster);
    found.sort();
    assert_eq!(found, planted);
    let mode = std::fs::metadata(cluster.folder().join("root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
