//! Who is at the other end of a connection, and the encryption of the connection itself.
//!
//! Owns: certificate and key files, the two authorities (*peer*: node to node; *service*: clients and gateways),
//! handshakes, and the identity that a verified certificate carries. Must not know: what travels over a connection, or
//! what an identity may do (that is a grant, and the gateway's business).
//!
//! Rules for every connection: TLS 1.3 only, certificates on both sides, no session resumption (a resumed session would
//! skip the check of a certificate that has expired or was replaced since), a handshake within
//! [`HANDSHAKE_TIMEOUT`]. What an open connection's certificate was worth is asked again whenever the files change, and
//! now and then, since certificates expire. The crypto provider is named per configuration: a process default would depend on who was
//! first to set it.

mod accept;
pub mod authority;
pub mod files;
pub mod identity;
pub mod peer;
mod places;
mod port;
pub mod revocation;
pub mod service;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use accept::Connection;
pub use authority::{Authority, AuthorityError, Validity};
pub use files::TlsFiles;
pub use identity::{ClientIdentity, IdentityError, Principal};
pub use peer::PeerTransport;
pub use port::{Condition, Ending, Reloaded};
pub use service::{ServiceCertificates, ServiceLimits, ServiceListener};

/// From an accepted (or dialled) connection to a finished handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

const PROTOCOL_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than a PEM file may be ({limit_bytes} bytes)")]
    TooLarge { path: PathBuf, limit_bytes: u64 },
    #[error("{path} is not a PEM file with {expected}")]
    Malformed { path: PathBuf, expected: &'static str },
    #[error("{path} is a private key that others can read (mode {mode:04o}): chmod 600 it, and consider it exposed")]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error("{key} is not the private key of {certificate}")]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("{certificate} would be refused by everyone who trusts {authority}: {reason}")]
    Refused { certificate: PathBuf, authority: PathBuf, reason: String },
    #[error("{certificate}: {source}")]
    Identity { certificate: PathBuf, source: IdentityError },
    #[error("{certificate} is for {found}, and this node runs as {running}: restart it to change its identity")]
    IdentityChanged { certificate: PathBuf, found: String, running: String },
    #[error("{list} holds no revocation list of {authority}, an authority that is trusted here")]
    ListMissing { list: PathBuf, authority: String },
    #[error("{list} holds a revocation list that cannot be used: {reason}")]
    ListUnusable { list: PathBuf, reason: String },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("TLS configuration: {0}")]
    Config(String),
}

/// The hybrid group first: what is recorded on the wire today must not be readable once X25519 falls.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    Arc::new(CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
        ..aws_lc_rs::default_provider()
    })
}
