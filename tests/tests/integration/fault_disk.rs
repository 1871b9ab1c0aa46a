//! The fault disk does what it says, and nothing else: without a fault it is a disk like any other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use charthold_tests::fault_disk::{FaultDisk, Operation};

const SYNCED: &[u8] = &[0xaa; 10_000];
const UNSYNCED: &[u8] = &[0xbb; 10_000];
const CUTS: u64 = 100;

struct Mounted {
    // Before its folder.
    disk: FaultDisk,
    folder: tempfile::TempDir,
}

impl Mounted {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sync_folder(&self) {
        File::open(self.folder.path()).unwrap().sync_all().unwrap();
    }

    /// A file whose bytes and name are safe.
    fn write_safely(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_all().unwrap();
        self.sync_folder();
        path
    }
}

#[allow(clippy::print_stderr)]
fn mount() -> Option<Mounted> {
    if !FaultDisk::is_possible() {
        eprintln!("SKIPPED: fault disks need root and /dev/fuse");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    Some(Mounted { disk: FaultDisk::mount(folder.path()), folder })
}

#[test]
fn a_cut_takes_only_what_was_not_synced_whole_or_torn_or_not_at_all() {
    let (mut gone, mut torn, mut whole, mut holes) = (0, 0, 0, 0);
    for seed in 0..CUTS {
        let Some(mounted) = mount() else { return };
        let path = mounted.write_safely("file", SYNCED);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(UNSYNCED, 10_000).unwrap();
        file.write_all_at(UNSYNCED, 20_000).unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap().len(), 30_000);

        let lost = mounted.disk.cut_power(&mut fastrand::Rng::with_seed(seed));
        let left = fs::read(&path).unwrap();
        assert_eq!(&left[..10_000], SYNCED);
        match left.len() {
            30_000 if left[10_000..20_000] == *UNSYNCED && left[20_000..] == *UNSYNCED => whole += 1,
            30_000 if left[20_000..] == *UNSYNCED => holes += 1,
            10_000 => gone += 1,
            length => {
                assert!(length % 512 == 0 || length == 20_000, "torn where no sector ends: {length}");
                torn += 1;
            }
        }
        assert_eq!(lost.writes + lost.torn == 0, left.len() == 30_000 && left[10_000..] == [0xbb; 20_000]);
    }
    assert!(gone > 0 && torn > 0 && whole > 0 && holes > 0, "{gone} gone, {torn} torn, {whole} whole, {holes} holes");
}

#[test]
fn a_name_is_safe_once_its_folder_is_synced() {
    let (mut there, mut not_there) = (0, 0);
    for seed in 0..CUTS {
        let Some(mounted) = mount() else { return };
        let safe = mounted.write_safely("safe", SYNCED);
        let path = mounted.path("new");
        let file = File::create(&path).unwrap();
        file.write_all_at(SYNCED, 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        mounted.disk.cut_power(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(fs::read(&safe).unwrap(), SYNCED);
        match fs::read(&path) {
            Ok(bytes) => {
                assert_eq!(bytes, SYNCED);
                there += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound);
                not_there += 1;
            }
        }
    }
    assert!(there > 0 && not_there > 0, "{there} there, {not_there} not");
}

#[test]
fn a_rename_leaves_the_old_file_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..CUTS {
        let Some(mounted) = mount() else { return };
        let path = mounted.write_safely("file", b"old");
        let other = mounted.write_safely("other", b"new");
        fs::rename(&other, &path).unwrap();
        let lost = mounted.disk.cut_power(&mut fastrand::Rng::with_seed(seed));
        match fs::read(&path).unwrap().as_slice() {
            b"old" => {
                assert_eq!(fs::read(&other).unwrap(), b"new");
                assert_eq!(lost.names, 2);
                old += 1;
            }
            b"new" => {
                assert!(!other.exists());
                new += 1;
            }
            bytes => panic!("{bytes:?}"),
        }
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new");
}

#[test]
fn one_bit_flips_and_stays_flipped() {
    let Some(mounted) = mount() else { return };
    let path = mounted.write_safely("file", SYNCED);
    mounted.disk.flip(&path, 8 * 5_000 + 3);
    mounted.disk.cut_power(&mut fastrand::Rng::with_seed(1));
    let mut expected = SYNCED.to_vec();
    expected[5_000] ^= 1 << 3;
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn an_old_chunk_comes_back_where_a_confirmed_write_was() {
    let Some(mounted) = mount() else { return };
    let path = mounted.write_safely("file", SYNCED);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&UNSYNCED[..100], 4_500).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap()[4_500..4_600], UNSYNCED[..100]);
    assert_eq!(mounted.disk.bring_back(&path), Some(4_096));
    assert_eq!(fs::read(&path).unwrap(), SYNCED);
}

#[test]
fn so_many_operations_fail_and_then_none() {
    let Some(mounted) = mount() else { return };
    let path = mounted.write_safely("file", SYNCED);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut bytes = [0; 16];
    let mut attempt = |operation: Operation| match operation {
        Operation::Read => file.read_exact_at(&mut bytes, 0),
        Operation::Write => file.write_all_at(b"x", 0),
        Operation::Sync => file.sync_all(),
        Operation::Name => unreachable!("how often the kernel asks for a name is its own affair"),
    };
    for operation in [Operation::Read, Operation::Write, Operation::Sync] {
        mounted.disk.fail_next(operation, 2);
        for _ in 0..2 {
            let error = attempt(operation).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{operation:?}: {error}");
        }
        attempt(operation).unwrap();
        assert_eq!(mounted.disk.failed(operation), 2);
    }
    mounted.disk.fail_next(Operation::Name, 4);
    let failures = std::iter::repeat_with(|| fs::metadata(&path)).take_while(Result::is_err).count();
    assert!((1..=4).contains(&failures), "{failures}");
    assert_eq!(mounted.disk.failed(Operation::Name), 4);
}

#[test]
fn a_full_disk_takes_no_more_until_there_is_room() {
    let Some(mounted) = mount() else { return };
    let path = mounted.write_safely("file", SYNCED);
    mounted.disk.leave(5_000);
    let file = File::options().write(true).open(&path).unwrap();
    let error = file.write_all_at(&[1; 5_001], 10_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    file.write_all_at(&[1; 5_000], 10_000).unwrap();
    assert_eq!(mounted.disk.free_bytes(), 0);
    assert_eq!(rustix::fs::statvfs(mounted.folder.path()).unwrap().f_bavail, 0);
    // What is there may still be written over.
    file.write_all_at(&[2; 10_000], 0).unwrap();
    mounted.disk.make_room();
    file.write_all_at(&[3; 10_000], 15_000).unwrap();
}

#[test]
fn a_stalled_disk_answers_when_it_is_resumed() {
    let Some(mounted) = mount() else { return };
    let path = mounted.write_safely("file", SYNCED);
    mounted.disk.stall();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&path).unwrap());
        while !mounted.disk.is_waited_for() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // It cannot end: whoever waits is held by the gate.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!reader.is_finished());
        mounted.disk.resume();
        assert_eq!(reader.join().unwrap(), SYNCED);
    });
}

/// At least so long; how long at most is the machine's affair.
#[test]
fn a_slow_disk_takes_its_time_to_sync() {
    let Some(mounted) = mount() else { return };
    let slow = Duration::from_millis(50);
    mounted.disk.slow_syncs(slow);
    let began = std::time::Instant::now();
    mounted.write_safely("file", SYNCED);
    assert!(began.elapsed() >= slow);
    mounted.disk.slow_syncs(Duration::ZERO);
    assert_eq!(fs::read(mounted.path("file")).unwrap(), SYNCED);
}

/// The same operations, drawn by chance, on it and on whatever disk the tests run on.
#[test]
fn without_faults_it_is_a_disk_like_any_other() {
    let Some(mounted) = mount() else { return };
    let ordinary = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let (one, other) = (mounted.path(&seed.to_string()), ordinary.path().join(seed.to_string()));
        for root in [&one, &other] {
            fs::create_dir(root).unwrap();
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for step in 0..200 {
            let at = random.get_seed();
            let outcomes = [&one, &other].map(|root| do_something(root, &mut fastrand::Rng::with_seed(at)));
            assert_eq!(outcomes[0], outcomes[1], "seed {seed}, step {step}");
            random.u64(..);
        }
        assert_eq!(contents(&one), contents(&other), "seed {seed}");
        fs::remove_dir_all(&one).unwrap();
        assert!(!one.exists());
    }
}

fn do_something(root: &Path, random: &mut fastrand::Rng) -> Result<Vec<u8>, ErrorKind> {
    let folder = ["", "x", "y"][random.usize(0..3)];
    let mut path = |name: &str| root.join(folder).join(format!("{name}{}", random.u8(0..4)));
    let (one, two) = (path("file"), path("file"));
    let bytes = vec![random.u8(..); random.usize(0..9_000)];
    let offset = random.u64(0..9_000);
    let outcome = match random.u8(0..9) {
        0 => fs::create_dir(root.join(folder)),
        1 => fs::remove_dir(root.join(folder)),
        2 => fs::remove_file(one),
        3 => fs::rename(one, two),
        4 => fs::write(one, bytes),
        5 => File::options().append(true).open(one).and_then(|mut file| std::io::Write::write_all(&mut file, &bytes)),
        6 => File::options().write(true).open(one).and_then(|file| file.write_all_at(&bytes, offset)),
        7 => File::options().write(true).open(one).and_then(|file| file.set_len(offset)),
        _ => return fs::read(one).map_err(|error| error.kind()),
    };
    outcome.map(|()| Vec::new()).map_err(|error| error.kind())
}

fn contents(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, path.is_file().then(|| fs::read(&path).unwrap()));
            open.extend(path.is_dir().then_some(path));
        }
    }
    found
}
