//! Throw-away network namespaces. One has no name and lives as long as its open file, so nothing is left behind,
//! however a test ends.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    process::{self, Command},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use towpath_dataplane::netns::run_in;

/// A throw-away network namespace.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one, with nothing in it but a loopback interface that is down.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root, or `unshare -Urn`");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { file: made.join().unwrap() }
    }

    /// A path by which any process can open it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// Runs a function in it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        run_in(self.file.as_fd(), f).unwrap()
    }

    /// Runs a command in it that must succeed, and gives its output.
    pub fn sh(&self, command: &str) -> String {
        self.try_sh(command).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a command in it that may fail.
    pub fn try_sh(&self, command: &str) -> Result<String, String> {
        let output = self.run(|| Command::new("sh").arg("-ec").arg(command).output().unwrap());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{command}: {}{}{}", output.status, text(&output.stdout), text(&output.stderr)))
        }
    }
}
