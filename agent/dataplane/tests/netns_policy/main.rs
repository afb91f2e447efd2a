//! Conformance to the NetworkPolicy API in a real kernel: API objects pass through the index and the compiler into the
//! node's table, and real packets of both families test it.
//!
//! A scenario states which packets pass and which are dropped. Three implementations must agree with it on every
//! packet: the kernel, the evaluator, and the interpreter of the compiled table.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod cluster;
mod flood;
mod isolation;
mod lifecycle;
mod packets;
mod peers_and_ports;
mod policy_update;
mod probe;
mod repair;
mod scenario;
mod selectors;
mod services;
#[path = "../support/mod.rs"]
mod support;
mod testbed;
mod tiers;
