//! The overlay between nodes: flannel's VXLAN wire format, decided without touching the kernel.
//!
//! Per node one VXLAN device per IP family; per peer one neighbour (the network address of its pods → its VTEP's MAC),
//! one forwarding entry (that MAC → its public IP) and one route (its pods' network via that network address). So a node
//! knows all that it needs beforehand: nothing is asked by broadcast, nothing is learnt.
//!
//! Data walks one way: [`OverlayInput`] → [`OverlayPlanner`] → [`Overlay`]; with what was read back ([`Kernel`]) [`diff()`] → [`NetOp`]s.
//! The cost of `diff` is one walk over both sides. Where the kernel is known to have what was wanted last, [`change()`] gives
//! the same and costs what is wanted otherwise now, as [`OverlayPlanner`] does: one more peer costs one more peer.

mod change;
mod diff;
pub mod kernel;
mod model;
mod notice;
mod op;
#[cfg(test)]
mod tests;
pub mod uplink;
mod want;

pub use change::change;
pub use diff::{diff, teardown};
pub use kernel::{
    IfIndex, Kernel, Learning, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget, Sysctl, VxlanConfig,
};
pub use model::NetOpError;
pub use notice::{NetNotification, Presence};
pub use op::{NetOp, NextHop};
pub use uplink::{InterfaceSpec, MtuError, Uplink, UplinkError, UplinkQuery, choose_uplink, device_mtu};
pub use want::{DirectRouting, LocalVtep, Overlay, OverlayInput, OverlayPlanner, RoutePath, VxlanDevice, want};
