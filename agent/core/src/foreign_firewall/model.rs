//! Foreign tables and the traffic that must pass them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;

use crate::{model::Family, names::IfName};

/// The families whose forward hook sees routed IP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFamily {
    /// `ip`: IPv4 only; the tables of `iptables-nft` are of this family.
    Ip,
    /// `ip6`: IPv6 only.
    Ip6,
    /// `inet`: both.
    Inet,
}

impl TableFamily {
    /// Whether packets of an IP family pass a chain of this table family.
    #[must_use]
    pub const fn sees(self, family: Family) -> bool {
        match self {
            Self::Ip => matches!(family, Family::V4),
            Self::Ip6 => matches!(family, Family::V6),
            Self::Inet => true,
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}

/// A table of another program with at least one base chain at the forward hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignTable {
    /// Its family.
    pub family: TableFamily,
    /// Its name, unique within the family.
    pub name: String,
    /// All of its chains by name.
    pub chains: BTreeMap<String, ForeignChain>,
}

/// A chain of a foreign table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignChain {
    /// Set for a base chain at the forward hook.
    pub forward: Option<ForwardHook>,
    /// Its rules in order; `None`: they were not read.
    pub rules: Option<Vec<ForeignRule>>,
}

/// How a base chain is attached to the forward hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardHook {
    /// Smaller is earlier; 0 is iptables' filter.
    pub priority: i32,
    /// What becomes of packets that come to the end of the chain.
    pub policy: ChainPolicy,
}

/// The policy of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "names are nft's")]
pub enum ChainPolicy {
    Accept,
    Drop,
}

/// Conditions, all of which must hold, and an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// Empty: the rule takes every packet.
    pub conditions: Vec<ForeignCondition>,
    /// What happens to the packets it takes.
    pub action: ForeignAction,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignAction {
    /// `accept`: passes this base chain.
    Accept,
    /// `drop` or `reject`.
    Drop,
    /// `return`
    Return,
    /// `jump`
    Jump(String),
    /// `goto`
    Goto(String),
    /// No verdict: a counter, a log, a mark.
    Continue,
    /// Not understood, or decided elsewhere (`queue`): it may accept.
    Unknown,
}

/// `==` or `!=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "names are self-explanatory")]
pub enum Comparison {
    Equal,
    NotEqual,
}

/// Which end of the packet's way through the node, or of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowSide {
    /// `iifname`, `saddr`
    From,
    /// `oifname`, `daddr`
    To,
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignCondition {
    /// The interface's name is one of these; a `*` at the end stands for the rest of a name.
    Interface(FlowSide, Comparison, Vec<String>),
    /// The address is in one of these networks.
    Address(FlowSide, Comparison, Vec<IpNet>),
    /// The packet is of this IP family.
    Family(Comparison, Family),
    /// Holds for a part of all connections only (a protocol, a port), or for none of their first packets (`ct state
    /// established`): it neither lets all pod traffic pass nor drops all of it.
    Partial,
    /// Cannot be evaluated: a mark, a named set, a match of xtables.
    Unknown,
}

/// A way of pod traffic through the node's forward hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodFlow {
    /// From a pod of this node to one of another.
    ToOtherNodes,
    /// From a pod of another node to one of this.
    FromOtherNodes,
    /// Between two pods of this node.
    WithinNode,
}

impl fmt::Display for PodFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToOtherNodes => "to other nodes",
            Self::FromOtherNodes => "from other nodes",
            Self::WithinNode => "within the node",
        })
    }
}

/// What must pass the forward hook of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodTraffic {
    /// The node's own podCIDR of each family.
    pub own: BTreeMap<Family, IpNet>,
    /// The podCIDRs of the cluster.
    pub cluster: BTreeSet<IpNet>,
    /// The overlay device of each family.
    pub overlay: BTreeMap<Family, IfName>,
}
