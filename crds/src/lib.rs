#![doc = include_str!("../README.md")]

pub mod agent_config;
pub mod condition;
pub mod config_status;
pub mod names;
// The schema derive copies its structs into private ones and keeps their `pub`.
#[expect(unreachable_pub, reason = "the KubeSchema derive generates it")]
pub mod network_config;
// Printer columns repeat their keys, which the lint reports as repeated attributes.
#[expect(clippy::duplicated_attributes, reason = "printer columns repeat their keys")]
pub mod network_node;
pub mod schema;
pub mod yaml;

pub use agent_config::AgentConfig;
pub use config_status::NetworkConfigStatus;
pub use network_config::{NetworkConfig, NetworkConfigSpec};
pub use network_node::{NetworkNode, NetworkNodeFields, NetworkNodeStatus};
