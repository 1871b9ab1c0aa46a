//! One request, followed over the nodes that it crosses.
//!
//! Owns spans: what they are made of, how they hang together, and the queue to whoever exports them. Must not know
//! where they go, nor what time it is: a span holds moments of the monotonic clock, its ids come of a seed from above.
//!
//! A span's fields are numbers and words of the program, by their type: nothing of a patient can be put into one. Only
//! requests that are *sampled* have a [`Context`]; for all others, and while nobody collects, a span is `None` and
//! costs a look at a task's own variable.
//!
//! The context crosses to the leader inside of a forward, and to followers beside the entries of an append (see
//! [`crate::shard::traced`]), never in the log.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::metrics::METRICS;

/// Finished spans that may wait to be exported; further ones are dropped and counted.
const QUEUE_SPANS_MAX: usize = 4_096;
/// trace 16 | span 8
const CONTEXT_BYTES: usize = 24;

/// Which trace, and which span of it is the parent of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: [u8; 16],
    pub span: u64,
}

impl Context {
    pub fn to_bytes(self) -> Bytes {
        Bytes::from([&self.trace[..], &self.span.to_be_bytes()].concat())
    }

    /// Nothing when it is none: a request is not worse for it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = <[u8; CONTEXT_BYTES]>::try_from(bytes).ok()?;
        let (trace, span) = bytes.split_first_chunk::<16>()?;
        Some(Self { trace: *trace, span: u64::from_be_bytes(span.try_into().ok()?) })
    }
}

/// What a field may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Word(&'static str),
}

/// Which end of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal,
    Server,
    Client,
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    pub name: &'static str,
    pub kind: Kind,
    pub context: Context,
    /// 0: none.
    pub parent: u64,
    pub began: Instant,
    pub ended: Instant,
    pub fields: Vec<(&'static str, Value)>,
    pub failed: bool,
}

struct Collection {
    queue: mpsc::Sender<Finished>,
    /// Of the ids of spans: a counter, scattered.
    next: AtomicU64,
}

static COLLECTION: OnceLock<Collection> = OnceLock::new();

tokio::task_local! {
    static CURRENT: Option<Context>;
}

/// Begins to collect; once in a process, nothing the second time. `seed` is random.
pub fn collect(seed: u64) -> Option<mpsc::Receiver<Finished>> {
    let (queue, finished) = mpsc::channel(QUEUE_SPANS_MAX);
    COLLECTION.set(Collection { queue, next: AtomicU64::new(seed) }).ok().map(|()| finished)
}

/// Whether anybody collects.
pub fn is_on() -> bool {
    COLLECTION.get().is_some()
}

/// What this task works for, if that is sampled.
pub fn current() -> Option<Context> {
    CURRENT.try_with(|current| *current).ok().flatten()
}

/// Works for a span.
pub async fn within<F: Future>(context: Option<Context>, work: F) -> F::Output {
    CURRENT.scope(context, work).await
}

/// A span under way; it ends when it is dropped, also when its task is given up.
pub struct Span(Finished);

/// A part of what this task works for.
pub fn span(name: &'static str, kind: Kind) -> Option<Span> {
    Span::under(current()?, name, kind)
}

impl Span {
    /// A part of a span that may be another node's; a span of 0 makes it the trace's first.
    pub fn under(parent: Context, name: &'static str, kind: Kind) -> Option<Self> {
        let collection = COLLECTION.get()?;
        let now = Instant::now();
        let context = Context { trace: parent.trace, span: scatter(collection.next.fetch_add(1, Ordering::Relaxed)) };
        let (parent, fields) = (parent.span, Vec::new());
        Some(Self(Finished { name, kind, context, parent, began: now, ended: now, fields, failed: false }))
    }

    pub fn context(&self) -> Context {
        self.0.context
    }

    pub fn note(&mut self, field: &'static str, value: Value) {
        self.0.fields.push((field, value));
    }

    /// It did not do what it was to.
    pub fn fail(&mut self) {
        self.0.failed = true;
    }

    /// It began before it was made.
    pub fn began_at(&mut self, began: Instant) {
        self.0.began = began;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(collection) = COLLECTION.get() else { return };
        let mut finished = self.0.clone();
        finished.ended = Instant::now();
        if collection.queue.try_send(finished).is_err() {
            METRICS.spans_dropped.inc();
        }
    }
}

/// A permutation (splitmix64): different counts give different ids, which do not look alike. 0 means "none".
fn scatter(count: u64) -> u64 {
    let mut id = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (id ^ (id >> 31)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn contexts_round_trip(trace: [u8; 16], span: u64) {
            let context = Context { trace, span };
            proptest::prop_assert_eq!(Context::from_bytes(&context.to_bytes()), Some(context));
        }

        #[test]
        fn other_bytes_are_no_context(bytes: Vec<u8>) {
            proptest::prop_assert_eq!(Context::from_bytes(&bytes).is_some(), bytes.len() == CONTEXT_BYTES);
        }
    }

    #[tokio::test]
    async fn only_what_works_for_a_sampled_request_has_spans() {
        let mut finished = collect(7);
        let queue = finished.as_mut().map(|queue| queue.try_recv().is_err());
        assert_eq!(queue, Some(true));
        assert!(span("nobody asked", Kind::Internal).is_none());
        let root = Context { trace: [3; 16], span: 9 };
        within(Some(root), async {
            let mut outer = span("outer", Kind::Server);
            let context = outer.as_ref().map(Span::context);
            within(context, async { drop(span("inner", Kind::Internal)) }).await;
            if let Some(outer) = &mut outer {
                outer.note("shard", Value::Number(4));
            }
        })
        .await;
        let mut seen = Vec::new();
        while let Some(Ok(span)) = finished.as_mut().map(mpsc::Receiver::try_recv) {
            seen.push(span);
        }
        let names: Vec<_> = seen.iter().map(|span| span.name).collect();
        assert_eq!(names, ["inner", "outer"]);
        assert!(seen.iter().all(|span| span.context.trace == root.trace));
        assert_eq!((seen[0].parent, seen[1].parent), (seen[1].context.span, root.span));
        assert_eq!(seen[1].fields, [("shard", Value::Number(4))]);
    }
}
