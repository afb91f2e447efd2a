//! Scenarios on the embedded cluster. They run one after the other in the order of [`SCENARIOS`]: on the shared cluster
//! without a network, then with one, which is removed at the end; then those that need a cluster of their own.
//!
//! `cargo test -p towpath-e2e --test scenarios -- NAME` runs those whose name contains NAME. Each begins with what the
//! harness gives it and cleans up after itself, so that it also runs alone. [`harness`] has two environment variables
//! for whoever writes one.

mod agent;
mod basics;
mod cluster;
mod connections;
mod denials;
mod drift;
mod families;
mod firewall;
mod flood;
mod harness;
mod install;
mod kernel;
mod lifecycle;
mod nodes;
mod operator;
mod outside;
mod pods;
mod policy;
mod removal;
mod restarts;
mod services;
mod status;
mod traffic;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use harness::{Harness, Scenario};

/// Every scenario, in the order in which they run.
const SCENARIOS: &[&[Scenario]] = &[
    cluster::FRESH,
    install::SCENARIOS,
    basics::SCENARIOS,
    policy::SCENARIOS,
    lifecycle::SCENARIOS,
    connections::SCENARIOS,
    services::SCENARIOS,
    restarts::SCENARIOS,
    agent::SCENARIOS,
    denials::SCENARIOS,
    drift::SCENARIOS,
    firewall::SCENARIOS,
    nodes::SCENARIOS,
    agent::AWAY,
    nodes::POD_CIDRS,
    operator::SCENARIOS,
    removal::SCENARIOS,
    cluster::SEPARATE,
    families::SCENARIOS,
    removal::LAST,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share a cluster, and the machine may have two processors only.
    arguments.test_threads = Some(1);
    let harness = Arc::new(Harness::new(Path::new(env!("CARGO_BIN_EXE_towpath-cluster"))));
    let trials = SCENARIOS
        .iter()
        .copied()
        .flatten()
        .map(|scenario| {
            let harness = Arc::clone(&harness);
            Trial::test(scenario.name, move || harness.run(scenario))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let cleaned = harness.close(conclusion.has_failed());
    if let Err(error) = &cleaned {
        eprintln!("error: {error:#}");
    }
    if conclusion.has_failed() || cleaned.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
