//! The embedded cluster: a real Kubernetes of any number of nodes on one machine, made of namespaces, without a container
//! engine; and what stands on it: deploying Towpath, the demonstration, the scenarios and benchmarks.
//!
//! Expected flow: [`toolchain::Tools::prepare`], [`cluster::Cluster::up`], use it, [`cluster::remove`]. Needs root on Linux.
//! Nothing leaves the namespaces of a cluster but one loopback port, which leads to its API server.

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
