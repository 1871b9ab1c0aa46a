//! Snapshots on their way into the state, kept so that an install that breaks off is done again.
//!
//! Owns the files and their names. Must not know what is in a chunk.
//!
//! ```text
//! DATA/incoming/<shard>-<n>.part    being received, or refused: worthless after a restart
//! DATA/incoming/<shard>.install     whole and synced: takes the place of the group's rows, after a restart too
//!
//! file:  frames of  length 4 | crc32c 4 of the chunk | chunk      big endian; the first is the head, the last is empty
//! ```
//! The rename is the point of no return: before it nothing has happened to the state, after it the state counts for
//! nothing until the install is done and the file is gone.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::ShardId;

/// A chunk holds one row at least, and a row is at most what a command may carry.
const CHUNK_BYTES_MAX: usize = 16 << 20;

/// The folder of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct Incoming {
    folder: PathBuf,
    next: Arc<AtomicU64>,
}

impl Incoming {
    /// Makes the folder; what was not received whole before goes.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(path)?;
            }
        }
        sync(folder)?;
        Ok(Self { folder: folder.to_owned(), next: Arc::default() })
    }

    /// Begins to keep a group's snapshot. What is said of it as a whole is its head.
    pub fn receive(&self, shard: ShardId, head: &[u8]) -> io::Result<Part> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{shard}-{number}.part"));
        let file = BufWriter::new(File::create(&path)?);
        let kept = Received { path, install: self.install_path(shard), head: Bytes::copy_from_slice(head) };
        let mut part = Part { file, kept };
        part.push(head)?;
        Ok(part)
    }

    /// An install that was decided and is not done.
    pub fn pending(&self, shard: ShardId) -> io::Result<Option<Install>> {
        let path = self.install_path(shard);
        Ok(path.try_exists()?.then_some(Install { path }))
    }

    fn install_path(&self, shard: ShardId) -> PathBuf {
        self.folder.join(format!("{shard}.install"))
    }
}

/// A snapshot while it is received. Dropping it removes the file.
pub struct Part {
    file: BufWriter<File>,
    kept: Received,
}

impl Part {
    pub fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX {
            return Err(damaged("a chunk of no bytes, or too many"));
        }
        self.frame(chunk)
    }

    fn frame(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(&(chunk.len() as u32).to_be_bytes())?;
        self.file.write_all(&crc32c::crc32c(chunk).to_be_bytes())?;
        self.file.write_all(chunk)
    }

    /// Durable on return, under a name that a restart removes.
    pub fn finish(mut self) -> io::Result<Received> {
        self.frame(&[])?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        Ok(self.kept)
    }
}

/// A snapshot that was received whole. Dropping it removes the file.
#[derive(Debug)]
pub struct Received {
    path: PathBuf,
    install: PathBuf,
    head: Bytes,
}

impl Received {
    pub fn head(&self) -> Bytes {
        self.head.clone()
    }

    /// From here on, also after a crash, it takes the place of the group's rows.
    pub fn decide(self) -> io::Result<Install> {
        fs::rename(&self.path, &self.install)?;
        sync(self.install.parent().unwrap_or(Path::new(".")))?;
        Ok(Install { path: self.install.clone() })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            // Renamed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "a snapshot that is not needed stays until the next start"),
            Ok(()) => {}
        }
    }
}

/// A snapshot that is to be installed.
pub struct Install {
    path: PathBuf,
}

impl Install {
    /// The head and the chunks in order; the last item is an error if the file is not whole.
    pub fn chunks(&self) -> io::Result<Chunks> {
        Ok(Chunks { file: Some(BufReader::new(File::open(&self.path)?)) })
    }

    /// It is in the state, durably.
    pub fn done(self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        sync(self.path.parent().unwrap_or(Path::new(".")))
    }
}

pub struct Chunks {
    file: Option<BufReader<File>>,
}

impl Chunks {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut header = [0; 8];
        file.read_exact(&mut header)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(damaged("a frame is too long"));
        }
        let mut chunk = vec![0; length];
        file.read_exact(&mut chunk)?;
        if crc32c::crc32c(&chunk) != u32::from_be_bytes([c0, c1, c2, c3]) {
            return Err(damaged("a frame's checksum does not match"));
        }
        Ok((length > 0).then(|| chunk.into()))
    }
}

impl Iterator for Chunks {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if !matches!(read, Ok(Some(_))) {
            self.file = None;
        }
        read.transpose()
    }
}

fn damaged(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a received snapshot is damaged: {detail}"))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn received(incoming: &Incoming, chunks: &[&[u8]]) -> Received {
        let mut part = incoming.receive(3, b"head").unwrap();
        chunks.iter().for_each(|chunk| part.push(chunk).unwrap());
        part.finish().unwrap()
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn only_what_was_decided_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let incoming = Incoming::open(folder.path()).unwrap();
        std::mem::forget(received(&incoming, &[b"one"]));
        received(&incoming, &[b"two"]).decide().unwrap();
        drop(received(&incoming, &[b"three"]));
        assert_eq!(files(folder.path()).len(), 2, "what was dropped is gone at once");
        let incoming = Incoming::open(folder.path()).unwrap();
        assert_eq!(files(folder.path()), ["3.install"]);
        assert!(incoming.pending(4).unwrap().is_none());
        let install = incoming.pending(3).unwrap().unwrap();
        let chunks = install.chunks().unwrap().collect::<io::Result<Vec<_>>>().unwrap();
        assert_eq!(chunks, [&b"head"[..], b"two"]);
        install.done().unwrap();
        assert!(files(folder.path()).is_empty());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let incoming = Incoming::open(folder.path()).unwrap();
        let install = received(&incoming, &[b"one", b"chunk", b"more"]).decide().unwrap();
        let whole = fs::read(&install.path).unwrap();
        let read = |bytes: &[u8]| {
            fs::write(&install.path, bytes).unwrap();
            install.chunks().unwrap().collect::<io::Result<Vec<_>>>()
        };
        assert_eq!(read(&whole).unwrap().len(), 4);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut at {length}");
        }
        for at in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(read(&flipped).is_err(), "bit {at}");
        }
    }
}
