//! The root key: read from a file that nobody else reads, and the same one on every node.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

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
    assert!(last.contains("`keys.root` must be file:PATH"), "{last}");
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
        shards: 0,
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
    let finished = cluster.operator_cli(&["cluster", "init"]).await;
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    let words = "CANNOT_FORM: the cluster cannot be formed: node c1 holds another root key than this one";
    assert!(finished.stderr.lines().last().unwrap().contains(words), "{}", finished.stderr);
    // Nothing was begun: with the right key everywhere it is formed as if nothing had been.
    cluster.stop(2);
    std::fs::write(cluster.config(2), good).unwrap();
    cluster.restart(2);
    cluster.initialize().await;
}
