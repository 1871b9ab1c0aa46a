//! `charthold import`: FHIR bundles into a running cluster.
//!
//! Owns: the workers, each with one bundle at a time, and how an import ends. A bundle that is damaged, cut or no
//! patient's is named on stderr and left out as a whole; the others go on, and the exit code is 1. An import stops
//! early only when nothing more can succeed: no grant, no cluster within two minutes. Run again, it goes on where it
//! was.
//!
//! ```text
//! source.rs  files → texts      load.rs   a bundle's records into their charts
//! tally.rs   counts, summary    charts.rs the cluster as `load` sees it
//! ```

mod charts;
mod load;
mod source;
mod tally;

use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::task::{JoinSet, spawn_blocking};

use self::charts::Charts;
use self::load::Loader;
use self::source::{Origin, Source, Unreadable};
use self::tally::Progress;
pub(crate) use self::tally::grouped;
use super::Ctx;
use super::exit::CliError;
use crate::fhir::{self, Bundle};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files or folders: .json (one bundle) or .ndjson (one a line), also compressed with .zst
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// How many bundles are read and stored at once
    #[arg(long, default_value_t = JOBS_DEFAULT, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub jobs: u8,
}

pub const JOBS_DEFAULT: u8 = 4;

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let bar = progress_bar(ctx.progress);
    let source = Source::find(&args.paths, bar.clone())?;
    let client = ctx.client()?.with_deadline(charts::DEADLINE);
    let progress = Arc::new(Progress::new(bar));
    let done = import(client, source, args.jobs, progress.clone()).await;
    progress.finish();
    let tally = progress.tally();
    ctx.show(|| tally.json(), || tally.text())?;
    if done.is_err() {
        ctx.note("the import stopped early: run it again, and it goes on where it was");
    }
    done?;
    if tally.complete() { Ok(()) } else { Err(CliError::Failed("not everything could be imported, see above".into())) }
}

fn progress_bar(wanted: bool) -> ProgressBar {
    if !wanted {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {elapsed} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn import<C: Charts>(charts: C, source: Source, jobs: u8, progress: Arc<Progress>) -> Result<(), CliError> {
    let source = Arc::new(Mutex::new(source));
    let loader = Arc::new(Loader::new(charts, progress.clone()));
    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        workers.spawn(work(source.clone(), loader.clone(), progress.clone()));
    }
    // The first error ends all: dropping the set stops the others.
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|_| CliError::Failed("a worker ended unexpectedly".into()))??;
    }
    Ok(())
}

async fn work<C: Charts>(
    source: Arc<Mutex<Source>>,
    loader: Arc<Loader<C>>,
    progress: Arc<Progress>,
) -> Result<(), CliError> {
    loop {
        let source = source.clone();
        let next = spawn_blocking(move || next_bundle(&source)).await;
        match next.map_err(|_| CliError::Failed("a reader ended unexpectedly".into()))? {
            Some(Ok((origin, bundle))) => loader.load(&origin, bundle).await?,
            Some(Err(Unreadable { origin, reason })) => {
                progress.complain(&format!("{origin}: {reason}"));
                progress.add(|tally| tally.bundles_refused += 1);
            }
            None => return Ok(()),
        }
    }
}

/// Reads under the lock, parses outside of it.
fn next_bundle(source: &Mutex<Source>) -> Option<Result<(Origin, Bundle), Unreadable>> {
    let text = source.lock().next()?;
    Some(text.and_then(|text| match fhir::read_bundle(&text.bytes) {
        Ok(bundle) => Ok((text.origin, bundle)),
        Err(error) => Err(Unreadable { origin: text.origin, reason: error.to_string() }),
    }))
}

#[cfg(test)]
mod tests;
