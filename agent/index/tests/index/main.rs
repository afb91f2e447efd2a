//! The index from outside: objects in, answers out.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
#![allow(clippy::needless_pass_by_value, reason = "objects written in place read better without a reference")]

mod cluster;
mod compiled;
mod edges;
mod nodes;
mod objects;
mod pods;
mod prop_fold;
mod prop_objects;
mod prop_peers;
mod rejected;
mod semantics;
