//! The errors of [`super::Nft`].

use crate::nfnetlink::NetlinkError;

/// What went wrong with our table.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// Netlink to nf_tables.
    #[error("{step} over nf_tables netlink")]
    Netlink {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: NetlinkError,
    },
    /// The kernel said no; nothing of the transaction was done.
    #[error("change the table: {step}")]
    Refused {
        /// The step of the transaction as nft would write it, shortened.
        step: String,
        /// Why.
        source: NetlinkError,
    },
    /// Another process owns the table, so that the kernel lets nobody else change it.
    #[error("another process owns our table (netlink port {port}): has the agent that ran before not ended?")]
    Owned {
        /// The port of its socket, usually the number of the process.
        port: u32,
    },
    /// Others changed the table each time that it was read.
    #[error("our table changed during each of {attempts} attempts to read it")]
    Unsteady {
        /// How often it was tried.
        attempts: u32,
    },
}
