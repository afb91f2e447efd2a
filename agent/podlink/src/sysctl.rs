//! Network sysctls below a root: `/proc/sys/net` on the host, or the path at which an unprivileged container has the
//! host's mounted, because its own is read-only. Both follow the network namespace of the process that opens a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A sysctl could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// A sysctl could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The path of its file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// A sysctl could not be written.
    #[error("write {value} to {}; in a container the host's /proc/sys/net must be mounted writable", path.display())]
    Write {
        /// The path of its file.
        path: PathBuf,
        /// The wanted value.
        value: i32,
        /// The error of the system call.
        source: io::Error,
    },
    /// The content is not a number.
    #[error("{} holds {text:?} and not a number", path.display())]
    NotANumber {
        /// The path of its file.
        path: PathBuf,
        /// The content.
        text: String,
    },
}

/// The network sysctls below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    /// The kernel's own directory.
    fn default() -> Self {
        Self::below("/proc/sys/net")
    }
}

impl Sysctls {
    /// The sysctls below a root that stands for `/proc/sys/net`.
    #[must_use]
    pub fn below(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned() }
    }

    /// Reads a sysctl, such as `ipv4/conf/eth0/rp_filter`.
    ///
    /// # Errors
    /// If it does not exist or is not a number.
    pub fn read(&self, key: &str) -> Result<i32, SysctlError> {
        let path = self.root.join(key);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| SysctlError::NotANumber { path, text }),
            Err(source) => Err(SysctlError::Read { path, source }),
        }
    }

    /// Writes a sysctl.
    ///
    /// # Errors
    /// If it does not exist or cannot be written.
    pub fn write(&self, key: &str, value: i32) -> Result<(), SysctlError> {
        let path = self.root.join(key);
        fs::write(&path, value.to_string()).map_err(|source| SysctlError::Write { path, value, source })
    }

    /// Writes a sysctl unless it has the value already: a write makes the kernel work again (forwarding walks all
    /// interfaces) and may not be permitted where the value was set beforehand.
    ///
    /// # Errors
    /// If it has another value and cannot be written.
    pub fn ensure(&self, key: &str, value: i32) -> Result<(), SysctlError> {
        if self.read(key).is_ok_and(|now| now == value) { Ok(()) } else { self.write(key, value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Sysctls) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ipv4")).unwrap();
        fs::write(dir.path().join("ipv4/ip_forward"), "1\n").unwrap();
        fs::write(dir.path().join("ipv4/odd"), "4096\t131072").unwrap();
        let sysctls = Sysctls::below(dir.path());
        (dir, sysctls)
    }

    #[test]
    fn a_sysctl_is_read_and_written_below_its_root() {
        let (_dir, sysctls) = root();
        assert_eq!(sysctls.read("ipv4/ip_forward").unwrap(), 1);
        sysctls.write("ipv4/ip_forward", 0).unwrap();
        assert_eq!(sysctls.read("ipv4/ip_forward").unwrap(), 0);
    }

    #[test]
    fn one_that_is_right_already_is_not_written() {
        let (dir, sysctls) = root();
        sysctls.ensure("ipv4/ip_forward", 1).unwrap();
        let text = || fs::read_to_string(dir.path().join("ipv4/ip_forward")).unwrap();
        assert_eq!(text(), "1\n", "as it was, with its line end");
        sysctls.ensure("ipv4/ip_forward", 2).unwrap();
        assert_eq!(text(), "2");
    }

    #[test]
    fn an_error_names_the_file() {
        let (dir, sysctls) = root();
        let error = sysctls.ensure("ipv4/none/x", 3).unwrap_err().to_string();
        assert!(error.contains("write 3 to ") && error.contains("ipv4/none/x"), "{error}");
        let error = sysctls.read("ipv4/odd").unwrap_err();
        assert!(matches!(error, SysctlError::NotANumber { .. }), "{error}");
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    }
}
