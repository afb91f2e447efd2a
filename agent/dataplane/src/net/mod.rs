//! The kernel's network, over blocking route netlink.
//!
//! [`Net`] is what the agent needs of it: everything read back, and changes made. [`KernelNet`] does that, [`FakeNet`]
//! plays it for tests. All of it blocks, is bounded in time, and starts no process.
//!
//! Who may call: one thread at a time per value. Changes by others (the CNI plugin, people) may happen at any moment;
//! that is why every deletion takes "it is gone" for an answer.

use towpath_core::{
    names::IfName,
    overlay::{Kernel, NetOp},
};

use towpath_podlink::sysctl::SysctlError;

mod connection;
mod fake;
mod filter;
mod kernel;
mod listener;
mod message;
mod netconf;
mod polled_socket;

pub use fake::FakeNet;
pub use kernel::KernelNet;
pub use listener::NetListener;
pub use towpath_podlink::netlink::{NetlinkError, TIMEOUT};

/// The network of one namespace.
pub trait Net: Send {
    /// Reads everything that concerns the overlay.
    ///
    /// # Errors
    /// The part that could not be read. What would be missing must not be taken for absent, so there is no half answer.
    fn read_back(&mut self) -> Result<Kernel, ReadBackError>;

    /// Makes changes in the order given. One that fails does not stop the others; what hangs on it fails as well.
    /// Gives back all that failed; nothing is left out in silence.
    #[must_use]
    fn apply(&mut self, ops: &[NetOp]) -> Vec<ApplyError>;
}

/// The network could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read back the {what}")]
pub struct ReadBackError {
    /// Which part.
    pub what: &'static str,
    /// Why.
    pub source: NetlinkError,
}

/// A change that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not {op}{advice}")]
pub struct ApplyError {
    /// The change.
    pub op: NetOp,
    /// What can be done about it, beginning with a colon; empty if nothing is known.
    pub advice: &'static str,
    /// Why.
    pub source: ApplyCause,
}

/// Why a change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyCause {
    /// The kernel refused, or did not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// It is about a link that is not there.
    #[error("there is no link {0}")]
    NoLink(IfName),
    /// The sysctl could not be written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}
