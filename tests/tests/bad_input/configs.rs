//! Configurations and files that a node refuses to start with, each with a line that says what to mend.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use charthold_tests::harness::{Cluster, Options};

/// Starts a node that must not start: it ends with this code, before it serves anybody. Gives its last line.
pub async fn refuses_to_start(cluster: &Cluster, node: usize, flags: &[String], code: i32) -> String {
    let config = cluster.config(node).to_str().unwrap().to_owned();
    let mut arguments = vec!["start", "--config", &config];
    arguments.extend(flags.iter().flat_map(|flag| ["--set", flag.as_str()]));
    let mut command: tokio::process::Command = cluster.cli_command("operator", &arguments).into();
    let ended = tokio::time::timeout(Duration::from_secs(60), command.kill_on_drop(true).output()).await;
    let output = ended.expect("the node runs").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("serving clients"), "{said}");
    assert!(output.stdout.is_empty());
    said.lines().last().unwrap_or_default().to_owned()
}

fn prepare() -> Cluster {
    Cluster::prepare(Options { sites: 1, ..Options::default() })
}

/// A change of the configuration's text, and the words that it is refused with.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_understood_as_a_whole_or_refused() {
    let cluster = prepare();
    let good = std::fs::read_to_string(cluster.config(0)).unwrap();
    let cases = [
        ("name = ", "nickname = \"a\"\nname = ", "unknown key `nickname`"),
        ("[raft]", "[raft]\nheartbeat = 100", "unknown key `raft.heartbeat`"),
        ("[keys]", "[key]", "unknown key `key"),
        ("ops = ", "opps = ", "unknown key `listen.opps`"),
        ("cert = ", "crt = ", "unknown key `tls.peer.crt`"),
        ("site = \"a\"", "", "`site` is missing"),
        ("site = \"a\"", "site = \"Site A\"", "`site`"),
        ("heartbeat_ms = 100", "heartbeat_ms = \"often\"", "heartbeat_ms"),
        ("heartbeat_ms = 100", "heartbeat_ms = 5000", "heartbeat_ms"),
        ("client = \"127", "client = \"localhost:x127", "listen.client"),
        ("[listen]", "[limits]\nbody_bytes_max = 4194305\n[listen]", "limits.body_bytes_max"),
        ("[listen]", "[limits]\ndocument_bytes_max = 1073741825\n[listen]", "limits.document_bytes_max"),
        ("[listen]", "[limits]\nupload_idle_ms = 999\n[listen]", "limits.upload_idle_ms"),
        ("[listen]", "[memory]\ncache_bytes = 1\n[listen]", "memory.cache_bytes"),
        ("[listen]", "[memory]\nflush_bytes = 1073741825\n[listen]", "memory.flush_bytes"),
        ("[listen]", "[memory]\nflush_bytes = 536870912\n[listen]", "a quarter of `disk.reserve_bytes`"),
        ("[listen]", "[memory]\nrequests_bytes = 0\n[listen]", "memory.requests_bytes"),
        ("[listen]", "[listen", "config.toml"),
        ("root = \"file:../root.key\"", "", "service"),
    ];
    for (from, to, words) in cases {
        assert!(good.contains(from), "{from}");
        std::fs::write(cluster.config(0), good.replacen(from, to, 1)).unwrap();
        let last = refuses_to_start(&cluster, 0, &[], 1).await;
        assert!(last.contains(words) && last.contains("config.toml"), "{to}: {last}");
    }
    std::fs::write(cluster.config(0), good).unwrap();
    let last = refuses_to_start(&cluster, 0, &["raft.heartbeat=1".to_owned()], 2).await;
    assert!(last.contains("unknown key `raft.heartbeat`"), "{last}");
    std::fs::remove_file(cluster.config(0)).unwrap();
    let last = refuses_to_start(&cluster, 0, &[], 1).await;
    assert!(last.contains("config.toml") && last.contains("No such file"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_who_its_certificate_says() {
    let cluster = prepare();
    let certs = |name: &str| cluster.node_folder(0).join(name);
    let authority = cluster.authority();
    let valid = charthold::tls::Validity::default();
    let dns = ["localhost".to_owned()];
    authority.node("b1", true, &dns, &[], &certs("of-b1"), valid).unwrap();
    authority.node("a1", false, &[], &[], &certs("keyless"), valid).unwrap();
    let good = std::fs::read_to_string(cluster.config(0)).unwrap();
    let folders = [
        ("of-b1", "the peer certificate is of node b1 (keyed), this node is a1 (keyed)"),
        ("keyless", "the peer certificate is of node a1 (keyless), this node is a1 (keyed)"),
    ];
    for (folder, words) in folders {
        let peer = good.replace("certs/peer", &format!("{folder}/peer"));
        std::fs::write(cluster.config(0), peer).unwrap();
        let last = refuses_to_start(&cluster, 0, &[], 1).await;
        assert!(last.contains(words), "{folder}: {last}");
    }
    // A client's certificate is no node's, and a client's authority no peers'.
    let operator = cluster.folder().join("operator");
    for file in ["crt", "key"] {
        std::fs::copy(operator.join(format!("client.{file}")), certs(&format!("operator.{file}"))).unwrap();
    }
    std::fs::write(cluster.config(0), good.replace("certs/peer.", "operator.")).unwrap();
    let last = refuses_to_start(&cluster, 0, &[], 1).await;
    assert!(last.contains("would be refused by everyone who trusts"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_others_can_read_are_refused() {
    let cluster = prepare();
    for file in ["peer.key", "service.key"] {
        let key = cluster.node_folder(0).join("certs").join(file);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let last = refuses_to_start(&cluster, 0, &[], 1).await;
        assert!(last.contains(file) && last.contains("a private key that others can read (mode 0640)"), "{last}");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// The port is somebody's already: said so, with the address.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let cluster = prepare();
    for address in [cluster.peer_endpoint(0), cluster.endpoint(0)] {
        let _taken = std::net::TcpListener::bind(&address).unwrap();
        let last = refuses_to_start(&cluster, 0, &[], 1).await;
        assert!(last.contains(&format!("cannot listen on {address}")), "{last}");
    }
}
