//! What the node asks of the outside.

use std::time::Duration;

use tokio::sync::oneshot;
use towpath_local::{NodeState, Reply};

use crate::{
    connections::{Clear, Order},
    denials::Findings,
    kernel::Job,
    publish::{NodeWish, Report},
};

/// Something to be done by the outside.
#[derive(Debug)]
pub enum Effect {
    /// Ask the kernel's thread. One at a time.
    Job(Job),
    /// Look the connections through. One at a time.
    Review(Box<Order>),
    /// Delete what an address has left behind.
    Clear(Clear),
    /// So many connections were cut.
    Cut(u64),
    /// Answer the CNI plugin.
    Reply(oneshot::Sender<Reply>, Reply),
    /// Write our Node's annotations and condition.
    Node(NodeWish),
    /// Write our NetworkNode.
    Report(Box<Report>),
    /// Pods can be added from now on, with these values: write the files for plugin and runtime.
    Open(NodeState),
    /// A pod's start waited this long for its rules.
    Waited(Duration),
    /// So long after it came the kernel has what was new for policy.
    Enforced(Duration),
    /// Tell of packets that policies dropped.
    Denied(Findings),
    /// A change of the kernel took this long, and so many parts of it failed.
    Applied {
        /// All of it.
        took: Duration,
        /// Parts.
        failed: u64,
    },
}
