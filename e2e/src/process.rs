//! Processes of a cluster: started inside its control group and namespace, ended by pid.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::run::{TAIL_LINES, log_tail};
use crate::wait::wait_for;
use crate::{cgroup, underlay};

/// Time for a killed program to end.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// A program of a cluster that runs on the machine itself, in one of the cluster's network namespaces.
#[derive(Debug, Clone)]
pub struct Program {
    /// Name in messages, and of its log and pid files.
    pub name: String,
    /// Control group below the cluster's.
    pub group: String,
    /// The role whose network namespace it lives in; none for the machine's own.
    pub role: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A started program.
#[derive(Debug, Clone)]
pub struct Running {
    name: String,
    log: PathBuf,
    ended: Arc<OnceLock<ExitStatus>>,
}

impl Running {
    /// Fails if the program has ended. The message has its name and the end of its log.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn check(&self) -> Result<()> {
        match self.ended.get() {
            None => Ok(()),
            Some(status) => {
                bail!(
                    "{} ended ({status}); the end of {}:\n{}",
                    self.name,
                    self.log.display(),
                    log_tail(&self.log, 2 * TAIL_LINES)
                )
            }
        }
    }
}

/// Starts and stops the programs of a cluster, and knows their logs and pid files.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's state folder.
    pub dir: PathBuf,
    /// The `towpath-cluster` binary, which enters control group and namespaces and then executes the program.
    pub launcher: PathBuf,
}

impl Supervisor {
    /// The log of a program.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// The file with a program's pid.
    #[must_use]
    pub fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join("pid").join(name)
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When its log cannot be opened or it cannot be started.
    pub fn start(&self, program: &Program) -> Result<Running> {
        let log = self.log(&program.name);
        let out =
            File::options().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(&self.launcher);
        let group = format!("{}/{}", cgroup::cluster_group(&self.cluster), program.group);
        command.args(["launch", "--group", &group, "--pid-file"]).arg(self.pid_file(&program.name));
        if let Some(role) = &program.role {
            command.args(["--netns", &underlay::netns(&self.cluster, role)]);
        }
        command.arg("--").args(&program.command);
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn();
        let mut child = child.with_context(|| format!("start {}", program.name))?;
        let ended = Arc::new(OnceLock::new());
        let slot = Arc::clone(&ended);
        std::thread::spawn(move || {
            if let Ok(status) = child.wait() {
                // Set once: only this thread writes it.
                let _ = slot.set(status);
            }
        });
        Ok(Running { name: program.name.clone(), log, ended })
    }

    /// Kills a program by its pid with SIGKILL, as a crash would: nothing in a cluster may depend on an orderly
    /// shutdown.
    ///
    /// # Errors
    /// When it is still there after 10 s.
    pub fn stop(&self, name: &str) -> Result<()> {
        let file = self.pid_file(name);
        let Some(pid) = live_pid(&file)? else { return Ok(()) };
        // It may end by itself at this very moment.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        wait_for(&format!("the end of {name} (pid {pid})"), KILL_BOUND, || Ok(live_pid(&file)?.is_none().then_some(())))
    }
}

/// Joins a cluster's control group and namespace, writes the pid file, and executes the program in this process.
///
/// # Errors
/// When one of these steps fails; it does not return otherwise.
pub fn launch(group: &str, netns: Option<&str>, pid_file: &Path, command: &[String]) -> Result<()> {
    // A session of its own: Ctrl-C in the terminal ends the harness, not the cluster.
    setsid().context("start a session")?;
    cgroup::join(group)?;
    if let Some(name) = netns {
        enter_netns(name)?;
    }
    write_pid(pid_file, std::process::id())?;
    let (program, arguments) = command.split_first().context("no program given")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("start {program}"))
}

/// Moves this thread into a named network namespace.
///
/// # Errors
/// When there is none of that name.
pub fn enter_netns(name: &str) -> Result<()> {
    let path = underlay::netns_path(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))
}

/// Writes a pid and its start time, which tells the process from a later one with the same pid.
///
/// # Errors
/// When the process has ended or the file cannot be written.
pub fn write_pid(file: &Path, pid: u32) -> Result<()> {
    let started = start_time(pid).with_context(|| format!("process {pid} has ended"))?;
    let temporary = file.with_extension("new");
    fs::write(&temporary, format!("{pid} {started}\n")).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, file).with_context(|| format!("write {}", file.display()))
}

/// The pid in a file, if that process still runs.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn live_pid(file: &Path) -> Result<Option<i32>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let (pid, started) = text.trim().split_once(' ').with_context(|| format!("{} holds no pid", file.display()))?;
    let pid: u32 = pid.parse().with_context(|| format!("{} holds no pid", file.display()))?;
    Ok((start_time(pid).as_deref() == Some(started)).then_some(i32::try_from(pid)?))
}

/// Field 22 of `/proc/<pid>/stat`, ticks since boot; none for a process that has ended or is a zombie.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces, so count from its end: the state is the first field after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_pid_is_live_while_the_process_is_and_not_under_another_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("me");
        let me = std::process::id();
        write_pid(&file, me).unwrap();
        assert_eq!(live_pid(&file).unwrap(), Some(i32::try_from(me).unwrap()));
        fs::write(&file, format!("{me} 1\n")).unwrap();
        assert_eq!(live_pid(&file).unwrap(), None, "another process had this pid");
        assert_eq!(live_pid(&dir.path().join("none")).unwrap(), None, "never started");
    }
}
