//! The API of Towpath: the kinds [`NetworkConfig`] and [`NetworkNode`], the agent's configuration, and every name that
//! several processes share. Data only: no client, no runtime, no decision about the network.

pub mod agent_config;
pub mod condition;
pub mod config_status;
pub mod names;
// The schema derive copies its structs into private ones and keeps their `pub`.
#[expect(unreachable_pub, reason = "in code that the KubeSchema derive generates")]
pub mod network_config;
// Printer columns repeat their keys, which the lint takes for repeated attributes.
#[expect(clippy::duplicated_attributes, reason = "columns")]
pub mod network_node;
pub mod schema;
pub mod yaml;

pub use agent_config::AgentConfig;
pub use config_status::NetworkConfigStatus;
pub use network_config::{NetworkConfig, NetworkConfigSpec};
pub use network_node::{NetworkNode, NetworkNodeFields, NetworkNodeStatus};
