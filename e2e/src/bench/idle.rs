//! Memory and CPU of agents and operators while nothing happens.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::process::{Process, Usage, processes};
use crate::report::Table;
use crate::setup::BenchCluster;

/// Length of the measurement.
const MINUTE: Duration = Duration::from_secs(60);

/// Reads the usage of every process of Towpath before and after an idle minute. `held` describes what they hold, for the
/// title; `aim` is the aim for memory.
pub(crate) fn measure(cluster: &BenchCluster, held: &str, aim: &str) -> Result<Table> {
    let processes = processes(cluster.name())?;
    ensure!(!processes.is_empty(), "no process of Towpath runs in cluster {}", cluster.name());
    let before: Vec<Usage> = processes.iter().map(Process::usage).collect::<Result<_>>()?;
    // Not a wait for something: this time is what is measured.
    thread::sleep(MINUTE);
    let mut table = Table::new(
        &format!("Idle for 60 s, {held}"),
        &[
            "process",
            "resident MiB",
            "anonymous MiB",
            "aim MiB",
            "CPU ms",
            "voluntary context switches",
            "page faults of children",
        ],
    );
    for (process, before) in processes.iter().zip(before) {
        let after = process.usage()?;
        table.row([
            process.name.clone(),
            format!("{:.1}", process.mebibytes("VmRSS")?),
            format!("{:.1}", process.mebibytes("RssAnon")?),
            aim.into(),
            after.millis_since(&before).to_string(),
            (after.waits - before.waits).to_string(),
            (after.child_faults - before.child_faults).to_string(),
        ]);
    }
    table.note(
        "Resident memory includes the program's file, which all processes on a node share. CPU is counted in ticks of 10 ms.",
    );
    table.note("A process that started another one and collected it has page faults of children: 0 means that none was started.");
    table.note("The kubelet's probes are included: readiness every 5 s and liveness every 20 s for each process.");
    Ok(table)
}
