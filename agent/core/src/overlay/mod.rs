//! The overlay between nodes: flannel's VXLAN wire format, decided without touching the kernel.
//!
//! Per node one VXLAN device per IP family; per peer one neighbour (the network address of its pods → its VTEP's MAC),
//! one forwarding entry (that MAC → its public IP) and one route (its pods' network via that network address). So a node
//! knows all that it needs beforehand: nothing is asked by broadcast, nothing is learnt.
//!
//! Data walks one way: [`OverlayInput`] → [`Wanted`] → [`Overlay`]; with what was read back ([`Kernel`]) [`diff()`] → [`Op`]s.
//! The cost of `diff` is one walk over both sides. Where the kernel is known to have what was wanted last, [`change()`] gives
//! the same and costs what is wanted otherwise now, as [`Wanted`] does: one more peer costs one more peer.

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
    IfIndex, Kernel, Learning, Link, LinkKind, LinkState, Owner, Route, RouteKey, Sysctl, Target, Tunnel,
};
pub use model::Refusal;
pub use notice::{Notice, Presence};
pub use op::{Hop, Op};
pub use uplink::{InterfaceSpec, MtuError, Uplink, UplinkError, UplinkQuery, choose_uplink, device_mtu};
pub use want::{Device, DirectRouting, Overlay, OverlayInput, OwnSide, Path, Wanted, want};
