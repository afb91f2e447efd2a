#![doc = include_str!("../README.md")]

pub mod cli;
pub mod cni_server;
pub mod config;
pub mod conntrack;
pub mod effects;
mod error_text;
pub mod foreign_firewall;
pub mod health;
pub mod input;
pub mod install;
pub mod kernel;
mod local_pod;
mod log_lines;
pub mod metrics;
pub mod packet_log;
pub mod pod_events;
pub mod publish;
pub mod ruleset;
pub mod run;
pub mod teardown;
pub mod watch;

pub use self::local_pod::local_pod;
