//! `charthold shard check --rows`: every replica reads all its rows, as of one place of its shard's log, and what they come
//! to is compared. Finds what roots do not: a row that was changed or lost after it was recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use charthold_client::{Client, Node, RowsCheck};
use serde_json::{Value, json};

use super::super::cluster::report::Report;
use super::super::{Ctx, output};
use super::CliError;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// So long nobody answers, on the way.
const UNANSWERED_MAX: Duration = Duration::from_secs(30);
/// The leader has begun when it answers; others follow it.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);

/// `limit`: none, until all is read.
pub async fn check(client: &Client, limit: Option<Duration>, ctx: &Ctx) -> Result<(), CliError> {
    let report = Report::new(client.admin().status_of_all().await?);
    let holds = |shard: &u32| *shard == 0 || report.replicas(*shard).iter().any(|(_, view)| view.slots.is_some());
    let (begun, mut found) = (Instant::now(), Vec::new());
    for shard in report.shards().into_iter().filter(holds) {
        found.extend(check_one(client, shard, limit.map(|limit| limit.saturating_sub(begun.elapsed()))).await?);
    }
    ctx.show(|| found.iter().map(Replica::json).collect(), || table(&found))?;
    verdict(&found)
}

/// What a shard's replicas came to within the time.
async fn check_one(client: &Client, shard: u32, limit: Option<Duration>) -> Result<Vec<Replica>, CliError> {
    let check_id = client.admin().check_rows(shard).await?;
    let (begun, mut answered, mut place) = (Instant::now(), Instant::now(), None);
    loop {
        let late = limit.is_some_and(|limit| begun.elapsed() >= limit);
        match client.admin().status_of_all().await {
            Ok(status) => {
                let report = Report::new(status);
                place = place.into_iter().chain(place_of(&report, shard, &check_id)).min();
                let looked = Look { report: &report, shard, check_id: &check_id, place, since: begun.elapsed() };
                let replicas = looked.replicas();
                let unanswered = replicas.iter().any(|replica| matches!(replica.state, State::Unanswered(_)));
                if !unanswered {
                    answered = Instant::now();
                }
                let reading = replicas.iter().any(|replica| matches!(replica.state, State::Reading(_)));
                if late || !reading && (!unanswered || answered.elapsed() > UNANSWERED_MAX) {
                    return Ok(replicas);
                }
            }
            Err(error) if late || answered.elapsed() > UNANSWERED_MAX => return Err(error.into()),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Where in the log the check is, as far as somebody tells it.
fn place_of(report: &Report, shard: u32, check_id: &str) -> Option<u64> {
    let found = report.replicas(shard).into_iter().filter_map(|(_, view)| view.rows_check.as_ref());
    found.filter(|check| check.check_id == check_id).map(|check| check.log_index).min()
}

struct Replica {
    shard: u32,
    node: String,
    state: State,
}

enum State {
    /// Or it has yet to begin: then without figures.
    Reading(Option<RowsCheck>),
    Read(RowsCheck, Vec<u8>),
    /// The node does not say.
    Unanswered(String),
    /// Why there will be no result.
    None(String),
}

/// One look at a check.
struct Look<'a> {
    report: &'a Report,
    shard: u32,
    check_id: &'a str,
    /// Of the check in the log, if any look has seen it.
    place: Option<u64>,
    since: Duration,
}

impl Look<'_> {
    fn replicas(&self) -> Vec<Replica> {
        let replica = |node: &Node| Replica { shard: self.shard, node: node.name.clone(), state: self.state(&node.id) };
        self.report.nodes().iter().filter(|node| self.has_replica(&node.id)).map(replica).collect()
    }

    fn has_replica(&self, node: &str) -> bool {
        match self.report.node(node) {
            Ok(status) => !status.shards.iter().any(|view| view.shard == self.shard && view.vacant),
            Err(_) => self.report.is_placed(self.shard, node),
        }
    }

    fn state(&self, node: &str) -> State {
        let none = |why: &str| State::None(why.to_owned());
        let status = match self.report.node(node) {
            Ok(status) => status,
            Err(why) => return State::Unanswered(why.to_owned()),
        };
        let view = status.shards.iter().find(|view| view.shard == self.shard);
        let Some(view) = view else { return none("it has no replica of the shard") };
        match &view.rows_check {
            Some(check) if check.check_id == self.check_id => match &check.sha256 {
                None => State::Reading(Some(check.clone())),
                Some(Ok(sha256)) => State::Read(check.clone(), sha256.clone()),
                Some(Err(why)) => none(why),
            },
            // Ids are in order of time.
            Some(check) if check.check_id.as_str() > self.check_id => none("another check took its place"),
            _ if view.stopped.is_some() => none("the replica has stopped"),
            // Whoever is beyond the place and has not begun will not.
            _ if self.place.is_some_and(|place| view.applied_index >= place) => {
                none("it was restarted, or came past it by a snapshot: check again")
            }
            _ if self.place.is_none() && self.since > BEGUN_WITHIN => none("the check is lost: check again"),
            _ => State::Reading(None),
        }
    }
}

impl Replica {
    fn json(&self) -> Value {
        let (check, sha256, error) = match &self.state {
            State::Reading(check) => (check.as_ref(), None, None),
            State::Read(check, sha256) => (Some(check), Some(hex::encode(sha256)), None),
            State::Unanswered(why) | State::None(why) => (None, None, Some(why)),
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
        let figures = |check: &RowsCheck| [check.seq, check.rows, check.bytes].map(|figure| figure.to_string());
        let none = || ["-", "-", "-"].map(str::to_owned);
        let (figures, last) = match &self.state {
            State::Reading(check) => (check.as_ref().map_or_else(none, figures), "is being read".to_owned()),
            State::Read(check, sha256) => (figures(check), hex::encode(sha256.get(..8).unwrap_or(sha256))),
            State::Unanswered(why) | State::None(why) => (none(), why.clone()),
        };
        [vec![label, self.node.clone()], figures.to_vec(), vec![last]].concat()
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
        if let State::Read(check, sha256) = &replica.state {
            nodes.entry((check.log_index, sha256)).or_default().push(&replica.node);
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
    let unread = unread.map(|replica| replica.node.as_str()).collect::<Vec<_>>();
    (!unread.is_empty()).then(|| format!("the rows of node {} were not compared", unread.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::super::cluster::report::tests::well;
    use super::*;

    const CHECK: &str = "0190-b";

    fn check_of(id: &str, sha256: Option<&[u8]>) -> RowsCheck {
        let sha256 = sha256.map(|sha256| Ok(sha256.to_vec()));
        RowsCheck { check_id: id.to_owned(), log_index: 7, seq: 9, rows: 5, bytes: 50, sha256 }
    }

    fn wrong(hashes: [Option<&[u8]>; 3]) -> Option<String> {
        let state = |hash: &Option<&[u8]>| match hash {
            Some(hash) => State::Read(check_of(CHECK, Some(hash)), hash.to_vec()),
            None => State::None("it has stopped".to_owned()),
        };
        let names = ["a1", "b1", "c1"];
        let replica =
            |(hash, node): (&Option<&[u8]>, &str)| Replica { shard: 1, node: node.to_owned(), state: state(hash) };
        let replicas = hashes.iter().zip(names).map(replica).collect::<Vec<_>>();
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

    /// What is said of b1's replica, which has this check, at a look.
    fn said(check: Option<RowsCheck>, place: Option<u64>, since: u64) -> String {
        let mut report = well();
        let view = &mut report.status.node_status[1].shards[0];
        (view.rows_check, view.applied_index) = (check, 7);
        let look = Look { report: &report, shard: 1, check_id: CHECK, place, since: Duration::from_secs(since) };
        look.replicas()[1].row().pop().unwrap_or_default()
    }

    #[test]
    fn rows_are_expected_where_there_are_some() {
        let expected = |change: &dyn Fn(&mut Report)| {
            let mut report = well();
            report.status.placements = vec![(1, vec!["01".to_owned(), "02".to_owned()])];
            change(&mut report);
            let look = Look { report: &report, shard: 1, check_id: CHECK, place: None, since: Duration::ZERO };
            look.replicas().into_iter().map(|replica| replica.node).collect::<Vec<_>>()
        };
        assert_eq!(expected(&|_| {}), ["a1", "b1", "c1"], "it is not gone yet");
        assert_eq!(expected(&|report| report.status.node_status[2].shards[0].vacant = true), ["a1", "b1"]);
        let silent = |node: usize| {
            move |report: &mut Report| report.status.node_status[node].unreachable = Some("not connected".to_owned())
        };
        assert_eq!(expected(&silent(2)), ["a1", "b1"]);
        assert_eq!(expected(&silent(1)), ["a1", "b1", "c1"]);
    }

    #[test]
    fn nothing_is_waited_for_that_will_not_come() {
        assert_eq!(said(Some(check_of(CHECK, None)), None, 1), "is being read");
        assert_eq!(said(None, None, 1), "is being read");
        assert_eq!(said(Some(check_of("0190-a", Some(b"x"))), Some(8), 99), "is being read");
        assert_eq!(said(None, Some(8), 99), "is being read", "it has not come there yet");
        assert_eq!(said(Some(check_of("0190-c", None)), None, 1), "another check took its place");
        assert!(said(None, Some(7), 1).contains("check again"));
        assert!(said(None, None, 99).contains("lost"));
    }
}
