//! What makes a configuration valid: ranges, and keys that must fit together.
//!
//! Must not know where a value came from; the error names the file, which is where most come from.

use super::{Config, ConfigError};

/// No configuration may allow more: the messages between nodes are sized for it.
pub const BODY_BYTES_LIMIT: u32 = 4 * 1024 * 1024;
/// Less could not even hold a flush of the state, which is made to fit. One of the log (up to 128 MiB) fits into a reserve of 256 MiB
/// and more; without room for it a node may have to be started again.
pub const RESERVE_BYTES_MIN: u64 = 16 << 20;
/// Documents are numbered by parts, and there are no more numbers.
pub const DOCUMENT_BYTES_LIMIT: u32 = 1 << 30;
/// One that is slower by a second is not abandoned; nor is one that lay for a month.
const UPLOAD_IDLE_MS: std::ops::RangeInclusive<u64> = 1_000..=30 * 24 * 60 * 60 * 1_000;
/// Less would flush all the time; a memtable has room for four times the most.
const FLUSH_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
/// For this even a small reserve was made.
const FLUSH_BYTES_ANYWHERE: u64 = 64 << 20;
/// Less has no room for indexes and filters, more is a mistake.
const CACHE_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=1 << 40;
/// A tenant may hold three quarters: the largest commit must fit.
const REQUESTS_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=1 << 36;
/// A name or a site in characters.
pub const NAME_LENGTH_MAX: usize = 64;

/// Of one file.
struct Check<'a> {
    origin: &'a str,
}

impl Check<'_> {
    fn that(&self, ok: bool, key: &str, reason: &str) -> Result<(), ConfigError> {
        match ok {
            true => Ok(()),
            false => Err(ConfigError::Invalid {
                origin: self.origin.to_owned(),
                key: key.to_owned(),
                reason: reason.to_owned(),
            }),
        }
    }
}

impl Config {
    pub(super) fn validate(&self, origin: &str) -> Result<(), ConfigError> {
        let check = Check { origin };
        self.validate_names(&check)?;
        self.validate_keys(&check)?;
        self.validate_raft(&check)?;
        let after = (1..=86_400).contains(&self.shards.split_after_s);
        check.that(after, "shards.split_after_s", "must be 1 to 86400")?;
        check.that(self.shards.replace_after_s <= 604_800, "shards.replace_after_s", "must be at most 604800")?;
        self.validate_limits(&check)?;
        self.validate_disk(&check)?;
        self.validate_memory(&check)?;
        self.validate_telemetry(&check)
    }

    fn validate_names(&self, check: &Check) -> Result<(), ConfigError> {
        let name_reason = "must be 1 to 64 of a-z, 0-9 and -";
        check.that(is_name(&self.name), "name", name_reason)?;
        check.that(is_name(&self.site), "site", name_reason)?;
        let address_reason = "must be host:port, with a port from 1 to 65535";
        check.that(self.join.iter().all(|address| is_address(address)), "join", address_reason)?;
        for (key, address) in [("advertise.client", &self.advertise.client), ("advertise.peer", &self.advertise.peer)] {
            check.that(address.as_deref().is_none_or(is_address), key, address_reason)?;
        }
        let listen = [("client", self.listen.client), ("peer", self.listen.peer), ("ops", self.listen.ops)];
        for (key, address) in listen {
            let reason = "needs a port that is not 0: others are told it";
            check.that(address.port() != 0, &format!("listen.{key}"), reason)?;
        }
        let distinct = listen.iter().enumerate().all(|(i, (_, a))| listen[..i].iter().all(|(_, b)| a != b));
        check.that(distinct, "listen", "has the same address twice")
    }

    /// A keyed node needs both the root key and a service certificate, a keyless one has neither.
    fn validate_keys(&self, check: &Check) -> Result<(), ConfigError> {
        let service = self.tls.service.is_some();
        check.that(!self.is_keyed() || service, "tls.service", "is missing: a node with `keys.root` serves clients")?;
        let reason = "is there without `keys.root`: a keyless node must hold no service certificate";
        check.that(self.is_keyed() || !service, "tls.service", reason)?;
        let known = |root: &String| root.strip_prefix("file:").is_some_and(|path| !path.is_empty());
        check.that(self.keys.root.as_ref().is_none_or(known), "keys.root", "must be file:PATH")
    }

    fn validate_raft(&self, check: &Check) -> Result<(), ConfigError> {
        let raft = &self.raft;
        check.that((10..=60_000).contains(&raft.heartbeat_ms), "raft.heartbeat_ms", "must be 10 to 60000")?;
        // One lost heartbeat must not start an election.
        let enough = raft.election_min_ms >= raft.heartbeat_ms.saturating_mul(2);
        check.that(enough, "raft.election_min_ms", "must be at least twice `raft.heartbeat_ms`")?;
        let later = raft.election_max_ms > raft.election_min_ms;
        check.that(later, "raft.election_max_ms", "must exceed `raft.election_min_ms`")?;
        check.that(raft.election_max_ms <= 600_000, "raft.election_max_ms", "must be at most 600000")?;
        check.that((10..=600_000).contains(&raft.degrade_after_ms), "raft.degrade_after_ms", "must be 10 to 600000")?;
        // Fewer would flush all the time; a slower transfer would never catch up.
        check.that(raft.snapshot_after_entries >= 16, "raft.snapshot_after_entries", "must be at least 16")?;
        // A few messages of entries: who lags by less would need snapshots for ever.
        check.that(raft.keep_bytes >= 16 << 20, "raft.keep_bytes", "must be at least 16777216")?;
        check.that(raft.snapshot_bytes_per_s >= 1 << 20, "raft.snapshot_bytes_per_s", "must be at least 1048576")
    }

    fn validate_limits(&self, check: &Check) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let body = (1..=BODY_BYTES_LIMIT).contains(&limits.body_bytes_max);
        check.that(body, "limits.body_bytes_max", "must be 1 to 4194304")?;
        let sweep = (1..=86_400 * 365).contains(&limits.index_sweep_after_s);
        check.that(sweep, "limits.index_sweep_after_s", "must be 1 to 31536000")?;
        let document = (1..=DOCUMENT_BYTES_LIMIT).contains(&limits.document_bytes_max);
        check.that(document, "limits.document_bytes_max", "must be 1 to 1073741824")?;
        let idle = UPLOAD_IDLE_MS.contains(&limits.upload_idle_ms);
        check.that(idle, "limits.upload_idle_ms", "must be 1000 to 2592000000")
    }

    fn validate_disk(&self, check: &Check) -> Result<(), ConfigError> {
        let disk = &self.disk;
        check.that(disk.reserve_bytes >= RESERVE_BYTES_MIN, "disk.reserve_bytes", "must be at least 16777216")?;
        check.that((100..=60_000).contains(&disk.stall_warn_ms), "disk.stall_warn_ms", "must be 100 to 60000")?;
        let reason = "must exceed `disk.stall_warn_ms` and be at most 600000";
        let later = disk.stall_max_ms > disk.stall_warn_ms && disk.stall_max_ms <= 600_000;
        check.that(later, "disk.stall_max_ms", reason)
    }

    fn validate_memory(&self, check: &Check) -> Result<(), ConfigError> {
        let memory = &self.memory;
        let cache = CACHE_BYTES.contains(&memory.cache_bytes);
        check.that(cache, "memory.cache_bytes", "must be 8388608 to 1099511627776")?;
        let flush = FLUSH_BYTES.contains(&memory.flush_bytes);
        check.that(flush, "memory.flush_bytes", "must be 1048576 to 1073741824")?;
        let room = FLUSH_BYTES_ANYWHERE.max(self.disk.reserve_bytes / 4);
        let reason = "must be at most 67108864, or a quarter of `disk.reserve_bytes`: it must find room on a full disk";
        check.that(memory.flush_bytes <= room, "memory.flush_bytes", reason)?;
        let requests = REQUESTS_BYTES.contains(&memory.requests_bytes);
        check.that(requests, "memory.requests_bytes", "must be 16777216 to 68719476736")
    }

    fn validate_telemetry(&self, check: &Check) -> Result<(), ConfigError> {
        let telemetry = &self.telemetry;
        let collector = telemetry.otlp_endpoint.as_deref().and_then(|url| url.strip_prefix("http://"));
        let named = telemetry.otlp_endpoint.is_none() || collector.is_some_and(is_address);
        check.that(named, "telemetry.otlp_endpoint", "must be http://host:port")?;
        check.that((0.0..=1.0).contains(&telemetry.sample_ratio), "telemetry.sample_ratio", "must be 0 to 1")
    }
}

pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_ok = !host.is_empty() && !host.contains(char::is_whitespace) && (bracketed || !host.contains(':'));
    host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
}
