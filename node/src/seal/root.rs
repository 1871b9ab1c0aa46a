//! The root key: wraps tenants' keys, seals what belongs to no tenant, and is never written but to its own file.
//!
//! # File
//!
//! One line, `charthold-root-key-v1 <64 hex digits>`, in a file of mode 0600 or stricter outside the data directory.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use super::author::Author;
use super::clear::{Clear, Sealed};
use super::envelope::{Address, Compression, Kind, OpenError, SealError, open, seal};
use super::key::{KEY_LEN, Key, KeyId};
use super::tenant::{unwrap_key, wrap_key};
use super::token::{Token, Tokens};

const FILE_PREFIX: &[u8] = b"charthold-root-key-v1 ";
/// The line and its end; one more byte is read to notice a longer file.
const FILE_LEN: usize = FILE_PREFIX.len() + 2 * KEY_LEN + 1;

/// Where a node gets the root key from when it starts.
pub trait RootKeyProvider: Send + Sync {
    fn load(&self) -> Result<RootKey, RootKeyError>;
}

#[derive(Debug, Error)]
pub enum RootKeyError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: mode {mode:04o} lets others read the root key; make it 0600", path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{}: this is not a root key file", path.display())]
    Malformed { path: PathBuf },
    #[error("a root key is given as file:/path/to/root.key")]
    UnknownUri,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum RootCheckError {
    #[error("the cluster was made with another root key")]
    OtherRootKey,
    #[error("the root key belongs to a cluster of another name")]
    OtherCluster,
}

/// `file:/path` is what there is so far.
pub fn provider_from_uri(uri: &str) -> Result<Box<dyn RootKeyProvider>, RootKeyError> {
    let path = uri.strip_prefix("file:").ok_or(RootKeyError::UnknownUri)?;
    let path = match path.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(_) => return Err(RootKeyError::UnknownUri),
        None => path,
    };
    if path.is_empty() {
        return Err(RootKeyError::UnknownUri);
    }
    Ok(Box::new(FileRootKey { path: PathBuf::from(path) }))
}

pub struct FileRootKey {
    pub path: PathBuf,
}

impl RootKeyProvider for FileRootKey {
    fn load(&self) -> Result<RootKey, RootKeyError> {
        let io = |source| RootKeyError::Io { path: self.path.clone(), source };
        let malformed = || RootKeyError::Malformed { path: self.path.clone() };
        let file = File::open(&self.path).map_err(io)?;
        // Of the open file, not of the path: nobody can exchange it in between.
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(malformed());
        }
        let mode = metadata.mode() & 0o7777;
        if mode & !0o600 != 0 {
            return Err(RootKeyError::Mode { path: self.path.clone(), mode });
        }
        let mut text = Zeroizing::new([0; FILE_LEN + 1]);
        let len = read_all(file, text.as_mut_slice()).map_err(io)?;
        let line = text[..len].strip_suffix(b"\n").unwrap_or(&text[..len]);
        let digits = line.strip_prefix(FILE_PREFIX).ok_or_else(malformed)?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        hex::decode_to_slice(digits, key.as_mut_slice()).map_err(|_| malformed())?;
        Ok(RootKey::new(Key::from_bytes(&key)))
    }
}

/// Unbuffered, so that no copy of the key stays behind in a buffer.
fn read_all(mut file: File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Makes a new key in a new file; an existing file is never touched.
pub fn create_root_key_file(path: &Path) -> Result<(), RootKeyError> {
    let io = |source| RootKeyError::Io { path: path.to_path_buf(), source };
    let key = Key::generate();
    let mut text = Zeroizing::new([b'\n'; FILE_LEN]);
    text[..FILE_PREFIX.len()].copy_from_slice(FILE_PREFIX);
    hex::encode_to_slice(key.expose(), &mut text[FILE_PREFIX.len()..FILE_LEN - 1])
        .expect("the line has room for the digits");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(text.as_slice()).and_then(|()| file.sync_all()).map_err(io)?;
    // The folder too: else the name may be gone after a crash, and with it every record sealed by then.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

pub struct RootKey {
    key: Key,
    id: KeyId,
    principals: Tokens,
}

impl RootKey {
    pub fn new(key: Key) -> Self {
        Self { id: key.id(), principals: Tokens::new(&key, "principal"), key }
    }

    pub fn wrap(&self, address: &Address, key: &Key) -> Sealed {
        wrap_key(&self.key, &self.id, address, key)
    }

    pub fn unwrap(&self, address: &Address, sealed: &[u8]) -> Result<Key, OpenError> {
        unwrap_key(&self.key, address, sealed)
    }

    /// For names, operators' grants and operators' page tokens.
    pub fn seal_bytes(&self, address: &Address, clear: &[u8]) -> Result<Sealed, SealError> {
        seal(&self.key, &self.id, address, clear, Compression::None)
    }

    pub fn open_bytes(&self, address: &Address, sealed: &[u8]) -> Result<Clear, OpenError> {
        open(&self.key, address, sealed)
    }

    /// Kept by the directory: tells a node with another root key before it does harm.
    pub fn root_check_seal(&self, cluster: &str) -> Sealed {
        self.seal_bytes(&Address::of(Kind::RootCheck), cluster.as_bytes())
            .expect("a cluster's name is within the size limit")
    }

    pub fn root_check_open(&self, cluster: &str, sealed: &[u8]) -> Result<(), RootCheckError> {
        let clear = self.open_bytes(&Address::of(Kind::RootCheck), sealed).map_err(|_| RootCheckError::OtherRootKey)?;
        if clear.expose() == cluster.as_bytes() { Ok(()) } else { Err(RootCheckError::OtherCluster) }
    }

    /// For what this node writes and whom it makes a member.
    pub fn author_key(&self, cluster: &str) -> Author {
        Author::new(&self.key, cluster)
    }

    /// Of an operator, who belongs to no tenant.
    pub fn principal_token(&self, principal: &str) -> Token {
        self.principals.token(&[principal.as_bytes()])
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(redacted)")
    }
}
