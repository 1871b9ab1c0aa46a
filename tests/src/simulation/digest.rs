//! All that happened in a run, in order, as one number: two runs of a seed must have the same.
//!
//! What clients saw, what was broken, and every line that a node logged. Lines of level ERROR are kept: there is no
//! reason for one.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

const OURS: &str = "charthold";
const INSTALLED: &str = "a snapshot was installed";
/// Of the lines that nobody expects, so many are kept.
const ERRORS_MAX: usize = 20;

/// Clones share it.
#[derive(Clone, Default)]
pub struct Digest(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    hasher: DefaultHasher,
    snapshots: usize,
    errors: Vec<String>,
}

impl Digest {
    pub fn add(&self, event: &impl Serialize) {
        let line = serde_json::to_string(event).expect("invariant: an event is plain data");
        self.add_line(&line);
    }

    pub fn add_line(&self, line: &str) {
        let mut inner = self.0.lock().unwrap();
        inner.hasher.write(line.as_bytes());
        inner.hasher.write_u8(b'\n');
    }

    pub fn value(&self) -> u64 {
        self.0.lock().unwrap().hasher.finish()
    }

    /// That nodes installed.
    pub fn snapshots(&self) -> usize {
        self.0.lock().unwrap().snapshots
    }

    pub fn errors(&self) -> Vec<String> {
        self.0.lock().unwrap().errors.clone()
    }

    /// From now on takes what is logged on this thread.
    pub fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let lines = Lines(self.clone()).with_filter(LevelFilter::INFO);
        tracing::subscriber::set_default(tracing_subscriber::registry().with(lines))
    }
}

struct Lines(Digest);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        if !event.metadata().target().starts_with(OURS) {
            return;
        }
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.add_line(&line.0);
        let mut inner = self.0.0.lock().unwrap();
        inner.snapshots += usize::from(line.0.contains(INSTALLED));
        if *event.metadata().level() == Level::ERROR && inner.errors.len() < ERRORS_MAX {
            inner.errors.push(line.0);
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _growing = write!(self.0, " {field}={value:?}");
    }
}
