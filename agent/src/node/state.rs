//! What the node remembers of what it did and what is under way.

use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use towpath_core::overlay::NetOp;
use towpath_local::NodeState;

/// What happened to our things without us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Repaired entries since the start.
    pub repairs: u64,
    /// The latest.
    pub last: Option<(String, Time)>,
}

/// Whether pods can be added, as far as files are concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Not yet.
    Closed,
    /// These values are being written.
    Asked(NodeState),
    /// They are written.
    Open(NodeState),
    /// They could not be written, and are tried again then.
    Failed {
        /// In words.
        why: String,
        /// When.
        again: Instant,
    },
}

/// What the kernel's thread is doing for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Busy {
    No,
    Reading,
    /// These, beside the table.
    Applying(Vec<NetOp>),
}
