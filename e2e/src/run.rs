//! Runs other programs to their end. Errors show their output.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::progress::Progress;
use crate::site::Site;

/// Lines of a log that a failure shows.
pub const TAIL_LINES: usize = 20;
/// Time between two progress messages of a long build.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);

/// Runs `command` to its end and returns its output.
///
/// # Errors
/// When the program cannot be started, or ends with a failure: the message has the command and its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let out = raw_output(command)?;
    if !out.status.success() {
        let text = [out.stderr.as_slice(), out.stdout.as_slice()].map(String::from_utf8_lossy).join("");
        bail!("{} ended with {}:\n{}", words(command), out.status, tail(&text, TAIL_LINES));
    }
    String::from_utf8(out.stdout).with_context(|| format!("{} printed something that is not UTF-8", words(command)))
}

/// Runs `command` to its end and returns status and output.
///
/// # Errors
/// When the program cannot be started.
pub fn raw_output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("start {}", command.get_program().display()))
}

/// Runs a long `command` with its output in `log`, with a progress message every 15 seconds.
///
/// # Errors
/// When the program cannot be started or fails: the message shows the end of the log.
pub fn logged(command: &mut Command, what: &str, log: &Path, progress: &Progress) -> Result<()> {
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let start = Instant::now();
    let mut printed = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if printed.elapsed() >= PROGRESS_INTERVAL {
            printed = Instant::now();
            let last =
                std::fs::read_to_string(log).unwrap_or_default().lines().last().unwrap_or_default().trim().to_owned();
            progress.step(format!("  {what}: {} s, {last}", start.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("{what} failed ({status}); the end of {}:\n{}", log.display(), log_tail(log, TAIL_LINES));
    }
    Ok(())
}

/// `cargo metadata` of the workspace and its own packages.
///
/// # Errors
/// When cargo fails or prints no JSON.
pub fn cargo_metadata(site: &Site) -> Result<Value> {
    let mut command = Command::new("cargo");
    let text = output(command.current_dir(site.root()).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("cargo metadata printed no JSON")
}

/// The last lines of a log file, or the error that reading it gave.
#[must_use]
pub fn log_tail(log: &Path, lines: usize) -> String {
    match std::fs::read(log) {
        Ok(bytes) => tail(&String::from_utf8_lossy(&bytes), lines),
        Err(error) => format!("({}: {error})", log.display()),
    }
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.get(from..).unwrap_or_default().iter().map(|line| format!("  | {line}\n")).collect()
}

fn words(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_shows_its_command_and_output() {
        let error = output(Command::new("sh").args(["-c", "echo no such rope >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("no such rope") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_tail_keeps_only_the_last_lines() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let end = tail(&text, TAIL_LINES);
        assert_eq!(end.lines().count(), TAIL_LINES);
        assert!(end.ends_with("line 99\n"));
    }
}
