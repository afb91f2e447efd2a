//! The errors of [`super::Nft`].

use std::io;

/// What went wrong with our table.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// `nft` cannot be started.
    #[error("start {program}: is nftables installed, and on PATH?")]
    Start {
        /// What was to be started.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// Talking to the running `nft`.
    #[error("exchange data with nft")]
    Exchange(#[source] io::Error),
    /// It took too long and was killed.
    #[error("nft did not end within {seconds} s and was killed: is the node out of CPU?")]
    Timeout {
        /// The bound.
        seconds: u64,
    },
    /// The kernel or `nft` said no.
    #[error("nft refused: {stderr}")]
    Refused {
        /// What it printed, shortened.
        stderr: String,
    },
    /// The listing is no JSON of nft's kind.
    #[error("read nft's listing of the table")]
    Listing(#[source] serde_json::Error),
    /// Netlink to nf_tables.
    #[error("{step} over nf_tables netlink")]
    Netlink {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}
