//! The real table: an `nft` process per call, in the network namespace of the calling thread.
//!
//! Guarantees: no call outlasts its bound; a process that does is killed and reaped; what `nft` prints on its error
//! output is in the error. The script goes in as a file in memory and errors come out the same way, so there is no pipe
//! that could fill up, and no shell that could misread.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use towpath_core::{
    names::TABLE,
    ruleset::{Installed, Transaction},
};

use super::{Nft, NftError, TableChange, events::GenerationSocket, listing, own::OwnChanges};

/// The longest that one `nft` may take. A table of 8,000 sets, far beyond ours, loads in 3.3 s.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How much of what `nft` prints is kept: it repeats the line that it refuses, and lines of elements are long.
const MAX_STDERR: u64 = 2048;

/// Our table, through the `nft` program on `PATH`.
#[derive(Debug)]
pub struct NftCommand {
    program: PathBuf,
    timeout: Duration,
    generations: GenerationSocket,
    own: OwnChanges,
}

/// How a process ended.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl NftCommand {
    /// For the network namespace of the calling thread; all later calls must come from a thread of the same namespace.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or does not let us near it.
    pub fn open() -> Result<Self, NftError> {
        Ok(Self {
            program: PathBuf::from("nft"),
            timeout: TIMEOUT,
            generations: GenerationSocket::open()?,
            own: OwnChanges::default(),
        })
    }

    fn run(&self, args: &[&str], script: &str) -> Result<Ended, NftError> {
        let mut stdin = in_memory()?;
        stdin.write_all(script.as_bytes()).and_then(|()| stdin.rewind()).map_err(NftError::Exchange)?;
        let mut stderr = in_memory()?;
        let (mut ours, theirs) = UnixStream::pair().map_err(NftError::Exchange)?;
        let mut child = Command::new(&self.program)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(stdin)
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::from(stderr.try_clone().map_err(NftError::Exchange)?))
            .spawn()
            .map_err(|source| NftError::Start { program: self.program.display().to_string(), source })?;
        let stdout = self.read_to_end(&mut ours);
        if stdout.is_err() {
            // A process that has ended already cannot be killed, and that is as well.
            let _ = child.kill();
        }
        let status = reap(&mut child)?;
        let stdout = stdout?;
        let mut text = Vec::new();
        let read = stderr.rewind().and_then(|()| stderr.take(MAX_STDERR).read_to_end(&mut text));
        read.map_err(NftError::Exchange)?;
        Ok(Ended { status, stdout, stderr: String::from_utf8_lossy(&text).trim().to_owned() })
    }

    /// Reads until the process ends, which closes its end, or until its time is over.
    fn read_to_end(&self, from: &mut UnixStream) -> Result<Vec<u8>, NftError> {
        let end = Instant::now() + self.timeout;
        let mut all = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // A timeout of zero would mean none.
            from.set_read_timeout(Some(left.max(Duration::from_millis(1)))).map_err(NftError::Exchange)?;
            match from.read(&mut chunk) {
                Ok(0) => return Ok(all),
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NftError::Timeout { seconds: self.timeout.as_secs() });
                }
                Err(e) => return Err(NftError::Exchange(e)),
            }
        }
    }
}

impl Nft for NftCommand {
    fn read_back(&mut self) -> Result<Option<Installed>, NftError> {
        let ended = self.run(&["--numeric", "--json", "list", "table", "inet", TABLE], "")?;
        if ended.status.success() {
            return listing::parse(&ended.stdout).map(Some).map_err(NftError::Listing);
        }
        // ENOENT in the words of the C library: there is no other way to tell a missing table.
        if ended.stderr.contains("No such file or directory") {
            return Ok(None);
        }
        Err(NftError::Refused { stderr: ended.stderr })
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let before = self.generations.current()?;
        let ended = self.run(&["--file", "-"], &transaction.to_string())?;
        if !ended.status.success() {
            return Err(NftError::Refused { stderr: ended.stderr });
        }
        self.own.applied(before, self.generations.current()?);
        Ok(())
    }

    fn is_own(&mut self, change: &TableChange) -> bool {
        match change {
            TableChange::Changed { generation, .. } => self.own.take(*generation),
            TableChange::Overrun => false,
        }
    }
}

fn in_memory() -> Result<File, NftError> {
    let file = memfd_create("towpath-nft", MFdFlags::MFD_CLOEXEC);
    file.map(File::from).map_err(|e| NftError::Exchange(e.into()))
}

fn reap(child: &mut Child) -> Result<ExitStatus, NftError> {
    child.wait().map_err(NftError::Exchange)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in the place of `nft`: `run(&["-c", …])`.
    fn shell() -> NftCommand {
        NftCommand { program: PathBuf::from("sh"), ..NftCommand::open().unwrap() }
    }

    #[test]
    fn a_process_that_hangs_is_killed_and_named() {
        let nft = NftCommand { timeout: Duration::from_millis(50), ..shell() };
        let begin = Instant::now();
        assert!(matches!(nft.run(&["-c", "exec sleep 60"], ""), Err(NftError::Timeout { .. })));
        assert!(begin.elapsed() < Duration::from_secs(30), "did not wait for its end");
    }

    #[test]
    fn what_it_says_is_kept_and_not_endless() {
        let script = "echo 'Error: Could not process rule' >&2; yes | head -c 100000 >&2; exit 1";
        let ended = shell().run(&["-c", script], "").unwrap();
        assert!(!ended.status.success());
        assert!(ended.stderr.starts_with("Error: Could not process rule"), "{}", ended.stderr);
        assert!(ended.stderr.len() <= 2048, "{}", ended.stderr.len());
    }

    #[test]
    fn a_long_script_and_a_long_answer_do_not_wait_for_each_other() {
        let script = "yes answer | head -c 1000000; wc -c >&2";
        let ended = shell().run(&["-c", script], &"script\n".repeat(100_000)).unwrap();
        assert_eq!((ended.stdout.len(), ended.stderr.as_str()), (1_000_000, "700000"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut nft = NftCommand { program: PathBuf::from("/nonexistent/nft"), ..shell() };
        let error = nft.read_back().unwrap_err();
        assert!(error.to_string().contains("/nonexistent/nft"), "{error}");
    }
}
