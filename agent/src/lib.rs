//! The node agent: watches the API server and the kernel, decides in [`node`], acts at the edges.
//!
//! Data walks one way: watches, kernel notices and CNI requests become [`input::Input`]s of one channel; [`node::Node`]
//! folds them and answers with [`node::Effect`]s; [`run`] carries those out. No locks, no shared state.

pub mod cli;
pub mod cni_server;
pub mod connections;
pub mod denials;
pub mod effects;
pub mod health;
pub mod input;
pub mod install;
pub mod kernel;
pub mod metrics;
pub mod node;
pub mod packet_log;
pub mod plan;
pub mod pod_events;
pub mod publish;
pub mod run;
pub mod settings;
pub mod teardown;
pub mod watch;
