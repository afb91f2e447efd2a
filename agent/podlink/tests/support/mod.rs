//! Throw-away network namespaces and commands in them, for the kernel tests of all crates.
//!
//! A namespace has no name and lives as long as its open file, so that nothing is left behind, however a test ends.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::{self, Command},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use towpath_podlink::netns::run_in;

/// Moves the calling thread into a network namespace of its own.
pub(crate) fn enter_new_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root, or `unshare -Urn`");
}

/// A throw-away network namespace.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one, with nothing in it but a loopback interface that is down.
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            enter_new_namespace();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { file: made.join().unwrap() }
    }

    /// The calling thread's.
    pub(crate) fn current() -> Self {
        Self { file: File::open("/proc/thread-self/ns/net").unwrap() }
    }

    /// A path by which any process can open it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs a function in it.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        run_in(self.file.as_fd(), f).unwrap()
    }

    /// Runs a command in it that must succeed, and gives its output.
    pub(crate) fn sh(&self, command: &str) -> String {
        self.run(|| sh(command))
    }

    /// Runs a command in it that may fail.
    pub(crate) fn try_sh(&self, command: &str) -> Result<String, String> {
        self.run(|| try_sh(command))
    }
}

/// Runs a command in the calling thread's namespace that must succeed, and gives its output.
pub(crate) fn sh(command: &str) -> String {
    try_sh(command).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a command in the calling thread's namespace that may fail.
pub(crate) fn try_sh(command: &str) -> Result<String, String> {
    let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{command}: {}{}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}
