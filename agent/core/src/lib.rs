//! The pure core of Towpath's node agent: what should be in the kernel, decided without touching it.
//!
//! Nothing here does I/O, knows Kubernetes or an async runtime. Data walks one way:
//! snapshot → plan → want; want and have → difference.

pub mod connection;
pub mod delta;
pub mod foreign_firewall;
pub mod ipam;
pub mod model;
pub mod names;
pub mod overlay;
pub mod policy;
pub mod ruleset;
pub mod selector;
pub mod table;
