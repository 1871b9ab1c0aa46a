//! The kernel's questions, answered from the image. Nothing is kept by the kernel: no page, no name, no attribute.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::Shared;
use super::gate::{Broken, Operation};
use super::image::{Inode, Kind, Node, Refused};

const NOT_KEPT: Duration = Duration::ZERO;
const BLOCK_BYTES: u32 = 4_096;
const NAME_BYTES_MAX: u32 = 255;
const GENERATION: Generation = Generation(0);

pub struct Faulty(pub Arc<Shared>);

impl From<Refused> for Errno {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotFound => Self::ENOENT,
            Refused::Exists => Self::EEXIST,
            Refused::NotFolder => Self::ENOTDIR,
            Refused::IsFolder => Self::EISDIR,
            Refused::NotEmpty => Self::ENOTEMPTY,
            Refused::OtherFolder => Self::EXDEV,
            Refused::NoSpace => Self::ENOSPC,
        }
    }
}

impl From<Broken> for Errno {
    fn from(_: Broken) -> Self {
        Self::EIO
    }
}

impl Faulty {
    /// Does it after the gate lets it pass.
    fn at<T>(
        &self,
        operation: Operation,
        work: impl FnOnce(&mut super::Image) -> Result<T, Refused>,
    ) -> Result<T, Errno> {
        self.0.gate.pass(operation)?;
        Ok(work(&mut self.0.image())?)
    }
}

fn found(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&NOT_KEPT, &attributes, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

fn changed(result: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&NOT_KEPT, &attributes),
        Err(errno) => reply.error(errno),
    }
}

fn attributes(inode: Inode, node: &Node) -> FileAttr {
    let (kind, size, nlink) = match &node.kind {
        Kind::File(content) => (FileType::RegularFile, content.len() as u64, 1),
        Kind::Folder(_) => (FileType::Directory, 0, 2),
    };
    FileAttr {
        ino: INodeNo(inode),
        size,
        blocks: size.div_ceil(512),
        atime: node.changed,
        mtime: node.changed,
        ctime: node.changed,
        crtime: node.changed,
        kind,
        perm: node.mode,
        nlink,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// A disk of the tests holds what fits into memory.
fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Filesystem for Faulty {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.at(Operation::Name, |image| {
            let inode = image.look_up(parent.0, name)?;
            Ok(attributes(inode, image.node(inode)?))
        });
        found(result, reply);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        changed(self.at(Operation::Name, |image| Ok(attributes(inode.0, image.node(inode.0)?))), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        length: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let operation = if length.is_some() { Operation::Write } else { Operation::Name };
        let result = self.at(operation, |image| {
            if let Some(mode) = mode {
                image.set_mode(inode.0, permissions(mode))?;
            }
            if let Some(length) = length {
                image.set_length(inode.0, in_memory(length))?;
            }
            Ok(attributes(inode.0, image.node(inode.0)?))
        });
        changed(result, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let result = self.at(Operation::Name, |image| {
            let inode = image.create_folder(parent.0, name, permissions(mode & !umask))?;
            Ok(attributes(inode, image.node(inode)?))
        });
        found(result, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.at(Operation::Name, |image| image.remove_file(parent.0, name)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.at(Operation::Name, |image| image.remove_folder(parent.0, name)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        done(self.at(Operation::Name, |image| image.rename(parent.0, name, new_parent.0, new_name)), reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.at(Operation::Name, |image| image.open(inode.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let made = self.at(Operation::Name, |image| {
            let inode = image.create_file(parent.0, name, permissions(mode & !umask))?;
            let handle = image.open(inode)?;
            Ok((attributes(inode, image.node(inode)?), FileHandle(handle)))
        });
        match made {
            Ok((attributes, handle)) => {
                reply.created(&NOT_KEPT, &attributes, GENERATION, handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read =
            self.at(Operation::Read, |image| Ok(image.file(inode.0)?.read(in_memory(offset), size as usize).to_vec()));
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.at(Operation::Write, |image| image.write(inode.0, in_memory(offset), bytes)) {
            Ok(()) => reply.written(u32::try_from(bytes.len()).expect("the kernel writes 1 MiB at most")),
            Err(errno) => reply.error(errno),
        }
    }

    // Called when a program closes a file; what was written is where it is.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    // Never held up: a process that was killed must be able to go.
    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.image().close(inode.0, handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.at(Operation::Sync, |image| image.sync(inode.0)), reply);
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.at(Operation::Sync, |image| image.sync(inode.0)), reply);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = self.at(Operation::Name, |image| {
            let kind = |inode| match image.node(inode).map(|node| &node.kind) {
                Ok(Kind::Folder(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            Ok(image.names(inode.0)?.into_iter().map(|(name, inode)| (name, inode, kind(inode))).collect::<Vec<_>>())
        });
        match names {
            Ok(names) => {
                for (index, (name, inode, kind)) in names.into_iter().enumerate().skip(in_memory(offset)) {
                    if reply.add(INodeNo(inode), index as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.at(Operation::Name, |image| Ok((image.capacity_bytes, image.free_bytes()))) {
            Ok((capacity, free)) => {
                let blocks = |bytes: usize| bytes as u64 / u64::from(BLOCK_BYTES);
                let (all, free) = (blocks(capacity), blocks(free));
                reply.statfs(all, free, free, 0, 0, BLOCK_BYTES, NAME_BYTES_MAX, BLOCK_BYTES);
            }
            Err(errno) => reply.error(errno),
        }
    }
}

/// Of a mode, what `chmod` sets.
fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}
