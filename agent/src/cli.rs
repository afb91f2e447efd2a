//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use towpath_core::model::NodeName;
use towpath_crds::names;

use crate::ruleset::RulesetFormat;

/// The node agent of Towpath.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// Name of the Node that the agent runs on; `ruleset` needs none.
    #[arg(long, env = "NODE_NAME", value_parser = |name: &str| Ok::<_, String>(NodeName(name.to_owned())))]
    pub node: Option<NodeName>,
    /// The configuration file that the operator rendered; `ruleset` needs none.
    #[arg(long, default_value = names::AGENT_CONFIG_PATH)]
    pub config: PathBuf,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Command {
    /// Run the node's network and policies until SIGTERM, and leave everything in place.
    Run,
    /// Remove everything of ours from the node, then wait for SIGTERM.
    Teardown,
    /// Print the nftables table inet towpath of this node as the kernel has it.
    Ruleset {
        /// The format: a script for nft -f, or the schema of nft -j.
        #[arg(short, long, value_enum, default_value = "text")]
        output: RulesetFormat,
    },
}
