//! What is printed: medians of all pairs, means of what is spread over calls, and their ratios.

use serde::Serialize;

use super::load::Figures;

/// One figure of one case against one peer.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Row {
    pub peer: &'static str,
    pub case: String,
    pub ours: f64,
    pub theirs: f64,
    pub ratio: f64,
    /// What the ratio should be at least, or at most, where there is an aim.
    pub target: Option<f64>,
    pub better: &'static str,
}

/// The ratios that are aimed at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Targets {
    pub per_s: Option<f64>,
    pub p99_ms: Option<f64>,
    pub cpu_us: Option<f64>,
}

/// The rows of a case.
pub fn rows(peer: &'static str, case: &str, targets: Targets, ours: &[Figures], theirs: &[Figures]) -> Vec<Row> {
    let row = |what: &str, of: fn(&Figures) -> f64, target: Option<f64>, better: &'static str| {
        compared(peer, format!("{case} {what}"), median(ours, of), median(theirs, of), target, better)
    };
    // What is done later for many calls at once, a flush or a compaction, hits one run and not the next.
    let spread = |what: &str, of: fn(&Figures) -> f64, target: Option<f64>| {
        compared(peer, format!("{case} {what}"), mean(ours, of), mean(theirs, of), target, "lower")
    };
    vec![
        row("per_s", |it| it.per_s, targets.per_s, "higher"),
        row("p50_ms", |it| it.p50_ms, None, "lower"),
        row("p99_ms", |it| it.p99_ms, targets.p99_ms, "lower"),
        row("p999_ms", |it| it.p999_ms, None, "lower"),
        spread("cpu_us", |it| it.cpu_us, targets.cpu_us),
        spread("disk_bytes", |it| it.disk_bytes, None),
    ]
}

pub fn compared(
    peer: &'static str,
    case: String,
    ours: f64,
    theirs: f64,
    target: Option<f64>,
    better: &'static str,
) -> Row {
    Row { peer, case, ours, theirs, ratio: ours / theirs, target, better }
}

pub fn median(figures: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    let mut values = figures.iter().map(of).collect::<Vec<_>>();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mean(figures: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    figures.iter().map(of).sum::<f64>() / figures.len() as f64
}

/// For people.
pub fn table(rows: &[Row]) -> String {
    let mut lines =
        vec![format!("{:<12} {:<24} {:>10} {:>10} {:>7} {:>9}", "PEER", "CASE", "OURS", "THEIRS", "RATIO", "TARGET")];
    for row in rows {
        let bound = if row.better == "higher" { ">=" } else { "<=" };
        let target = row.target.map(|target| format!("{bound} {target:.2}")).unwrap_or_default();
        lines.push(format!(
            "{:<12} {:<24} {:>10.1} {:>10.1} {:>7.2} {:>9}",
            row.peer, row.case, row.ours, row.theirs, row.ratio, target
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(per_s: f64) -> Figures {
        Figures { per_s, p99_ms: 4.0, ..Figures::default() }
    }

    #[test]
    fn ratios_are_of_medians() {
        let targets = Targets { per_s: Some(3.0), ..Targets::default() };
        let rows = rows("etcd", "put 64", targets, &[1.0, 9.0, 4.0].map(figures), &[2.0, 2.0, 8.0].map(figures));
        assert_eq!((rows[0].ours, rows[0].theirs, rows[0].ratio, rows[0].better), (4.0, 2.0, 2.0, "higher"));
        assert_eq!((rows[2].case.as_str(), rows[2].ratio), ("put 64 p99_ms", 1.0));
        let table = table(&rows);
        assert_eq!(table.lines().count(), 1 + rows.len());
        assert!(table.lines().nth(1).is_some_and(|line| line.ends_with(">= 3.00")), "{table}");
    }
}
