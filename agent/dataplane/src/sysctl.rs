//! Network sysctls below a root: `/proc/sys/net` on the host, and where the host's is mounted in a container that is not
//! privileged, because its own is read-only. Either follows the network namespace of whoever opens a file in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What went wrong with a sysctl.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// It could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be written.
    #[error("write {value} to {}; in a container the host's /proc/sys/net must be mounted writable", path.display())]
    Write {
        /// Its file.
        path: PathBuf,
        /// What was to be written.
        value: i32,
        /// Why.
        source: io::Error,
    },
    /// It holds something else than a number.
    #[error("{} holds {text:?} and not a number", path.display())]
    NotANumber {
        /// Its file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

/// The network sysctls below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    /// The kernel's own place.
    fn default() -> Self {
        Self::below("/proc/sys/net")
    }
}

impl Sysctls {
    /// Those below a root that stands for `/proc/sys/net`.
    #[must_use]
    pub fn below(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned() }
    }

    /// Reads one, such as `ipv4/conf/eth0/rp_filter`.
    ///
    /// # Errors
    /// If it is not there or no number.
    pub fn read(&self, key: &str) -> Result<i32, SysctlError> {
        let path = self.root.join(key);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| SysctlError::NotANumber { path, text }),
            Err(source) => Err(SysctlError::Read { path, source }),
        }
    }

    /// Writes one.
    ///
    /// # Errors
    /// If it is not there or cannot be written.
    pub fn write(&self, key: &str, value: i32) -> Result<(), SysctlError> {
        let path = self.root.join(key);
        fs::write(&path, value.to_string()).map_err(|source| SysctlError::Write { path, value, source })
    }

    /// Writes one unless it has the value already: a write restarts work in the kernel (forwarding walks all interfaces)
    /// and may not be allowed where the right value was set beforehand.
    ///
    /// # Errors
    /// If it has another value and cannot be written.
    pub fn ensure(&self, key: &str, value: i32) -> Result<(), SysctlError> {
        if self.read(key).is_ok_and(|now| now == value) { Ok(()) } else { self.write(key, value) }
    }
}
