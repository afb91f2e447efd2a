//! Plans the VXLAN overlay between nodes, compatible with flannel's wire format. Pure: it never touches the kernel.
//!
//! Each node has one VXLAN device per IP family. Each peer adds one neighbour entry (network address of its podCIDR to
//! its VTEP MAC), one FDB entry (VTEP MAC to its public IP) and one route (its podCIDR via that network address). All
//! entries are static: the device neither floods nor learns.
//!
//! Data flows one way: [`OverlayInput`] → [`OverlayPlanner`] → [`Overlay`] (want); [`Overlay`] and [`Kernel`] (have) →
//! [`diff()`] → [`NetOp`]s. `diff` walks both sides completely. [`change()`] returns the same operations when the kernel
//! is known to match the previous overlay, and its cost is proportional to the change. So is that of [`OverlayPlanner`].

mod change;
mod diff;
mod execute;
pub mod kernel;
mod notification;
mod op;
#[cfg(test)]
mod tests;
pub mod uplink;
mod want;

pub use change::change;
pub use diff::{diff, teardown};
pub use execute::NetOpError;
pub use kernel::{
    IfIndex, Kernel, Learning, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget, Sysctl, VxlanConfig,
};
pub use notification::{NetNotification, Presence};
pub use op::{NetOp, NextHop};
pub use uplink::{InterfaceSpec, MtuError, Uplink, UplinkError, UplinkQuery, choose_uplink, device_mtu};
pub use want::{DirectRouting, LocalVtep, Overlay, OverlayInput, OverlayPlanner, RoutePath, VxlanDevice, want};
