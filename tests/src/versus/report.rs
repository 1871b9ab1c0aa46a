//! What is printed: medians of all pairs, and their ratios.

use serde::Serialize;

use super::load::Figures;

/// One figure of one case against one peer.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Row {
    pub peer: String,
    pub case: String,
    pub ours: f64,
    pub theirs: f64,
    pub ratio: f64,
    /// What the ratio should be at least, or at most.
    pub target: f64,
    pub better: &'static str,
}

/// What is aimed at: commits and gets a second, and processor time for a commit, against the peer's.
pub struct Target {
    pub per_s: f64,
    pub cpu: Option<f64>,
}

/// The rows of a case: throughput, 99th percentile, processor time.
pub fn rows(peer: &str, case: &str, target: &Target, ours: &[Figures], theirs: &[Figures]) -> Vec<Row> {
    let row = |what: &str, of: fn(&Figures) -> f64, target: f64, better: &'static str| {
        let (ours, theirs) = (median(ours, of), median(theirs, of));
        let case = format!("{case} {what}");
        Row { peer: peer.to_owned(), case, ours, theirs, ratio: ours / theirs, target, better }
    };
    let mut rows = vec![row("per_s", |it| it.per_s, target.per_s, "higher")];
    rows.push(row("p99_ms", |it| it.p99_ms, 1.0, "lower"));
    rows.extend(target.cpu.map(|target| row("cpu_us", |it| it.cpu_us, target, "lower")));
    rows
}

fn median(figures: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    let mut values = figures.iter().map(of).collect::<Vec<_>>();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// For people.
pub fn table(rows: &[Row]) -> String {
    let mut lines =
        vec![format!("{:<12} {:<24} {:>10} {:>10} {:>7} {:>9}", "PEER", "CASE", "OURS", "THEIRS", "RATIO", "TARGET")];
    for row in rows {
        let target = format!("{} {}", if row.better == "higher" { ">=" } else { "<=" }, row.target);
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
        Figures { per_s, p99_ms: 4.0, cpu_us: 100.0 }
    }

    #[test]
    fn ratios_are_of_medians() {
        let target = Target { per_s: 3.0, cpu: None };
        let rows = rows("etcd", "put 64", &target, &[1.0, 9.0, 4.0].map(figures), &[2.0, 2.0, 8.0].map(figures));
        assert_eq!((rows[0].ours, rows[0].theirs, rows[0].ratio, rows[0].better), (4.0, 2.0, 2.0, "higher"));
        assert_eq!((rows.len(), rows[1].ratio), (2, 1.0));
        assert_eq!(table(&rows).lines().count(), 3);
    }
}
