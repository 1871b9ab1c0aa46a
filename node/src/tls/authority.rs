//! A cluster's two certificate authorities, and what they issue. For `charthold cert`, `charthold dev` and tests.
//!
//! ```text
//! <authority folder>/  peer-ca.crt  peer-ca.key  service-ca.crt  service-ca.key
//!                      and, by `revocation`,  peer.crl  service.crl
//! <a node's folder>/   peer-ca.crt  peer.crt  peer.key  and, unless keyless,  service-ca.crt  service.crt  service.key
//! <a client's folder>/ service-ca.crt  client.crt  client.key
//! ```
//!
//! The authorities' keys stay in their folder, which no node needs. Keys are written with mode 0600, and no file is
//! ever overwritten but revocation lists. The cluster's name is in the authorities' common names ("charthold c1 peer authority") and is read
//! back from there.
//!
//! A cluster may as well use authorities of its own: nodes look at the URI, the key usages and the chain, not at who
//! made a certificate.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use charthold_replica::peer::transport::PeerIdentity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::identity::{IdentityError, Principal, check_cluster, check_name, peer_uri};
use super::{TlsError, files};
use crate::seal::Token;

pub const AUTHORITY_VALID_DAYS: u32 = 3650;
pub const LEAF_VALID_DAYS: u32 = 365;
/// Clocks differ: a certificate is used the moment it is made, on another machine.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{path} exists already; nothing is overwritten")]
    Exists { path: PathBuf },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Read(#[from] TlsError),
    #[error("{path} is not the certificate of a charthold authority (made by `charthold cert create-ca`)")]
    NotAuthority { path: PathBuf },
    #[error("{path} has expired, or is not valid yet")]
    NotValid { path: PathBuf },
    #[error("{key} is not the private key of {certificate}")]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("{folder} holds authorities of two clusters: {peer} and {service}")]
    TwoClusters { folder: PathBuf, peer: String, service: String },
    #[error(transparent)]
    Name(#[from] IdentityError),
    #[error("{0:?} is not a DNS name")]
    DnsName(String),
    #[error("{0} is no address that a client can connect to")]
    Address(IpAddr),
    #[error("clients find a node by DNS name or IP address: at least one of them belongs in its certificate")]
    NoAddress,
    #[error("making the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{certificate} was issued by none of these authorities")]
    NotIssuedHere { certificate: PathBuf },
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

/// From when and until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    /// From five minutes ago.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - BACKDATED, not_after: now + DAY * days }
    }
}

impl Default for Validity {
    fn default() -> Self {
        Self::days(LEAF_VALID_DAYS)
    }
}

/// Both authorities of a cluster, with their keys.
#[derive(Debug)]
pub struct Authority {
    cluster: String,
    peer: Issuing,
    service: Issuing,
}

#[derive(Debug)]
pub(super) struct Issuing {
    kind: Kind,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Peer,
    Service,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Service => "service",
        }
    }

    fn certificate(self) -> String {
        format!("{}-ca.crt", self.word())
    }

    fn key(self) -> String {
        format!("{}-ca.key", self.word())
    }

    fn list(self) -> String {
        format!("{}.crl", self.word())
    }

    fn common_name(self, cluster: &str) -> String {
        format!("charthold {cluster} {} authority", self.word())
    }

    fn cluster_in(self, common_name: &str) -> Option<&str> {
        let suffix = format!(" {} authority", self.word());
        let cluster = common_name.strip_prefix("charthold ")?.strip_suffix(&suffix)?;
        check_cluster(cluster).ok()
    }
}

impl Authority {
    /// Makes both authorities and writes them to `folder`.
    pub fn create(cluster: &str, folder: &Path) -> Result<Self, AuthorityError> {
        check_cluster(cluster)?;
        create_folder(folder)?;
        let peer = Issuing::create(Kind::Peer, cluster, folder)?;
        let service = Issuing::create(Kind::Service, cluster, folder)?;
        Ok(Self { cluster: cluster.to_owned(), peer, service })
    }

    pub fn load(folder: &Path) -> Result<Self, AuthorityError> {
        let (peer, peer_cluster) = Issuing::load(Kind::Peer, folder)?;
        let (service, service_cluster) = Issuing::load(Kind::Service, folder)?;
        if peer_cluster != service_cluster {
            let folder = folder.to_owned();
            return Err(AuthorityError::TwoClusters { folder, peer: peer_cluster, service: service_cluster });
        }
        Ok(Self { cluster: peer_cluster, peer, service })
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(super) fn both(&self) -> [&Issuing; 2] {
        [&self.peer, &self.service]
    }

    /// A node's certificates. A keyless node has no service certificate, so `dns` and `ips` are for keyed ones.
    pub fn node(
        &self,
        name: &str,
        keyed: bool,
        dns: &[String],
        ips: &[IpAddr],
        out: &Path,
        valid: Validity,
    ) -> Result<(), AuthorityError> {
        let identity = PeerIdentity { cluster: self.cluster.clone(), name: check_name(name)?.to_owned(), keyed };
        let addresses = if keyed { addresses(dns, ips)? } else { Vec::new() };
        create_folder(out)?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.peer.issue(name, vec![uri(&peer_uri(&identity))?], usages, valid, out, "peer")?;
        if keyed {
            let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            self.service.issue(name, addresses, usages, valid, out, "service")?;
        }
        Ok(())
    }

    pub fn operator(&self, name: &str, out: &Path, valid: Validity) -> Result<(), AuthorityError> {
        self.client(&Principal::operator(&self.cluster, name)?, name, out, valid)
    }

    pub fn service(&self, tenant: &Token, name: &str, out: &Path, valid: Validity) -> Result<(), AuthorityError> {
        self.client(&Principal::service(&self.cluster, tenant, name)?, name, out, valid)
    }

    fn client(&self, principal: &Principal, name: &str, out: &Path, valid: Validity) -> Result<(), AuthorityError> {
        create_folder(out)?;
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.service.issue(name, vec![uri(&principal.uri())?], usages, valid, out, "client")
    }
}

/// What no cluster should have: certificates that the tests must see refused.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Authority {
    pub(super) fn odd_peer(&self, uris: &[&str], usages: Vec<ExtendedKeyUsagePurpose>, out: &Path) {
        let names = uris.iter().map(|text| uri(text)).collect::<Result<_, _>>();
        create_folder(out)
            .and_then(|()| self.peer.issue("odd", names?, usages, Validity::default(), out, "peer"))
            .unwrap();
    }

    pub(super) fn odd_client(&self, uris: &[&str], usages: Vec<ExtendedKeyUsagePurpose>, out: &Path) {
        let names = uris.iter().map(|text| uri(text)).collect::<Result<_, _>>();
        create_folder(out)
            .and_then(|()| self.service.issue("odd", names?, usages, Validity::default(), out, "client"))
            .unwrap();
    }
}

impl Issuing {
    fn create(kind: Kind, cluster: &str, folder: &Path) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = parameters(&kind.common_name(cluster), Validity::days(AUTHORITY_VALID_DAYS))?;
        // The authority that replaces this one will have the same common name, and both are trusted for a while:
        // certificates and revocation lists must say whose they are.
        let unit = params.serial_number.iter().map(|number| hex::encode(&number.as_ref()[..8])).collect::<String>();
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        // Path length 0: it issues certificates, not further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        write_new(&folder.join(kind.key()), Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
        write_new(&folder.join(kind.certificate()), pem.as_bytes(), 0o644)?;
        Ok(Self { kind, issuer: Issuer::new(params, key), pem })
    }

    fn load(kind: Kind, folder: &Path) -> Result<(Self, String), AuthorityError> {
        let (path, key_path) = (folder.join(kind.certificate()), folder.join(kind.key()));
        let not_authority = || AuthorityError::NotAuthority { path: path.clone() };
        let key = KeyPair::try_from(&files::read_key(&key_path)?)?;
        let pem = files::read(&path, false)?;
        let der = CertificateDer::from_pem_slice(&pem).map_err(|_| not_authority())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| not_authority())?;
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let cluster = common_name.and_then(|name| kind.cluster_in(name)).filter(|_| certificate.is_ca());
        let cluster = cluster.ok_or_else(not_authority)?.to_owned();
        if !certificate.validity().is_valid() {
            return Err(AuthorityError::NotValid { path });
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch { certificate: path, key: key_path });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let pem = String::from_utf8(pem.to_vec()).map_err(|_| not_authority())?;
        Ok((Self { kind, issuer, pem }, cluster))
    }

    pub(super) fn list(&self) -> String {
        self.kind.list()
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn has_issued(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(self.pem.as_bytes()) else { return false };
        X509Certificate::from_der(&der).is_ok_and(|(_, own)| own.subject().as_raw() == certificate.issuer().as_raw())
    }

    /// Writes `<file>.key`, `<file>.crt` and the authority's own certificate.
    fn issue(
        &self,
        common_name: &str,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        valid: Validity,
        out: &Path,
        file: &str,
    ) -> Result<(), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = parameters(common_name, valid)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.subject_alt_names = names;
        params.use_authority_key_identifier_extension = true;
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        write_new(&out.join(format!("{file}.key")), Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
        write_new(&out.join(format!("{file}.crt")), pem.as_bytes(), 0o644)?;
        let authority = out.join(self.kind.certificate());
        // There already from an earlier certificate in the same folder: fine, if it is the same authority.
        if files::read(&authority, false).is_ok_and(|present| *present == self.pem.as_bytes()) {
            return Ok(());
        }
        write_new(&authority, self.pem.as_bytes(), 0o644)
    }
}

fn parameters(common_name: &str, valid: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(serial_number()?);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + valid.not_before.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_after = epoch + valid.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(params)
}

/// Random, positive, and of one length: 16 bytes, the first of them 0x40 to 0x7f.
fn serial_number() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(AuthorityError::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

fn addresses(dns: &[String], ips: &[IpAddr]) -> Result<Vec<SanType>, AuthorityError> {
    if dns.is_empty() && ips.is_empty() {
        return Err(AuthorityError::NoAddress);
    }
    let mut names = Vec::with_capacity(dns.len() + ips.len());
    for name in dns {
        DnsName::try_from(name.as_str()).map_err(|_| AuthorityError::DnsName(name.clone()))?;
        names.push(SanType::DnsName(Ia5String::try_from(name.as_str())?));
    }
    for &ip in ips {
        // 0.0.0.0 and :: are for listening; nobody connects to them.
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(AuthorityError::Address(ip));
        }
        names.push(SanType::IpAddress(ip));
    }
    Ok(names)
}

fn create_folder(folder: &Path) -> Result<(), AuthorityError> {
    std::fs::create_dir_all(folder).map_err(|source| AuthorityError::Write { path: folder.to_owned(), source })
}

/// Creates the file with its final mode: there is no moment at which a key lies open.
fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let write = |mut file: File| {
        file.write_all(content)?;
        file.sync_all()
    };
    let created = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    created.and_then(write).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => AuthorityError::Exists { path: path.to_owned() },
        _ => AuthorityError::Write { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TENANT: Token = [7; 16];

    fn localhost() -> (Vec<String>, Vec<IpAddr>) {
        (vec!["localhost".into()], vec![Ipv4Addr::LOCALHOST.into()])
    }

    fn mode(path: PathBuf) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn parsed<T>(path: &Path, then: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let der = CertificateDer::from_pem_file(path).unwrap();
        then(&X509Certificate::from_der(&der).unwrap().1)
    }

    #[test]
    fn what_was_created_is_loaded_and_issues() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a1");
        let (dns, ips) = localhost();
        assert_eq!(Authority::create("c-1", folder.path()).unwrap().cluster(), "c-1");
        let authority = Authority::load(folder.path()).unwrap();
        assert_eq!(authority.cluster(), "c-1");
        authority.node("a1", true, &dns, &ips, &out, Validity::default()).unwrap();
        for kind in ["peer", "service"] {
            let files = crate::tls::TlsFiles::in_folder(&out, kind);
            files.load().unwrap();
        }
    }

    #[test]
    fn keys_are_private_from_the_start_and_certificates_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("c1", folder.path()).unwrap();
        authority.operator("ada", &folder.path().join("ada"), Validity::default()).unwrap();
        for key in ["peer-ca.key", "service-ca.key", "ada/client.key"] {
            assert_eq!(mode(folder.path().join(key)) & 0o177, 0, "{key}");
        }
        assert_eq!(mode(folder.path().join("ada/client.crt")) & 0o400, 0o400);
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("c1", folder.path()).unwrap();
        let key = std::fs::read(folder.path().join("peer-ca.key")).unwrap();
        assert!(matches!(Authority::create("c1", folder.path()), Err(AuthorityError::Exists { .. })));
        assert_eq!(std::fs::read(folder.path().join("peer-ca.key")).unwrap(), key);

        let out = folder.path().join("client");
        authority.operator("ada", &out, Validity::default()).unwrap();
        let again = authority.operator("ada", &out, Validity::default());
        assert!(matches!(again, Err(AuthorityError::Exists { path }) if path.ends_with("client.key")));
    }

    #[test]
    fn a_certificate_is_renewed_beside_the_authority_it_came_with() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("client");
        let authority = Authority::create("c1", folder.path()).unwrap();
        authority.operator("ada", &out, Validity::default()).unwrap();
        for file in ["client.crt", "client.key"] {
            std::fs::remove_file(out.join(file)).unwrap();
        }
        authority.operator("ada", &out, Validity::default()).unwrap();

        let other = Authority::create("c1", &folder.path().join("other")).unwrap();
        for file in ["client.crt", "client.key"] {
            std::fs::remove_file(out.join(file)).unwrap();
        }
        let error = other.operator("ada", &out, Validity::default());
        assert!(matches!(error, Err(AuthorityError::Exists { path }) if path.ends_with("service-ca.crt")));
    }

    #[test]
    fn a_keyless_node_gets_no_service_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("c1");
        Authority::create("c1", folder.path()).unwrap().node("c1", false, &[], &[], &out, Validity::default()).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["peer-ca.crt", "peer.crt", "peer.key"]);
    }

    #[test]
    fn addresses_that_nobody_can_connect_to_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("c1", folder.path()).unwrap();
        let node = |dns: &[String], ips: &[IpAddr]| {
            authority.node("a1", true, dns, ips, &folder.path().join("a1"), Validity::default())
        };
        assert!(matches!(node(&[], &[]), Err(AuthorityError::NoAddress)));
        for ip in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            assert!(matches!(node(&[], &[ip]), Err(AuthorityError::Address(_))));
        }
        for name in ["", "a b", "a1.example:7400", "https://a1", "127.0.0.1"] {
            assert!(matches!(node(&[name.into()], &[]), Err(AuthorityError::DnsName(_))), "{name}");
        }
        assert!(!folder.path().join("a1").exists());
    }

    #[test]
    fn names_that_do_not_fit_a_uri_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Authority::create("C 1", folder.path()), Err(AuthorityError::Name(_))));
        let authority = Authority::create("c1", folder.path()).unwrap();
        let out = folder.path().join("out");
        assert!(matches!(authority.operator("a/b", &out, Validity::default()), Err(AuthorityError::Name(_))));
        assert!(matches!(authority.service(&TENANT, "", &out, Validity::default()), Err(AuthorityError::Name(_))));
        assert!(!out.exists());
    }

    #[test]
    fn foreign_files_are_no_authority() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        Authority::create("c1", &one).unwrap();
        Authority::create("c2", &two).unwrap();
        assert!(matches!(Authority::load(folder.path()), Err(AuthorityError::Read(_))));

        // Authorities of two clusters in one folder; then a key of another authority; then the wrong kind.
        for file in ["service-ca.crt", "service-ca.key"] {
            std::fs::copy(two.join(file), one.join(file)).unwrap();
        }
        assert!(matches!(Authority::load(&one), Err(AuthorityError::TwoClusters { .. })));
        std::fs::copy(two.join("service-ca.key"), two.join("peer-ca.key")).unwrap();
        assert!(matches!(Authority::load(&two), Err(AuthorityError::KeyMismatch { .. })));
        std::fs::copy(two.join("service-ca.crt"), two.join("peer-ca.crt")).unwrap();
        assert!(matches!(Authority::load(&two), Err(AuthorityError::NotAuthority { .. })));
    }

    #[test]
    fn certificates_say_what_they_are_for() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("c1", folder.path()).unwrap();
        let (dns, ips) = localhost();
        authority.node("a1", true, &dns, &ips, folder.path(), Validity::default()).unwrap();
        authority.service(&TENANT, "ehr", folder.path(), Validity::days(30)).unwrap();
        let usage = |file: &str| {
            parsed(&folder.path().join(file), |certificate| {
                let usage = certificate.extended_key_usage().unwrap().unwrap().value;
                assert!(!certificate.is_ca() && certificate.validity().is_valid());
                (usage.server_auth, usage.client_auth, certificate.tbs_certificate.raw_serial().to_vec())
            })
        };
        let (peer, service, client) = (usage("peer.crt"), usage("service.crt"), usage("client.crt"));
        assert_eq!(
            [(peer.0, peer.1), (service.0, service.1), (client.0, client.1)],
            [(true, true), (true, false), (false, true)]
        );
        assert!(peer.2 != service.2 && [peer.2, service.2, client.2].iter().all(|serial| serial.len() == 16));
        let days = parsed(&folder.path().join("client.crt"), |certificate| {
            let valid = certificate.validity();
            (valid.not_after.timestamp() - valid.not_before.timestamp()) / 86_400
        });
        assert_eq!(days, 30);
        let authority_is_valid_for_years = parsed(&folder.path().join("peer-ca.crt"), |certificate| {
            let valid = certificate.validity();
            (valid.not_after.timestamp() - valid.not_before.timestamp()) / (86_400 * 365)
        });
        assert_eq!(authority_is_valid_for_years, 10);
    }
}
