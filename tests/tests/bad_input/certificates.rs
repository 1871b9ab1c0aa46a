//! Who may connect, on the clients' port and on the peers': expired, foreign and odd certificates, the other port's,
//! none at all, and no TLS.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use charthold::tls::{Authority, Validity};
use charthold_client::{Chart, Client, Error, Profile, Put, RecordId, RequestContext};
use charthold_proto::v1;
use charthold_tests::harness::{CLUSTER, Cluster, Options, until};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::wire::{Refusal, Wire, tls_trusting_all};

const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The first byte of a TLS alert.
const ALERT: u8 = 0x15;

/// A cluster of one whose log also tells of failed handshakes, with a record that must survive all this.
async fn start() -> Cluster {
    let options = Options { sites: 1, ..Options::default() };
    let cluster = Cluster::start_with(options.environment("CHARTHOLD_LOG", "info,charthold=debug")).await;
    let (chart, id) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
    cluster.client().put(&chart, &id, Put::new("text/plain", "kept")).await.unwrap();
    cluster
}

async fn nothing_was_lost(cluster: &Cluster) {
    let (client, chart, id) = (cluster.client(), Chart::patient("p1"), RecordId::new("Note", "n1"));
    let record = client.get(&chart, &id).await.unwrap();
    assert_eq!((record.version(), record.body.as_ref()), (1, &b"kept"[..]));
    assert_eq!(client.put(&chart, &id, Put::new("text/plain", "newer")).await.unwrap().versions, [2]);
}

/// A client that trusts this cluster and shows that certificate; it waits for no second try.
fn client(cluster: &Cluster, certificate: &Path, key: &Path) -> Client {
    let profile = Profile {
        endpoints: vec![cluster.endpoint(0)],
        authority: cluster.folder().join("operator/service-ca.crt"),
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        tenant: None,
    };
    let client = Client::connect(&profile).unwrap().with_context(RequestContext::new("test"));
    client.with_deadline(Duration::from_secs(10))
}

async fn get(client: &Client) -> Error {
    match client.get(&Chart::patient("p1"), &RecordId::new("Note", "n1")).await {
        Ok(_) => panic!("the record was read"),
        Err(error) => error,
    }
}

/// The gateway ends the handshake, and the client knows why.
async fn refused_by_tls(cluster: &Cluster, certificate: &Path, key: &Path, alert: &str) {
    let error = get(&client(cluster, certificate, key)).await;
    let Error::Unauthenticated { why } = &error else { panic!("{error}") };
    assert!(why.contains("refused this client's certificate") && why.contains(alert), "{why}");
}

/// A certificate that nobody should have made, signed by an authority of the cluster's (`peer` or `service`).
pub fn odd(
    cluster: &Cluster,
    authority: &str,
    name: &str,
    uris: &[&str],
    usages: &[ExtendedKeyUsagePurpose],
) -> PathBuf {
    let authorities = cluster.folder().join("authority");
    let read = |suffix: &str| std::fs::read_to_string(authorities.join(format!("{authority}-ca.{suffix}"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("crt"), KeyPair::from_pem(&read("key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap())).collect();
    params.extended_key_usages = usages.to_vec();
    let key = KeyPair::generate().unwrap();
    let folder = cluster.folder().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("client.crt"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(folder.join("client.key"), key.serialize_pem()).unwrap();
    std::fs::copy(authorities.join(format!("{authority}-ca.crt")), folder.join(format!("{authority}-ca.crt"))).unwrap();
    folder
}

fn tenant(cluster: &Cluster) -> [u8; 16] {
    <[u8; 16]>::try_from(hex::decode(cluster.tenant()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_do_not_count_end_the_handshake() {
    let cluster = start().await;
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let files = |name: &str| {
        let folder = cluster.folder().join(name);
        (folder.join("client.crt"), folder.join("client.key"), folder)
    };

    let (certificate, key, folder) = files("expired");
    let valid = Validity { not_before: now - day * 2, not_after: now - day };
    cluster.authority().service(&tenant(&cluster), "client", &folder, valid).unwrap();
    refused_by_tls(&cluster, &certificate, &key, "Expired").await;

    let (certificate, key, folder) = files("early");
    let valid = Validity { not_before: now + day, not_after: now + day * 2 };
    cluster.authority().service(&tenant(&cluster), "client", &folder, valid).unwrap();
    refused_by_tls(&cluster, &certificate, &key, "").await;

    // The same names, of another authority that calls itself the same.
    let foreign = Authority::create(CLUSTER, &cluster.folder().join("foreign-authority")).unwrap();
    let (certificate, key, folder) = files("foreign");
    foreign.service(&tenant(&cluster), "client", &folder, Validity::default()).unwrap();
    refused_by_tls(&cluster, &certificate, &key, "").await;
    let (certificate, key, folder) = files("foreign-operator");
    foreign.operator("operator", &folder, Validity::default()).unwrap();
    refused_by_tls(&cluster, &certificate, &key, "").await;

    // A node's own: the peers' authority is not the clients'. And its service certificate is for serving.
    let certs = cluster.node_folder(0).join("certs");
    refused_by_tls(&cluster, &certs.join("peer.crt"), &certs.join("peer.key"), "").await;
    refused_by_tls(&cluster, &certs.join("service.crt"), &certs.join("service.key"), "").await;
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    assert!(log.matches("handshake failed").count() >= 6, "{log}");
    nothing_was_lost(&cluster).await;
}

/// The authority signed it, so the handshake succeeds: every call then says what is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_without_a_principal_of_this_cluster_are_told_so() {
    let cluster = start().await;
    let own = format!("spiffe://{CLUSTER}/tenant/{}/service/client", cluster.tenant());
    let elsewhere = own.replace(CLUSTER, "elsewhere");
    let usages = [ExtendedKeyUsagePurpose::ClientAuth];
    let cases: [(&str, &[&str], &str); 6] = [
        ("no-name", &[], "needs one URI SAN"),
        ("two-names", &[&own, &elsewhere], "needs one URI SAN"),
        ("web-name", &["https://example.org/"], "needs one URI SAN"),
        ("peer-name", &["charthold://test/node/a1/keyed"], "needs one URI SAN"),
        ("other-cluster", &[&elsewhere], "of another cluster"),
        ("other-clusters-operator", &["spiffe://elsewhere/operator/operator"], "of another cluster"),
    ];
    for (name, uris, words) in cases {
        let folder = odd(&cluster, "service", name, uris, &usages);
        let error = get(&client(&cluster, &folder.join("client.crt"), &folder.join("client.key"))).await;
        let Error::Unauthenticated { why } = &error else { panic!("{name}: {error}") };
        assert!(why.contains(words), "{name}: {why}");
        let wire = Wire::connect(&cluster, 0, name);
        for method in ["Charts/Commit", "Cluster/Init", "Cluster/Status", "Cluster/Topology", "Tenants/ListTenants"] {
            let status = wire.call(&format!("charthold.v1.{method}"), Default::default()).await.unwrap_err();
            let refusal = Refusal::of(&status);
            assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unauthenticated, "BAD_CERTIFICATE"), "{name}");
        }
    }
    nothing_was_lost(&cluster).await;
}

/// In TLS 1.3 the caller is done first: the refusal comes with the first read.
async fn refused_by_peers_port(cluster: &Cluster, folder: &Path) {
    let connector = tls_trusting_all(&folder.join("client.crt"), &folder.join("client.key"), b"charthold-peer/1");
    let stream = TcpStream::connect(cluster.peer_endpoint(0)).await.unwrap();
    let error = match connector.connect(ServerName::try_from("localhost").unwrap(), stream).await {
        Ok(mut stream) => stream.read_to_end(&mut Vec::new()).await.err(),
        Err(error) => Some(error),
    };
    let error = error.unwrap_or_else(|| panic!("{} was not refused", folder.display())).to_string();
    assert!(error.contains("received fatal alert"), "{}: {error}", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peers_port_is_for_peers() {
    let cluster = start().await;
    for client in ["client", "operator"] {
        refused_by_peers_port(&cluster, &cluster.folder().join(client)).await;
    }
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cases: [(&str, &[&str], &[ExtendedKeyUsagePurpose]); 5] = [
        ("peer-elsewhere", &["charthold://elsewhere/node/a1/keyed"], &both),
        ("peer-no-name", &[], &both),
        ("peer-as-client", &["spiffe://test/operator/operator"], &both),
        ("peer-two-names", &["charthold://test/node/a1/keyed", "charthold://test/node/b1/keyed"], &both),
        ("peer-half", &["charthold://test/node/b1/keyed"], &both[1..]),
    ];
    for (name, uris, usages) in cases {
        refused_by_peers_port(&cluster, &odd(&cluster, "peer", name, uris, usages)).await;
    }
    until("the log names what was refused", || async {
        let log = std::fs::read_to_string(cluster.log(0)).unwrap();
        let words = ["belongs to another cluster", "carries no URI", "more than one URI", "charthold://<cluster>/node"];
        match words.iter().find(|words| !log.contains(**words)) {
            Some(missing) => Err(format!("not in the log: {missing}")),
            None => Ok(()),
        }
    })
    .await;
    nothing_was_lost(&cluster).await;
}

/// No port speaks without TLS: what comes back is an alert or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_port_speaks_in_clear() {
    let cluster = start().await;
    let ports = [cluster.endpoint(0), cluster.peer_endpoint(0)];
    let greetings: [&[u8]; 4] =
        [HTTP2, b"GET /v1/charts HTTP/1.1\r\nHost: a\r\n\r\n", &[0, 0, 0, 12, 2, 0, 0, 0], &[0xff; 64]];
    for port in &ports {
        for greeting in greetings {
            let mut stream = TcpStream::connect(port).await.unwrap();
            stream.write_all(greeting).await.unwrap();
            let mut answer = Vec::new();
            // Closed at once, or when the handshake's time is over; a reset is as good.
            let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "{port} keeps a connection without TLS open");
            assert!(answer.first().is_none_or(|first| *first == ALERT), "{port} answers in clear: {answer:?}");
        }
        let old = TcpStream::connect(port).await.unwrap();
        drop(old);
    }
    nothing_was_lost(&cluster).await;
}

/// A node of another cluster that was told to join this one finds nobody there, and says whom it could not reach.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_cluster_is_refused() {
    let cluster = start().await;
    let mut stranger = Cluster::prepare(Options { sites: 1, ..Options::default() });
    let config = std::fs::read_to_string(stranger.config(0)).unwrap();
    let address = cluster.peer_endpoint(0);
    std::fs::write(stranger.config(0), config.replace("join = []", &format!("join = [\"{address}\"]"))).unwrap();
    stranger.restart(0);
    stranger.wait_answers(0).await;
    let context = Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() });
    let operator = Wire::connect(&stranger, 0, "operator");
    let init = v1::InitRequest { context, expected_nodes: 2, shards: 0 };
    let status = operator.ask::<v1::InitResponse>("charthold.v1.Cluster/Init", &init).await.err().unwrap();
    let refusal = Refusal::of(&status);
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "NO_QUORUM"), "{refusal:?}");
    assert!(refusal.message.contains(&format!("cannot reach {address}")), "{refusal:?}");
    assert!(refusal.message.contains("certificate"), "why: {refusal:?}");
    let status = stranger.status_of(0).await.unwrap();
    assert!(!status.initialized);
    nothing_was_lost(&cluster).await;
}
