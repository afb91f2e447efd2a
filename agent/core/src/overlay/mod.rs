//! The overlay between nodes: flannel's VXLAN wire format, decided without touching the kernel.

pub mod kernel;

pub use kernel::{
    IfIndex, Kernel, Learning, Link, LinkKind, LinkState, Owner, Route, RouteKey, Sysctl, Target, Tunnel,
};
