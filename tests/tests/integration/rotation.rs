//! Certificates and authorities are replaced under a running cluster, files only: no node is restarted or told, and no
//! call fails.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use charthold::tls::{Authority, Validity};
use charthold_client::{Chart, Client, Error, Put, RecordId, RequestContext};
use charthold_tests::harness::{CLUSTER, Cluster, Options, until};

/// As in production, rather than as quick as the harness likes them.
const ELECTIONS: &str = "[raft]\nheartbeat_ms = 250\nelection_min_ms = 3000\nelection_max_ms = 4000\n";
const DEADLINE: Duration = Duration::from_secs(12);
const WRITERS: usize = 8;
const NODES: [&str; 3] = ["a1", "b1", "c1"];

/// Writers that go on until they are told to stop. A call that fails ends the test.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writer = |number: usize| {
            let (client, stop, done) = (client.with_deadline(DEADLINE), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let (chart, record) = (Chart::patient(format!("p{number}")), RecordId::new("Note", "n1"));
                let mut version = 0;
                while !stop.load(Ordering::Relaxed) {
                    let committed = client.put(&chart, &record, Put::fhir("{}")).await.unwrap();
                    version += 1;
                    assert_eq!(committed.versions, [version], "once each");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let writers = (0..WRITERS).map(writer).collect();
        Self { stop, done, writers }
    }

    /// Until the writers have done something since.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        until("writers go on", || async {
            match self.done.load(Ordering::Relaxed) > before + 4 * WRITERS {
                true => Ok(()),
                false => Err("no commits".to_owned()),
            }
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
    }
}

/// As an operator's tools replace a file: whole.
fn replace(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn copy(from: &Path, to: &Path) {
    replace(to, &std::fs::read(from).unwrap());
}

fn certs(cluster: &Cluster, node: usize) -> PathBuf {
    cluster.node_folder(node).join("certs")
}

/// How often all nodes have said so.
async fn wait_reloaded(cluster: &Cluster, kind: &str, times: usize) {
    until(&format!("{kind} certificates are reloaded, {times} times"), || async {
        for log in cluster.logs() {
            let text = std::fs::read_to_string(log).unwrap();
            let lines = text.lines().filter(|line| line.contains("certificates reloaded") && line.contains(kind));
            let found = lines.count();
            if found < times {
                return Err(format!("{found}: {text}"));
            }
        }
        Ok(())
    })
    .await;
}

/// A second authority of the same cluster, and what it issues to each node.
fn next_authority(cluster: &Cluster) -> Authority {
    let authority = Authority::create(CLUSTER, &cluster.folder().join("authority2")).unwrap();
    for (node, name) in NODES.into_iter().enumerate() {
        let (dns, ip) = (["localhost".to_owned()], [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        let out = cluster.node_folder(node).join("certs2");
        authority.node(name, true, &dns, &ip, &out, Validity::default()).unwrap();
    }
    authority
}

fn write_authorities(cluster: &Cluster, kind: &str, generations: &[&str], places: &[PathBuf]) {
    let mut pem = Vec::new();
    for generation in generations {
        pem.extend(std::fs::read(cluster.folder().join(generation).join(format!("{kind}-ca.crt"))).unwrap());
    }
    places.iter().for_each(|place| replace(&place.join(format!("{kind}-ca.crt")), &pem));
}

async fn start() -> Cluster {
    Cluster::start_with(Options { config: ELECTIONS.to_owned(), ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peers_authority_is_replaced_under_load() {
    let cluster = start().await;
    next_authority(&cluster);
    let load = Load::start(&cluster.client());
    let nodes: Vec<PathBuf> = (0..cluster.size()).map(|node| certs(&cluster, node)).collect();

    write_authorities(&cluster, "peer", &["authority", "authority2"], &nodes);
    wait_reloaded(&cluster, "peer", 1).await;
    load.goes_on().await;
    for (node, folder) in nodes.iter().enumerate() {
        for file in ["peer.crt", "peer.key"] {
            copy(&cluster.node_folder(node).join("certs2").join(file), &folder.join(file));
        }
        load.goes_on().await;
    }
    wait_reloaded(&cluster, "peer", 2).await;
    write_authorities(&cluster, "peer", &["authority2"], &nodes);
    wait_reloaded(&cluster, "peer", 3).await;
    load.goes_on().await;
    load.end().await;
    cluster.wait_roots_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_authority_is_replaced_under_load() {
    let cluster = start().await;
    let authority = next_authority(&cluster);
    let load = Load::start(&cluster.client());
    let nodes: Vec<PathBuf> = (0..cluster.size()).map(|node| certs(&cluster, node)).collect();
    let own = cluster.folder().join("client");
    let everywhere =
        || nodes.iter().cloned().chain([own.clone(), cluster.folder().join("operator")]).collect::<Vec<_>>();

    write_authorities(&cluster, "service", &["authority", "authority2"], &everywhere());
    wait_reloaded(&cluster, "service", 1).await;
    load.goes_on().await;
    for (node, folder) in nodes.iter().enumerate() {
        for file in ["service.crt", "service.key"] {
            copy(&cluster.node_folder(node).join("certs2").join(file), &folder.join(file));
        }
        load.goes_on().await;
    }
    wait_reloaded(&cluster, "service", 2).await;
    let tenant = <[u8; 16]>::try_from(hex::decode(cluster.tenant()).unwrap()).unwrap();
    let (service, operator) = (cluster.folder().join("client2"), cluster.folder().join("operator2"));
    authority.service(&tenant, "client", &service, Validity::default()).unwrap();
    authority.operator("operator", &operator, Validity::default()).unwrap();
    for file in ["client.crt", "client.key"] {
        copy(&service.join(file), &own.join(file));
        copy(&operator.join(file), &cluster.folder().join("operator").join(file));
    }
    load.goes_on().await;
    // Connections that were made with the old certificate are cut now; the client makes others.
    write_authorities(&cluster, "service", &["authority2"], &everywhere());
    wait_reloaded(&cluster, "service", 3).await;
    load.goes_on().await;
    load.end().await;

    let old = cluster.folder().join("old");
    cluster.authority().service(&tenant, "client", &old, Validity::default()).unwrap();
    let refused = read_as(&cluster, &old).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthenticated { .. }), "{refused}");
}

async fn read_as(cluster: &Cluster, certificates: &Path) -> Result<(), Error> {
    let profile = charthold_client::Profile {
        authority: cluster.folder().join("client/service-ca.crt"),
        certificate: certificates.join("client.crt"),
        key: certificates.join("client.key"),
        ..charthold_client::Profile::load(cluster.profile("client")).unwrap()
    };
    let client = Client::connect(&profile)?.with_context(RequestContext::new("test")).with_deadline(DEADLINE);
    match client.get(&Chart::patient("nobody"), &RecordId::new("Note", "n1")).await {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A node with a mistake in its files goes on with what it had, says so once, and takes what is right at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_changes_nothing() {
    let cluster = Cluster::start(1).await;
    let folder = certs(&cluster, 0);
    let good = std::fs::read(folder.join("service.crt")).unwrap();
    let log = || std::fs::read_to_string(cluster.log(0)).unwrap();
    let complaints = || log().matches("what was changed cannot be used").count();
    replace(&folder.join("service.crt"), b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let config = std::fs::read_to_string(cluster.config(0)).unwrap();
    std::fs::write(cluster.config(0), format!("colour = 1\n{config}")).unwrap();
    until("the node complains of both", || async { if complaints() == 2 { Ok(()) } else { Err(log()) } }).await;
    assert!(log().contains("service.crt") && log().contains("unknown key `colour`"), "{}", log());
    read_as(&cluster, &cluster.folder().join("client")).await.unwrap();

    // What can be changed is, what cannot is named.
    let config =
        config.replace("[raft]", "[limits]\nbody_bytes_max = 8\n[raft]").replace("join = []", "join = [\"x:1\"]");
    std::fs::write(cluster.config(0), config).unwrap();
    replace(&folder.join("service.crt"), &good);
    until("the node has read them", || async {
        let text = log();
        let done = text.contains("limits changed") && text.contains("restart the node") && text.contains("\"join\"");
        if done { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(complaints(), 2);
    let (client, chart, record) = (cluster.client(), Chart::patient("p1"), RecordId::new("Note", "n1"));
    client.put(&chart, &record, Put::new("text/plain", "12345678")).await.unwrap();
    let error = client.put(&chart, &record, Put::new("text/plain", "123456789")).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}
