//! One listening port's certificates as they are now, and the connections that are open on it.
//!
//! Owns the change from one set of files to the next: new handshakes use the new set at once; of the open connections
//! those that would not be let in any more are cut; if the port's own certificate changed, the others are told to come
//! to their end. The same question is asked again now and then, for certificates expire.
//!
//! Must not know: what travels over a connection, or how one comes to its end gently. That is for whoever holds it: see
//! [`Ending`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_util::sync::CancellationToken;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::files::Material;
use super::revocation;

/// What a port uses: made of one set of files.
pub(super) struct Setup {
    pub server: Arc<ServerConfig>,
    /// What the other end's certificate is held against, in a handshake and later.
    pub verifier: Arc<dyn ClientCertVerifier>,
    own: CertificateDer<'static>,
    expires_at: SystemTime,
    own_revoked: bool,
    lists_due_at: Option<SystemTime>,
}

impl Setup {
    pub fn new(server: ServerConfig, verifier: Arc<dyn ClientCertVerifier>, material: &Material) -> Self {
        let own = material.leaf().clone();
        Self {
            server: Arc::new(server),
            verifier,
            expires_at: expires_at(&own),
            own_revoked: revocation::is_revoked(&own, &material.lists),
            lists_due_at: revocation::due_at(&material.lists),
            own,
        }
    }
}

/// What a reload has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// The port's own certificate is another one, so open connections come to their end.
    pub certificate_changed: bool,
    /// Open connections whose other end is not let in any more.
    pub cut: usize,
}

/// What an operator should hear of a port's certificates before it hurts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub expires_at: SystemTime,
    /// The node's own certificate is in a revocation list.
    pub revoked: bool,
    /// When the next revocation list was due, the earliest of several.
    pub lists_due_at: Option<SystemTime>,
}

pub(super) struct Port {
    setup: ArcSwap<Setup>,
    open: Arc<Open>,
}

impl Port {
    pub fn new(setup: Setup) -> Arc<Self> {
        Arc::new(Self { setup: ArcSwap::from_pointee(setup), open: Arc::default() })
    }

    pub fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    pub fn condition(&self) -> Condition {
        let setup = self.setup();
        Condition { expires_at: setup.expires_at, revoked: setup.own_revoked, lists_due_at: setup.lists_due_at }
    }

    /// Uses the new setup from here on. What remains open under an older certificate is in `outdated`.
    pub fn replace(&self, setup: Setup) -> (Reloaded, Vec<Ending>) {
        let before = self.setup.swap(Arc::new(setup));
        let cut = self.recheck();
        let certificate_changed = before.own != self.setup().own;
        let outdated = if certificate_changed { self.open.endings() } else { Vec::new() };
        (Reloaded { certificate_changed, cut }, outdated)
    }

    /// Cuts connections whose other end would not be let in now: revoked, expired, or of an authority that is not
    /// trusted any more. Tells how many. Takes about a tenth of a millisecond for each.
    pub fn recheck(&self) -> usize {
        self.open.recheck(&*self.setup().verifier)
    }

    /// Takes a finished handshake in. None if the files were changed meanwhile: nobody has asked the new ones.
    pub fn register(&self, under: &Arc<Setup>, chain: Vec<CertificateDer<'static>>) -> Option<Registration> {
        let registration = self.open.register(chain);
        // Registered first: a change from here on finds it.
        Arc::ptr_eq(under, &self.setup()).then_some(registration)
    }
}

fn expires_at(certificate: &[u8]) -> SystemTime {
    let parsed = X509Certificate::from_der(certificate);
    let seconds = parsed.map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp());
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// How a connection is told to end. Whoever holds it obeys; reading from it fails once it is cut.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    pub(super) outdated: CancellationToken,
    pub(super) cut: CancellationToken,
}

impl Ending {
    /// Ends when the connection should come to its end gently: what runs may finish.
    pub async fn outdated(&self) {
        self.outdated.cancelled().await;
    }

    /// Ends when the connection must end at once.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

#[derive(Default)]
struct Open {
    connections: Mutex<HashMap<u64, (Vec<CertificateDer<'static>>, Ending)>>,
    next: AtomicU64,
}

impl Open {
    fn register(self: &Arc<Self>, chain: Vec<CertificateDer<'static>>) -> Registration {
        let (id, ending) = (self.next.fetch_add(1, Ordering::Relaxed), Ending::default());
        self.connections.lock().insert(id, (chain, ending.clone()));
        Registration { id, open: Arc::clone(self), ending }
    }

    fn endings(&self) -> Vec<Ending> {
        self.connections.lock().values().map(|(_, ending)| ending.clone()).collect()
    }

    fn recheck(&self, verifier: &dyn ClientCertVerifier) -> usize {
        let open: Vec<_> = self.connections.lock().values().cloned().collect();
        let now = UnixTime::now();
        let refused = open.iter().filter(|(chain, ending)| {
            let accepted = chain
                .split_first()
                .is_some_and(|(leaf, intermediates)| verifier.verify_client_cert(leaf, intermediates, now).is_ok());
            !accepted && !ending.cut.is_cancelled()
        });
        refused.map(|(_, ending)| ending.cut.cancel()).count()
    }
}

/// An open connection's entry, which goes when the connection does.
pub(super) struct Registration {
    id: u64,
    open: Arc<Open>,
    pub ending: Ending,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.open.connections.lock().remove(&self.id);
    }
}
