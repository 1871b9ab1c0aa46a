//! `charthold bench`: writers and readers on a running cluster, each with one request at a time (a closed loop).
//!
//! Owns: the load and its figures. A writer puts new records of random bytes, each a commit of its own, into its own
//! charts (`bench-<run>-…`); a reader gets records that were written before. Latencies are of whole calls of the client
//! library, its retries among them; a call that failed counts as an error and not as a latency.
//!
//! A closed loop asks less of a slow cluster: read the figures as "with this many callers", not as a capacity.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use charthold_client::{Chart, Client, Error, Mutation, Profile, Put, RecordId, Role};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::exit::{CliError, reason};
use super::{Ctx, output, profile};
use crate::tls::{Authority, Principal, Validity};

/// A writer spreads its records, so that all shards take part.
const CHARTS_PER_WRITER: u64 = 16;
/// Latencies are kept to the microsecond, up to the longest deadline.
const LATENCY_MICROS_MAX: u64 = 120_000_000;
const SIZE_MAX: i64 = crate::config::BODY_BYTES_LIMIT as i64;
const RECORD_TYPE: &str = "Bench";
/// When nothing is there to read yet, or a call failed at once: no busy loop.
const PAUSE: Duration = Duration::from_millis(10);
/// A new grant is effective on every gateway within this.
const GRANT_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub struct Args {
    /// How many write at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=1024))]
    writers: u16,
    /// How many read at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=1024))]
    readers: u16,
    /// A record's body
    #[arg(long, value_name = "BYTES", default_value_t = 2048, value_parser = size_range())]
    size: u32,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Make a tenant for this run with this operator's profile; without it, the profile's tenant gets the records
    #[arg(long, value_name = "FILE", requires = "authority")]
    operator_profile: Option<PathBuf>,
    /// The folder of the cluster's authorities, which issue a certificate for that tenant
    #[arg(long, value_name = "DIR", requires = "operator_profile")]
    authority: Option<PathBuf>,
}

fn size_range() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=SIZE_MAX)
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    if args.writers == 0 {
        return Err(CliError::Usage("at least one writer is needed: readers read what it writes".to_owned()));
    }
    let run_id = Uuid::now_v7();
    let (client, scratch) = match (&args.operator_profile, &args.authority) {
        (Some(operator), Some(authority)) => {
            let tenant = Tenant::make(ctx, operator, authority, run_id).await?;
            (tenant.client, Some(tenant.scratch))
        }
        _ => (ctx.client()?, None),
    };
    ctx.note(&format!("{} writers, {} readers, {} bytes, {} s", args.writers, args.readers, args.size, args.seconds));
    let (figures, elapsed) = load(&args, &client, run_id).await?;
    drop(scratch);
    let report = Report { figures, elapsed, size: args.size };
    ctx.show(|| report.as_json(), || report.as_table())?;
    if report.figures.iter().all(|(_, figures)| figures.latency.is_empty()) {
        return Err(CliError::Unavailable("no call was answered".to_owned()));
    }
    Ok(())
}

/// Certificates of a run that go with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Tenant {
    client: Client,
    scratch: Scratch,
}

impl Tenant {
    async fn make(
        ctx: &Ctx,
        operator: &std::path::Path,
        authority: &std::path::Path,
        run: Uuid,
    ) -> Result<Self, CliError> {
        let operator = profile::load(operator)?;
        let authority = Authority::load(authority).map_err(|error| CliError::Failed(error.to_string()))?;
        let client = profile::connect(&operator)?.with_context(ctx.context.clone());
        let tenant = client.admin().create_tenant(&format!("bench-{run}")).await?;
        let uid = super::dev::parse_tenant(&tenant.uid)?;
        let scratch = Scratch(std::env::temp_dir().join(format!("charthold-bench-{run}")));
        authority
            .service(&uid, "bench", &scratch.0, Validity::default())
            .map_err(|error| CliError::Failed(error.to_string()))?;
        let principal = Principal::service(authority.cluster(), &uid, "bench")
            .map_err(|error| CliError::Failed(error.to_string()))?;
        client.admin().add_grant(&principal.uri(), &[Role::Reader, Role::Writer]).await?;
        let service = Profile {
            authority: scratch.0.join("service-ca.crt"),
            certificate: scratch.0.join("client.crt"),
            key: scratch.0.join("client.key"),
            tenant: Some(tenant.uid),
            ..operator
        };
        let client = profile::connect(&service)?.with_context(ctx.context.clone());
        wait_for_grant(&client).await?;
        Ok(Self { client, scratch })
    }
}

/// Or the first seconds would be counted as refused.
async fn wait_for_grant(client: &Client) -> Result<(), CliError> {
    let deadline = Instant::now() + GRANT_TIMEOUT;
    loop {
        match client.get(&Chart::shared("bench"), &RecordId::new(RECORD_TYPE, "0")).await {
            Ok(_) | Err(Error::NotFound { .. }) => return Ok(()),
            Err(Error::Denied) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What one task, or all of a kind, measured.
struct Figures {
    latency: Histogram<u64>,
    errors: BTreeMap<&'static str, u64>,
}

impl Figures {
    fn new() -> Result<Self, CliError> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)
            .map_err(|error| CliError::Failed(format!("histogram: {error}")))?;
        Ok(Self { latency, errors: BTreeMap::new() })
    }

    fn count<T>(&mut self, started: Instant, outcome: &Result<T, Error>) {
        match outcome {
            Ok(_) => {
                let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.latency.saturating_record(micros.max(1));
            }
            Err(error) => *self.errors.entry(reason(error).unwrap_or("UNAVAILABLE")).or_default() += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.latency.add(&other.latency);
        for (reason, count) in &other.errors {
            *self.errors.entry(reason).or_default() += count;
        }
    }
}

/// What all tasks of a run share.
struct Load {
    client: Client,
    run: Uuid,
    size: usize,
    until: Instant,
    /// How many records each writer has acknowledged.
    written: Vec<AtomicU64>,
}

impl Load {
    fn place(&self, writer: usize, number: u64) -> (Chart, RecordId) {
        let chart = format!("bench-{}-{writer}-{}", self.run, number % CHARTS_PER_WRITER);
        (Chart::patient(chart), RecordId::new(RECORD_TYPE, number.to_string()))
    }

    async fn write(self: Arc<Self>, writer: usize) -> Result<Figures, CliError> {
        let mut figures = Figures::new()?;
        let mut random = Random::new(self.run, writer as u64);
        while Instant::now() < self.until {
            // After an error the same record again: what readers look for has no gaps.
            let number = self.written[writer].load(Ordering::Relaxed);
            let (chart, id) = self.place(writer, number);
            let put = Put::new("application/octet-stream", random.bytes(self.size));
            let started = Instant::now();
            let outcome = self.client.commit(&chart, vec![Mutation::put(id, put)]).await;
            figures.count(started, &outcome);
            match outcome {
                Ok(_) => self.written[writer].store(number + 1, Ordering::Release),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        Ok(figures)
    }

    async fn read(self: Arc<Self>, reader: usize) -> Result<Figures, CliError> {
        let mut figures = Figures::new()?;
        let mut random = Random::new(self.run, u64::MAX - reader as u64);
        while Instant::now() < self.until {
            let writer = usize::try_from(random.next() % self.written.len() as u64).unwrap_or_default();
            let written = self.written[writer].load(Ordering::Acquire);
            if written == 0 {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let (chart, id) = self.place(writer, random.next() % written);
            let started = Instant::now();
            let outcome = self.client.get(&chart, &id).await;
            figures.count(started, &outcome);
            if outcome.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(figures)
    }
}

type Measured = Vec<(&'static str, Figures)>;

async fn load(args: &Args, client: &Client, run: Uuid) -> Result<(Measured, Duration), CliError> {
    let started = Instant::now();
    let load = Arc::new(Load {
        client: client.clone(),
        run,
        size: args.size as usize,
        until: started + Duration::from_secs(args.seconds.into()),
        written: (0..args.writers).map(|_| AtomicU64::new(0)).collect(),
    });
    let mut tasks = JoinSet::new();
    for writer in 0..usize::from(args.writers) {
        let load = load.clone();
        tasks.spawn(async move { (true, load.write(writer).await) });
    }
    for reader in 0..usize::from(args.readers) {
        let load = load.clone();
        tasks.spawn(async move { (false, load.read(reader).await) });
    }
    let (mut writes, mut reads) = (Figures::new()?, Figures::new()?);
    while let Some(done) = tasks.join_next().await {
        let (is_writer, figures) = done.map_err(|_| CliError::Failed("a task ended unexpectedly".to_owned()))?;
        if is_writer { &mut writes } else { &mut reads }.add(&figures?);
    }
    let mut measured = vec![("write", writes)];
    if args.readers > 0 {
        measured.push(("read", reads));
    }
    Ok((measured, started.elapsed()))
}

struct Report {
    figures: Measured,
    elapsed: Duration,
    size: u32,
}

const QUANTILES: [(&str, f64); 3] = [("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)];

impl Report {
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn as_json(&self) -> Value {
        let mut value = json!({ "seconds": self.elapsed.as_secs_f64(), "size_bytes": self.size });
        for (name, figures) in &self.figures {
            let count = figures.latency.len();
            let mut one = json!({ "count": count, "per_second": self.per_second(count), "errors": figures.errors });
            for (quantile, at) in QUANTILES {
                one[quantile] = milliseconds(figures.latency.value_at_quantile(at)).into();
            }
            one["max_ms"] = milliseconds(figures.latency.max()).into();
            value[*name] = one;
        }
        value
    }

    fn as_table(&self) -> String {
        let row = |(name, figures): &(&'static str, Figures)| {
            let latency = &figures.latency;
            let at = |quantile: f64| format!("{:.2}", milliseconds(latency.value_at_quantile(quantile)));
            let errors: Vec<String> =
                figures.errors.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let mut row = vec![(*name).to_owned(), latency.len().to_string()];
            row.push(format!("{:.0}", self.per_second(latency.len())));
            row.extend(QUANTILES.map(|(_, quantile)| at(quantile)));
            row.push(format!("{:.2}", milliseconds(latency.max())));
            row.push(if errors.is_empty() { "0".to_owned() } else { errors.join(", ") });
            row
        };
        let names = ["CALL", "COUNT", "PER SECOND", "P50 ms", "P99 ms", "P99.9 ms", "MAX ms", "ERRORS"];
        output::table(&names, &[1, 2, 3, 4, 5, 6], self.figures.iter().map(row))
    }
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Bytes that don't compress, and choices; nothing secret. SplitMix64.
struct Random(u64);

impl Random {
    fn new(run: Uuid, stream: u64) -> Self {
        let (high, low) = run.as_u64_pair();
        Self(high ^ low.rotate_left(32) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report() -> Report {
        let mut writes = Figures::new().unwrap();
        for micros in 1..=1000 {
            writes.latency.record(micros * 10).unwrap();
        }
        let mut more = Figures::new().unwrap();
        more.count::<()>(Instant::now(), &Err(Error::Denied));
        more.count::<()>(Instant::now(), &Err(Error::Unavailable { why: String::new() }));
        writes.add(&more);
        Report { figures: vec![("write", writes)], elapsed: Duration::from_secs(2), size: 100 }
    }

    #[test]
    fn figures_as_json() {
        let value = report().as_json();
        assert_eq!(value["write"]["count"], 1000);
        assert_eq!(value["write"]["per_second"], 500.0);
        assert_eq!(value["write"]["errors"]["NO_GRANT"], 1);
        assert_eq!(value["write"]["errors"]["UNAVAILABLE"], 1);
        let p50 = value["write"]["p50_ms"].as_f64().unwrap();
        assert!((4.99..5.02).contains(&p50), "{p50}");
    }

    #[test]
    fn figures_as_a_table() {
        let text = report().as_table();
        assert!(text.lines().nth(1).unwrap().starts_with("write   1000         500"), "{text}");
        assert!(text.ends_with("NO_GRANT 1, UNAVAILABLE 1"), "{text}");
    }

    #[test]
    fn bodies_have_their_length_and_differ() {
        let mut random = Random::new(Uuid::nil(), 1);
        let (first, second) = (random.bytes(13), random.bytes(13));
        assert_eq!((first.len(), second.len()), (13, 13));
        assert_ne!(first, second);
    }
}
