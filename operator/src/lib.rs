#![doc = include_str!("../README.md")]

pub mod apply;
pub mod cluster;
pub mod discover;
pub mod drift;
pub mod events;
pub mod facts;
pub mod install;
pub mod lease;
pub mod metrics;
pub mod plan;
pub mod preflight;
pub mod reconcile;
pub mod recorder;
pub mod rejection;
pub mod render;
pub mod run;
pub mod serve;
pub mod spec;
pub mod status;
pub mod store;
pub mod watch;

#[cfg(test)]
mod testing;
