//! CPU and memory of Towpath's processes in a cluster.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use towpath_e2e::wait::wait_for;

/// Milliseconds of a tick of `/proc/<pid>/stat`: fixed in the kernel's interface to programs.
const TICK_MILLIS: u64 = 10;

/// A process that uses no CPU for so long is idle. It is less than the time between two probes.
const QUIET: Duration = Duration::from_secs(1);

/// A process of ours.
pub(crate) struct Process {
    pid: u32,
    /// Its program's name.
    pub(crate) name: String,
}

/// What a process has used so far.
pub(crate) struct Usage {
    ticks: u64,
    /// Voluntary context switches of all threads.
    pub(crate) waits: u64,
    /// Page faults of reaped children. No program starts without some.
    pub(crate) child_faults: u64,
}

impl Usage {
    /// CPU time since an earlier reading.
    pub(crate) fn millis_since(&self, earlier: &Self) -> u64 {
        (self.ticks - earlier.ticks) * TICK_MILLIS
    }
}

/// The processes of Towpath in the control groups of a cluster, by name.
pub(crate) fn processes(cluster: &str) -> Result<Vec<Process>> {
    let group = format!("/towpath.{cluster}/");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let command = read("cmdline");
        let program = command.split('\0').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if ["towpath-agent", "towpath-operator"].contains(&program) && read("cgroup").contains(&group) {
            found.push(Process { pid, name: program.to_owned() });
        }
    }
    found.sort_by(|one, other| (&one.name, one.pid).cmp(&(&other.name, other.pid)));
    Ok(found)
}

impl Process {
    pub(crate) fn usage(&self) -> Result<Usage> {
        let stat = self.read("stat")?;
        // The name in parentheses may hold spaces, so count from its end, after which field 3 is the first.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).context("a stat has a name")?;
        let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or_default()).collect();
        let number = |field: usize| fields.get(field - 3).copied().with_context(|| self.gone());
        // User and system time; minor and major faults of children.
        let (ticks, child_faults) = (number(14)? + number(15)?, number(11)? + number(13)?);
        let mut waits = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid)).with_context(|| self.gone())? {
            let status = fs::read_to_string(task?.path().join("status")).with_context(|| self.gone())?;
            waits += field(&status, "voluntary_ctxt_switches").with_context(|| self.gone())?;
        }
        Ok(Usage { ticks, waits, child_faults })
    }

    /// Waits until it is idle.
    pub(crate) fn wait_quiet(&self) -> Result<()> {
        let (mut ticks, mut since) = (self.usage()?.ticks, Instant::now());
        wait_for(&format!("an idle {}", self.name), Duration::from_secs(120), || {
            let now = self.usage()?.ticks;
            if now != ticks {
                (ticks, since) = (now, Instant::now());
            }
            Ok((since.elapsed() >= QUIET).then_some(()))
        })
    }

    /// A size from `/proc/<pid>/status`, such as `VmRSS`.
    #[expect(clippy::cast_precision_loss, reason = "kibibytes of memory")]
    pub(crate) fn mebibytes(&self, name: &str) -> Result<f64> {
        let kibibytes = field(&self.read("status")?, name).with_context(|| self.gone())?;
        Ok(kibibytes as f64 / 1024.0)
    }

    fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).with_context(|| self.gone())
    }

    fn gone(&self) -> String {
        format!("{} with pid {} has ended", self.name, self.pid)
    }
}

/// The agent of a node.
pub(crate) fn agent(cluster: &str, node: &str) -> Result<Process> {
    let group = format!("/towpath.{cluster}/{node}/");
    let here = |process: &Process| {
        process.name == "towpath-agent" && process.read("cgroup").is_ok_and(|text| text.contains(&group))
    };
    processes(cluster)?.into_iter().find(here).with_context(|| format!("no agent runs on {node}"))
}

/// The number of a line `name: number …` of a status file.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}
