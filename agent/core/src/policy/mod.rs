//! Network policy: which connections a node lets through.
//!
//! - [`ir`] is one ordered representation for every kind of policy.
//! - [`mod@eval`] evaluates one flow by reading the policies from first to last. It is short enough to check by eye.
//! - [`mod@compile`] compiles the same policies to nf_tables chains and sets.
//! - [`packet_log`] builds the rules that log packets to the agent.
//!
//! Invariant: evaluator and compiled table give the same verdict for every flow. They share no code on purpose;
//! `tests/prop_policy.rs` compares them on random clusters.

pub mod compile;
pub mod eval;
pub mod ir;
pub mod packet_log;

pub use self::{compile::compile, eval::eval};
