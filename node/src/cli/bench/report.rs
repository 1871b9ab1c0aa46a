//! What a run measured: a table for people, JSON for programs, percentiles for plots.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::figures::{Figures, NOT_SENT};
use super::load::{Loop, Measured};
use crate::cli::exit::CliError;
use crate::cli::output;

const QUANTILES: [(&str, f64); 4] = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p999_ms", 0.999)];
/// Of a histogram file: points for each halving of what is left to 100%.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

pub(super) struct Report {
    pub(super) the_loop: Loop,
    pub(super) sizes_bytes: Vec<u32>,
    pub(super) measured: Measured,
}

impl Report {
    /// The kinds of calls that were asked for.
    fn kinds(&self) -> Vec<(&'static str, &Figures)> {
        let figures = &self.measured.figures;
        let reads = match self.the_loop {
            Loop::Closed { readers, .. } => readers > 0,
            Loop::Open { reads_percent, .. } => reads_percent > 0,
        };
        let mut kinds = vec![("write", &figures.writes)];
        if reads {
            kinds.push(("read", &figures.reads));
        }
        kinds
    }

    pub(super) fn nothing_was_answered(&self) -> bool {
        self.kinds().iter().all(|(_, figures)| figures.latency_micros.is_empty())
    }

    /// What somebody who only looks at the figures would miss.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.measured.cut {
            remarks.push(format!("cut off after {:.1} s of measuring", self.measured.time.as_secs_f64()));
        }
        let not_sent: u64 = self.kinds().iter().filter_map(|(_, figures)| figures.errors.get(NOT_SENT)).sum();
        if not_sent > 0 {
            remarks.push(format!(
                "the cluster did not keep up: {not_sent} calls were due and never sent, and have no latency"
            ));
        }
        remarks
    }

    fn per_second(&self, figures: &Figures) -> f64 {
        figures.in_time as f64 / self.measured.time.as_secs_f64().max(f64::EPSILON)
    }

    pub(super) fn as_json(&self) -> Value {
        let asked = match self.the_loop {
            Loop::Closed { writers, readers } => json!({ "kind": "closed", "writers": writers, "readers": readers }),
            Loop::Open { rate, reads_percent, in_flight } => json!({
                "kind": "open", "rate_per_second": rate, "reads_percent": reads_percent, "in_flight_max": in_flight,
            }),
        };
        let mut value = json!({
            "loop": asked,
            "seconds": self.measured.time.as_secs_f64(),
            "cut_off": self.measured.cut,
            "sizes_bytes": self.sizes_bytes,
        });
        for (name, figures) in self.kinds() {
            let latency = &figures.latency_micros;
            let mut one = json!({
                "count": latency.len(), "per_second": self.per_second(figures), "errors": figures.errors,
            });
            for (quantile, at) in QUANTILES {
                one[quantile] = milliseconds(latency.value_at_quantile(at)).into();
            }
            one["max_ms"] = milliseconds(latency.max()).into();
            value[name] = one;
        }
        value
    }

    pub(super) fn as_table(&self) -> String {
        let row = |(name, figures): (&'static str, &Figures)| {
            let latency = &figures.latency_micros;
            let at = |quantile: f64| format!("{:.2}", milliseconds(latency.value_at_quantile(quantile)));
            let errors: Vec<String> =
                figures.errors.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let mut row = vec![name.to_owned(), latency.len().to_string()];
            row.push(format!("{:.0}", self.per_second(figures)));
            row.extend(QUANTILES.map(|(_, quantile)| at(quantile)));
            row.push(format!("{:.2}", milliseconds(latency.max())));
            row.push(if errors.is_empty() { "0".to_owned() } else { errors.join(", ") });
            row
        };
        let names = ["CALL", "COUNT", "PER SECOND", "P50 ms", "P90 ms", "P99 ms", "P99.9 ms", "MAX ms", "ERRORS"];
        output::table(&names, &[1, 2, 3, 4, 5, 6, 7], self.kinds().into_iter().map(row))
    }

    pub(super) fn write_histograms(&self, file: &Path) -> Result<(), CliError> {
        for (name, figures) in self.kinds() {
            let path = histogram_path(file, name);
            std::fs::write(&path, percentiles(&figures.latency_micros))
                .map_err(|error| CliError::file(&path, &error))?;
            output::note(&format!("latencies of {name}s in {}", path.display()));
        }
        Ok(())
    }
}

/// Before a long run, not after it.
pub(super) fn check_writable(file: &Path) -> Result<(), CliError> {
    let path = histogram_path(file, "write");
    std::fs::write(&path, "").map_err(|error| CliError::file(&path, &error))
}

/// `out.hgrm` and `write` → `out.write.hgrm`.
fn histogram_path(file: &Path, kind: &str) -> PathBuf {
    match file.extension() {
        Some(extension) => file.with_extension(format!("{kind}.{}", extension.to_string_lossy())),
        None => file.with_extension(kind),
    }
}

/// HdrHistogram's percentile text, in milliseconds: what its plotters read.
fn percentiles(latency_micros: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut count = 0;
    for point in latency_micros.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += point.count_since_last_iteration();
        let (value, quantile) = (milliseconds(point.value_iterated_to()), point.quantile_iterated_to());
        let line = match quantile < 1.0 {
            true => format!("{value:>12.3} {quantile:>14.12} {count:>10} {:>14.2}\n", 1.0 / (1.0 - quantile)),
            false => format!("{value:>12.3} {quantile:>14.12} {count:>10}\n"),
        };
        text.push_str(&line);
    }
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n#[Max     = {:>12.3}, Total count    = {:>12}]\n\
         #[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        latency_micros.mean() / 1_000.0,
        latency_micros.stdev() / 1_000.0,
        milliseconds(latency_micros.max()),
        latency_micros.len(),
        latency_micros.buckets(),
        latency_micros.distinct_values() / (usize::from(latency_micros.buckets()) + 1) * 2,
    );
    text
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use charthold_client::Error;

    use super::super::figures::Both;
    use super::*;

    fn report() -> Report {
        let mut figures = Both::new().unwrap();
        for micros in 1..=1000 {
            figures.writes.answered(Duration::from_micros(micros * 10), micros <= 900);
        }
        figures.writes.failed(&Error::Denied);
        figures.writes.failed(&Error::Unavailable { why: "NO_QUORUM: none".to_owned() });
        figures.writes.failed(&Error::Unavailable { why: String::new() });
        figures.writes.missed(NOT_SENT);
        let the_loop = Loop::Open { rate: 500, reads_percent: 0, in_flight: 4 };
        let measured = Measured { figures, time: Duration::from_secs(2), cut: true };
        Report { the_loop, sizes_bytes: vec![100], measured }
    }

    #[test]
    fn figures_as_json() {
        let value = report().as_json();
        assert_eq!((&value["write"]["count"], &value["write"]["per_second"]), (&1000.into(), &450.0.into()));
        let errors = json!({ "NO_GRANT": 1, "NO_QUORUM": 1, "UNAVAILABLE": 1, "NOT_SENT": 1 });
        assert_eq!(value["write"]["errors"], errors);
        let p50 = value["write"]["p50_ms"].as_f64().unwrap();
        assert!((4.99..5.02).contains(&p50), "{p50}");
        assert_eq!((&value["loop"]["rate_per_second"], &value["cut_off"]), (&500.into(), &true.into()));
        assert!(value.get("read").is_none(), "none were asked for");
    }

    #[test]
    fn figures_as_a_table() {
        let text = report().as_table();
        assert!(text.lines().nth(1).unwrap().starts_with("write   1000         450"), "{text}");
        assert!(text.ends_with("NOT_SENT 1, NO_GRANT 1, NO_QUORUM 1, UNAVAILABLE 1"), "{text}");
    }

    #[test]
    fn what_figures_do_not_show_is_said() {
        let remarks = report().remarks();
        assert!(remarks[0].contains("cut off") && remarks[1].contains("1 calls were due"), "{remarks:?}");
    }

    #[test]
    fn percentiles_are_what_plotters_read() {
        let text = percentiles(&report().measured.figures.writes.latency_micros);
        let points: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|number| number.parse().unwrap()).collect())
            .collect();
        assert!(points.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]), "{text}");
        let last = points.last().unwrap();
        assert_eq!((last[1], last[2], last.len()), (1.0, 1000.0, 3));
        assert!(text.contains("#[Max     =       10.0") && text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn histogram_files_are_named_by_kind() {
        assert_eq!(histogram_path(Path::new("a/out.hgrm"), "read"), Path::new("a/out.read.hgrm"));
        assert_eq!(histogram_path(Path::new("out"), "write"), Path::new("out.write"));
    }
}
