#![doc = include_str!("../README.md")]

pub mod connection;
pub mod delta;
pub mod foreign_firewall;
pub mod ipam;
pub mod model;
pub mod names;
pub mod overlay;
pub mod policy;
pub mod ruleset;
pub mod selector;
pub mod table;
