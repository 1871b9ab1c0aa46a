//! Certificate revocation lists: whether a node can use those it is given, and making them.
//!
//! ```text
//! <authority folder>/  peer.crl  service.crl      one list each, signed by the authority; replaced as a whole
//! ```
//!
//! A certificate finds its list by its issuer's name, so authorities of one cluster have different names.
//!
//! The list itself is all the bookkeeping there is: it names the serial numbers, when each was revoked, and its own
//! number, which counts up. A node trusts a list by its authority's signature, so it may travel by any means.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::CertificateError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateRevocationListDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::authority::{Authority, AuthorityError, Issuing};
use super::files::{self, Material};
use super::{TlsError, provider};

/// After this a list should have been renewed. Nodes go on with an old one, and complain.
pub const LIST_VALID_DAYS: u32 = 365;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Every authority has its list, and the node's own authority has signed its one.
pub(super) fn check_lists(path: &Path, material: &Material) -> Result<(), TlsError> {
    let unusable = |reason: String| TlsError::ListUnusable { list: path.to_owned(), reason };
    let mut issuers = Vec::new();
    for list in &material.lists {
        let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| unusable(error.to_string()))?;
        issuers.push(list.issuer().as_raw().to_vec());
    }
    for authority in &material.authorities {
        let (_, parsed) = X509Certificate::from_der(authority).map_err(|error| unusable(error.to_string()))?;
        if !issuers.iter().any(|issuer| issuer == parsed.subject().as_raw()) {
            return Err(TlsError::ListMissing { list: path.to_owned(), authority: parsed.subject().to_string() });
        }
    }
    // Tried on the own certificate, since that is where a signature is looked at. Whether it is revoked is another
    // question: the list counts for the others all the same.
    let verifier = WebPkiServerVerifier::builder_with_provider(material.roots.clone(), provider())
        .with_crls(material.lists.iter().cloned())
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let name = ServerName::from(std::net::Ipv4Addr::LOCALHOST);
    let intermediates = material.chain.get(1..).unwrap_or_default();
    use CertificateError::{NotValidForName, NotValidForNameContext, Revoked};
    match verifier.verify_server_cert(material.leaf(), intermediates, &name, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. } | Revoked)) => Ok(()),
        Err(error) => Err(unusable(error.to_string())),
    }
}

/// Whether a list of the certificate's issuer names it.
pub(super) fn is_revoked(certificate: &[u8], lists: &[CertificateRevocationListDer<'_>]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    lists.iter().filter_map(|list| CertificateRevocationList::from_der(list).ok()).any(|(_, list)| {
        list.issuer().as_raw() == certificate.issuer().as_raw()
            && list.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == certificate.raw_serial())
    })
}

/// When the first of the lists should have been renewed.
pub(super) fn due_at(lists: &[CertificateRevocationListDer<'_>]) -> Option<SystemTime> {
    let due = lists.iter().filter_map(|list| {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        u64::try_from(list.next_update()?.timestamp()).ok()
    });
    due.min().map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

impl Authority {
    /// Adds certificates to the lists of who issued them, or of none: all lists are written anew, and made if need be.
    /// Tells where they are.
    pub fn revoke(&self, folder: &Path, certificates: &[PathBuf]) -> Result<[PathBuf; 2], AuthorityError> {
        let mut serials: [Vec<Vec<u8>>; 2] = Default::default();
        for path in certificates {
            let certificate = files::read_certificates(path)?.swap_remove(0);
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| not_ours(path))?;
            let issued = |authority: &&Issuing| authority.has_issued(&parsed);
            let at = self.both().iter().position(issued).ok_or_else(|| not_ours(path))?;
            serials[at].push(parsed.raw_serial().to_vec());
        }
        let [peer, service] = self.both();
        Ok([write_list(peer, folder, &serials[0])?, write_list(service, folder, &serials[1])?])
    }
}

fn not_ours(path: &Path) -> AuthorityError {
    AuthorityError::NotIssuedHere { certificate: path.to_owned() }
}

/// The list of before, with these added.
fn write_list(authority: &Issuing, folder: &Path, serials: &[Vec<u8>]) -> Result<PathBuf, AuthorityError> {
    let path = folder.join(authority.list());
    let time = |at: SystemTime| rcgen::date_time_ymd(1970, 1, 1) + at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = time(SystemTime::now());
    let (mut number, mut revoked_certs) = (1, Vec::new());
    if path.exists() {
        (number, revoked_certs) = read_list(&path)?;
    }
    for serial in serials {
        let serial_number = SerialNumber::from_slice(serial);
        if revoked_certs.iter().all(|known: &RevokedCertParams| known.serial_number != serial_number) {
            let (reason_code, invalidity_date) = (None, None);
            revoked_certs.push(RevokedCertParams { serial_number, revocation_time: now, reason_code, invalidity_date });
        }
    }
    let list = CertificateRevocationListParams {
        this_update: now,
        next_update: time(SystemTime::now() + DAY * LIST_VALID_DAYS),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(authority.issuer())?.pem()?;
    // Never half a list: a node may be reading it.
    let new = path.with_extension("crl.new");
    let failed = |source| AuthorityError::Write { path: path.clone(), source };
    fs::write(&new, pem).map_err(failed)?;
    fs::rename(&new, &path).map_err(failed)?;
    Ok(path)
}

/// The next list's number, and what was revoked.
fn read_list(path: &Path) -> Result<(u64, Vec<RevokedCertParams>), AuthorityError> {
    let lists = files::read_lists(path)?;
    let malformed = || AuthorityError::Read(files::malformed(path, "a revocation list"));
    let (_, list) = CertificateRevocationList::from_der(&lists[0]).map_err(|_| malformed())?;
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).ok_or_else(malformed)?;
    let revoked = list.iter_revoked_certificates().map(|revoked| RevokedCertParams {
        serial_number: SerialNumber::from_slice(revoked.raw_serial()),
        revocation_time: revoked.revocation_date.to_datetime(),
        reason_code: None,
        invalidity_date: None,
    });
    Ok((number.saturating_add(1), revoked.collect()))
}
