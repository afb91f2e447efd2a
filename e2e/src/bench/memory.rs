//! Memory of an agent that knows a large cluster.

use anyhow::Result;

use crate::background::{Background, PODS, POLICIES};
use crate::metrics;
use crate::process;
use crate::report::Table;

/// Reads the memory of the agents of a cluster with all background objects.
pub(crate) fn measure(background: &mut Background<'_>) -> Result<Table> {
    background.complete()?;
    let header = ["node", "local pods", "resident MiB", "anonymous MiB", "peak MiB", "aim MiB"];
    let mut table = Table::new(&format!("Memory of an agent with {PODS} pods and {POLICIES} policies"), &header);
    for node in background.cluster.nodes() {
        let agent = process::agent(background.cluster.name(), &node.name())?;
        agent.wait_quiet()?;
        table.row([
            node.name(),
            format!("{:.0}", metrics::value(&node, "towpath_agent_endpoints")?),
            format!("{:.1}", agent.mebibytes("VmRSS")?),
            format!("{:.1}", agent.mebibytes("RssAnon")?),
            format!("{:.1}", agent.mebibytes("VmHWM")?),
            "≤ 60".into(),
        ]);
    }
    table.note("The policies are about the local pods of n1 and name ten pods each.");
    Ok(table)
}
