//! Everything that the node reacts to, in one order.

use std::{fmt, time::Duration};

use towpath_core::{
    foreign_firewall::ForeignTable,
    model::Endpoint,
    names::IfName,
    overlay::{self, Kernel},
    ruleset::Installed,
};
use towpath_index::Event;

use crate::{denials::PacketBatch, pods::FlushedAddresses, revocation::ReevaluateSummary, status::CniNetwork};

/// One thing that happened. Errors come as text with their causes, because the node only reports them.
#[derive(Debug)]
pub enum Input {
    /// An object of the API server changed.
    Watch(Event),
    /// The CNI plugin sent a request; the node answers it by its ticket.
    Cni(Ticket, CniRequest),
    /// The kernel job of the last [`crate::Effect::Kernel`] ended.
    Kernel(KernelResult),
    /// The kernel notified of a change.
    Notification(KernelNotification),
    /// The policy re-evaluation of the last [`crate::Effect::Reevaluate`] ended.
    Reevaluated(Result<ReevaluateSummary, String>),
    /// A flush of conntrack entries ended.
    Flushed(FlushedAddresses),
    /// The CNI files for this network were written, or not.
    CniInstalled(CniNetwork, Result<(), String>),
    /// Packets that policies dropped or logged.
    Packets(PacketBatch),
    /// The tables of other programs with a base chain at the forward hook were read: all that there are.
    ForeignTables(Vec<ForeignTable>),
}

/// Names a request of the CNI plugin until it is answered. The CNI server hands them out, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A request of the CNI plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CniRequest {
    /// ADD: the pod has its interface and starts when its rules are in force.
    Add(LocalPod),
    /// DEL: the pod's interface is deleted.
    Del(Attachment),
    /// STATUS: can pods be added?
    Status,
}

/// What CNI calls an attachment: a container and the name of its interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container's id.
    pub container_id: String,
    /// The interface's name in the pod.
    pub ifname: IfName,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container_id)
    }
}

/// A pod of this node, as its endpoint file records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// The pod's attachment, under which it is added and deleted.
    pub attachment: Attachment,
    /// The pod, its host interface and its addresses.
    pub endpoint: Endpoint,
    /// The pod's UID where the runtime passes it: one pod after another can have the same name.
    pub uid: Option<String>,
}

/// The result of a [`crate::KernelJob`].
#[derive(Debug)]
pub enum KernelResult {
    /// Of a read-back of [`crate::KernelPart::Network`].
    Network(Result<NetworkReadBack, String>),
    /// Of a read-back of [`crate::KernelPart::Table`]; `None`: the kernel has no table of ours.
    Table(Result<Option<Box<Installed>>, String>),
    /// Of [`crate::KernelJob::Apply`].
    Applied(ApplyResult),
}

/// The network as it was read back.
#[derive(Debug)]
pub struct NetworkReadBack {
    /// Links, addresses, neighbours, FDB entries, routes and sysctls.
    pub kernel: Box<Kernel>,
    /// The pods that have an endpoint file.
    pub pods: Vec<LocalPod>,
}

/// The result of a [`crate::KernelChange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyResult {
    /// Whether the table's transaction was committed. If not, the network is not changed.
    pub table: Result<(), String>,
    /// Whether every change of the network was made. One that fails does not stop the others.
    pub network: Result<(), FailedOps>,
    /// Duration of the whole change.
    pub took: Duration,
}

/// Changes of the network that the kernel rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedOps {
    /// How many; at least one.
    pub count: usize,
    /// The error of the first.
    pub first: String,
}

/// A change in the kernel, ours or another process's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelNotification {
    /// Of links, addresses, routes or neighbours: ours are among them.
    Network(Vec<overlay::NetNotification>),
    /// Of our table, by another process.
    Table,
}
