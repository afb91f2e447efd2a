//! The command that prints our table as the kernel has it. It only reads, beside a running agent.

use std::io::{self, Write};

use anyhow::Context;
use clap::ValueEnum;
use towpath_core::ruleset::Transaction;
use towpath_dataplane::{
    export,
    nft::{KernelNft, Ownership},
};

/// How the table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RulesetFormat {
    /// A script for `nft -f`.
    Text,
    /// The schema of `nft -j`, as `nft -j -f` takes it.
    Json,
}

/// Prints the table of this network namespace.
///
/// # Errors
/// If there is no table, it cannot be read, or it holds what this version of the agent did not write.
pub fn print(format: RulesetFormat) -> anyhow::Result<()> {
    let mut nft = KernelNft::open_as(Ownership::Shared).context("open nf_tables")?;
    let listing = nft.list().context("list our table")?;
    let listing =
        listing.context("there is no table inet towpath here: the agent of this node has not written it yet")?;
    let text = match format {
        RulesetFormat::Text => Transaction::create(&listing.ruleset).to_string(),
        RulesetFormat::Json => serde_json::to_string_pretty(&export::document(&listing))? + "\n",
    };
    io::stdout().lock().write_all(text.as_bytes()).context("print the table")
}
