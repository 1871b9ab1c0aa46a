//! Certificates for others' servers, and connections to them: mutual TLS, as ours has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, version::TLS13};
use tonic::transport::{Channel, Endpoint};

const HOST: &str = "127.0.0.1";

/// One authority, and one certificate that serves and calls.
pub struct Certificates {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    pub fn create(folder: &Path) -> Result<Self, rcgen::Error> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let mut parameters = CertificateParams::new([HOST.to_owned()])?;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &Issuer::new(authority, authority_key))?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file in a folder of our own");
            path
        };
        Ok(Self {
            authority: write("ca.crt", authority_pem),
            certificate: write("node.crt", certificate.pem()),
            key: write("node.key", key.serialize_pem()),
        })
    }

    fn connector(&self) -> TlsConnector {
        let certificate = |path| CertificateDer::from_pem_file(path).expect("a certificate that was just written");
        let mut authorities = RootCertStore::empty();
        authorities.add(certificate(&self.authority)).expect("an authority");
        let key = PrivateKeyDer::from_pem_file(&self.key).expect("a key that was just written");
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("aws-lc-rs knows TLS 1.3")
            .with_root_certificates(authorities)
            .with_client_auth_cert(vec![certificate(&self.certificate)], key)
            .expect("a certificate with its key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// A channel to `host:port`. Nothing is dialed before the first call.
    pub fn channel(&self, endpoint: Endpoint, address: String) -> Channel {
        let connector = self.connector();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let host = ServerName::try_from(HOST).map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(host, stream).await?))
            }
        }))
    }
}
