//! Kubernetes' NetworkPolicy, sentence by sentence, in a real kernel: objects as the API server has them, through the
//! index and the compiler into the node's table, and real packets of both families.
//!
//! What a scenario expects is written down in it. Three others have to say the same about every packet: the kernel, the
//! evaluator, and the interpreter of the compiled table.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod beyond;
mod cluster;
mod flip;
mod flood;
mod heal;
mod isolation;
mod life;
mod probe;
mod product;
mod scenario;
mod selectors;
#[path = "../support/mod.rs"]
mod support;
mod tiers;
mod wire;
mod world;
