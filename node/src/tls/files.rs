//! Certificates and keys as they lie on disk: PEM files.
//!
//! `ca` holds one or more authorities (more than one while an authority is being replaced), `cert` the own certificate
//! followed by intermediates if there are any, `key` its private key. A key that group or others can read is refused: a
//! node that runs with an exposed key looks healthy until somebody uses the key. `crl`, if given, holds the authorities'
//! revocation lists: one for each authority in `ca`, and whoever none of them speaks of is refused.
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
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::{TlsError, provider, revocation};

const PEM_BYTES_MAX: u64 = 1 << 20;
/// Group and others.
const EXPOSED_BITS: u32 = 0o077;

/// Where an authority, a certificate and its key lie: `{ ca = "…", cert = "…", key = "…" }` in the configuration,
/// with `crl = "…"` where certificates can be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    #[serde(default)]
    pub crl: Option<PathBuf>,
}

/// The files' content, checked to fit together. No `Debug`: it holds the key.
pub(super) struct Material {
    pub authorities: Vec<CertificateDer<'static>>,
    pub roots: Arc<RootCertStore>,
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Material {
    /// Never empty: [`TlsFiles::load`] refuses a file without certificates.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// What the other end's certificate is held against: the authorities, the time, the revocation lists. A list that is
    /// out of date still counts: to forget its renewal must not lock everybody out.
    pub fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.lists.iter().cloned())
            .build()
            .map_err(|error| TlsError::Config(error.to_string()))
    }
}

impl TlsFiles {
    /// The names that `charthold cert` gives a node's files: `kind` is "peer" or "service".
    pub fn in_folder(folder: &Path, kind: &str) -> Self {
        Self {
            ca: folder.join(format!("{kind}-ca.crt")),
            cert: folder.join(format!("{kind}.crt")),
            key: folder.join(format!("{kind}.key")),
            crl: None,
        }
    }

    /// Stands for the names and the content of all files, readable or not: it changes when any of them does.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for path in [&self.ca, &self.cert, &self.key].into_iter().chain(&self.crl) {
            let name = path.as_os_str().as_encoded_bytes();
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            match (read(path, false), path.metadata()) {
                (Ok(content), Ok(metadata)) => {
                    hash.update(metadata.permissions().mode().to_be_bytes());
                    hash.update(Sha256::digest(&*content));
                }
                _ => hash.update([0]),
            }
        }
        hash.finalize().into()
    }

    /// All of it, and what others will make of it.
    /// When the certificate that lies there ends, in seconds since 1970.
    pub fn expires_at(&self) -> Result<u64, TlsError> {
        let chain = read_certificates(&self.cert)?;
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let (_, leaf) = leaf.ok_or_else(|| malformed(&self.cert, "certificates"))?;
        Ok(leaf.validity().not_after.timestamp().max(0) as u64)
    }

    pub(super) fn load(&self) -> Result<Material, TlsError> {
        let material = self.read()?;
        self.check_server_chain(&material)?;
        if let Some(path) = &self.crl {
            revocation::check_lists(path, &material)?;
        }
        Ok(material)
    }

    pub(super) fn read(&self) -> Result<Material, TlsError> {
        let authorities = read_certificates(&self.ca)?;
        let mut roots = RootCertStore::empty();
        for certificate in &authorities {
            roots.add(certificate.clone()).map_err(|_| malformed(&self.ca, "certificates of authorities"))?;
        }
        let chain = read_certificates(&self.cert)?;
        let key = read_key(&self.key)?;
        let lists = self.crl.as_deref().map(read_lists).transpose()?.unwrap_or_default();
        let material = Material { authorities, roots: Arc::new(roots), lists, chain, key };
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
    fn check_server_chain(&self, material: &Material) -> Result<(), TlsError> {
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

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, false)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(malformed(path, "certificates")),
    }
}

pub(super) fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let pem = read(path, false)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    match lists {
        Ok(lists) if !lists.is_empty() => Ok(lists),
        _ => Err(malformed(path, "revocation lists")),
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

pub(super) fn malformed(path: &Path, expected: &'static str) -> TlsError {
    TlsError::Malformed { path: path.to_owned(), expected }
}
