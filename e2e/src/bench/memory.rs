//! Memory of an agent that knows a large cluster.

use anyhow::Result;

use crate::background::{Background, PODS, POLICIES};
use crate::metrics;
use crate::process;
use crate::report::Table;

/// Looks at the agents of a cluster with the whole background.
pub(crate) fn measure(background: &mut Background<'_>) -> Result<Table> {
    background.complete()?;
    let header = ["node", "local pods", "resident MiB", "of it its own MiB", "the most there ever was MiB", "aim MiB"];
    let mut table = Table::new(&format!("Memory of an agent, {PODS} pods and {POLICIES} policies known"), &header);
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
