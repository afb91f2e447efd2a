//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use towpath_core::model::NodeName;
use towpath_crds::names;

/// The node agent of Towpath.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// Name of the Node that this agent serves.
    #[arg(long, env = "NODE_NAME", value_parser = |name: &str| Ok::<_, String>(NodeName(name.to_owned())))]
    pub node: NodeName,
    /// The configuration that the operator rendered.
    #[arg(long, default_value = names::AGENT_CONFIG_PATH)]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Command {
    /// Keep the node's network and policies in shape until told to stop; leave everything in place then.
    Run,
    /// Remove everything of ours from the node, then wait to be stopped.
    Teardown,
}
