//! Network namespaces: opened by path, entered by a thread that ends afterwards.
//!
//! A thread that ends is safer than one that switches back: whatever happens inside, no other code of the process runs
//! in the wrong namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        stat::fstat,
        statfs::{NSFS_MAGIC, fstatfs},
    },
};

/// A network namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace could not be opened.
    #[error("open the network namespace {}", path.display())]
    Open {
        /// The path of the namespace.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The file is not a namespace: it is left over from a mount that was removed.
    #[error("{} is not a network namespace: it was removed, or never created", path.display())]
    NotANamespace {
        /// The path of the namespace.
        path: PathBuf,
    },
    /// The namespace is the one in which we run: its configuration would change the host.
    #[error("{} is the host's own network namespace; a pod with hostNetwork needs no interface", path.display())]
    SameAsOurs {
        /// The path of the namespace.
        path: PathBuf,
    },
    /// The namespace could not be entered.
    #[error("enter the network namespace")]
    Enter {
        /// The error of the system call.
        source: io::Error,
    },
    /// No thread could be started to enter it.
    #[error("start a thread for the network namespace")]
    Thread {
        /// The error of the system call.
        source: io::Error,
    },
}

/// An open network namespace other than our own.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens a pod's network namespace, such as `/var/run/netns/cni-…` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    /// If nothing is at that path, the file is not a namespace, or it is the namespace in which we run.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace { path: path.to_owned() });
        }
        let ours = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        let identity = |file: &File| fstat(file).map(|s| (s.st_dev, s.st_ino)).map_err(|e| failed(e.into()));
        if identity(&file)? == identity(&ours)? {
            return Err(NetnsError::SameAsOurs { path: path.to_owned() });
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The path at which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a function inside, on a thread of its own.
    ///
    /// # Errors
    /// If the thread cannot be started or cannot enter.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        run_in(self.as_fd(), f)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs a function in the network namespace of a file descriptor, on a thread of its own.
///
/// # Errors
/// If the thread cannot be started or cannot enter.
///
/// # Panics
/// If the function panics.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let entered = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter { source: e.into() })?;
            Ok(f())
        };
        let thread =
            thread::Builder::new().spawn_scoped(scope, entered).map_err(|source| NetnsError::Thread { source })?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
