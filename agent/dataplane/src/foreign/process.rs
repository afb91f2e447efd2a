//! Runs nft: bounded in time, killed when it is given up, its words in the error.

use std::{
    io::{self, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// The program, found on the path.
const PROGRAM: &str = "nft";

/// What it may print, in bytes: more than the largest table that is read.
const MAX_OUTPUT: u64 = 64 << 20;

/// How many characters of its error text are kept.
const MAX_STDERR: usize = 512;

/// Between two looks at a program that has closed its output and not ended yet.
const PAUSE: Duration = Duration::from_millis(1);

/// A run of nft that gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program is not installed.
    #[error("nft is not installed")]
    Missing,
    /// It could not be started, or its output not be read.
    #[error("run {command:?}")]
    Run {
        /// The command.
        command: String,
        /// Error of starting it or of reading its output.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{command:?} failed ({status}): {stderr}")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// What it said, shortened.
        stderr: String,
    },
    /// It did not end in time and was killed.
    #[error("{command:?} did not end within its time")]
    TimedOut {
        /// The command.
        command: String,
    },
}

/// A process that does not outlive its owner.
struct RunningProgram(Child);

impl Drop for RunningProgram {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The command as somebody at the keyboard would type it.
pub(super) fn command_line(arguments: &[&str]) -> String {
    format!("{PROGRAM} {}", arguments.join(" "))
}

/// Runs nft in the calling thread's network namespace and gives what it printed.
pub(super) fn nft(arguments: &[&str], until: Instant) -> Result<Vec<u8>, ProgramError> {
    run(PROGRAM, arguments, until)
}

fn run(program: &str, arguments: &[&str], until: Instant) -> Result<Vec<u8>, ProgramError> {
    let failed = |source| ProgramError::Run { command: command_line(arguments), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing,
        _ => failed(error),
    })?;
    let mut running = RunningProgram(child);
    let (stdout, stderr) = (running.0.stdout.take(), running.0.stderr.take());
    // Both at once: a full pipe would stop the program.
    let (stdout, stderr) = (read_aside(stdout).map_err(failed)?, read_aside(stderr).map_err(failed)?);
    let wait = |output: PipeContent| output.recv_timeout(until.saturating_duration_since(Instant::now()));
    let timed_out = || ProgramError::TimedOut { command: command_line(arguments) };
    let ended = |error| match error {
        RecvTimeoutError::Timeout => timed_out(),
        RecvTimeoutError::Disconnected => failed(io::ErrorKind::BrokenPipe.into()),
    };
    let stdout = wait(stdout).map_err(ended)?.map_err(failed)?;
    let stderr = wait(stderr).map_err(ended)?.map_err(failed)?;
    let status = loop {
        match running.0.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() > until => return Err(timed_out()),
            None => thread::sleep(PAUSE),
        }
    };
    if status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&stderr).trim().chars().take(MAX_STDERR).collect();
    Err(ProgramError::Failed { command: command_line(arguments), status, stderr })
}

type PipeContent = std::sync::mpsc::Receiver<io::Result<Vec<u8>>>;

/// Reads a pipe to its end in a thread of its own, which ends with the program.
fn read_aside(pipe: Option<impl Read + Send + 'static>) -> io::Result<PipeContent> {
    let (to, output) = channel();
    let read = move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |pipe| pipe.take(MAX_OUTPUT).read_to_end(&mut bytes));
        // Nobody waits any more when the time is over.
        drop(to.send(read.map(|_| bytes)));
    };
    thread::Builder::new().name("nft-output".to_owned()).spawn(read)?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<Vec<u8>, ProgramError> {
        run("/bin/sh", &["-c", script], Instant::now() + limit)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_a_program_prints_is_read_whole_and_what_it_complains_of_is_told() {
        let long = sh("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2", LONG).unwrap();
        assert_eq!(long.len(), 300_000);
        let error = sh("echo half; echo 'Error: no such table' >&2; exit 3", LONG).unwrap_err().to_string();
        assert!(error.ends_with("failed (exit status: 3): Error: no such table"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_one_that_is_not_there_is_missing() {
        let start = Instant::now();
        let pid = tempfile::NamedTempFile::new().unwrap();
        let script = format!("echo $$ > {}; exec sleep 60", pid.path().display());
        let error = sh(&script, Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
        assert!(start.elapsed() < LONG);
        let pid = std::fs::read_to_string(pid.path()).unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "it is gone");
        assert!(matches!(run("no-such-program", &[], start), Err(ProgramError::Missing)));
    }
}
