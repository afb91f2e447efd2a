//! From `kubectl apply` of a NetworkConfig to `Ready=True`, with the image on the nodes and the operator running.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::Table;
use crate::sample::Sample;
use crate::setup::{BenchCluster, CONFIG, Setup};

const ROUNDS: usize = 5;

/// Applies and removes the NetworkConfig several times. At the end it is applied.
pub(crate) fn measure(setup: &Setup, cluster: &BenchCluster, installed: Duration) -> Result<Table> {
    let config = setup.site.root().join(CONFIG).display().to_string();
    let (mut ready, mut removed) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let start = Instant::now();
        cluster.kubectl(&["apply", "-f", &config])?;
        cluster
            .kubectl(&["wait", "--for=condition=Ready", "networkconfig/default", "--timeout=180s"])
            .with_context(|| format!("round {round}: the network is not Ready"))?;
        ready.push(start.elapsed());
        if round < ROUNDS {
            let start = Instant::now();
            let teardown = r#"{"spec":{"deletionPolicy":"Teardown"}}"#;
            cluster.kubectl(&["patch", "networkconfig", "default", "--type=merge", "-p", teardown])?;
            cluster.kubectl(&["delete", "networkconfig", "default", "--timeout=180s"])?;
            removed.push(start.elapsed());
        }
    }
    let nodes = cluster.nodes().len();
    let mut table =
        Table::new(&format!("Installation, {nodes} nodes"), &["what", "median s (min–max)", "aim s", "runs"]);
    let mut row = |what: &str, times: &[Duration], aim: &str| {
        let sample = Sample::new(times.iter().map(Duration::as_secs_f64));
        let spread = sample.map_or_else(|| "none".into(), |sample| sample.spread(1));
        table.row([what.into(), spread, aim.into(), times.len().to_string()]);
    };
    row("cluster up, no network yet", &[cluster.up], "");
    row("image loaded, operator rolled out", &[installed], "");
    row("kubectl apply of the NetworkConfig to Ready=True", &ready, "10");
    row("kubectl delete with Teardown to gone", &removed, "");
    Ok(table)
}
