//! An upgrade under load: an older version beside today's, a node at a time, there and back; then the cluster's format is
//! raised, and the older version is out.
//!
//! The older version is built from the last commit of the format before; or it is the program at `CHARTHOLD_OLD_PROGRAM`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use charthold_client::Error;
use charthold_replica::format;
use charthold_tests::harness::{Cluster, Options, Writers, program, until};

use super::build::{again, cargo, root};

/// The last one that knew no newer format than the one before today's newest.
const OLD_COMMIT: &str = "9c8a949656d8";
const WRITERS: usize = 8;
/// So long an older version is watched that must not be let in.
const KEPT_OUT: Duration = Duration::from_secs(10);

pub async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let old = match std::env::var_os("CHARTHOLD_OLD_PROGRAM") {
        Some(program) => program.into(),
        None => build(folder.path()),
    };
    let mut cluster = Cluster::prepare(Options::default());
    (0..cluster.size()).for_each(|node| cluster.set_program(node, Some(&old)));
    cluster.restart_all();
    cluster.initialize().await;
    let before = cluster.operator().admin().status().await.unwrap().format;
    let writers = Writers::start(&cluster, WRITERS);

    for node in 0..cluster.size() {
        change(&mut cluster, &writers, node, None).await;
    }
    let used = cluster.operator().admin().status().await.unwrap().format;
    println!("formats: {before} as the older version says it, {used} used, {} known", format::NEWEST);
    assert!(used < format::NEWEST, "the older version is as new as this one");
    let refused = cluster.operator().admin().plan_shards(3, &[]).await;
    assert!(matches!(refused, Err(Error::CannotChange { .. })), "{refused:?}");
    // There and back.
    let last = cluster.size() - 1;
    change(&mut cluster, &writers, last, Some(&old)).await;
    let refused = cluster.operator_cli(&["cluster", "raise-format"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("no newer one: c1"), "{}", refused.stderr);
    change(&mut cluster, &writers, last, None).await;
    assert_eq!(cluster.operator().admin().raise_format().await.unwrap(), format::NEWEST);
    let checked = cluster.operator_cli(&["shard", "check", "--rows"]).await;
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    print!("{}", String::from_utf8_lossy(&checked.stdout));
    is_kept_out(&mut cluster, &writers, &old).await;

    let logs = writers.stop().await;
    for log in &logs {
        log.check(&cluster.client()).await;
    }
    let commits = logs.iter().map(|log| log.acknowledged()).sum::<u64>();
    println!("{commits} commits of {WRITERS} writers, none failed, none lost");
}

/// Restarts a node with another program, and waits until all are well and writes go on.
async fn change(cluster: &mut Cluster, writers: &Writers, node: usize, program: Option<&Path>) {
    assert!(cluster.stop(node).success());
    cluster.set_program(node, program);
    cluster.restart(node);
    cluster.wait_ready().await;
    let acknowledged = writers.acknowledged();
    until("writes go on", || async {
        if writers.acknowledged() > acknowledged + 100 { Ok(()) } else { Err("few".to_owned()) }
    })
    .await;
}

async fn is_kept_out(cluster: &mut Cluster, writers: &Writers, old: &Path) {
    let acknowledged = writers.acknowledged();
    let node = cluster.size() - 1;
    assert!(cluster.stop(node).success());
    cluster.set_program(node, Some(old));
    cluster.restart(node);
    let begun = Instant::now();
    while begun.elapsed() < KEPT_OUT {
        let ready = cluster.ops(node, "/readyz").is_some_and(|page| page.status == 200);
        assert!(!ready, "an older version was let in");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(writers.acknowledged() > acknowledged, "the others go on");
    // It says so itself if its own directory knows, else the others do.
    let mut said = [node, 0].into_iter().map(|of| std::fs::read_to_string(cluster.log(of)).unwrap());
    assert!(said.any(|said| said.contains("the cluster uses")), "nobody said why node {node} is kept out");
    if cluster.is_running(node) {
        cluster.stop(node);
    } else {
        cluster.forget(node);
    }
    cluster.set_program(node, None);
    cluster.restart(node);
    cluster.wait_ready().await;
}

/// Builds the older version where this one was built, and then this one again: what they need of others is there.
fn build(folder: &Path) -> PathBuf {
    let sources = folder.join("older");
    let git = |arguments: &[&str]| {
        let done = Command::new("git").arg("-C").arg(root()).args(arguments).status().unwrap();
        assert!(done.success(), "git {arguments:?}");
    };
    git(&["worktree", "add", "--detach", sources.to_str().unwrap(), OLD_COMMIT]);
    let target = program().ancestors().nth(2).unwrap().to_owned();
    let older = ["build", "--locked", "--package", "charthold", "--target-dir", target.to_str().unwrap()];
    let built = cargo(&sources, &older).status().unwrap().success();
    let copy = folder.join("charthold");
    std::fs::copy(program(), &copy).unwrap();
    git(&["worktree", "remove", "--force", sources.to_str().unwrap()]);
    again();
    assert!(built, "building {OLD_COMMIT}");
    copy
}
