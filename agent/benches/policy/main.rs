//! The time from a watch event to the commit in the kernel, in a large cluster (`cluster.rs`): the first
//! synchronisation, a restart, and single changes. `cargo bench -p towpath-agent --bench policy` prints median, 99th
//! percentile and maximum of all cases, or of those whose name contains the words after `--`; it has no pass or fail.
//! The table is in its own network namespace, so it needs root.

#![allow(clippy::unwrap_used, reason = "a failed step ends the bench")]

mod agent;
mod cluster;

use std::time::{Duration, Instant};

use agent::{Agent, Cost};
use cluster::{Cluster, LOCAL, PODS, POLICIES, address};
use nix::sched::{CloneFlags, unshare};
use towpath_core::{
    model::Protocol,
    policy::{ir::Direction, packet_log::Reason},
};
use towpath_node::{
    Input,
    denials::{PacketBatch, PacketRecord},
    explain::{PacketTuple, Payload},
};

const SYNC_RUNS: u32 = 5;
const RUNS: u32 = 200;
/// Runs of changes that affect every pod of the node.
const BIG_RUNS: u32 = 10;

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, or `unshare -Urn`");
    println!("{PODS} pods, {LOCAL} of them on this node, and {POLICIES} policies");
    let columns = ["to commit: p50 ms", "p99", "max", "kernel: p50", "p99", "writes"];
    println!("{:<66}{}", "", columns.map(|column| format!("{column:>19}")).concat());
    for cluster in [Cluster::Spread, Cluster::OneNamespace] {
        println!("{cluster:?}");
        measure(cluster);
    }
}

fn measure(cluster: Cluster) {
    let mut agent = Agent::start(cluster);
    sync(&mut agent, cluster);
    report("from nothing: compiled and committed", SYNC_RUNS, |_| {
        agent.delete_table();
        sync(&mut agent, cluster)
    });
    report("a restart with nothing changed", SYNC_RUNS, |_| sync(&mut agent, cluster));
    report("a policy of five pods or fewer, alternating", RUNS, |n| {
        agent.feed(vec![cluster.changed_peer(if n.is_multiple_of(2) { "none" } else { "1" })])
    });
    report("a label of a remote pod", RUNS, |n| agent.feed(vec![cluster.relabelled(PODS - 1, n)]));
    report("a label of a local pod", RUNS, |n| agent.feed(vec![cluster.relabelled(1, n)]));
    report("one of the thousand policies", if cluster == Cluster::Spread { RUNS } else { BIG_RUNS }, |n| {
        agent.feed(vec![cluster.changed_port(7, (n + 1) % 2)])
    });
    report("an unchanged object", RUNS, |_| agent.feed(vec![cluster.relabelled(PODS - 2, PODS - 2)]));
    report("a dropped packet", RUNS, |_| agent.feed(vec![dropped()]));
}

/// Restarts the agent and feeds the complete list. The time starts with its last event.
fn sync(agent: &mut Agent, cluster: Cluster) -> Cost {
    agent.restart();
    let mut inputs = cluster.list();
    let last = inputs.pop().unwrap();
    agent.feed(inputs);
    agent.feed(vec![last])
}

/// A dropped packet from a remote pod to a local one.
fn dropped() -> Input {
    let tuple =
        PacketTuple { source: address(PODS - 1), destination: address(0), payload: Payload::Port(Protocol::Udp, 9) };
    let packet = PacketRecord { reason: Reason::Denied, direction: Direction::Ingress, tuple };
    Input::Packets(PacketBatch { packets: vec![packet], lost: 0 })
}

fn report(what: &str, runs: u32, mut run: impl FnMut(u32) -> Cost) {
    if !std::env::args().skip(1).filter(|word| !word.starts_with("--")).all(|word| what.contains(&word)) {
        return;
    }
    let start = Instant::now();
    let costs: Vec<Cost> = (0..runs).map(&mut run).collect();
    let sorted = |of: fn(&Cost) -> Duration| {
        let mut times: Vec<f64> = costs.iter().map(|cost| of(cost).as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let at = |times: &[f64], percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let (all, kernel) = (sorted(|cost| cost.to_commit), sorted(|cost| cost.kernel));
    let figures = [at(&all, 50), at(&all, 99), at(&all, 100), at(&kernel, 50), at(&kernel, 99)];
    let writes: usize = costs.iter().map(|cost| cost.writes).sum();
    let figures = figures.map(|ms| format!("{ms:>19.3}")).concat();
    println!("  {:<64}{figures}{writes:>19}", format!("{what} ({runs} times in {} s)", start.elapsed().as_secs()));
}
