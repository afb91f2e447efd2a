//! Scenarios on the embedded cluster. They run one after the other in the order of [`SCENARIOS`]: those that need no
//! network first, on clusters of their own or on the shared one while it is fresh.
//!
//! `cargo test -p towpath-e2e --test scenarios -- NAME` runs those whose name contains NAME.

mod cluster;
mod frame;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use frame::{Frame, Scenario};

/// Every scenario, in the order in which they run.
const SCENARIOS: &[&[Scenario]] = &[cluster::SCENARIOS];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share a cluster, and two processors are all that the machine may have.
    arguments.test_threads = Some(1);
    let frame = Arc::new(Frame::new(Path::new(env!("CARGO_BIN_EXE_towpath-cluster"))));
    let trials = SCENARIOS
        .iter()
        .copied()
        .flatten()
        .map(|scenario| {
            let frame = Arc::clone(&frame);
            Trial::test(scenario.name, move || frame.play(scenario))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let cleaned = frame.close(conclusion.has_failed());
    if let Err(error) = &cleaned {
        eprintln!("error: {error:#}");
    }
    if conclusion.has_failed() || cleaned.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
