//! The errors of [`super::Nft`].

use crate::nfnetlink::NetlinkError;

/// An operation on our table failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// A request failed.
    #[error("{step} over nf_tables netlink")]
    Netlink {
        /// The step that failed, in the imperative.
        step: &'static str,
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// The kernel rejected a transaction; nothing of it was committed.
    #[error("change the table: {step}")]
    Rejected {
        /// The rejected step in nft syntax, truncated.
        step: String,
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// Permission denied: another process owns the table.
    #[error(
        "permission denied: another process owns our table (netlink port {port}); the previous agent may still run"
    )]
    Owned {
        /// The port of its socket, usually its process id.
        port: u32,
    },
    /// Others changed the table during each attempt to read it back.
    #[error("our table changed during each of {attempts} attempts to read it back")]
    Changing {
        /// The number of attempts.
        attempts: u32,
    },
}
