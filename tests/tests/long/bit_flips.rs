//! One bit on a disk is another one than it was: what is read is right, or refused, and never wrong.
//!
//! Below, each engine alone: files of a closed engine, a bit of one of them flipped, opened, and all rows read. Then
//! nodes of a running cluster: a bit of one node's files, under its feet or while it is down, and all records read
//! through that node and through the others. What nobody notices is counted by the kind of file: bytes that nobody reads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use charthold_replica::store::log::rocks::RocksLog;
use charthold_replica::store::log::{LogEngine as _, LogOp};
use charthold_replica::store::state::rocks::RocksState;
use charthold_replica::store::state::{MemoryLimits, StateEngine as _, StateOp, Table};
use charthold_tests::harness::{Cluster, Options, RAFT};
use charthold_tests::numbered::Numbered;
use charthold_tests::strangers::copy;

const ENGINE_FLIPS: usize = 5_000;
const NODE_FLIPS: usize = 100;
const ROWS: u32 = 2_000;
const APPLIED: &[u8] = b"applied";
/// On both sides of what is kept in files of its own.
const ROW_BYTES: std::ops::Range<usize> = 100..2_000;
/// For a read through a node that may have nothing to say.
const ONE_READ_MAX: Duration = Duration::from_secs(2);
const RECORDS: Numbered = Numbered { records: 400, bytes: 8_000 };
/// Their bytes mean nothing to anybody: room that is kept, RocksDB's own diary, a probe of the disk.
const MEANINGLESS: [&str; 4] = ["BALLAST", "LOG", "LOCK", "PROBE"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It does not open, or the node ends.
    NotOpened,
    /// Opening it takes for ever: RocksDB's reader of log files goes round in circles over some MANIFESTs.
    Hangs,
    /// A read fails, or answers that something is missing which is known to have been there.
    ReadFailed,
    /// All tables are what they were at an earlier flush, the applied row among them: a node goes on from there by its log,
    /// or refuses to start if that is purged (`repair.rs`).
    Older,
    /// All is right.
    Unnoticed,
}

/// By outcome and kind of file.
#[derive(Default)]
struct Tally(BTreeMap<(String, Outcome), usize>);

impl Tally {
    fn add(&mut self, file: &Path, outcome: Outcome) {
        *self.0.entry((kind(file), outcome)).or_default() += 1;
    }

    fn say(&self, what: &str) {
        for ((kind, outcome), count) in &self.0 {
            println!("{what}: {count} flips in {kind}: {outcome:?}");
        }
    }
}

/// `000123.sst` is `sst`, `MANIFEST-000004` is `MANIFEST`.
fn kind(file: &Path) -> String {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    match file.extension() {
        Some(extension) => extension.to_string_lossy().into_owned(),
        None => name.split('-').next().unwrap().to_owned(),
    }
}

fn has_meaning(file: &Path) -> bool {
    // Also `LOG.old.…`.
    let file = file.file_name().unwrap().to_string_lossy();
    !MEANINGLESS.iter().any(|name| file.starts_with(name))
}

fn random() -> fastrand::Rng {
    fastrand::Rng::with_seed(super::seed())
}

// --- Engines.

type Rows = Vec<(Vec<u8>, Bytes)>;

fn row(number: u32) -> (Vec<u8>, Bytes) {
    let mut random = fastrand::Rng::with_seed(u64::from(number));
    let bytes = random.usize(ROW_BYTES);
    let value = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect::<Vec<_>>();
    (number.to_be_bytes().to_vec(), value.into())
}

fn fill_state(folder: &Path) {
    let state = RocksState::open(folder, MemoryLimits::default()).unwrap();
    for part in (0..ROWS).collect::<Vec<_>>().chunks(ROWS as usize / 4) {
        let put = |number: &u32| {
            let (key, value) = row(*number);
            StateOp::Put { table: Table::Version, key, value }
        };
        let count = Bytes::copy_from_slice(&u64::from(part.last().unwrap() + 1).to_be_bytes());
        let applied = StateOp::Put { table: Table::Applied, key: APPLIED.to_vec(), value: count };
        state.write(&part.iter().map(put).chain([applied]).collect::<Vec<_>>()).unwrap();
        state.begin_flush().unwrap();
        state.finish_flush().unwrap();
    }
}

/// All rows, and how many the applied row says that there are.
fn read_state(folder: &Path) -> Result<(Rows, usize), Outcome> {
    let failed = |_| Outcome::ReadFailed;
    let state = RocksState::open(folder, MemoryLimits::default()).map_err(|_| Outcome::NotOpened)?;
    let rows = state.scan(Table::Version, &[0; 4], &[0xff; 4], ROWS as usize + 1, usize::MAX).map_err(failed)?;
    let applied = state.get(Table::Applied, APPLIED).map_err(failed)?;
    let applied = applied.map_or(0, |count| u64::from_be_bytes(count.as_ref().try_into().expect("eight bytes")));
    Ok((rows, applied as usize))
}

fn fill_log(folder: &Path) {
    let log = RocksLog::open(folder).unwrap();
    for number in 0..ROWS {
        let (key, value) = row(number);
        log.write(&[LogOp::Put { key, value }], true).unwrap();
    }
}

/// An end that is missing is noticed by whoever knows how much was synced: the synced mark, in a node.
fn read_log(folder: &Path) -> Result<(Rows, usize), Outcome> {
    let log = RocksLog::open(folder).map_err(|_| Outcome::NotOpened)?;
    if log.write_number() < u64::from(ROWS) {
        return Err(Outcome::NotOpened);
    }
    let rows = log.scan(&[0; 4], &[0xff; 4], usize::MAX).map_err(|_| Outcome::ReadFailed)?;
    Ok((rows, ROWS as usize))
}

/// One kind of file as likely as another, so that small ones are hit too; within it, one byte as likely as another.
fn choose(files: &[PathBuf], random: &mut fastrand::Rng) -> (PathBuf, usize) {
    let mut kinds = BTreeMap::<String, Vec<(PathBuf, usize)>>::new();
    for file in files.iter().filter(|file| has_meaning(file)) {
        let bytes = fs::metadata(file).map_or(0, |metadata| metadata.len() as usize);
        if bytes > 0 {
            kinds.entry(kind(file)).or_default().push((file.clone(), bytes));
        }
    }
    let kinds = kinds.into_values().collect::<Vec<_>>();
    let files = &kinds[random.usize(0..kinds.len())];
    let mut at = random.usize(0..files.iter().map(|(_, bytes)| bytes).sum());
    for (file, bytes) in files {
        if at < *bytes {
            return (file.clone(), at * 8 + random.usize(0..8));
        }
        at -= bytes;
    }
    unreachable!("at is below the sum")
}

/// Names an engine and a folder: then this process only reads it, and its exit code says how that went.
const READ_VARIABLE: &str = "BIT_FLIPS_READ";
const READ_MAX: Duration = Duration::from_secs(30);
const WRONG: i32 = 99;

#[derive(Clone, Copy)]
enum Engine {
    State,
    Log,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Log => "log",
        }
    }

    fn fill(self, folder: &Path) {
        match self {
            Self::State => fill_state(folder),
            Self::Log => fill_log(folder),
        }
    }

    /// In a process of its own, which may hang or die.
    fn read(self, folder: &Path) -> Outcome {
        let mut read = Command::new(std::env::current_exe().unwrap());
        read.args(["--ignored", "--exact", "bit_flips"])
            .env(READ_VARIABLE, format!("{}:{}", self.name(), folder.display()));
        let mut child = read.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + READ_MAX;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    return Outcome::Hangs;
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let outcomes = [Outcome::NotOpened, Outcome::ReadFailed, Outcome::Older, Outcome::Unnoticed];
        let found = outcomes.into_iter().find(|outcome| Some(*outcome as i32 + 1) == status.code());
        found.unwrap_or_else(|| panic!("{}: wrong rows, or a panic: {status}", self.name()))
    }
}

/// What the other process does.
fn read_here(what: &str) -> ! {
    let (engine, folder) = what.split_once(':').unwrap();
    let read = if engine == Engine::State.name() { read_state } else { read_log };
    let expected = (0..ROWS).map(row).collect::<Vec<_>>();
    let code = match read(Path::new(folder)) {
        Err(outcome) => outcome as i32 + 1,
        Ok((rows, count)) if rows != expected[..count] => WRONG,
        Ok((_, count)) if count < expected.len() => Outcome::Older as i32 + 1,
        Ok(_) => Outcome::Unnoticed as i32 + 1,
    };
    std::process::exit(code)
}

fn flip_engine(engine: Engine, random: &mut fastrand::Rng) {
    let folder = tempfile::tempdir().unwrap();
    let (sound, copied) = (folder.path().join("sound"), folder.path().join("copy"));
    engine.fill(&sound);
    copy(&sound, &copied);
    assert_eq!(engine.read(&copied), Outcome::Unnoticed);
    let mut tally = Tally::default();
    for number in 0..ENGINE_FLIPS / 2 {
        fs::remove_dir_all(&copied).unwrap();
        copy(&sound, &copied);
        let files = fs::read_dir(&copied).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let (file, bit) = choose(&files, random);
        let mut bytes = fs::read(&file).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, bytes).unwrap();
        let outcome = engine.read(&copied);
        let which = format!("{}, flip {number}: {} bit {bit}", engine.name(), kind(&file));
        assert!(outcome != Outcome::Unnoticed || !has_checksums(&file), "{which}: nobody noticed");
        if outcome == Outcome::Hangs {
            println!("{which}: {outcome:?}");
        }
        tally.add(&file, outcome);
    }
    tally.say(engine.name());
}

fn has_checksums(file: &Path) -> bool {
    ["sst", "blob", "log", "MANIFEST"].contains(&kind(file).as_str())
}

// --- A cluster.

async fn flip_nodes(random: &mut fastrand::Rng) {
    let config = format!("{RAFT}snapshot_after_entries = 50\nkeep_entries = 50\n");
    let mut cluster = Cluster::start_with(Options { config, fault_disks: true, ..Options::default() }).await;
    RECORDS.put_all(&cluster.client()).await;
    let mut tally = Tally::default();
    for number in 0..NODE_FLIPS {
        let node = random.usize(0..cluster.size());
        let (file, bit) = choose(&cluster.disk(node).files(), random);
        let (down, mut ended) = (random.bool(), false);
        if down {
            cluster.stop(node);
        }
        cluster.disk(node).flip(&file, bit);
        let flipped = byte_at(&file, bit / 8);
        if down {
            cluster.restart(node);
            ended = !serves(&mut cluster, node).await;
        }
        let failed = read_through(&mut cluster, node).await;
        ended |= !cluster.is_running(node);
        assert_eq!(
            RECORDS.read_all(&cluster.client()).await,
            0,
            "flip {number} in {}: the cluster suffers",
            file.display()
        );
        let outcome = match (ended, failed) {
            (true, _) => Outcome::NotOpened,
            (false, 1..) => Outcome::ReadFailed,
            (false, 0) => Outcome::Unnoticed,
        };
        println!("node {node}, {} bit {bit}, {}: {outcome:?}", file.display(), if down { "down" } else { "running" });
        tally.add(&file, outcome);

        // Healed, unless the file was written anew meanwhile.
        if cluster.is_running(node) {
            cluster.kill(node);
        } else {
            cluster.stop(node);
        }
        if byte_at(&file, bit / 8) == flipped && flipped.is_some() {
            cluster.disk(node).flip(&file, bit);
        }
        cluster.restart(node);
        cluster.wait_ready().await;
    }
    tally.say("nodes");
    cluster.wait_roots_equal().await;
}

/// How many records were not read through one node, until it has ended over what it found.
async fn read_through(cluster: &mut Cluster, node: usize) -> usize {
    let client = cluster.client_at(node).with_deadline(ONE_READ_MAX);
    let mut failed = 0;
    for number in 0..RECORDS.records {
        if !cluster.is_running(node) {
            return failed;
        }
        failed += usize::from(!RECORDS.read(&client, number).await);
    }
    failed
}

fn byte_at(file: &Path, offset: usize) -> Option<u8> {
    let mut byte = [0];
    fs::File::open(file).ok()?.read_exact_at(&mut byte, offset as u64).ok()?;
    Some(byte[0])
}

/// Waits until it does, or has ended.
async fn serves(cluster: &mut Cluster, node: usize) -> bool {
    loop {
        if !cluster.is_running(node) {
            return false;
        }
        if cluster.ops(node, "/readyz").is_some_and(|page| page.status == 200) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Engines alone.
pub fn run() {
    if let Ok(what) = std::env::var(READ_VARIABLE) {
        read_here(&what);
    }
    let mut random = random();
    flip_engine(Engine::State, &mut random);
    flip_engine(Engine::Log, &mut random);
}

/// Under live nodes.
pub async fn run_live() {
    flip_nodes(&mut random()).await;
}
