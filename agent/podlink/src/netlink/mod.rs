//! What every netlink socket needs: message framing, acknowledgements, errors, time limits and one blocking socket
//! (include/uapi/linux/netlink.h; `man 7 netlink`).

mod frame;
mod socket;

use std::{io, time::Duration};

pub use frame::{HEADER, NetlinkRequest, messages, outcome};
pub use socket::{NetlinkSocket, Received};

#[cfg(test)]
pub(crate) use frame::tests;

/// How long the kernel may take for one answer. It answers within the system call that asks, except where it waits for
/// the RTNL lock, which everybody who changes the network shares; deleting many interfaces holds it for seconds.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a dump that a change interrupted is repeated.
pub const DUMP_ATTEMPTS: u32 = 8;

/// What went wrong with a netlink request.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel rejected the request.
    #[error("rejected by the kernel{}", .message.as_ref().map_or_else(String::new, |m| format!(" ({m})")))]
    Rejected {
        /// The kernel's text, if it gave one (extended acknowledgement, `NLMSGERR_ATTR_MSG`).
        message: Option<String>,
        /// The kernel's error number.
        source: io::Error,
    },
    /// The socket itself failed.
    #[error("netlink socket: {step}")]
    Socket {
        /// The step that failed, in the imperative.
        step: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("no answer from the kernel within {} s; another program may hold the network lock for long", TIMEOUT.as_secs())]
    Timeout,
    /// Each attempt at a dump was interrupted by a change.
    #[error("the state changed during each of {DUMP_ATTEMPTS} attempts to dump it")]
    DumpInterrupted,
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that rejected the request.
    #[must_use]
    pub fn errno(&self) -> Option<nix::Error> {
        match self {
            Self::Rejected { source, .. } => source.raw_os_error().map(nix::Error::from_raw),
            Self::Socket { .. } | Self::Timeout | Self::DumpInterrupted => None,
        }
    }

    /// A copy, for another request that failed for the same reason. [`io::Error`] has no `Clone`: of an error without
    /// an error number only the kind is copied.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy =
            |source: &io::Error| source.raw_os_error().map_or(source.kind().into(), io::Error::from_raw_os_error);
        match self {
            Self::Rejected { message, source } => Self::Rejected { message: message.clone(), source: copy(source) },
            Self::Socket { step, source } => Self::Socket { step, source: copy(source) },
            Self::Timeout => Self::Timeout,
            Self::DumpInterrupted => Self::DumpInterrupted,
        }
    }
}
