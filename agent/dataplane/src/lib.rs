//! The edge to the kernel: netlink, nft, network namespaces, sysctls, and the node-local files and socket
//! that the agent and the CNI plugin share. Synchronous throughout; never sees Kubernetes.

pub mod conntrack;
pub mod export;
pub mod foreign;
pub mod net;
pub mod nflog;
pub mod nfnetlink;
pub mod nft;
