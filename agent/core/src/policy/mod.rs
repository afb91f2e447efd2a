//! Who may talk to whom. One ordered representation for every kind of policy ([`ir`]), one evaluator that is short
//! and obviously right ([`mod@eval`]), and one compiler to lookups ([`mod@compile`]). The two are independent on
//! purpose: a property test on random clusters holds them together.

pub mod compile;
pub mod eval;
pub mod ir;
pub mod packet_log;

pub use self::{compile::compile, eval::eval};
