//! How many files and sockets this process may have open.
//!
//! The usual soft limit of 1,024 is there for programs that use `select`; RocksDB and a thousand clients need more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the node itself opens: RocksDB's files, peers' connections, and some room. A database that cannot open its next
/// file ends the node, so clients never get this much.
const RESERVED: u64 = 1_024;
/// With fewer for clients something is wrong with the machine, not with us.
const CLIENTS_MIN: usize = 16;

/// Raises the soft limit to the hard one. None is "unlimited".
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// How many connections of clients there may be, of those wished for; says so if it is fewer.
pub fn connections_within(limit: Option<u64>, wished: usize) -> usize {
    let Some(limit) = limit else { return wished };
    let room = usize::try_from(limit.saturating_sub(RESERVED)).unwrap_or(wished).max(CLIENTS_MIN);
    if room < wished {
        tracing::warn!(
            open_files_max = limit,
            needed = RESERVED + wished as u64,
            connections_max = room,
            "few files may be open at a time (ulimit -n), so fewer clients may be connected"
        );
    }
    room.min(wished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_the_node_does_not_need() {
        assert_eq!(connections_within(None, 1_024), 1_024);
        assert_eq!(connections_within(Some(20_000), 1_024), 1_024);
        assert_eq!(connections_within(Some(1_524), 1_024), 500);
        assert_eq!(connections_within(Some(100), 1_024), CLIENTS_MIN);
    }
}
