//! What a cluster is made of: name, families, nodes.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::underlay;

/// Which IP families pods, Services and nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 only.
    V4,
    /// IPv4 first, and IPv6.
    Dual,
}

impl IpFamily {
    /// Range of the pods, as the components' flags take it.
    #[must_use]
    pub const fn pod_range(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::Dual => "10.244.0.0/16,fd00:10:244::/56",
        }
    }

    /// Range of the Services, as the components' flags take it.
    #[must_use]
    pub const fn service_range(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::Dual => "10.96.0.0/16,fd00:10:96::/112",
        }
    }

    /// Addresses of a machine of the underlay.
    #[must_use]
    pub fn addresses(self, host: u8) -> Vec<IpAddr> {
        let v4 = IpAddr::V4(underlay::ipv4(host));
        match self {
            Self::V4 => vec![v4],
            Self::Dual => vec![v4, IpAddr::V6(underlay::ipv6(host))],
        }
    }
}

/// A cluster's name: part of the names of namespaces, control groups and folders, and a host name's label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// Longest name.
    pub const MAX: usize = 30;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterName {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            !text.is_empty() && text.len() <= Self::MAX && text.bytes().all(allowed) && !text.starts_with('-'),
            "cluster name {text:?}: use 1 to {} of a-z, 0-9 and -, not starting with -",
            Self::MAX
        );
        Ok(Self(text))
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

impl std::str::FromStr for ClusterName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::try_from(text.to_owned())
    }
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a cluster is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Name of the cluster: part of its namespaces and of its folder.
    pub name: ClusterName,
    /// Families of pods, Services and nodes.
    pub family: IpFamily,
    /// Numbers of the nodes: number 1 is node `n1`. At most [`Spec::MAX_NODES`].
    pub nodes: Vec<u8>,
}

impl Spec {
    /// Highest number of a node: the addresses of the underlay end there.
    pub const MAX_NODES: u8 = 200;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_name_is_safe_in_paths_and_host_names() {
        for (name, ok, why) in [
            ("demo", true, "plain"),
            ("a-1", true, "digits and dashes"),
            ("", false, "empty"),
            ("a.b", false, "the dot separates the parts of a namespace's name"),
            ("../x", false, "leaves the folder"),
            ("-x", false, "looks like a flag"),
            ("abcdefghijklmnopqrstuvwxyz12345", false, "31 characters"),
        ] {
            assert_eq!(name.parse::<ClusterName>().is_ok(), ok, "{name}: {why}");
        }
    }
}
