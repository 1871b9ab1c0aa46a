//! `charthold shard plan`: where shards would best be, beside where they are. Changes nothing.

use charthold_client::{Client, PlannedShard};
use serde_json::{Value, json};

use super::super::cluster::report::Report;
use super::super::{Ctx, output};
use super::CliError;

/// What is planned for.
#[derive(clap::Args)]
pub struct Wish {
    /// How many replicas each shard is to have from now on, an odd number from 3 on; 0: one on every node. As the cluster has
    /// it if you say nothing
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// The names of nodes that are to have none: before they are removed
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub leave: Vec<String>,
}

pub async fn run(client: &Client, wish: &Wish, ctx: &Ctx) -> Result<(), CliError> {
    let report = Report::new(client.admin().status_of_all().await?);
    let planned = best(client, &report, wish.replicas.unwrap_or(report.status.replicas), &wish.leave, ctx).await?;
    show(&report, &planned, ctx)
}

/// Where all shards would best be, with so many replicas, and none on the nodes that are to be left.
pub async fn best(
    client: &Client,
    report: &Report,
    replicas: u32,
    leave: &[String],
    ctx: &Ctx,
) -> Result<Vec<PlannedShard>, CliError> {
    let planned = client.admin().plan_shards(replicas, leave).await?;
    let silent = report.nodes().iter().filter(|node| replicas > 0 && report.node(&node.id).is_err());
    silent.for_each(|node| ctx.note(&format!("node {} does not answer: the plan has nothing for it", node.name)));
    Ok(planned)
}

pub fn show(report: &Report, planned: &[PlannedShard], ctx: &Ctx) -> Result<(), CliError> {
    ctx.show(|| planned.iter().map(|planned| as_json(report, planned)).collect(), || table(report, planned))?;
    if planned.iter().all(|planned| planned.now_node_ids == planned.then_node_ids) {
        ctx.note("nothing moves");
    }
    Ok(())
}

fn as_json(report: &Report, planned: &PlannedShard) -> Value {
    let names = |ids: &[String]| ids.iter().map(|id| report.name(id).to_owned()).collect::<Vec<String>>();
    json!({ "shard": planned.shard, "now": names(&planned.now_node_ids), "then": names(&planned.then_node_ids) })
}

/// `-` goes, `+` comes.
fn table(report: &Report, planned: &[PlannedShard]) -> String {
    let names = |ids: &[String], others: &[String], mark: &str| {
        let name = |id: &String| format!("{}{}", if others.contains(id) { "" } else { mark }, report.name(id));
        ids.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    let row = |PlannedShard { shard, now_node_ids: now, then_node_ids: then }: &PlannedShard| {
        vec![shard.to_string(), names(now, then, "-"), names(then, now, "+")]
    };
    output::table(&["SHARD", "NOW", "THEN"], &[], planned.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::super::super::cluster::report::tests::well;
    use super::*;

    #[test]
    fn what_moves_is_marked() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let planned = |shard: u32, now: &[&str], then: &[&str]| PlannedShard {
            shard,
            now_node_ids: ids(now),
            then_node_ids: ids(then),
        };
        let planned = [planned(1, &["01", "02"], &["01", "03"]), planned(2, &["02", "09"], &["02"])];
        let text = table(&well(), &planned);
        assert_eq!(text, "SHARD  NOW     THEN\n1      a1 -b1  a1 +c1\n2      b1 -09  b1");
        assert_eq!(as_json(&well(), &planned[0]), json!({ "shard": 1, "now": ["a1", "b1"], "then": ["a1", "c1"] }));
    }
}
