//! Tests of the index's public interface: apply objects, compare the results.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
#![allow(clippy::needless_pass_by_value, reason = "objects are written in place, without references")]

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
