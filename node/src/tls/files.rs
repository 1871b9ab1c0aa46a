//! Certificates and keys as they lie on disk: PEM files.
//!
//! `ca` holds one or more authorities (more than one while an authority is being replaced), `cert` the own certificate
//! followed by intermediates if there are any, `key` its private key. A key that group or others can read is refused: a
//! node that runs with an exposed key looks healthy until somebody uses the key.
//!
//! Everything that others would refuse later (a key that does not fit, an expired certificate, one of a foreign
//! authority) is refused here, where the message can name the file.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use serde::Deserialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::{TlsError, provider};

const PEM_BYTES_MAX: u64 = 1 << 20;
/// Group and others.
const EXPOSED_BITS: u32 = 0o077;

/// Where an authority, a certificate and its key lie: `{ ca = "…", cert = "…", key = "…" }` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The files' content, checked to fit together. No `Debug`: it holds the key.
pub(super) struct Material {
    pub roots: Arc<RootCertStore>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Material {
    /// Never empty: [`TlsFiles::load`] refuses a file without certificates.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }
}

impl TlsFiles {
    /// The names that `charthold cert` gives a node's files: `kind` is "peer" or "service".
    pub fn in_folder(folder: &Path, kind: &str) -> Self {
        Self {
            ca: folder.join(format!("{kind}-ca.crt")),
            cert: folder.join(format!("{kind}.crt")),
            key: folder.join(format!("{kind}.key")),
        }
    }

    /// When the certificate that lies there ends, in seconds since 1970.
    pub fn expires_at(&self) -> Result<u64, TlsError> {
        let chain = read_certificates(&self.cert)?;
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let (_, leaf) = leaf.ok_or_else(|| malformed(&self.cert, "certificates"))?;
        Ok(leaf.validity().not_after.timestamp().max(0) as u64)
    }

    pub(super) fn load(&self) -> Result<Material, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&self.ca)? {
            roots.add(certificate).map_err(|_| malformed(&self.ca, "certificates of authorities"))?;
        }
        let chain = read_certificates(&self.cert)?;
        let key = read_key(&self.key)?;
        let material = Material { roots: Arc::new(roots), chain, key };
        self.check_key(&material)?;
        Ok(material)
    }

    fn check_key(&self, material: &Material) -> Result<(), TlsError> {
        let key = provider()
            .key_provider
            .load_private_key(material.key.clone_key())
            .map_err(|_| malformed(&self.key, "a private key of a supported kind (ECDSA, Ed25519, RSA)"))?;
        rustls::sign::CertifiedKey::new(material.chain.clone(), key)
            .keys_match()
            .map_err(|_| TlsError::KeyMismatch { certificate: self.cert.clone(), key: self.key.clone() })
    }

    /// Whether others, who trust the same authority, would accept the certificate as a server's now.
    pub(super) fn check_server_chain(&self, material: &Material) -> Result<(), TlsError> {
        let refused = |error: rustls::Error| TlsError::Refused {
            certificate: self.cert.clone(),
            authority: self.ca.clone(),
            reason: error.to_string(),
        };
        let leaf = ParsedCertificate::try_from(material.leaf()).map_err(refused)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let intermediates = material.chain.get(1..).unwrap_or_default();
        verify_server_cert_signed_by_trust_anchor(&leaf, &material.roots, intermediates, UnixTime::now(), algorithms)
            .map_err(refused)
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, false)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(malformed(path, "certificates")),
    }
}

pub(super) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(path, true)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| malformed(path, "a private key"))
}

pub(super) fn read(path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // Of the open file, so that what was checked is what is read.
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if secret && mode & EXPOSED_BITS != 0 {
        return Err(TlsError::KeyExposed { path: path.to_owned(), mode });
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(TlsError::TooLarge { path: path.to_owned(), limit_bytes: PEM_BYTES_MAX });
    }
    Ok(content)
}

fn malformed(path: &Path, expected: &'static str) -> TlsError {
    TlsError::Malformed { path: path.to_owned(), expected }
}
