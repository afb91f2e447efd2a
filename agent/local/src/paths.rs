//! The paths of the node's local state, and atomic reads and writes of its files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The name of our CNI network: Canal's, because the address directory is named after it.
pub const NETWORK_NAME: &str = "k8s-pod-network";

/// The limit of a file in bytes. None of ours comes near it; a larger one is somebody else's.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The directories that agent and plugin share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    state: PathBuf,
    data: PathBuf,
}

impl Default for Paths {
    /// The directories of a node: `/run/towpath` and `/var/lib/cni/networks`.
    fn default() -> Self {
        Self::new("/run/towpath", "/var/lib/cni/networks")
    }
}

impl Paths {
    /// `state` is emptied by a reboot, `data` is not; below `data` each network has a directory of its name.
    pub fn new(state: impl Into<PathBuf>, data: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), data: data.into() }
    }

    /// The directory that a reboot empties.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of all networks' address directories.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The file of [`crate::NodeState`].
    #[must_use]
    pub fn node_file(&self) -> PathBuf {
        self.state.join("node.json")
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state.join("agent.sock")
    }

    /// The directory of [`crate::EndpointFile`]s.
    #[must_use]
    pub fn endpoints(&self) -> PathBuf {
        self.state.join("endpoints")
    }

    /// The directory of a network's address files.
    #[must_use]
    pub fn addresses(&self, network: &str) -> PathBuf {
        self.data.join(network)
    }
}

/// A file of the node's local state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// A file could not be removed.
    #[error("remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The content is invalid.
    #[error("{} is damaged; remove it, and restart the pod or the agent that it belongs to", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The decoding error.
        source: serde_json::Error,
    },
}

/// Writes a value as JSON atomically: a reader sees the old content or the new one. Not synced to the disk: these files
/// mean nothing after a reboot. The caller keeps two writers of one file apart.
pub(crate) fn write_atomically(path: &Path, value: &impl serde::Serialize) -> Result<(), LocalError> {
    let failed = |source| LocalError::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
    let new = temporary(path);
    let write = |file: &mut File| file.write_all(&text);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| write(&mut file))
        .and_then(|()| fs::rename(&new, path))
        .map_err(failed)
}

/// Reads the value in a file; `None` without the file.
pub(crate) fn read_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LocalError::Read { path: path.to_owned(), source }),
        Ok(_) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| LocalError::Damaged { path: path.to_owned(), source }),
    }
}

/// Removes a file. A missing one is no error.
pub(crate) fn remove(path: &Path) -> Result<(), LocalError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LocalError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The path of a file while it is written: hidden, and always the same, so that the next write replaces what a crash left.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new"))
}
