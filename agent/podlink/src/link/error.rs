//! The errors of a pod's link.

use std::{fmt, net::IpAddr};

use towpath_core::names::IfName;

use crate::{netlink::NetlinkError, netns::NetnsError, sysctl::SysctlError};

/// An operation on a pod's link failed.
#[derive(Debug, thiserror::Error)]
pub enum PodLinkError {
    /// The netlink socket could not be opened.
    #[error("open a netlink socket")]
    Open {
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// The host end exists, usually of an earlier container of this pod.
    #[error("interface {name} exists on the host already: delete the pod's earlier container first")]
    HostExists {
        /// The name of the interface.
        name: IfName,
    },
    /// The pod end exists.
    #[error("interface {name} exists in the pod already")]
    PodExists {
        /// The name of the interface.
        name: IfName,
    },
    /// The pair could not be created.
    #[error("create veth {name}")]
    Create {
        /// The name of the host end.
        name: IfName,
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// A link was not found after its creation.
    #[error("interface {name} not found after its creation; the container may have been removed meanwhile")]
    NotFound {
        /// The name of the interface.
        name: IfName,
    },
    /// The pod end could not be set up or read.
    #[error("{step} in the pod")]
    Pod {
        /// The step that failed, in the imperative.
        step: String,
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// The pod's namespace could not be entered.
    #[error("set up the pod's interface")]
    Namespace {
        /// The namespace, and the error.
        #[from]
        source: NetnsError,
    },
    /// A sysctl could not be set.
    #[error("set up interface {name}")]
    Sysctl {
        /// The name of the interface.
        name: IfName,
        /// The file, and the error.
        source: SysctlError,
    },
    /// The host end could not be set up or read.
    #[error("{step} on the host")]
    Host {
        /// The step that failed, in the imperative.
        step: String,
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// The host has a route to the address over another link: two pods would share it.
    #[error(
        "address {address} is in use: the host routes it to {other}; delete that route, or the interface if its pod no longer exists"
    )]
    Conflict {
        /// The address.
        address: IpAddr,
        /// The name of the other link, or the target of the route.
        other: String,
    },
    /// The link differs from its wanted state.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Differs(Vec<Difference>),
}

/// One difference between the wanted state and the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The object: `MTU of eth0`, `route 0.0.0.0/0 in the pod`.
    pub what: String,
    /// The wanted state.
    pub want: String,
    /// The state in the kernel.
    pub have: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} should be {} but is {}", self.what, self.want, self.have)
    }
}
