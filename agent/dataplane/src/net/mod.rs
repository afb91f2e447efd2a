//! The agent's half of route netlink, over rtnetlink. The CNI plugin's half is towpath-podlink.
//!
//! [`Net`] is what the agent needs of the kernel: everything read back, and changes applied. [`KernelNet`] does that on the
//! calling thread; it blocks, is bounded in time, and starts no process. [`FakeNet`] plays it for tests. [`NetListener`]
//! is the stream of the kernel's notifications, for a tokio runtime. Requests and notifications have connections of their
//! own.
//!
//! By hand, with the reasons where it is done: windows of requests, interrupted dumps, time limits, the kernel's error
//! texts and socket options (`connection`), and notifications of changed sysctls (`netconf`).
//!
//! Who may call: one thread at a time per value. Others (the CNI plugin, people) may change things at any moment; that
//! is why a deletion succeeds when there is nothing to delete.

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
    /// The part that could not be read. There is no partial result: what it lacked would be taken for not found.
    fn read_back(&mut self) -> Result<Kernel, ReadBackError>;

    /// Applies changes in the order given. A failed one does not stop the others; what depends on it fails as well.
    /// Returns every change that failed.
    #[must_use]
    fn apply(&mut self, ops: &[NetOp]) -> Vec<ApplyError>;
}

/// A part of the network could not be read back.
#[derive(Debug, thiserror::Error)]
#[error("read back the {what}")]
pub struct ReadBackError {
    /// The part: `links`, `addresses`, `neighbours`, `FDB entries`, `routes`.
    pub what: &'static str,
    /// The failure of its dump.
    pub source: NetlinkError,
}

/// A change that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {op}{advice}")]
pub struct ApplyError {
    /// The change.
    pub op: NetOp,
    /// The remedy, with a colon in front; empty if none is known.
    pub advice: &'static str,
    /// The failed step.
    pub source: ApplyCause,
}

/// The step of a change that failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyCause {
    /// The request: the kernel rejected it, or did not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Looking up the link that the change names.
    #[error("there is no link {0}")]
    NoLink(IfName),
    /// Writing the sysctl.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}
