//! All that happened in a run, in order, as one number: two runs of a seed must have the same.
//!
//! What clients saw, what was broken, and every line that a node logged. Lines of level ERROR are kept: there is no
//! reason for one.

use std::fmt::Write as _;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::node::now_ms;

const OURS: &str = "charthold";
const INSTALLED: &str = "a snapshot was installed";
const REFILLED: &str = "the shard's rows were fetched";
/// Of the lines that nobody expects, so many are kept.
const ERRORS_MAX: usize = 20;

/// Clones share it.
#[derive(Clone, Default)]
pub struct Digest(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    hasher: DefaultHasher,
    /// Where to write all of it.
    log: Option<File>,
    snapshots: usize,
    refills: usize,
    errors: Vec<String>,
}

impl Digest {
    /// Writes what happens to a file, too.
    pub fn write_to(&self, path: &Path) -> std::io::Result<()> {
        self.0.lock().unwrap().log = Some(File::create(path)?);
        Ok(())
    }

    pub fn add(&self, event: &impl Serialize) {
        let line = serde_json::to_string(event).expect("invariant: an event is plain data");
        self.add_line(&line);
    }

    pub fn add_line(&self, line: &str) {
        let mut inner = self.0.lock().unwrap();
        inner.hasher.write(line.as_bytes());
        inner.hasher.write_u8(b'\n');
        if let Some(log) = &mut inner.log {
            writeln!(log, "{line}").unwrap();
        }
    }

    pub fn value(&self) -> u64 {
        self.0.lock().unwrap().hasher.finish()
    }

    /// That nodes installed.
    pub fn snapshots(&self) -> usize {
        self.0.lock().unwrap().snapshots
    }

    /// Shards that nodes fetched whose state was lost.
    pub fn refills(&self) -> usize {
        self.0.lock().unwrap().refills
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

/// Whose turn it is: turmoil opens a span of that name around each.
const HOST: &str = "node";

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id).filter(|span| span.name() == HOST) {
            let mut host = Line(String::new());
            attributes.record(&mut host);
            span.extensions_mut().insert(host);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with(OURS) {
            return;
        }
        let mut line = Line(format!("{} {}", now_ms(), event.metadata().level()));
        for span in context.event_scope(event).into_iter().flatten() {
            line.0.extend(span.extensions().get::<Line>().map(|host| host.0.as_str()));
        }
        event.record(&mut line);
        self.0.add_line(&line.0);
        let mut inner = self.0.0.lock().unwrap();
        inner.snapshots += usize::from(line.0.contains(INSTALLED));
        inner.refills += usize::from(line.0.contains(REFILLED));
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
