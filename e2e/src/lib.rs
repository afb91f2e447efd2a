#![doc = include_str!("../README.md")]
//!
//! # Example
//!
//! What a cluster consists of can be asked without starting it:
//!
//! ```
//! use towpath_e2e::cluster::{ClusterName, IpFamily, Spec};
//! use towpath_e2e::underlay;
//!
//! let name: ClusterName = "demo".parse()?;
//! let spec = Spec { name, family: IpFamily::Dual, nodes: vec![1, 2, 3] };
//!
//! // Node n3 has the thirteenth address of the underlay, in both families.
//! let addresses = spec.family.addresses(underlay::FIRST_NODE + 3);
//! assert_eq!(addresses[0].to_string(), "172.30.0.13");
//! assert_eq!(addresses[1].to_string(), "fd00:172:30::d");
//!
//! // The name is part of namespaces, control groups and folders, so it is restricted.
//! assert!("../x".parse::<ClusterName>().is_err());
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod api;
mod cgroup;
pub mod cluster;
pub mod demo;
pub mod deny;
pub mod deploy;
pub mod image;
pub mod node;
pub mod oci;
mod pki;
pub mod prepare;
pub mod process;
pub mod progress;
mod reference;
pub mod run;
pub mod site;
pub mod toolchain;
pub mod underlay;
pub mod unit;
pub mod wait;
