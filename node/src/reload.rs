//! Files that change while a node runs: certificates, keys, authorities, revocation lists, and the configuration.
//!
//! They are read every [`POLL_INTERVAL`], and at once on SIGHUP: a revocation must count within seconds, without anybody
//! telling each node. What cannot be used leaves what was there before in use; the reason is said once for each content,
//! when it has been there for two looks, since files are replaced one after the other.
//!
//! Owns when to look and what to tell an operator. How connections change over is [`crate::tls`]'s business; which keys of
//! the configuration can change is in [`Config::needs_restart`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::gateway::Gateway;
use crate::tls::{Condition, PeerTransport, Reloaded, ServiceCertificates, TlsError, TlsFiles};

pub const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How often open connections are asked again whether their certificates still count: they expire.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(30);
/// How often what will hurt soon is said.
const REMIND_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Before a certificate expires: a warning, and an error.
const EXPIRES_SOON: Duration = DAY.saturating_mul(30);
const EXPIRES_NOW: Duration = DAY.saturating_mul(3);
/// Files are replaced one after the other: what fails for so many looks is not half of a change.
const FAILURES_UNTIL_SAID: u32 = 2;

/// Where a configuration came from.
pub struct ConfigSource {
    pub path: PathBuf,
    pub flags: Vec<(String, String)>,
}

/// A keyed node's side towards its clients.
#[derive(Clone)]
pub struct Clients {
    pub gateway: Arc<Gateway>,
    pub certificates: ServiceCertificates,
}

/// All files as they were before they were used for the first time: no change after that goes unseen.
pub struct Watch {
    source: ConfigSource,
    hang_up: Signal,
    config: Watched,
    peer: Watched,
    service: Watched,
}

impl Watch {
    pub fn begin(source: ConfigSource, config: &Config) -> std::io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            config: Watched::new(fingerprint_of(&source)),
            peer: Watched::new(config.tls.peer.fingerprint()),
            service: Watched::new(config.tls.service.as_ref().map_or([0; 32], TlsFiles::fingerprint)),
            source,
        })
    }
}

pub struct Reloader {
    watch: Watch,
    /// As it counts now; keys that need a restart stay as they were.
    config: Config,
    peer: Arc<PeerTransport>,
    clients: Option<Clients>,
    /// What a change of the configuration has told to need a restart already.
    told_to_restart: Vec<&'static str>,
}

impl Reloader {
    pub fn new(watch: Watch, config: Config, peer: Arc<PeerTransport>, clients: Option<Clients>) -> Self {
        Self { watch, config, peer, clients, told_to_restart: Vec::new() }
    }

    /// Never ends.
    pub async fn run(mut self) {
        let (mut rechecked_at, mut reminded_at) = (Instant::now(), None::<Instant>);
        loop {
            if reminded_at.is_none_or(|at| at.elapsed() >= REMIND_INTERVAL) {
                reminded_at = Some(Instant::now());
                self.remind();
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                _ = self.watch.hang_up.recv() => {
                    tracing::info!("reading the configuration and the certificates again");
                    let Watch { config, peer, service, .. } = &mut self.watch;
                    [config, peer, service].into_iter().for_each(Watched::ask_again);
                }
            }
            // Files and signatures are no work for a thread that others wait for.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                if rechecked_at.elapsed() >= RECHECK_INTERVAL {
                    rechecked_at = Instant::now();
                    self.recheck();
                }
                (self, rechecked_at)
            });
            // A panic ends the process; else the runtime is going away.
            let Ok(looked) = looked.await else { return std::future::pending().await };
            (self, rechecked_at) = looked;
        }
    }

    fn look(&mut self) {
        if self.watch.config.differs(fingerprint_of(&self.watch.source)) {
            match Config::load(&self.watch.source.path, &self.watch.source.flags) {
                Ok(config) => {
                    self.watch.config.done();
                    self.apply(config);
                }
                Err(error) => self.watch.config.failed("the configuration", &error.to_string()),
            }
        }
        let files = &self.config.tls.peer;
        if self.watch.peer.differs(files.fingerprint()) {
            let (reloaded, condition) = (self.peer.reload(files), || self.peer.condition());
            self.watch.peer.settle("peer", reloaded, condition);
        }
        if let (Some(files), Some(clients)) = (&self.config.tls.service, &self.clients)
            && self.watch.service.differs(files.fingerprint())
        {
            let (reloaded, condition) = (clients.certificates.reload(files), || clients.certificates.condition());
            self.watch.service.settle("service", reloaded, condition);
        }
    }

    fn apply(&mut self, new: Config) {
        let restart = self.config.needs_restart(&new);
        for key in restart.iter().filter(|key| !self.told_to_restart.contains(key)) {
            tracing::warn!(key, "this key of the configuration was changed: restart the node to change it");
        }
        self.told_to_restart = restart;
        if new.limits != self.config.limits {
            if let Some(clients) = &self.clients {
                clients.gateway.set_body_bytes_max(new.limits.body_bytes_max as usize);
            }
            tracing::info!(body_bytes_max = new.limits.body_bytes_max, "limits changed");
        }
        self.config.limits = new.limits;
        self.config.tls.peer = new.tls.peer;
        // A keyed node stays one, and a keyless one.
        if self.config.tls.service.is_some() && new.tls.service.is_some() {
            self.config.tls.service = new.tls.service;
        }
    }

    fn recheck(&self) {
        let clients = self.clients.as_ref().map_or(0, |clients| clients.certificates.recheck());
        let peers = self.peer.recheck();
        if clients + peers > 0 {
            tracing::info!(clients, peers, "connections whose certificates have expired were cut");
        }
    }

    fn remind(&self) {
        remind("peer", self.peer.condition());
        if let Some(clients) = &self.clients {
            remind("service", clients.certificates.condition());
        }
    }
}

fn fingerprint_of(source: &ConfigSource) -> [u8; 32] {
    std::fs::read(&source.path).map_or([0; 32], |text| Sha256::digest(text).into())
}

fn remind(kind: &'static str, condition: Condition) {
    let now = SystemTime::now();
    let left = condition.expires_at.duration_since(now).unwrap_or_default();
    let (expires_at, days) = (shown(condition.expires_at), left.as_secs() / DAY.as_secs());
    if left < EXPIRES_NOW {
        tracing::error!(kind, expires_at, days, "this node's certificate expires: replace it now");
    } else if left < EXPIRES_SOON {
        tracing::warn!(kind, expires_at, days, "this node's certificate expires soon");
    }
    if condition.revoked {
        tracing::error!(kind, "this node's own certificate is revoked: others refuse it");
    }
    if let Some(due_at) = condition.lists_due_at.filter(|due_at| *due_at < now) {
        tracing::warn!(kind, due_at = shown(due_at), "a revocation list is out of date, and still used: renew it");
    }
}

fn shown(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .map_or_else(|_| "unknown".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Files by what they contain: what is in use, and what was tried since.
struct Watched {
    used: Option<[u8; 32]>,
    seen: [u8; 32],
    /// Looks at which what was seen could not be used.
    failures: u32,
    said: Option<([u8; 32], String)>,
}

impl Watched {
    fn new(used: [u8; 32]) -> Self {
        Self { used: Some(used), seen: used, failures: 0, said: None }
    }

    /// Whether there is something to try. What failed is tried again at each look: time alone may mend it.
    fn differs(&mut self, now: [u8; 32]) -> bool {
        if now != self.seen {
            (self.seen, self.failures) = (now, 0);
        }
        self.used != Some(now)
    }

    fn ask_again(&mut self) {
        (self.used, self.said, self.failures) = (None, None, FAILURES_UNTIL_SAID);
    }

    fn done(&mut self) {
        (self.used, self.failures, self.said) = (Some(self.seen), 0, None);
    }

    fn failed(&mut self, what: &str, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        let is_news = self.said.as_ref().is_none_or(|(seen, said)| *seen != self.seen || said != reason);
        if self.failures >= FAILURES_UNTIL_SAID && is_news {
            self.said = Some((self.seen, reason.to_owned()));
            tracing::warn!(what, reason, "what was changed cannot be used; what was there before stays in use");
        }
    }

    fn settle(&mut self, kind: &'static str, reloaded: Result<Reloaded, TlsError>, condition: impl Fn() -> Condition) {
        match reloaded {
            Ok(Reloaded { certificate_changed, cut }) => {
                self.done();
                let condition = condition();
                let expires_at = shown(condition.expires_at);
                tracing::info!(kind, certificate_changed, connections_cut = cut, expires_at, "certificates reloaded");
                remind(kind, condition);
            }
            Err(error) => self.failed(kind, &error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_and_said_once() {
        let mut watched = Watched::new([1; 32]);
        assert!(!watched.differs([1; 32]));
        for _look in 0..3 {
            assert!(watched.differs([2; 32]));
            watched.failed("peer", "half");
        }
        assert_eq!(watched.said, Some(([2; 32], "half".to_owned())));
        // The other half has come.
        assert!(watched.differs([3; 32]));
        watched.done();
        assert!(!watched.differs([3; 32]) && watched.said.is_none());
        // What was there before may come back, too.
        assert!(watched.differs([1; 32]));
    }

    #[test]
    fn half_a_change_is_not_worth_a_line() {
        let mut watched = Watched::new([1; 32]);
        assert!(watched.differs([2; 32]));
        watched.failed("peer", "half");
        assert!(watched.said.is_none());
        assert!(watched.differs([3; 32]));
        watched.failed("peer", "half");
        assert!(watched.said.is_none(), "another content");
        watched.ask_again();
        assert!(watched.differs([3; 32]));
        watched.failed("peer", "half");
        assert!(watched.said.is_some(), "who asks is told at once");
    }
}
