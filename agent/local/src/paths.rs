//! Where the files are, and how one is written and read whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The name of our CNI network: Canal's, because the addresses' folder is called after it.
pub const NETWORK_NAME: &str = "k8s-pod-network";

/// No file of ours comes near this size in bytes; a larger one is somebody else's.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The folders that agent and plugin share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    state: PathBuf,
    data: PathBuf,
}

impl Default for Paths {
    /// Those of a node: `/run/towpath` and `/var/lib/cni/networks`.
    fn default() -> Self {
        Self::new("/run/towpath", "/var/lib/cni/networks")
    }
}

impl Paths {
    /// `state` is emptied by a reboot, `data` is not; under `data` each network has a folder of its name.
    pub fn new(state: impl Into<PathBuf>, data: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), data: data.into() }
    }

    /// The folder that a reboot empties.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder of all networks' address folders.
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

    /// The folder of [`crate::EndpointFile`]s.
    #[must_use]
    pub fn endpoints(&self) -> PathBuf {
        self.state.join("endpoints")
    }

    /// The folder of a network's address files.
    #[must_use]
    pub fn addresses(&self, network: &str) -> PathBuf {
        self.data.join(network)
    }
}

/// A file of the node's local state that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Reading failed.
    #[error("read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Removing failed.
    #[error("remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what it should be.
    #[error("{} is damaged; remove it, and restart the pod or the agent that it belongs to", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Writes a value as JSON so that a reader sees the old content or the new one and never a part. Not synced to the
/// disk: what is written here means nothing after a reboot. Two writers of one file at once must be kept apart by
/// the caller.
pub(crate) fn write_whole(path: &Path, value: &impl serde::Serialize) -> Result<(), LocalError> {
    let failed = |source| LocalError::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
    let new = draft(path);
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

/// The value in a file, `None` without the file.
pub(crate) fn read_whole<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LocalError::Read { path: path.to_owned(), source }),
        Ok(_) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| LocalError::Damaged { path: path.to_owned(), source }),
    }
}

/// Removes a file; one that is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<(), LocalError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LocalError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// What a file is called while it is being written: hidden, and always the same, so that one left by a crash is
/// written over and does not pile up.
pub(crate) fn draft(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new"))
}
