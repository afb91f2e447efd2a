//! What agents and operators take while nothing happens.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ground::Standing;
use crate::report::Table;

/// How long is measured.
const MINUTE: Duration = Duration::from_secs(60);
/// Ticks of `/proc/<pid>/stat` in a second: fixed in the kernel's interface to programs.
const TICKS: f64 = 100.0;

/// A process of ours.
struct Process {
    pid: u32,
    name: String,
}

/// What a process had used up to a moment.
struct Usage {
    cpu_seconds: f64,
    /// Of all threads: how often they waited for something.
    waits: u64,
}

/// Looks at every process of Towpath in a cluster before and after a minute of nothing.
pub(crate) fn measure(cluster: &Standing) -> Result<Table> {
    let processes = processes(cluster.name())?;
    ensure!(!processes.is_empty(), "no process of Towpath runs in cluster {}", cluster.name());
    let before: Vec<Usage> = processes.iter().map(Process::usage).collect::<Result<_>>()?;
    // Not a wait for something: this time is what is measured.
    thread::sleep(MINUTE);
    let mut table = Table::new(
        "Idle for 60 s, three nodes",
        &["process", "resident MiB", "of it its own MiB", "aim MiB", "CPU ms", "waits per minute"],
    );
    for (process, before) in processes.iter().zip(before) {
        let after = process.usage()?;
        table.row([
            process.name.clone(),
            format!("{:.1}", process.mebibytes("VmRSS")?),
            format!("{:.1}", process.mebibytes("RssAnon")?),
            "< 25".into(),
            format!("{:.0}", (after.cpu_seconds - before.cpu_seconds) * 1e3),
            (after.waits - before.waits).to_string(),
        ]);
    }
    table.note(
        "Resident memory holds the program's file, which all processes on a node share. CPU is counted in 10 ms.",
    );
    table.note("Kubelet's probes are part of it: readiness every 5 s and liveness every 20 s for each process.");
    Ok(table)
}

/// The processes of Towpath in the control groups of a cluster, by name.
fn processes(cluster: &str) -> Result<Vec<Process>> {
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
    fn usage(&self) -> Result<Usage> {
        let stat = self.read("stat")?;
        // The name in parentheses may hold spaces, so count from its end: user and system time are fields 14 and 15.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).context("a stat has a name")?;
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let mut waits = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid)).with_context(|| self.gone())? {
            let status = fs::read_to_string(task?.path().join("status")).with_context(|| self.gone())?;
            waits += field(&status, "voluntary_ctxt_switches").with_context(|| self.gone())?;
        }
        Ok(Usage { cpu_seconds: ticks / TICKS, waits })
    }

    #[expect(clippy::cast_precision_loss, reason = "kibibytes of memory")]
    fn mebibytes(&self, name: &str) -> Result<f64> {
        let kibibytes = field(&self.read("status")?, name).with_context(|| self.gone())?;
        Ok(kibibytes as f64 / 1024.0)
    }

    fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).with_context(|| self.gone())
    }

    fn gone(&self) -> String {
        format!("{} with pid {} ended in between", self.name, self.pid)
    }
}

/// The number of a line `name: number …` of a status file.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}
