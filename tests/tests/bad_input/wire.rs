//! Raw gRPC: bytes of our own making under any certificate, and what a refusal says.
//!
//! The client library would not send most of what is tried here, and retries where a test wants to see one answer.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use charthold_tests::harness::Cluster;
use futures::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

/// The protocol's limit; gRPC libraries take less unless they are told.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// A TLS client that trusts one authority and shows one certificate.
pub fn tls(authority: &Path, certificate: &Path, key: &Path, protocol: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let mut config = tls13()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// The same for a caller that believes every server: what matters then is what the server makes of the caller.
pub fn tls_trusting_all(certificate: &Path, key: &Path, protocol: &[u8]) -> TlsConnector {
    let mut config = tls13()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer))
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn tls13() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap()
}

#[derive(Debug)]
struct Believer;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// One caller at one gateway. Clones share the connection.
#[derive(Clone)]
pub struct Wire(Channel);

impl Wire {
    /// As the owner of a profile of the cluster's.
    pub fn connect(cluster: &Cluster, node: usize, profile: &str) -> Self {
        let folder = cluster.folder().join(profile);
        let tls = tls(&folder.join("service-ca.crt"), &folder.join("client.crt"), &folder.join("client.key"), b"h2");
        let address = cluster.endpoint(node);
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                Ok::<_, std::io::Error>(TokioIo::new(
                    tls.connect(ServerName::try_from("localhost").unwrap(), stream).await?,
                ))
            }
        })))
    }

    /// One call, its request as bytes; of a stream, the messages until its end.
    pub async fn call(&self, method: &str, request: Bytes) -> Result<Vec<Bytes>, Status> {
        self.call_with(method, Request::new(request)).await
    }

    /// The same with metadata of the caller's, a deadline among them.
    pub async fn call_with(&self, method: &str, request: Request<Bytes>) -> Result<Vec<Bytes>, Status> {
        let mut answers = self.open_with(method, request).await?;
        let mut messages = Vec::new();
        while let Some(message) = answers.message().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// A call whose messages are taken one by one.
    pub async fn open(&self, method: &str, request: Bytes) -> Result<Streaming<Bytes>, Status> {
        self.open_with(method, Request::new(request)).await
    }

    async fn open_with(&self, method: &str, request: Request<Bytes>) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::try_from(format!("/{method}")).unwrap();
        Ok(grpc.server_streaming(request, path, Raw).await?.into_inner())
    }

    /// A call that takes messages as they are sent, and gives what is answered.
    pub async fn exchange(
        &self,
        method: &str,
        requests: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::try_from(format!("/{method}")).unwrap();
        Ok(grpc.streaming(Request::new(requests), path, Raw).await?.into_inner())
    }

    /// A call that sends a message, or none, and then neither ends nor goes on.
    pub async fn hold(&self, method: &str, request: Option<Bytes>) -> Status {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        if let Err(error) = grpc.ready().await {
            return Status::unavailable(error.to_string());
        }
        let path = http::uri::PathAndQuery::try_from(format!("/{method}")).unwrap();
        let messages = futures::stream::iter(request).chain(futures::stream::pending());
        match grpc.client_streaming(Request::new(messages), path, Raw).await {
            Ok(_) => Status::ok("answered"),
            Err(status) => status,
        }
    }

    /// A call with one answer.
    pub async fn ask<Answer: Message + Default>(&self, method: &str, request: &impl Message) -> Result<Answer, Status> {
        let answers = self.call(method, request.encode_to_vec().into()).await?;
        assert_eq!(answers.len(), 1, "{method}");
        Ok(Answer::decode(answers[0].clone()).unwrap())
    }
}

/// Sends and takes messages as the bytes that they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// What an error tells a program and a person.
#[derive(Debug)]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    pub message: String,
    /// Field and description of each violation.
    pub fields: Vec<(String, String)>,
}

impl Refusal {
    pub fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        if let Some(info) = info {
            assert_eq!(info.domain, "charthold");
            let linked = details.help().map(|help| help.links[0].url.clone()).unwrap_or_default();
            assert_eq!(linked, format!("docs/errors/{}.md", info.reason));
        }
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            fields: violations.into_iter().map(|violation| (violation.field, violation.description)).collect(),
        }
    }
}
