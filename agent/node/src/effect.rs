//! Everything that the node asks its environment to do.

use std::{collections::BTreeMap, time::Duration};

use towpath_core::{overlay::NetOp, ruleset::Transaction};
use towpath_crds::network_node::NetworkNodeStatus;

use crate::{
    denials::DenialReport, input::Ticket, log::LogLine, pods::FlushRequest, revocation::ReevaluateRequest,
    status::CniNetwork,
};

/// One thing to do. Effects are independent of each other, and are executed in their order.
#[derive(Debug)]
pub enum Effect {
    /// Execute a kernel job and answer with [`crate::Input::Kernel`]. There is one at a time.
    Kernel(KernelJob),
    /// Evaluate established connections again and answer with [`crate::Input::Reevaluated`]. There is one at a time.
    Reevaluate(Box<ReevaluateRequest>),
    /// Delete the conntrack entries of addresses and answer with [`crate::Input::Flushed`].
    Flush(FlushRequest),
    /// Answer a request of the CNI plugin.
    Reply(Ticket, CniReply),
    /// Patch our Node. A later patch replaces one that is not written yet.
    PatchNode(NodePatch),
    /// Write the status of our NetworkNode. A later one replaces one that is not written yet.
    UpdateStatus(Box<StatusUpdate>),
    /// Write the files of the CNI plugin and of the container runtime, and answer with [`crate::Input::CniInstalled`].
    InstallCni(CniNetwork),
    /// Log, count and emit Events about packets that policies dropped or logged.
    ReportPackets(DenialReport),
    /// Add to a metric.
    Measure(Measurement),
    /// Write a line of the log.
    Log(LogLine),
}

/// Work for the one thread that writes to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelJob {
    /// Read a part back.
    Read(KernelPart),
    /// Change the kernel.
    Apply(KernelChange),
}

/// A part of the kernel's state that is read back by itself, because reading costs in proportion to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelPart {
    /// Links, addresses, neighbours, FDB entries, routes, sysctls; and the pods' endpoint files.
    Network,
    /// Our nftables table.
    Table,
}

/// A change of the kernel. The table comes first, so that no route leads to a pod without rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelChange {
    /// The table's part: all of it or nothing. If it is rejected, the rest is not tried.
    pub table: Transaction,
    /// The network's part, in this order, each for itself.
    pub network: Vec<NetOp>,
}

impl KernelChange {
    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty() && self.network.is_empty()
    }
}

/// The answer to a request of the CNI plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CniReply {
    /// Done, or yes.
    Ok,
    /// Not done, or no.
    Error {
        /// CNI's error code (specification, "Error").
        code: CniCode,
        /// One line for a person.
        message: &'static str,
        /// The reason.
        details: String,
    },
}

/// CNI's error codes that the node uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CniCode {
    /// 11: the runtime tries again.
    TryAgainLater,
    /// 50: no container can be added now.
    NotAvailable,
}

/// What our Node should carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePatch {
    /// Annotations to set; `None` removes one.
    pub annotations: BTreeMap<String, Option<String>>,
    /// The Node condition NetworkUnavailable; `None` removes it.
    pub network_condition: Option<NetworkCondition>,
}

/// The Node condition NetworkUnavailable. While it is True, the scheduler places no pods on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkCondition {
    /// The condition's status.
    pub unavailable: bool,
    /// Why, for people.
    pub message: String,
}

impl NetworkCondition {
    /// The condition's reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        if self.unavailable { "TowpathIsDown" } else { "TowpathIsUp" }
    }
}

/// The status of our NetworkNode, and what the object needs to belong to its Node.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusUpdate {
    /// The Node's UID: the NetworkNode is deleted with it.
    pub node_uid: String,
    /// All but the time of the report.
    pub status: NetworkNodeStatus,
}

/// A value for a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measurement {
    /// The start of a pod waited this long for its rules.
    PodWait(Duration),
    /// From the arrival of the first change that concerns policy to its commit.
    PolicyChange(Duration),
    /// A change of the kernel ended.
    Apply {
        /// Its duration.
        took: Duration,
        /// How many of its parts the kernel rejected.
        failed: u64,
    },
    /// So many connections were revoked.
    Revoked(u64),
}
