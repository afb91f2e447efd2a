//! From an event of the API server to the commit in the kernel, in a big cluster (`crowd.rs`): everything from nothing, a
//! restart, and single changes. `cargo bench -p towpath-agent --bench policy` prints medians, 99th percentiles and the
//! most, of all or of those whose name has the words that follow behind `--`; nothing here passes or fails. The table is
//! in a network namespace of its own, so it needs root.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod agent;
mod crowd;

use std::time::{Duration, Instant};

use agent::{Agent, Cost};
use crowd::{Crowd, LOCAL, PODS, POLICIES, address};
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

const WHOLE_RUNS: u32 = 5;
const RUNS: u32 = 200;
/// Of changes that concern every pod of the node.
const BIG_RUNS: u32 = 10;

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, or `unshare -Urn`");
    println!("{PODS} pods, {LOCAL} of them on this node, and {POLICIES} policies");
    let columns = ["to commit: p50 ms", "p99", "most", "kernel: p50", "p99", "writes"];
    println!("{:<66}{}", "", columns.map(|column| format!("{column:>19}")).concat());
    for crowd in [Crowd::Spread, Crowd::Stacked] {
        println!("{crowd:?}");
        measure(crowd);
    }
}

fn measure(crowd: Crowd) {
    let mut agent = Agent::start(crowd);
    started(&mut agent, crowd);
    report("from nothing: compiled and in the kernel", WHOLE_RUNS, |_| {
        agent.forget();
        started(&mut agent, crowd)
    });
    report("a restart with nothing changed", WHOLE_RUNS, |_| started(&mut agent, crowd));
    report("a policy of five pods or fewer, back and forth", RUNS, |n| {
        agent.feed(vec![crowd.flipped(if n.is_multiple_of(2) { "nobody" } else { "1" })])
    });
    report("a label of a pod elsewhere", RUNS, |n| agent.feed(vec![crowd.relabelled(PODS - 1, n)]));
    report("a label of a pod here", RUNS, |n| agent.feed(vec![crowd.relabelled(1, n)]));
    report("one of the thousand policies", if crowd == Crowd::Spread { RUNS } else { BIG_RUNS }, |n| {
        agent.feed(vec![crowd.changed(7, (n + 1) % 2)])
    });
    report("an object that says the same again", RUNS, |_| agent.feed(vec![crowd.relabelled(PODS - 2, PODS - 2)]));
    report("a packet that was dropped", RUNS, |_| agent.feed(vec![dropped()]));
}

/// A new agent receives everything; the time begins with the last of it.
fn started(agent: &mut Agent, crowd: Crowd) -> Cost {
    agent.restart();
    let mut everything = crowd.everything();
    let last = everything.pop().unwrap();
    agent.feed(everything);
    agent.feed(vec![last])
}

/// From a pod elsewhere to one that is here.
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
