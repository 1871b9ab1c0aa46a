//! Bugs on purpose, so that the tests can be tested: each of them must be caught by one.
//!
//! Without the feature `planted-bugs`, which nothing that is shipped has, [`has`] is a constant and all of this is gone
//! from the program. With it, a process has the one bug that its environment names, or none: `PLANTED_BUG=skip-sync`.
//! Which test catches which: `tests/tests/long/planted.rs`.

/// The variable that names one.
pub const VARIABLE: &str = "PLANTED_BUG";

/// A bug that somebody could write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The log is not synced.
    SkipSync,
    /// Entries are told to be durable before they are written.
    AckBeforeWrite,
    /// A failed sync is taken for a good one.
    FailedSyncIgnored,
    /// What is truncated is gone in memory only.
    TruncateSkipped,
    /// A vote is kept in memory only.
    VoteNotKept,
    /// The applied row is not always in the batch of the rows that it speaks of.
    ApplyNotAtomic,
    /// Replicas do not compute the same.
    ApplyDiffers,
    /// A request id that was seen is executed again.
    RequestIdIgnored,
    /// Whatever a mutation expects, it happens.
    PreconditionIgnored,
    /// Of a commit over several records, the second is not written.
    HalfCommit,
    /// A leader answers reads without asking whether it still leads.
    ReadWithoutQuorum,
    /// A leader answers reads that a lease is enough for however old its lease is.
    LeaseUnchecked,
    /// A follower answers reads with what it has.
    StaleFollowerRead,
    /// Whoever takes stale answers gets them, however stale.
    AgeUnchecked,
    /// A snapshot lacks a table's last row.
    SnapshotWithoutLastRow,
    /// A snapshot lacks what says that a record was deleted.
    TombstoneLostInSnapshot,
    /// A data directory that lost what it acknowledged is let in.
    RolledBackAccepted,
    /// An empty data directory takes the place of the one that was lost.
    WipedNodeAccepted,
    /// A disk that hangs ends nothing.
    WatchdogOff,
    /// Every envelope is sealed with the same salt.
    SaltReused,
    /// Whoever has a certificate has all roles.
    GrantUnchecked,
    /// What a leader without keys brings is taken unseen.
    AuthorUnchecked,
    /// A command is executed however long it was held back.
    LateExecuted,
}

impl Bug {
    pub const ALL: [Self; 23] = [
        Self::SkipSync,
        Self::AckBeforeWrite,
        Self::FailedSyncIgnored,
        Self::TruncateSkipped,
        Self::VoteNotKept,
        Self::ApplyNotAtomic,
        Self::ApplyDiffers,
        Self::RequestIdIgnored,
        Self::PreconditionIgnored,
        Self::HalfCommit,
        Self::ReadWithoutQuorum,
        Self::LeaseUnchecked,
        Self::StaleFollowerRead,
        Self::AgeUnchecked,
        Self::SnapshotWithoutLastRow,
        Self::TombstoneLostInSnapshot,
        Self::RolledBackAccepted,
        Self::WipedNodeAccepted,
        Self::WatchdogOff,
        Self::SaltReused,
        Self::GrantUnchecked,
        Self::AuthorUnchecked,
        Self::LateExecuted,
    ];

    /// As the environment names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SkipSync => "skip-sync",
            Self::AckBeforeWrite => "ack-before-write",
            Self::FailedSyncIgnored => "failed-sync-ignored",
            Self::TruncateSkipped => "truncate-skipped",
            Self::VoteNotKept => "vote-not-kept",
            Self::ApplyNotAtomic => "apply-not-atomic",
            Self::ApplyDiffers => "apply-differs",
            Self::RequestIdIgnored => "request-id-ignored",
            Self::PreconditionIgnored => "precondition-ignored",
            Self::HalfCommit => "half-commit",
            Self::ReadWithoutQuorum => "read-without-quorum",
            Self::LeaseUnchecked => "lease-unchecked",
            Self::StaleFollowerRead => "stale-follower-read",
            Self::AgeUnchecked => "age-unchecked",
            Self::SnapshotWithoutLastRow => "snapshot-without-last-row",
            Self::TombstoneLostInSnapshot => "tombstone-lost-in-snapshot",
            Self::RolledBackAccepted => "rolled-back-accepted",
            Self::WipedNodeAccepted => "wiped-node-accepted",
            Self::WatchdogOff => "watchdog-off",
            Self::SaltReused => "salt-reused",
            Self::GrantUnchecked => "grant-unchecked",
            Self::AuthorUnchecked => "author-unchecked",
            Self::LateExecuted => "late-executed",
        }
    }
}

/// What is hardly the same in another process: for [`Bug::ApplyDiffers`].
pub fn of_this_process() -> u64 {
    u64::from(std::process::id() % 97)
}

/// Whether this process is to have it.
#[cfg(feature = "planted-bugs")]
pub fn has(bug: Bug) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<Bug>> = std::sync::LazyLock::new(|| {
        let name = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
        let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
        // A misspelt bug would be one that nothing catches.
        Some(bug.unwrap_or_else(|| panic!("{VARIABLE}={name}: no such bug")))
    });
    *CHOSEN == Some(bug)
}

/// Whether this process is to have it: none here.
#[cfg(not(feature = "planted-bugs"))]
pub const fn has(_bug: Bug) -> bool {
    false
}
