//! Which entries, on their way through this node's log, belong to a request that is traced.
//!
//! A trace is no part of the log: a leader tells it beside the entries of an append, and each node remembers it until
//! the entry is applied. Few requests are sampled, so the newest few suffice; an entry that is forgotten lacks a span.

use std::collections::VecDeque;
use std::ops::Range;

use parking_lot::Mutex;

use crate::ShardId;
use crate::trace::{Context, Kind, Span, Value, is_on};

/// Entries that are remembered, of all shards.
const TRACED_MAX: usize = 256;
/// What one append may tell of.
pub const TOLD_MAX: usize = 64;

static TRACED: Mutex<VecDeque<(ShardId, u64, Context)>> = Mutex::new(VecDeque::new());

/// Remembers an entry's trace, while anybody collects.
pub fn remember(shard: ShardId, index: u64, context: Context) {
    if !is_on() {
        return;
    }
    let mut traced = TRACED.lock();
    if traced.iter().any(|known| *known == (shard, index, context)) {
        return;
    }
    if traced.len() == TRACED_MAX {
        traced.pop_front();
    }
    traced.push_back((shard, index, context));
}

/// Index and trace of those of a range that are traced.
pub fn among(shard: ShardId, indexes: Range<u64>) -> Vec<(u64, Context)> {
    if !is_on() {
        return Vec::new();
    }
    let traced = TRACED.lock();
    let wanted = traced.iter().filter(|(of, index, _)| *of == shard && indexes.contains(index));
    wanted.take(TOLD_MAX).map(|(_, index, context)| (*index, *context)).collect()
}

/// A span for each of them.
pub fn spans(shard: ShardId, indexes: Range<u64>, name: &'static str) -> Vec<Span> {
    let begin = |(index, context)| {
        let mut span = Span::under(context, name, Kind::Internal)?;
        span.note("shard", Value::Number(shard.into()));
        span.note("log_index", Value::Number(index));
        Some(span)
    };
    among(shard, indexes).into_iter().filter_map(begin).collect()
}
