//! `towpath-agent`: keeps one node's overlay, policies and CNI configuration as the cluster wants them.

use clap::Parser;
use towpath_agent::{cli::Cli, run};

fn main() -> anyhow::Result<()> {
    run::run(Cli::parse())
}
