//! What a node measures above the wall, and the text of all metrics.
//!
//! Owns the handles of the gateway, of sealing and of the process, and the registry. Must not know HTTP: `ops.rs` serves
//! the text. What is measured below the wall is in `charthold_replica::metrics`, which says how to add one; the same
//! holds here.

use std::path::Path;
use std::sync::LazyLock;

use charthold_replica::metrics::{METRICS as REPLICA_METRICS, Word, bytes, seconds};
use charthold_replica::replica::observe::Observer;
use parking_lot::Mutex;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use crate::process;
use crate::tls::TlsFiles;

/// What Prometheus is told that the text is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The process's handles.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
/// One scrape at a time: gauges are set, then read.
static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| Mutex::new(registry()));

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

pub struct Metrics {
    requests: Family<[(&'static str, &'static str); 2], Counter>,
    request: Family<Word, Histogram>,
    pub in_flight: Gauge,
    refusals: Family<Word, Counter>,
    commit_stage: Family<Word, Histogram>,
    /// From the request's arrival to the chart's key: grant, limits, tokens.
    pub commit_admit: Histogram,
    pub commit_key: Histogram,
    pub commit_seal: Histogram,
    pub commit_propose: Histogram,
    pub commit_answer: Histogram,
    pub seal: Histogram,
    pub sealed_bytes: Histogram,
    pub open: Histogram,
    pub opened_bytes: Histogram,
    // What follows is set when somebody looks.
    ready: Gauge,
    certificate_expiry: Family<Word, Gauge>,
    disk_total: Gauge,
    disk_free: Gauge,
    resident: Gauge,
    cpu: Counter<f64, std::sync::atomic::AtomicU64>,
    uptime: Seconds,
    threads: Gauge,
    open_files: Gauge,
    build: Family<Word, Gauge>,
}

impl Metrics {
    fn new() -> Self {
        let histograms = || Family::<Word, Histogram>::new_with_constructor(seconds as fn() -> Histogram);
        let commit_stage = histograms();
        let stage = |name| commit_stage.get_or_create_owned(&[("stage", name)]);
        Self {
            requests: Family::default(),
            request: histograms(),
            in_flight: Gauge::default(),
            refusals: Family::default(),
            commit_admit: stage("admit"),
            commit_key: stage("key"),
            commit_seal: stage("seal"),
            commit_propose: stage("propose"),
            commit_answer: stage("answer"),
            commit_stage,
            seal: seconds(),
            sealed_bytes: bytes(),
            open: seconds(),
            opened_bytes: bytes(),
            ready: Gauge::default(),
            certificate_expiry: Family::default(),
            disk_total: Gauge::default(),
            disk_free: Gauge::default(),
            resident: Gauge::default(),
            cpu: Counter::default(),
            uptime: Seconds::default(),
            threads: Gauge::default(),
            open_files: Gauge::default(),
            build: Family::default(),
        }
    }

    /// A request was answered.
    pub fn answered(&self, method: &'static str, code: Code, took_seconds: f64) {
        self.requests.get_or_create(&[("method", method), ("code", code_name(code))]).inc();
        self.request.get_or_create(&[("method", method)]).observe(took_seconds);
    }

    /// A gateway answered something else than what was asked.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }

    fn register(&self, to: &mut Registry) {
        let (seconds, bytes) = (|| Unit::Seconds, || Unit::Bytes);
        to.register("requests", "Answered requests of clients", self.requests.clone());
        let help = "From a request's arrival to the end of its answer";
        to.register_with_unit("request", help, seconds(), self.request.clone());
        to.register("requests_in_flight", "Requests under way now", self.in_flight.clone());
        let help = "Answers other than what was asked, by the reason in their ErrorInfo";
        to.register("refusals", help, self.refusals.clone());
        to.register_with_unit("commit_stage", "Parts of a commit in the gateway", seconds(), self.commit_stage.clone());
        to.register_with_unit("seal", "Sealing of one envelope", seconds(), self.seal.clone());
        to.register_with_unit("sealed_size", "Sealed envelopes", bytes(), self.sealed_bytes.clone());
        to.register_with_unit("open", "Opening of one envelope", seconds(), self.open.clone());
        to.register_with_unit("opened_size", "Opened envelopes", bytes(), self.opened_bytes.clone());
        to.register("ready", "1 while /readyz answers 200", self.ready.clone());
        let help = "When the certificate in use ends, in seconds since 1970";
        to.register_with_unit("certificate_expiry_timestamp", help, seconds(), self.certificate_expiry.clone());
        let help = "Of the file system that holds the data directory";
        to.register_with_unit("disk_size", help, bytes(), self.disk_total.clone());
        let help = "Free to this process, of the file system that holds the data directory";
        to.register_with_unit("disk_free", help, bytes(), self.disk_free.clone());
        to.register_with_unit("process_resident_memory", "Resident memory", bytes(), self.resident.clone());
        to.register_with_unit("process_cpu", "CPU time used since the start", seconds(), self.cpu.clone());
        to.register_with_unit("process_uptime", "Time since the start", seconds(), self.uptime.clone());
        to.register("process_threads", "Threads", self.threads.clone());
        to.register("process_open_files", "Open file descriptors", self.open_files.clone());
        to.register("build_info", "1, with the version of the program", self.build.clone());
    }
}

fn registry() -> Registry {
    let mut registry = Registry::with_prefix("charthold");
    METRICS.register(&mut registry);
    REPLICA_METRICS.register(&mut registry);
    METRICS.build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry
}

/// What a scrape looks at beside the handles.
pub struct Source<'a> {
    pub observer: &'a Observer,
    pub ready: bool,
    pub data: &'a Path,
    pub certificates: &'a [(&'static str, TlsFiles)],
}

/// Everything, as Prometheus reads it. Reads a few files.
pub fn text(source: &Source<'_>) -> Result<String, std::fmt::Error> {
    let registry = REGISTRY.lock();
    source.observer.refresh_metrics();
    METRICS.ready.set(source.ready.into());
    for (port, files) in source.certificates {
        if let Ok(expires_at) = files.expires_at() {
            METRICS.certificate_expiry.get_or_create(&[("port", port)]).set(expires_at as i64);
        }
    }
    if let Some(disk) = process::disk(source.data) {
        METRICS.disk_total.set(disk.total_bytes as i64);
        METRICS.disk_free.set(disk.free_bytes as i64);
    }
    let usage = process::usage();
    METRICS.resident.set(usage.resident_bytes as i64);
    METRICS.cpu.inc_by((usage.cpu_seconds - METRICS.cpu.get()).max(0.0));
    METRICS.uptime.set(source.observer.uptime().as_secs_f64());
    METRICS.threads.set(usage.threads as i64);
    METRICS.open_files.set(usage.open_files as i64);
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

/// As the gRPC specification writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
