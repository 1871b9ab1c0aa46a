//! `charthold shard apply`: has shards be where they would best be, or one where somebody wants it, and waits until they are.

use std::time::Duration;

use charthold_client::{Client, PlannedShard};

use super::super::Ctx;
use super::super::cluster::report::Report;
use super::super::node::wait;
use super::{CliError, plan};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    wish: plan::Wish,
    /// Place this one only, as you say
    #[arg(long, value_name = "SHARD", requires = "nodes", conflicts_with = "leave")]
    shard: Option<u32>,
    /// The names of the nodes that are to have it
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "shard")]
    nodes: Vec<String>,
    /// Give up waiting after this; the shards go on moving
    #[arg(long, value_name = "N", default_value_t = 600)]
    wait_seconds: u64,
}

pub async fn run(client: &Client, args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let report = Report::new(client.admin().status_of_all().await?);
    let asked = args.wish.replicas.unwrap_or(report.status.replicas);
    let (planned, replicas) = match args.shard {
        None => (plan::best(client, &report, asked, &args.wish.leave, ctx).await?, asked),
        // Without that it would have none when a node goes.
        Some(shard) => {
            let by_hand = by_hand(&report, shard, &args.nodes)?;
            (vec![by_hand], if asked == 0 { args.nodes.len() as u32 } else { asked })
        }
    };
    plan::show(&report, &planned, ctx)?;
    let on = |planned: &PlannedShard| if replicas == 0 { Vec::new() } else { planned.then_node_ids.clone() };
    let placements = planned.iter().map(|planned| (planned.shard, on(planned))).collect::<Vec<_>>();
    client.admin().place_shards(&placements, replicas).await?;
    let done = |report: &Report| how_far(report, &planned);
    wait(client, ctx, Duration::from_secs(args.wait_seconds), done).await.map_err(|error| match error {
        CliError::Failed(what) => CliError::Failed(format!("{what}; it goes on: charthold shard list shows it")),
        other => other,
    })
}

fn by_hand(report: &Report, shard: u32, names: &[String]) -> Result<PlannedShard, CliError> {
    let id = |name: &String| {
        let node = report.nodes().iter().find(|node| node.name == *name);
        node.map(|node| node.id.clone()).ok_or_else(|| CliError::NotFound(format!("there is no node {name}")))
    };
    let mut names = names.to_vec();
    names.sort();
    let mut now = report.nodes().iter().filter(|node| report.is_placed(shard, &node.id)).collect::<Vec<_>>();
    now.sort_by_key(|node| &node.name);
    let now_node_ids = now.into_iter().map(|node| node.id.clone()).collect();
    Ok(PlannedShard { shard, now_node_ids, then_node_ids: names.iter().map(id).collect::<Result<_, _>>()? })
}

fn how_far(report: &Report, planned: &[PlannedShard]) -> (bool, String) {
    let left = planned.iter().filter_map(|planned| what_is_left(report, planned)).collect::<Vec<_>>();
    match left.first() {
        None => (true, "all are where they are to be".to_owned()),
        Some(first) => (false, format!("{} of {} shards are on their way: {first}", left.len(), planned.len())),
    }
}

/// What keeps a shard from being where it is to be.
fn what_is_left(report: &Report, PlannedShard { shard, then_node_ids: then, .. }: &PlannedShard) -> Option<String> {
    let names = |ids: &[&str]| {
        let mut names = ids.iter().map(|id| report.name(id)).collect::<Vec<_>>();
        names.sort_unstable();
        names.join(" ")
    };
    let Some((_, view)) = report.leader(*shard) else { return Some(format!("shard {shard} has no leader")) };
    let (voters, learners) = (refs(&view.voter_node_ids), refs(&view.learner_node_ids));
    if !learners.is_empty() {
        return Some(format!("{} catches up with shard {shard}", names(&learners)));
    }
    if voters.len() != then.len() || !then.iter().all(|id| voters.contains(&id.as_str())) {
        return Some(format!("shard {shard} is on {}", names(&voters)));
    }
    let replicas = report.replicas(*shard).into_iter().map(|(id, _)| id);
    let left = replicas.filter(|id| !voters.contains(id)).collect::<Vec<_>>();
    (!left.is_empty()).then(|| format!("shard {shard} still has rows on {}", names(&left)))
}

fn refs(ids: &[String]) -> Vec<&str> {
    ids.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::cluster::report::tests::well;
    use super::*;

    #[test]
    fn a_shard_is_there_once_nothing_is_left_elsewhere() {
        let mut report = well();
        let then = ["01", "02"].map(str::to_owned).to_vec();
        let planned = [PlannedShard { shard: 1, now_node_ids: Vec::new(), then_node_ids: then }];
        let mut check = |change: &dyn Fn(&mut Report), expected: Option<&str>| {
            change(&mut report);
            assert_eq!(what_is_left(&report, &planned[0]).as_deref(), expected);
            assert_eq!(how_far(&report, &planned).0, expected.is_none());
        };
        fn led(report: &mut Report) -> &mut charthold_client::ShardStatus {
            &mut report.status.node_status[1].shards[0]
        }
        check(&|_| {}, Some("shard 1 is on a1 b1 c1"));
        check(&|report| led(report).voter_node_ids.truncate(1), Some("shard 1 is on a1"));
        check(&|report| led(report).learner_node_ids = vec!["02".to_owned()], Some("b1 catches up with shard 1"));
        check(
            &|report| {
                led(report).learner_node_ids.clear();
                led(report).voter_node_ids = vec!["01".to_owned(), "02".to_owned()];
            },
            Some("shard 1 still has rows on c1"),
        );
        check(&|report| report.status.node_status[2].shards[0].vacant = true, None);
        check(&|report| led(report).leader_node_id = None, Some("shard 1 is on a1 b1 c1"));
    }

    #[test]
    fn nodes_are_named() {
        let mut report = well();
        report.status.placements = vec![(1, vec!["02".to_owned()])];
        let planned = by_hand(&report, 1, &["c1".to_owned(), "a1".to_owned()]).unwrap();
        assert_eq!(
            (planned.now_node_ids, planned.then_node_ids),
            (vec!["02".to_owned()], vec!["01".into(), "03".into()])
        );
        assert!(by_hand(&report, 1, &["d1".to_owned()]).is_err());
    }
}
