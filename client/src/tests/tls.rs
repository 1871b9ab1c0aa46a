//! Certificates: the right ones connect, the wrong ones fail fast and say why. A TLS front forwards to a plain gateway.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use super::fake::{Gateway, dead_address, listen, silent_gateway};
use super::{chart, id};
use crate::*;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Starts a TLS front for a gateway.
    async fn front(&self, name: &str, gateway: &Gateway) -> String {
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::clone(certificate.der())],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (listener, address) = listen("127.0.0.1:0").await;
        let behind = gateway.address.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (acceptor, behind) = (acceptor.clone(), behind.clone());
                tokio::spawn(async move {
                    let mut tls = acceptor.accept(connection).await?;
                    copy_bidirectional(&mut tls, &mut TcpStream::connect(behind).await?).await
                });
            }
        });
        address
    }

    /// Writes a profile whose client certificate another authority may have signed.
    fn profile(&self, signed_by: &Self, endpoints: &[&str], folder: &Path) -> Profile {
        let (certificate, key) = signed_by.issue("client", ExtendedKeyUsagePurpose::ClientAuth);
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Profile {
            endpoints: endpoints.iter().map(|endpoint| endpoint.to_string()).collect(),
            authority: write("ca.crt", self.certificate.pem()),
            certificate: write("client.crt", certificate.pem()),
            key: write("client.key", key.serialize_pem()),
            tenant: None,
        }
    }
}

async fn put(profile: &Profile) -> Result<Committed, Error> {
    let client = Client::connect(profile)?;
    client.put(&chart(), &id(), Put::fhir("{}")).await
}

#[tokio::test]
async fn the_right_certificates_connect() {
    let (authority, gateway, folder) = (Authority::new(), Gateway::start([]).await, tempfile::tempdir().unwrap());
    let front = authority.front("127.0.0.1", &gateway).await;
    let named = front.replace("127.0.0.1", "localhost");
    let wrong_name = authority.front("elsewhere.example", &gateway).await;
    put(&authority.profile(&authority, &[&front], folder.path())).await.unwrap();
    put(&authority.profile(&authority, &[&dead_address().await, &front], folder.path())).await.unwrap();
    put(&authority.profile(&authority, &[&wrong_name, &front], folder.path())).await.unwrap();
    let error = put(&authority.profile(&authority, &[&named], folder.path())).await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error}");
    assert_eq!(gateway.commits().len(), 3);
}

#[tokio::test]
async fn a_refused_certificate_fails_fast_and_says_whose() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (gateway, folder) = (Gateway::start([]).await, tempfile::tempdir().unwrap());
    let front = authority.front("127.0.0.1", &gateway).await;
    let check = async |profile: Profile, expected: &str| {
        let started = Instant::now();
        match put(&profile).await {
            Err(Error::Unauthenticated { why }) => assert!(why.contains(expected), "{why}"),
            other => panic!("{:?}", other.map(|_| ())),
        }
        assert!(started.elapsed() < DEFAULT_DEADLINE / 2, "it gave up before the deadline");
    };
    check(authority.profile(&stranger, &[&front], folder.path()), "refused this client's certificate").await;
    check(stranger.profile(&authority, &[&front], folder.path()), "the gateway is not trusted").await;
    assert_eq!(gateway.commits().len(), 0);
}

/// As when a service's certificate is renewed, or its authority replaced, while it runs.
#[tokio::test]
async fn files_are_read_again_for_each_connection() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (gateway, folder) = (Gateway::start([]).await, tempfile::tempdir().unwrap());
    let front = authority.front("127.0.0.1", &gateway).await;
    let client = Client::connect(&stranger.profile(&stranger, &[&front], folder.path())).unwrap();
    assert!(matches!(client.put(&chart(), &id(), Put::fhir("{}")).await, Err(Error::Unauthenticated { .. })));
    let renewed = authority.profile(&authority, &[&front], folder.path());
    // Calls share a failure to connect for a while, and a connection that was tried meanwhile may tell it once more.
    tokio::time::sleep(crate::connect::DIAL_FAILURE_SHARED).await;
    let mut tries = 0;
    while let Err(error) = client.put(&chart(), &id(), Put::fhir("{}")).await {
        tries += 1;
        assert!(matches!(error, Error::Unauthenticated { .. }) && tries < 3, "try {tries}: {error}");
    }
    // Half of a change: what was there before is used.
    std::fs::write(&renewed.key, "").unwrap();
    client.put(&chart(), &id(), Put::fhir("{}")).await.unwrap();
    assert!(matches!(Client::connect(&renewed), Err(Error::Config(_))));
}

#[tokio::test]
async fn a_handshake_that_never_ends_has_sent_nothing() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let profile = authority.profile(&authority, &[&silent_gateway().await], folder.path());
    let client = Client::connect(&profile).unwrap().with_deadline(Duration::from_millis(300));
    let outcome = client.put(&chart(), &id(), Put::fhir("{}")).await;
    assert!(matches!(outcome, Err(Error::Unavailable { .. })));
}

#[tokio::test]
async fn unreadable_files_are_named() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let good = authority.profile(&authority, &["127.0.0.1:1"], folder.path());
    let missing = folder.path().join("missing");
    for bad in [
        Profile { authority: missing.clone(), ..good.clone() },
        Profile { certificate: missing.clone(), ..good.clone() },
        Profile { key: missing.clone(), ..good.clone() },
        Profile { certificate: good.key.clone(), ..good.clone() },
        Profile { endpoints: vec![], ..good },
    ] {
        assert!(matches!(Client::connect(&bad), Err(Error::Config(_))));
    }
}
