//! `charthold bench`: load on a running cluster, and its figures.
//!
//! Owns: what is asked for, and the order of a run. There are two kinds. A *closed* loop has so many writers and
//! readers, each with one call at a time: a slow cluster is asked less, so read its figures as "with this many
//! callers", not as a capacity. An *open* loop (`--rate`) starts calls at fixed moments whatever the cluster does, and
//! measures from the moment that a call was to start: a stall shows in every call that it held up.
//!
//! Nothing is left out silently: calls that failed are counted by reason, calls that the run's end or Ctrl-C cut off
//! and calls that were due and never sent are counted too. Latencies are of answered calls, retries of the client
//! library among them.
//!
//! ```text
//! load.rs     writers, readers, both loops     tenant.rs   a tenant of the run's own
//! pace.rs     when an open loop's calls start  figures.rs  latencies and errors, as they come
//! random.rs   bodies and choices               report.rs   table, JSON, histogram files
//! ```

mod figures;
mod load;
mod pace;
mod random;
mod report;
mod tenant;

use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use self::load::{Load, Loop};
use self::report::Report;
use self::tenant::Tenant;
use super::Ctx;
use super::exit::CliError;

const CALLERS_MAX: i64 = 1024;
const RATE_MAX: i64 = 1_000_000;
const SECONDS_MAX: i64 = 86_400;
const SIZE_BYTES_MAX: i64 = crate::config::BODY_BYTES_LIMIT as i64;

#[derive(clap::Args)]
pub struct Args {
    /// Closed loop: how many write at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = callers(0))]
    writers: u16,
    /// Closed loop: how many read at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = callers(0))]
    readers: u16,
    /// Open loop: this many calls a second, started on time whatever the cluster does
    #[arg(long, value_name = "N", conflicts_with_all = ["writers", "readers"],
          value_parser = clap::value_parser!(u32).range(1..=RATE_MAX))]
    rate: Option<u32>,
    /// Open loop: how many of a hundred calls read; the others write
    #[arg(long, value_name = "PERCENT", requires = "rate", default_value_t = 50,
          value_parser = clap::value_parser!(u8).range(0..=99))]
    reads: u8,
    /// Open loop: how many calls may be under way at once; what is due beyond waits, and its latency with it
    #[arg(long, value_name = "N", requires = "rate", default_value_t = 256, value_parser = callers(1))]
    in_flight: u16,
    /// A record's body; of several sizes, separated by commas, each write takes one by chance
    #[arg(long, value_name = "BYTES", default_value = "2048", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=SIZE_BYTES_MAX))]
    size: Vec<u32>,
    /// How long it is measured
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX))]
    seconds: u32,
    /// How long the same load runs before that
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(0..=SECONDS_MAX))]
    warm_up: u32,
    /// Each call by itself, none on a stream that it shares: what a client has that does not use streams
    #[arg(long)]
    without_streams: bool,
    /// Write latencies as HDR percentiles, one file a kind of call: out.hgrm becomes out.write.hgrm and out.read.hgrm
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,
    /// Make a tenant for this run with this operator's profile; without it, the profile's tenant gets the records,
    /// which stay
    #[arg(long, value_name = "FILE", requires = "authority")]
    operator_profile: Option<PathBuf>,
    /// The folder of the cluster's authorities, which issue a certificate for that tenant
    #[arg(long, value_name = "DIR", requires = "operator_profile")]
    authority: Option<PathBuf>,
}

fn callers(least: i64) -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(least..=CALLERS_MAX)
}

impl Args {
    fn the_loop(&self) -> Result<Loop, CliError> {
        match self.rate {
            Some(rate) => Ok(Loop::Open { rate, reads_percent: self.reads, in_flight: self.in_flight }),
            None if self.writers == 0 => {
                Err(CliError::Usage("at least one writer is needed: readers read what it writes".to_owned()))
            }
            None => Ok(Loop::Closed { writers: self.writers, readers: self.readers }),
        }
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let the_loop = args.the_loop()?;
    if let Some(file) = &args.histogram {
        report::check_writable(file)?;
    }
    let run_id = Uuid::now_v7();
    let tenant = match (&args.operator_profile, &args.authority) {
        (Some(operator), Some(authority)) => Some(Tenant::make(ctx, operator, authority, run_id).await?),
        _ => None,
    };
    let client = match &tenant {
        Some(tenant) => tenant.client.clone(),
        None => ctx.client()?,
    };
    let client = if args.without_streams { client.without_streams() } else { client };
    ctx.note(&format!("{the_loop}; warms up for {} s, measures for {} s", args.warm_up, args.seconds));
    let (warm_up, measured) = (Duration::from_secs(args.warm_up.into()), Duration::from_secs(args.seconds.into()));
    let load = Load::new(client, run_id, args.size.clone());
    let measured = load.run(the_loop, warm_up, measured).await?;
    drop(tenant);
    let report = Report { the_loop, sizes_bytes: args.size, measured };
    for line in report.remarks() {
        ctx.note(&line);
    }
    if let Some(file) = &args.histogram {
        report.write_histograms(file)?;
    }
    ctx.show(|| report.as_json(), || report.as_table())?;
    match report.nothing_was_answered() {
        true => Err(CliError::Unavailable("no call was answered".to_owned())),
        false => Ok(()),
    }
}
