//! The operator of Towpath: watches, plans, writes.
//!
//! Data walks one way: [`watch`] folds the cluster into a [`world::World`]; [`plan`] makes of it, as a pure function,
//! everything that is to be done; [`apply`] does it. [`reconcile`] turns the wheel.

pub mod apply;
pub mod discover;
pub mod drift;
pub mod facts;
pub mod install;
pub mod lease;
pub mod metrics;
pub mod notice;
pub mod plan;
pub mod preflight;
pub mod reconcile;
pub mod rejection;
pub mod render;
pub mod run;
pub mod serve;
pub mod spec;
pub mod status;
pub mod table;
pub mod teller;
pub mod watch;
pub mod world;

#[cfg(test)]
mod testing;
