//! What is on a fault disk: files and folders as programs see them, and beside that what a power cut would leave.
//!
//! A file's bytes are safe once the file was synced, a name is safe once its folder was synced; nothing else is, as
//! POSIX has it. Between two syncs each write and each change of length is kept apart, so that a cut may take any of
//! them. Knows nothing of FUSE.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
const CHUNK_BYTES: usize = 4_096;
pub const ROOT: Inode = 1;

pub type Inode = u64;
/// Of an open file; never used twice, so that a late close by a process that is gone closes nobody else's.
pub type Handle = u64;

/// Why an operation is refused, in the words of errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NotFound,
    Exists,
    NotFolder,
    IsFolder,
    NotEmpty,
    /// A rename into another folder: it would need both to become safe at once.
    OtherFolder,
    NoSpace,
}

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Lost {
    /// Writes and changes of length that are gone whole.
    pub writes: usize,
    /// Writes of which a first part is left.
    pub torn: usize,
    /// Names that are back to what their folder had when it was last synced.
    pub names: usize,
}

impl std::iter::Sum for Lost {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            writes: sum.writes + one.writes,
            torn: sum.torn + one.torn,
            names: sum.names + one.names,
        })
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    pub changed: SystemTime,
    handles: BTreeSet<Handle>,
}

#[derive(Clone, Debug)]
pub enum Kind {
    File(Content),
    Folder(Folder),
}

#[derive(Clone, Debug, Default)]
pub struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    /// The chunks that the last sync changed, as they were before it.
    before: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug, Default)]
pub struct Folder {
    now: BTreeMap<OsString, Inode>,
    synced: BTreeMap<OsString, Inode>,
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes: written } => {
                let end = offset + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(written);
            }
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }

    /// The chunks of a file that it touches, of so many bytes.
    fn chunks(&self, length: usize) -> std::ops::Range<usize> {
        let (from, to) = match self {
            Self::Write { offset, bytes } => (*offset, offset + bytes.len()),
            Self::Length(new) => (*new.min(&length), *new.max(&length)),
        };
        from / CHUNK_BYTES..to.div_ceil(CHUNK_BYTES)
    }
}

impl Content {
    pub fn len(&self) -> usize {
        self.now.len()
    }

    pub fn read(&self, offset: usize, length: usize) -> &[u8] {
        let end = offset.saturating_add(length).min(self.now.len());
        &self.now[offset.min(end)..end]
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        let mut chunks = BTreeSet::new();
        for change in &self.unsynced {
            chunks.extend(change.chunks(self.synced.len()));
        }
        if !chunks.is_empty() {
            let old = |chunk: usize| (chunk * CHUNK_BYTES, chunk_of(&self.synced, chunk));
            self.before = chunks.into_iter().map(old).collect();
        }
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.synced);
        }
    }

    /// As a cut leaves it: what was synced, and of the rest what chance keeps.
    fn cut(&mut self, fate: Fate, random: &mut fastrand::Rng) -> Lost {
        let mut lost = Lost::default();
        let reached = random.usize(0..=self.unsynced.len());
        for (index, change) in self.unsynced.drain(..).enumerate() {
            match (fate.of_change(index, reached, random), change) {
                (Survival::Whole, change) => change.apply(&mut self.synced),
                (Survival::Torn, Change::Write { offset, bytes }) if bytes.len() > SECTOR_BYTES => {
                    let kept = torn_length(offset, random.usize(0..bytes.len()));
                    Change::Write { offset, bytes: bytes[..kept].to_vec() }.apply(&mut self.synced);
                    lost.torn += 1;
                }
                _ => lost.writes += 1,
            }
        }
        self.now.clone_from(&self.synced);
        lost
    }
}

/// The old bytes of one chunk, filled up with zeros as a disk that was never written to.
fn chunk_of(bytes: &[u8], chunk: usize) -> Vec<u8> {
    let from = (chunk * CHUNK_BYTES).min(bytes.len());
    let mut old = bytes[from..(from + CHUNK_BYTES).min(bytes.len())].to_vec();
    old.resize(CHUNK_BYTES, 0);
    old
}

/// About so much of a write, ending where a sector ends.
fn torn_length(offset: usize, about: usize) -> usize {
    ((offset + about) / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(offset)
}

enum Survival {
    Gone,
    Torn,
    Whole,
}

/// How a cut treats what was not synced.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// All of it is gone.
    Gone,
    /// Of each file, writes reached the disk in their order, up to some point of which one is torn. Names stay.
    UpTo,
    /// Each write and each folder has its own luck: disks reorder.
    Each,
}

impl Fate {
    const ALL: [Self; 3] = [Self::Gone, Self::UpTo, Self::Each];

    fn of_change(self, index: usize, reached: usize, random: &mut fastrand::Rng) -> Survival {
        match self {
            Self::Gone => Survival::Gone,
            Self::UpTo => match index.cmp(&reached) {
                std::cmp::Ordering::Less => Survival::Whole,
                std::cmp::Ordering::Equal => Survival::Torn,
                std::cmp::Ordering::Greater => Survival::Gone,
            },
            Self::Each => match random.u8(0..3) {
                0 => Survival::Gone,
                1 => Survival::Torn,
                _ => Survival::Whole,
            },
        }
    }

    fn keeps_names(self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Gone => false,
            Self::UpTo => true,
            Self::Each => random.bool(),
        }
    }
}

pub struct Image {
    nodes: BTreeMap<Inode, Node>,
    next: Inode,
    next_handle: Handle,
    used_bytes: usize,
    pub capacity_bytes: usize,
}

impl Image {
    pub fn new(capacity_bytes: usize) -> Self {
        let root = Node::new(Kind::Folder(Folder::default()), 0o700);
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, next_handle: 1, used_bytes: 0, capacity_bytes }
    }

    pub fn free_bytes(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.used_bytes)
    }

    pub fn node(&self, inode: Inode) -> Result<&Node, Refused> {
        self.nodes.get(&inode).ok_or(Refused::NotFound)
    }

    fn node_mut(&mut self, inode: Inode) -> Result<&mut Node, Refused> {
        self.nodes.get_mut(&inode).ok_or(Refused::NotFound)
    }

    pub fn file(&self, inode: Inode) -> Result<&Content, Refused> {
        match &self.node(inode)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Folder(_) => Err(Refused::IsFolder),
        }
    }

    fn file_mut(&mut self, inode: Inode) -> Result<&mut Content, Refused> {
        match &mut self.node_mut(inode)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Folder(_) => Err(Refused::IsFolder),
        }
    }

    fn folder(&self, inode: Inode) -> Result<&Folder, Refused> {
        match &self.node(inode)?.kind {
            Kind::Folder(folder) => Ok(folder),
            Kind::File(_) => Err(Refused::NotFolder),
        }
    }

    fn folder_mut(&mut self, inode: Inode) -> Result<&mut Folder, Refused> {
        match &mut self.node_mut(inode)?.kind {
            Kind::Folder(folder) => Ok(folder),
            Kind::File(_) => Err(Refused::NotFolder),
        }
    }

    pub fn names(&self, folder: Inode) -> Result<Vec<(OsString, Inode)>, Refused> {
        Ok(self.folder(folder)?.now.iter().map(|(name, inode)| (name.clone(), *inode)).collect())
    }

    pub fn look_up(&self, folder: Inode, name: &OsStr) -> Result<Inode, Refused> {
        self.folder(folder)?.now.get(name).copied().ok_or(Refused::NotFound)
    }

    /// By the path from the disk's root.
    pub fn find(&self, path: &std::path::Path) -> Result<Inode, Refused> {
        path.iter().try_fold(ROOT, |folder, name| self.look_up(folder, name))
    }

    /// The paths of all files, from the disk's root.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        let (mut found, mut open) = (Vec::new(), vec![(std::path::PathBuf::new(), ROOT)]);
        while let Some((path, inode)) = open.pop() {
            match self.nodes.get(&inode).map(|node| &node.kind) {
                Some(Kind::Folder(folder)) => {
                    open.extend(folder.now.iter().map(|(name, inode)| (path.join(name), *inode)));
                }
                Some(Kind::File(_)) => found.push(path),
                None => {}
            }
        }
        found.sort();
        found
    }

    pub fn create_file(&mut self, folder: Inode, name: &OsStr, mode: u16) -> Result<Inode, Refused> {
        self.create(folder, name, Node::new(Kind::File(Content::default()), mode))
    }

    pub fn create_folder(&mut self, folder: Inode, name: &OsStr, mode: u16) -> Result<Inode, Refused> {
        self.create(folder, name, Node::new(Kind::Folder(Folder::default()), mode))
    }

    fn create(&mut self, folder: Inode, name: &OsStr, node: Node) -> Result<Inode, Refused> {
        let inode = self.next;
        let names = &mut self.folder_mut(folder)?.now;
        if names.contains_key(name) {
            return Err(Refused::Exists);
        }
        names.insert(name.to_owned(), inode);
        self.next += 1;
        self.nodes.insert(inode, node);
        Ok(inode)
    }

    pub fn remove_file(&mut self, folder: Inode, name: &OsStr) -> Result<(), Refused> {
        self.file(self.look_up(folder, name)?)?;
        self.remove_name(folder, name)
    }

    pub fn remove_folder(&mut self, folder: Inode, name: &OsStr) -> Result<(), Refused> {
        if !self.folder(self.look_up(folder, name)?)?.now.is_empty() {
            return Err(Refused::NotEmpty);
        }
        self.remove_name(folder, name)
    }

    fn remove_name(&mut self, folder: Inode, name: &OsStr) -> Result<(), Refused> {
        self.folder_mut(folder)?.now.remove(name);
        self.collect();
        Ok(())
    }

    /// What has the new name before is replaced.
    pub fn rename(&mut self, folder: Inode, name: &OsStr, to: Inode, new: &OsStr) -> Result<(), Refused> {
        let inode = self.look_up(folder, name)?;
        if folder != to {
            return Err(Refused::OtherFolder);
        }
        let replaced = self.folder(self.look_up(folder, new).unwrap_or_default());
        if replaced.is_ok_and(|replaced| !replaced.now.is_empty()) {
            return Err(Refused::NotEmpty);
        }
        let names = &mut self.folder_mut(folder)?.now;
        names.remove(name);
        names.insert(new.to_owned(), inode);
        self.collect();
        Ok(())
    }

    pub fn write(&mut self, inode: Inode, offset: usize, bytes: &[u8]) -> Result<(), Refused> {
        let growth = (offset + bytes.len()).saturating_sub(self.file(inode)?.len());
        if growth > self.free_bytes() {
            return Err(Refused::NoSpace);
        }
        self.change(inode, Change::Write { offset, bytes: bytes.to_vec() })
    }

    pub fn set_length(&mut self, inode: Inode, length: usize) -> Result<(), Refused> {
        if length.saturating_sub(self.file(inode)?.len()) > self.free_bytes() {
            return Err(Refused::NoSpace);
        }
        self.change(inode, Change::Length(length))
    }

    fn change(&mut self, inode: Inode, change: Change) -> Result<(), Refused> {
        let content = self.file_mut(inode)?;
        let before = content.len();
        content.change(change);
        let after = content.len();
        self.used_bytes = self.used_bytes + after - before;
        self.node_mut(inode)?.changed = SystemTime::now();
        Ok(())
    }

    pub fn set_mode(&mut self, inode: Inode, mode: u16) -> Result<(), Refused> {
        self.node_mut(inode)?.mode = mode;
        Ok(())
    }

    pub fn sync(&mut self, inode: Inode) -> Result<(), Refused> {
        match &mut self.node_mut(inode)?.kind {
            Kind::File(content) => content.sync(),
            Kind::Folder(folder) => {
                folder.synced.clone_from(&folder.now);
                self.collect();
            }
        }
        Ok(())
    }

    pub fn open(&mut self, inode: Inode) -> Result<Handle, Refused> {
        let handle = self.next_handle;
        self.node_mut(inode)?.handles.insert(handle);
        self.next_handle += 1;
        Ok(handle)
    }

    pub fn close(&mut self, inode: Inode, handle: Handle) {
        if self.nodes.get_mut(&inode).is_some_and(|node| node.handles.remove(&handle)) {
            self.collect();
        }
    }

    /// The power goes; programs that had files open are gone already.
    pub fn cut(&mut self, random: &mut fastrand::Rng) -> Lost {
        let fate = Fate::ALL[random.usize(0..Fate::ALL.len())];
        let mut lost = Lost::default();
        for node in self.nodes.values_mut() {
            node.handles.clear();
            match &mut node.kind {
                Kind::File(content) => {
                    let of_file = content.cut(fate, random);
                    lost.writes += of_file.writes;
                    lost.torn += of_file.torn;
                }
                Kind::Folder(folder) if fate.keeps_names(random) => folder.synced.clone_from(&folder.now),
                Kind::Folder(folder) => {
                    lost.names += differences(&folder.now, &folder.synced);
                    folder.now.clone_from(&folder.synced);
                }
            }
        }
        self.collect();
        lost
    }

    /// One bit that was stored is another now, as a medium's decay or a cosmic ray leaves it.
    pub fn flip(&mut self, inode: Inode, bit: usize) -> Result<(), Refused> {
        let content = self.file_mut(inode)?;
        for bytes in [&mut content.now, &mut content.synced] {
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    /// The first chunk that the last sync changed is back as it was before: a write that the disk confirmed and never
    /// made. Gives where.
    pub fn bring_back(&mut self, inode: Inode) -> Result<Option<usize>, Refused> {
        let content = self.file_mut(inode)?;
        let Some((offset, old)) = content.before.first().cloned() else { return Ok(None) };
        for bytes in [&mut content.now, &mut content.synced] {
            let end = (offset + old.len()).min(bytes.len());
            let start = offset.min(end);
            bytes[start..end].copy_from_slice(&old[..end - start]);
        }
        Ok(Some(offset))
    }

    /// Drops what neither a name, nor a name that a cut would bring back, nor a program holds; counts what is left.
    fn collect(&mut self) {
        let (mut reached, mut open) = (BTreeSet::new(), vec![ROOT]);
        open.extend(self.nodes.iter().filter(|(_, node)| !node.handles.is_empty()).map(|(inode, _)| *inode));
        while let Some(inode) = open.pop() {
            if !reached.insert(inode) {
                continue;
            }
            if let Some(Kind::Folder(folder)) = self.nodes.get(&inode).map(|node| &node.kind) {
                open.extend(folder.now.values().chain(folder.synced.values()));
            }
        }
        self.nodes.retain(|inode, _| reached.contains(inode));
        let length = |node: &Node| if let Kind::File(content) = &node.kind { content.len() } else { 0 };
        self.used_bytes = self.nodes.values().map(length).sum();
    }
}

impl Node {
    fn new(kind: Kind, mode: u16) -> Self {
        Self { kind, mode, changed: SystemTime::now(), handles: BTreeSet::new() }
    }
}

fn differences(now: &BTreeMap<OsString, Inode>, synced: &BTreeMap<OsString, Inode>) -> usize {
    let missing = synced.keys().filter(|name| !now.contains_key(*name)).count();
    now.iter().filter(|(name, inode)| synced.get(*name) != Some(inode)).count() + missing
}
