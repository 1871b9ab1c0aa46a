//! A node's configuration: what `charthold start` reads before anything else runs.
//!
//! Owns: the keys, their defaults, where a value may come from, and what makes a configuration valid. It must not know
//! what the values are used for, and opens no file but the configuration itself.
//!
//! A value is taken from the first of: a flag (`--set raft.heartbeat_ms=100`), the environment
//! (`CHARTHOLD_RAFT_HEARTBEAT_MS=100`), the file. A list in a flag or a variable is separated by commas. A key that
//! is not in [`KEYS`] is refused by name, in the file and in a flag. Paths are relative to the folder of the file,
//! wherever they were given.
//!
//! ```toml
//! name = "a1"                            # 1 to 64 of [a-z0-9-]; unique in the cluster
//! site = "a"                             # 1 to 64 of [a-z0-9-]; a failure domain
//! data = "/var/lib/charthold"
//! join = ["b1.example:7401"]             # peer addresses of the others; empty: a cluster of one
//! [listen]
//! client = "0.0.0.0:7400"                # the default; a keyless node opens no client port
//! peer = "0.0.0.0:7401"                  # the default
//! ops = "127.0.0.1:7402"                 # the default: /metrics, /livez, /readyz; no TLS, no records
//! [advertise]                            # what others are told, host:port; the default is the address listened on,
//! client = "a1.example:7400"             # with the machine's host name in place of 0.0.0.0
//! peer = "a1.example:7401"
//! [tls]
//! peer = { ca = "peer-ca.crt", cert = "peer.crt", key = "peer.key", crl = "peer.crl" }             # crl: optional;
//! service = { ca = "service-ca.crt", cert = "service.crt", key = "service.key", crl = "service.crl" } # who is revoked
//! [keys]
//! root = "file:/etc/charthold/root.key"  # absent: a keyless node, and no [tls].service
//! [raft]
//! heartbeat_ms = 250
//! election_min_ms = 750
//! election_max_ms = 1250
//! snapshot_after_entries = 16384         # of a shard: then its state is flushed, and older log may go
//! keep_entries = 16384                   # log that stays: a node that lacks no more needs no snapshot,
//! keep_bytes = 1073741824                # unless that is more than this (documents, large bodies)
//! snapshot_bytes_per_s = 67108864        # of all snapshots that a node sends together
//! durability = "quorum"                  # or "both-keyed": a commit is answered when it is on disk at each keyed site
//! degrade_after_ms = 5000                # both-keyed: how long it waits for a site, then without it until it keeps up
//! leader_sites = ["a", "b"]              # where leaders should be, near the clients; empty: spread over all sites
//! keyless_snapshots = false              # whether a snapshot is taken from a node without keys: only if no other has the data
//! [shards]                               # a shard that outgrows a bound for so long is split, while one is spare
//! split_above_bytes = 0                  # of its rows on one node; 0: never
//! split_above_commits_per_s = 0          # 0: never; more shards pay where cores are idle
//! split_after_s = 60
//! replace_after_s = 1800                 # a node that is silent for so long loses its replicas to others; 0: never
//! [limits]
//! body_bytes_max = 1048576               # at most 4 MiB
//! index_sweep_after_s = 7200             # how old a leftover of the index is when it is dropped
//! document_bytes_max = 268435456         # at most 1 GiB
//! upload_idle_ms = 86400000              # an upload that gets no part for this long is dropped
//! [disk]
//! reserve_bytes = 1073741824             # room kept for what is acknowledged: below it, writes are refused
//! stall_warn_ms = 2000                   # a sync that takes longer: leadership is handed over
//! stall_max_ms = 10000                   # one that takes longer: the process ends
//! [memory]                               # what a node needs beside it: ARCHITECTURE.md, "Memory"
//! cache_bytes = 268435456                # what was read of the state and stays
//! flush_bytes = 67108864                 # what was written and gathers until it is flushed; up to four times, for a moment
//! requests_bytes = 67108864              # requests that are under way, each held four times at most
//! [log]
//! format = "text"                        # or "json"
//! [telemetry]
//! otlp_endpoint = "http://127.0.0.1:4317" # where traces go, by OTLP over gRPC; absent: nowhere
//! sample_ratio = 0.01                    # the default: of the requests whose callers do not ask for a trace
//! ```

mod memory;
mod raft;
mod shards;
mod telemetry;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind as FigmentKind;
use figment::providers::{Format as _, Toml};
use serde::Deserialize;

pub use self::memory::Memory;
pub use self::raft::{Durability, Raft};
pub use self::shards::Shards;
pub use self::telemetry::Telemetry;
use crate::tls::TlsFiles;

pub(crate) use self::validate::is_name;
pub use self::validate::{BODY_BYTES_LIMIT, DOCUMENT_BYTES_LIMIT, NAME_LENGTH_MAX, RESERVE_BYTES_MIN};

/// The flag that overrides a key, as errors name it.
pub const FLAG: &str = "--set";
const ENVIRONMENT_PREFIX: &str = "CHARTHOLD_";
/// Variables with our prefix that are not keys of the configuration.
const OTHER_VARIABLES: [&str; 6] = [
    "CHARTHOLD_LOG",
    "CHARTHOLD_CONFIG",
    "CHARTHOLD_PROFILE",
    "CHARTHOLD_OUTPUT",
    "CHARTHOLD_ACTOR",
    "CHARTHOLD_PURPOSE",
];
/// Kubernetes sets these for a service that is called "charthold": nobody's spelling mistake.
const KUBERNETES_VARIABLES: [&str; 2] = ["CHARTHOLD_SERVICE_", "CHARTHOLD_PORT"];

/// How the text of a flag or of an environment variable is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    /// From 0 to 1.
    Ratio,
    Flag,
    List,
}

/// Every key. A test compares it with the structures below.
const KEYS: [(&str, Form); 46] = [
    ("name", Form::Text),
    ("site", Form::Text),
    ("data", Form::Text),
    ("join", Form::List),
    ("listen.client", Form::Text),
    ("listen.peer", Form::Text),
    ("listen.ops", Form::Text),
    ("advertise.client", Form::Text),
    ("advertise.peer", Form::Text),
    ("tls.peer.ca", Form::Text),
    ("tls.peer.cert", Form::Text),
    ("tls.peer.key", Form::Text),
    ("tls.peer.crl", Form::Text),
    ("tls.service.ca", Form::Text),
    ("tls.service.cert", Form::Text),
    ("tls.service.key", Form::Text),
    ("tls.service.crl", Form::Text),
    ("keys.root", Form::Text),
    ("raft.heartbeat_ms", Form::Number),
    ("raft.election_min_ms", Form::Number),
    ("raft.election_max_ms", Form::Number),
    ("raft.snapshot_after_entries", Form::Number),
    ("raft.keep_entries", Form::Number),
    ("raft.keep_bytes", Form::Number),
    ("raft.snapshot_bytes_per_s", Form::Number),
    ("raft.leader_sites", Form::List),
    ("raft.durability", Form::Text),
    ("raft.degrade_after_ms", Form::Number),
    ("raft.keyless_snapshots", Form::Flag),
    ("shards.split_above_bytes", Form::Number),
    ("shards.split_above_commits_per_s", Form::Number),
    ("shards.split_after_s", Form::Number),
    ("shards.replace_after_s", Form::Number),
    ("limits.body_bytes_max", Form::Number),
    ("limits.index_sweep_after_s", Form::Number),
    ("limits.document_bytes_max", Form::Number),
    ("limits.upload_idle_ms", Form::Number),
    ("disk.reserve_bytes", Form::Number),
    ("disk.stall_warn_ms", Form::Number),
    ("disk.stall_max_ms", Form::Number),
    ("memory.cache_bytes", Form::Number),
    ("memory.flush_bytes", Form::Number),
    ("memory.requests_bytes", Form::Number),
    ("log.format", Form::Text),
    ("telemetry.otlp_endpoint", Form::Text),
    ("telemetry.sample_ratio", Form::Ratio),
];

/// A whole, valid configuration.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name; certificates carry it.
    pub name: String,
    /// The failure domain that the node is in.
    pub site: String,
    /// The data directory.
    pub data: PathBuf,
    /// Peer addresses of the other nodes.
    #[serde(default)]
    pub join: Vec<String>,
    #[serde(default)]
    pub listen: Listen,
    #[serde(default)]
    pub advertise: Advertise,
    pub tls: Tls,
    #[serde(default)]
    pub keys: Keys,
    #[serde(default)]
    pub raft: Raft,
    #[serde(default)]
    pub shards: Shards,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub disk: Disk,
    #[serde(default)]
    pub memory: Memory,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub telemetry: Telemetry,
}

/// The addresses that the node listens on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// For clients; not opened by a keyless node.
    pub client: SocketAddr,
    /// For other nodes.
    pub peer: SocketAddr,
    /// For probes and Prometheus. No records, so no TLS: an address that only the operator reaches.
    pub ops: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        let any = [0, 0, 0, 0];
        Self {
            client: SocketAddr::from((any, 7400)),
            peer: SocketAddr::from((any, 7401)),
            ops: SocketAddr::from(([127, 0, 0, 1], 7402)),
        }
    }
}

/// What others are told, as host:port, where it differs from what the node listens on.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Advertise {
    pub client: Option<String>,
    pub peer: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// How nodes recognise each other.
    pub peer: TlsFiles,
    /// How clients recognise a gateway, and the authority that clients' certificates come from. Keyed nodes only.
    #[serde(default)]
    pub service: Option<TlsFiles>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// Where the root key is, for example `file:/etc/charthold/root.key`. Absent: a keyless node.
    pub root: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A record's body; at most [`BODY_BYTES_LIMIT`].
    pub body_bytes_max: u32,
    /// How old a row of the index is when it is dropped because no record stands behind it. Far more than a call may
    /// take: its commit might still be under way. Less than that is for tests.
    pub index_sweep_after_s: u32,
    /// A document; at most [`DOCUMENT_BYTES_LIMIT`].
    pub document_bytes_max: u32,
    /// An upload that gets no part for this long is dropped.
    pub upload_idle_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 1024 * 1024,
            index_sweep_after_s: 2 * 60 * 60,
            document_bytes_max: 256 * 1024 * 1024,
            upload_idle_ms: 24 * 60 * 60 * 1_000,
        }
    }
}

/// When the data directory's disk counts as full, and when as hanging.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// Room that is kept for what is acknowledged already; a quarter of it is held by a file of that size.
    pub reserve_bytes: u64,
    pub stall_warn_ms: u64,
    pub stall_max_ms: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self { reserve_bytes: 1 << 30, stall_warn_ms: 2_000, stall_max_ms: 10_000 }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{origin}: unknown key `{key}`")]
    UnknownKey { origin: String, key: String },
    #[error("{origin}: `{key}` is missing")]
    MissingKey { origin: String, key: String },
    #[error("{origin}: {reason}")]
    Malformed { origin: String, reason: String },
    #[error("{origin}: `{key}` {reason}")]
    Invalid { origin: String, key: String, reason: String },
}

impl Config {
    /// Reads the file, then the environment and the flags over it, and checks the whole.
    pub fn load(path: &Path, flags: &[(String, String)]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
        let base = path.parent().unwrap_or(Path::new(""));
        // Absolute, so that a later change of the working directory moves nothing.
        let base = std::path::absolute(base)
            .or_else(|_| std::env::current_dir())
            .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
        Self::resolve(&path.display().to_string(), &text, &base, std::env::vars_os().filter_map(utf8), flags)
    }

    /// What [`Config::load`] does, with all input given.
    fn resolve(
        origin: &str,
        text: &str,
        base: &Path,
        environment: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Toml::string(text));
        let environment: Vec<(String, String)> = environment.collect();
        for (key, form) in KEYS {
            let variable = variable_of(key);
            if let Some((_, value)) = environment.iter().find(|(name, _)| *name == variable) {
                figment = merge(figment, &variable, key, form, value)?;
            }
        }
        for (key, value) in flags {
            let Some((_, form)) = KEYS.iter().find(|(known, _)| known == key) else {
                return Err(ConfigError::UnknownKey { origin: FLAG.to_owned(), key: key.clone() });
            };
            figment = merge(figment, FLAG, key, *form, value)?;
        }
        let mut config: Self = figment.extract().map_err(|error| explain(origin, error))?;
        config.anchor(base);
        config.validate(origin)?;
        Ok(config)
    }

    /// The keys whose values differ and count from the next start only. All others can be changed while a node runs:
    /// where the TLS files are (unless it is whether there are any), and the limits.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let Self { name, site, data, join, listen, advertise, tls, keys, raft, shards, limits, .. } = self;
        let Self { disk, memory, log, telemetry, .. } = self;
        let differs = [
            ("name", *name != new.name),
            ("site", *site != new.site),
            ("data", *data != new.data),
            ("join", *join != new.join),
            ("listen", *listen != new.listen),
            ("advertise", *advertise != new.advertise),
            ("tls.service", tls.service.is_some() != new.tls.service.is_some()),
            ("keys", *keys != new.keys),
            ("raft", *raft != new.raft),
            ("shards", *shards != new.shards),
            ("limits.index_sweep_after_s", limits.index_sweep_after_s != new.limits.index_sweep_after_s),
            ("limits.document_bytes_max", limits.document_bytes_max != new.limits.document_bytes_max),
            ("limits.upload_idle_ms", limits.upload_idle_ms != new.limits.upload_idle_ms),
            ("disk", *disk != new.disk),
            ("memory", *memory != new.memory),
            ("log", *log != new.log),
            ("telemetry", *telemetry != new.telemetry),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// Keyed: holds the root key and serves clients.
    pub fn is_keyed(&self) -> bool {
        self.keys.root.is_some()
    }

    /// Where clients are told to go, host:port.
    pub fn advertised_client(&self) -> String {
        self.advertise.client.clone().unwrap_or_else(|| reachable(self.listen.client))
    }

    /// Where other nodes are told to go, host:port.
    pub fn advertised_peer(&self) -> String {
        self.advertise.peer.clone().unwrap_or_else(|| reachable(self.listen.peer))
    }

    /// Makes every path absolute.
    fn anchor(&mut self, base: &Path) {
        let tls = [Some(&mut self.tls.peer), self.tls.service.as_mut()].into_iter().flatten();
        let files =
            tls.flat_map(|files| [&mut files.ca, &mut files.cert, &mut files.key].into_iter().chain(&mut files.crl));
        for path in files.chain([&mut self.data]) {
            *path = base.join(&*path);
        }
        if let Some(root) = &mut self.keys.root
            && let Some(path) = root.strip_prefix("file:").filter(|path| !path.is_empty())
        {
            *root = format!("file:{}", base.join(path).display());
        }
    }
}

/// Variables that begin with `CHARTHOLD_` and mean nothing: most likely spelled wrong. For a warning, not an error,
/// because an environment is shared with others.
pub fn unknown_variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(utf8).map(|(name, _)| name);
    names.filter(|name| name.starts_with(ENVIRONMENT_PREFIX) && !is_known_variable(name)).collect()
}

fn is_known_variable(name: &str) -> bool {
    OTHER_VARIABLES.contains(&name)
        || KUBERNETES_VARIABLES.iter().any(|prefix| name.starts_with(prefix))
        || KEYS.iter().any(|(key, _)| variable_of(key) == name)
}

fn utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

fn variable_of(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

fn merge(figment: Figment, origin: &str, key: &str, form: Form, value: &str) -> Result<Figment, ConfigError> {
    match form {
        Form::Text => Ok(figment.merge((key, value))),
        Form::Number => parsed::<u64>(figment, origin, key, value, "must be a whole number"),
        Form::Ratio => parsed::<f64>(figment, origin, key, value, "must be a number"),
        Form::Flag => parsed::<bool>(figment, origin, key, value, "must be true or false"),
        Form::List => {
            let items: Vec<&str> = value.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
            Ok(figment.merge((key, items)))
        }
    }
}

fn parsed<T: std::str::FromStr + serde::Serialize>(
    figment: Figment,
    origin: &str,
    key: &str,
    value: &str,
    wanted: &str,
) -> Result<Figment, ConfigError> {
    let parsed = value.trim().parse::<T>().map_err(|_| ConfigError::Invalid {
        origin: origin.to_owned(),
        key: key.to_owned(),
        reason: wanted.to_owned(),
    });
    Ok(figment.merge((key, parsed?)))
}

/// The first thing wrong, with the key's whole name.
fn explain(origin: &str, error: figment::Error) -> ConfigError {
    let origin = origin.to_owned();
    let inside = |field: &str| {
        let mut path = error.path.clone();
        if path.last().map(String::as_str) != Some(field) {
            path.push(field.to_owned());
        }
        path.join(".")
    };
    match &error.kind {
        FigmentKind::UnknownField(field, _) => ConfigError::UnknownKey { key: inside(field), origin },
        FigmentKind::MissingField(field) => ConfigError::MissingKey { key: inside(field), origin },
        kind if error.path.is_empty() => ConfigError::Malformed { origin, reason: kind.to_string() },
        kind => ConfigError::Invalid { origin, key: error.path.join("."), reason: kind.to_string() },
    }
}

/// 0.0.0.0 tells nobody where to go: the machine's name stands in for it.
fn reachable(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let name = rustix::system::uname();
    format!("{}:{}", name.nodename().to_string_lossy(), address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const KEYED: &str = r#"
        name = "a1"
        site = "a"
        data = "data"
        join = ["b1.example:7401", "[::1]:7401"]
        [tls]
        peer = { ca = "p.crt", cert = "/abs/peer.crt", key = "peer.key" }
        service = { ca = "s.crt", cert = "service.crt", key = "service.key" }
        [keys]
        root = "file:root.key"
    "#;

    fn resolve(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        Config::resolve("node.toml", text, Path::new("/etc/c"), own(environment).into_iter(), &own(flags))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_and_relative_paths() {
        let config = resolve(KEYED, &[], &[]).unwrap();
        assert_eq!(config.listen, Listen::default());
        assert_eq!(
            (config.raft.heartbeat_ms, config.raft.election_min_ms, config.raft.election_max_ms),
            (250, 750, 1250)
        );
        assert_eq!(config.limits.body_bytes_max, 1 << 20);
        assert_eq!(config.disk, Disk { reserve_bytes: 1 << 30, stall_warn_ms: 2_000, stall_max_ms: 10_000 });
        assert_eq!(config.memory, Memory { cache_bytes: 256 << 20, flush_bytes: 64 << 20, requests_bytes: 64 << 20 });
        assert_eq!(config.log.format, LogFormat::Text);
        assert_eq!(config.data, Path::new("/etc/c/data"));
        assert_eq!(config.tls.peer.ca, Path::new("/etc/c/p.crt"));
        assert_eq!(config.tls.peer.cert, Path::new("/abs/peer.crt"));
        assert_eq!(config.tls.service.as_ref().unwrap().key, Path::new("/etc/c/service.key"));
        assert_eq!(config.keys.root.as_deref(), Some("file:/etc/c/root.key"));
        assert!(config.is_keyed());
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let nested = KEYED.replace("root =", "rot =");
        assert_eq!(resolve(&nested, &[], &[]).unwrap_err(), "node.toml: unknown key `keys.rot`");
        let deep = KEYED.replace(r#"key = "peer.key" }"#, r#"key = "peer.key", pin = "1" }"#);
        assert_eq!(resolve(&deep, &[], &[]).unwrap_err(), "node.toml: unknown key `tls.peer.pin`");
        let top = format!("colour = 1\n{KEYED}");
        assert_eq!(resolve(&top, &[], &[]).unwrap_err(), "node.toml: unknown key `colour`");
        let section = format!("{KEYED}\n[storage]\nx = 1");
        assert_eq!(resolve(&section, &[], &[]).unwrap_err(), "node.toml: unknown key `storage`");
        assert_eq!(resolve(KEYED, &[], &[("raft.x", "1")]).unwrap_err(), "--set: unknown key `raft.x`");
    }

    #[test]
    fn flag_over_environment_over_file() {
        let file = format!("{KEYED}\n[raft]\nheartbeat_ms = 100");
        let heartbeat = |environment: &[(&str, &str)], flags: &[(&str, &str)]| {
            resolve(&file, environment, flags).unwrap().raft.heartbeat_ms
        };
        let variable = [("CHARTHOLD_RAFT_HEARTBEAT_MS", "200"), ("CHARTHOLD_LOG", "debug"), ("CHARTHOLD_TYPO", "1")];
        assert_eq!(heartbeat(&[], &[]), 100);
        assert_eq!(heartbeat(&variable, &[]), 200);
        assert_eq!(heartbeat(&variable, &[("raft.heartbeat_ms", "300")]), 300);

        // Text that looks like a number stays text, lists are split.
        let environment = [("CHARTHOLD_NAME", "1"), ("CHARTHOLD_JOIN", "x:1, y:2"), ("CHARTHOLD_LOG_FORMAT", "json")];
        let config = resolve(KEYED, &environment, &[]).unwrap();
        assert_eq!(config.name, "1");
        assert_eq!(config.join, ["x:1", "y:2"]);
        assert_eq!(config.log.format, LogFormat::Json);
    }

    #[test]
    fn bad_values_are_refused() {
        let refused = |key: &str, value: &str, expected: &str| {
            let error = resolve(KEYED, &[], &[(key, value)]).unwrap_err();
            assert!(error.contains(key) && error.contains(expected), "{key}={value}: {error}");
        };
        refused("name", "", "must be 1 to 64");
        refused("name", "A1", "must be 1 to 64");
        refused("site", &"a".repeat(65), "must be 1 to 64");
        refused("join", "b1.example", "host:port");
        refused("join", "a:7401,b:0", "host:port");
        refused("join", "::1:7401", "host:port");
        refused("advertise.client", "b1:70000", "host:port");
        refused("listen.client", "localhost:1", "invalid socket address");
        refused("listen.client", "127.0.0.1:0", "not 0");
        refused("keys.root", "kms:1", "file:PATH");
        refused("keys.root", "file:", "file:PATH");
        refused("raft.heartbeat_ms", "fast", "whole number");
        refused("raft.heartbeat_ms", "1", "10 to 60000");
        refused("raft.election_min_ms", "499", "twice");
        refused("raft.election_max_ms", "750", "exceed");
        refused("shards.split_after_s", "0", "1 to 86400");
        refused("shards.replace_after_s", "604801", "at most 604800");
        refused("limits.body_bytes_max", "0", "1 to 4194304");
        refused("limits.body_bytes_max", "4194305", "1 to 4194304");
        refused("disk.reserve_bytes", "16777215", "at least 16777216");
        refused("disk.stall_warn_ms", "99", "100 to 60000");
        refused("disk.stall_max_ms", "2000", "exceed");
        refused("disk.stall_max_ms", "600001", "at most 600000");
        refused("log.format", "xml", "xml");
        refused("telemetry.otlp_endpoint", "https://c:4317", "http://host:port");
        refused("telemetry.otlp_endpoint", "http://c:4317/v1", "http://host:port");
        refused("telemetry.sample_ratio", "1.5", "0 to 1");
        refused("telemetry.sample_ratio", "half", "a number");
        let same = resolve(KEYED, &[], &[("listen.peer", "0.0.0.0:7400")]).unwrap_err();
        assert!(same.contains("same address twice"), "{same}");
    }

    #[test]
    fn broken_files_are_refused() {
        let missing = KEYED.replace("site = \"a\"", "");
        assert_eq!(resolve(&missing, &[], &[]).unwrap_err(), "node.toml: `site` is missing");
        let missing = KEYED.replace(", key = \"peer.key\"", "");
        assert_eq!(resolve(&missing, &[], &[]).unwrap_err(), "node.toml: `tls.peer.key` is missing");
        let wrong = KEYED.replace("name = \"a1\"", "name = 1");
        assert!(resolve(&wrong, &[], &[]).unwrap_err().starts_with("node.toml: `name` "));
        assert!(resolve("name = ", &[], &[]).unwrap_err().starts_with("node.toml: "));
        let error = Config::load(Path::new("/nonexistent/c.toml"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/c.toml: "), "{error}");
    }

    #[test]
    fn keyed_and_keyless_are_whole() {
        let no_service: String =
            KEYED.lines().filter(|line| !line.contains("service =")).map(|line| format!("{line}\n")).collect();
        let keyless: String =
            no_service.lines().filter(|line| !line.contains("root =")).map(|line| format!("{line}\n")).collect();
        assert!(!resolve(&keyless, &[], &[]).unwrap().is_keyed());
        assert!(resolve(&no_service, &[], &[]).unwrap_err().contains("`tls.service` is missing"));
        let posing: String =
            KEYED.lines().filter(|line| !line.contains("root =")).map(|line| format!("{line}\n")).collect();
        assert!(resolve(&posing, &[], &[]).unwrap_err().contains("keyless node must hold no service certificate"));
    }

    #[test]
    fn advertised_addresses() {
        let config =
            resolve(KEYED, &[], &[("advertise.client", "a.example:1"), ("listen.peer", "10.0.0.1:2")]).unwrap();
        assert_eq!(config.advertised_client(), "a.example:1");
        assert_eq!(config.advertised_peer(), "10.0.0.1:2");
        let config = resolve(KEYED, &[], &[]).unwrap();
        assert!(config.advertised_peer().ends_with(":7401") && !config.advertised_peer().starts_with("0.0.0.0"));
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let before = resolve(KEYED, &[], &[]).unwrap();
        let differs = |flags: &[(&str, &str)]| before.needs_restart(&resolve(KEYED, &[], flags).unwrap());
        assert!(
            differs(&[("limits.body_bytes_max", "1"), ("tls.peer.cert", "x"), ("tls.service.crl", "y")]).is_empty()
        );
        assert_eq!(
            differs(&[("name", "b1"), ("raft.heartbeat_ms", "100"), ("log.format", "json")]),
            ["name", "raft", "log"]
        );
    }

    #[test]
    fn the_documented_example_is_whole() {
        let lines = include_str!("config.rs").lines().filter_map(|line| line.strip_prefix("//! "));
        let example: Vec<&str> = lines.skip_while(|line| *line != "```toml").skip(1).collect();
        let example = example[..example.iter().position(|line| *line == "```").unwrap()].join("\n");
        resolve(&example, &[], &[]).unwrap();

        fn leaves(value: &toml::Value, path: &str, out: &mut Vec<String>) {
            let toml::Value::Table(fields) = value else { return out.push(path.to_owned()) };
            for (name, value) in fields {
                leaves(value, format!("{path}.{name}").trim_start_matches('.'), out);
            }
        }
        let mut documented = Vec::new();
        leaves(&toml::Value::Table(example.parse().unwrap()), "", &mut documented);
        let mut listed: Vec<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        documented.sort();
        listed.sort();
        assert_eq!(documented, listed);
    }
}
