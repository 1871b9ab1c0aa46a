//! `charthold shard check --rows`: every replica reads all its rows, as of one place of its shard's log, and what they come
//! to is compared. Finds what roots do not: a row that was changed or lost after it was recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use charthold_client::{Client, Node, RowsCheck};
use serde_json::{Value, json};

use super::super::cluster::report::Report;
use super::super::{Ctx, output};
use super::CliError;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Questions in a row that nobody answers, on the way.
const UNANSWERED_MAX: u32 = 10;

/// `limit`: none, until all is read.
pub async fn check(client: &Client, limit: Option<Duration>, ctx: &Ctx) -> Result<(), CliError> {
    let (check_id, shards) = client.admin().check_rows().await?;
    let (begun, mut unanswered) = (Instant::now(), 0);
    loop {
        let report = match client.admin().status_of_all().await {
            Ok(status) => Report::new(status),
            Err(_) if unanswered < UNANSWERED_MAX => {
                unanswered += 1;
                tokio::time::sleep(LOOK_INTERVAL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        unanswered = 0;
        let replicas = shards.iter().flat_map(|shard| replicas(&report, *shard, &check_id)).collect::<Vec<_>>();
        let reading = replicas.iter().any(|replica| matches!(replica.state, State::Reading(_)));
        if reading && limit.is_none_or(|limit| begun.elapsed() < limit) {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        ctx.show(|| replicas.iter().map(Replica::json).collect(), || table(&replicas))?;
        return verdict(&replicas);
    }
}

struct Replica<'a> {
    shard: u32,
    node: &'a str,
    state: State<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State<'a> {
    /// Or it has yet to begin: then without figures.
    Reading(Option<&'a RowsCheck>),
    Read(&'a RowsCheck, &'a [u8]),
    /// Why there is no result.
    None(&'a str),
}

/// All replicas of a shard.
fn replicas<'a>(report: &'a Report, shard: u32, check_id: &str) -> Vec<Replica<'a>> {
    let of = |id: &str| {
        let view = report.node(id)?.shards.iter().find(|view| view.shard == shard);
        view.ok_or("it has no replica of the shard")
    };
    // Whoever is beyond the place where another one began, and has not begun, will not.
    let found = report.nodes().iter().filter_map(|node| of(&node.id).ok()?.rows_check.as_ref());
    let place = found.filter(|check| check.check_id == check_id).map(|check| check.log_index).min();
    let state = |id: &str| {
        let view = match of(id) {
            Ok(view) => view,
            Err(why) => return State::None(why),
        };
        match &view.rows_check {
            Some(check) if check.check_id == check_id => state(check),
            // Ids are in order of time.
            Some(check) if check.check_id.as_str() > check_id => State::None("another check took its place"),
            _ if view.stopped.is_some() => State::None("the replica has stopped"),
            _ if place.is_some_and(|place| view.applied_index >= place) => {
                State::None("it was restarted, or came past it by a snapshot: check again")
            }
            _ => State::Reading(None),
        }
    };
    let replica = |node: &'a Node| Replica { shard, node: &node.name, state: state(&node.id) };
    report.nodes().iter().map(replica).collect()
}

fn state(check: &RowsCheck) -> State<'_> {
    match &check.sha256 {
        None => State::Reading(Some(check)),
        Some(Ok(sha256)) => State::Read(check, sha256),
        Some(Err(why)) => State::None(why),
    }
}

impl Replica<'_> {
    fn json(&self) -> Value {
        let (check, sha256, error) = match self.state {
            State::Reading(check) => (check, None, None),
            State::Read(check, sha256) => (Some(check), Some(hex::encode(sha256)), None),
            State::None(why) => (None, None, Some(why)),
        };
        json!({
            "shard": self.shard,
            "node": self.node,
            "log_index": check.map(|check| check.log_index),
            "seq": check.map(|check| check.seq),
            "rows": check.map(|check| check.rows),
            "bytes": check.map(|check| check.bytes),
            "sha256": sha256,
            "error": error,
        })
    }

    fn row(&self) -> Vec<String> {
        let label = if self.shard == 0 { "directory".to_owned() } else { self.shard.to_string() };
        let mut row = vec![label, self.node.to_owned()];
        let figures = |check: &RowsCheck| [check.seq, check.rows, check.bytes].map(|figure| figure.to_string());
        match self.state {
            State::Reading(Some(check)) | State::Read(check, _) => row.extend(figures(check)),
            State::Reading(None) | State::None(_) => row.extend(["-", "-", "-"].map(str::to_owned)),
        }
        row.push(match self.state {
            State::Reading(_) => "is being read".to_owned(),
            State::Read(_, sha256) => hex::encode(sha256.get(..8).unwrap_or(sha256)),
            State::None(why) => why.to_owned(),
        });
        row
    }
}

fn table(replicas: &[Replica]) -> String {
    output::table(&["SHARD", "NODE", "SEQ", "ROWS", "BYTES", "SHA-256"], &[2, 3, 4], replicas.iter().map(Replica::row))
}

/// All replicas of each shard were read, and have the same rows.
fn verdict(replicas: &[Replica]) -> Result<(), CliError> {
    let mut shards = BTreeMap::<u32, Vec<&Replica>>::new();
    for replica in replicas {
        shards.entry(replica.shard).or_default().push(replica);
    }
    let wrong = shards.into_iter().filter_map(|(shard, replicas)| Some((shard, what_is_wrong(&replicas)?)));
    let lines = wrong.map(|(shard, what)| match shard {
        0 => format!("the directory: {what}"),
        shard => format!("shard {shard}: {what}"),
    });
    match lines.collect::<Vec<_>>().as_slice() {
        [] => Ok(()),
        lines => Err(CliError::Failed(lines.join("; "))),
    }
}

fn what_is_wrong(replicas: &[&Replica]) -> Option<String> {
    let mut nodes = BTreeMap::<(u64, &[u8]), Vec<&str>>::new();
    for replica in replicas {
        if let State::Read(check, sha256) = replica.state {
            nodes.entry((check.log_index, sha256)).or_default().push(replica.node);
        }
    }
    if nodes.len() > 1 {
        let places = nodes.keys().map(|(place, _)| place).collect::<BTreeSet<_>>();
        if places.len() > 1 {
            return Some("replicas were read as of different places of the log: check again".to_owned());
        }
        let most = nodes.values().find(|nodes| nodes.len() * 2 > replicas.len());
        return Some(match most {
            Some(most) => {
                let others = nodes.values().flatten().copied().filter(|node| !most.contains(node)).collect::<Vec<_>>();
                format!("node {} has other rows than most: replace it by a new one", others.join(", "))
            }
            None => "replicas have different rows, and no majority has the same: keep every node's data".to_owned(),
        });
    }
    let unread = replicas.iter().filter(|replica| !matches!(replica.state, State::Read(..)));
    let unread = unread.map(|replica| replica.node).collect::<Vec<_>>();
    (!unread.is_empty()).then(|| format!("the rows of node {} were not compared", unread.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(hashes: [Option<&'static [u8]>; 3]) -> Option<String> {
        let check = RowsCheck { check_id: String::new(), log_index: 7, seq: 9, rows: 5, bytes: 50, sha256: None };
        let replicas = hashes.iter().zip(["a1", "b1", "c1"]).map(|(hash, node)| Replica {
            shard: 1,
            node,
            state: hash.map_or(State::None("it is not connected"), |hash| State::Read(&check, hash)),
        });
        let replicas = replicas.collect::<Vec<_>>();
        assert_eq!(table(&replicas).lines().count(), 4);
        what_is_wrong(&replicas.iter().collect::<Vec<_>>())
    }

    #[test]
    fn who_differs_from_most_is_named() {
        assert_eq!(wrong([Some(b"x"), Some(b"x"), Some(b"x")]), None);
        let differs = "node b1 has other rows than most: replace it by a new one";
        assert_eq!(wrong([Some(b"x"), Some(b"y"), Some(b"x")]).as_deref(), Some(differs));
        let no_most = "replicas have different rows, and no majority has the same: keep every node's data";
        assert_eq!(wrong([Some(b"x"), Some(b"y"), None]).as_deref(), Some(no_most));
        assert_eq!(wrong([Some(b"x"), None, Some(b"x")]).as_deref(), Some("the rows of node b1 were not compared"));
    }
}
