//! Builds the nft table of a node: anti-spoofing, protection of the overlay port, dispatch to pod chains and masquerade,
//! merged with the compiled policy.
//!
//! | Base chain | Hook, priority | Purpose |
//! |---|---|---|
//! | `prerouting` | prerouting, raw (−300) | drops packets from a pod interface with another source address; disables conntrack for overlay packets |
//! | `output` | output, raw (−300) | disables conntrack for overlay packets |
//! | `input` | input, filter (0) | accepts overlay packets from nodes only; egress policies of the source pod |
//! | `forward` | forward, filter (0) | drops packets from pods to the overlay port of nodes; egress policies of the source pod, then ingress policies of the destination pod |
//! | `postrouting` | postrouting, srcnat (100) | masquerades packets that leave the cluster |
//!
//! Each base chain first matches the interface name or the UDP port, so other traffic costs no more than these
//! comparisons. `prerouting` drops packets of an unknown pod interface before conntrack sees them. Packets from the node
//! to its own pods, such as kubelet's probes, bypass policy. Services need no rules: kube-proxy translates their
//! addresses in its own tables before a packet reaches `input` or `forward`.
//!
//! There is one base chain per hook, because each additional one costs every packet a call. Overlay packets are not
//! tracked: their inner packets are, and each connection would occupy two conntrack entries. With both measures, the
//! round-trip time of a ping between pods of two nodes equals that without the table (measured on kernel 6.18).
//!
//! Deliberately absent: accept rules for the benefit of other tables. An accept verdict ends the base chain only; a base
//! chain of another table can still drop the packet.

pub use self::pods::{dispatch_chain, dispatch_to_pod};

mod masquerade;
mod overlay_port;
mod pods;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    delta::changes,
    model::{Endpoint, Family},
    names::{ChainName, Comment, IfName, SetName, VETH_PREFIX},
    policy::ir::Direction,
    ruleset::{
        BaseChain, Chain, ChainType, CmpOp, Comments, Element, Field, Hook, KeyType, Lookup, Match, Rule, Ruleset, Set,
        Value, Verdict,
    },
};

/// The compiled policy: sets and chains to merge into the table.
///
/// A policy chain ends a packet's evaluation with `accept` (ingress) or [`dispatch_to_pod`] (egress), or with `drop`. A
/// packet that reaches the end of the chain is dropped, too (fail closed). Established and related packets never reach
/// these chains. Every name contains a dot (`in.0a1b2c…`); the table's own names contain none, so they cannot collide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompiledPolicy {
    /// Sets that the chains look up.
    pub sets: OrdMap<SetName, Set>,
    /// Regular chains. Pods to which the same policies apply in a direction share one.
    pub chains: OrdMap<ChainName, Arc<Chain>>,
    /// The chain for packets to each pod interface. An endpoint without an entry is not isolated: its packets are accepted.
    pub ingress: OrdMap<IfName, ChainName>,
    /// The chain for packets from each pod interface, as in [`CompiledPolicy::ingress`].
    pub egress: OrdMap<IfName, ChainName>,
    /// Policies of each chain and pods of each set, for `nft list`.
    pub comments: Comments,
}

/// Whether the table enforces policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyEnforcement {
    /// No pod is isolated. Anti-spoofing and the protection of the overlay port stay.
    Off,
    /// Enforce the compiled policy.
    Enforce(CompiledPolicy),
}

/// Whether packets that leave the cluster get the node's source address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Masquerade {
    /// Never, not even packets from outside to a pod of another node.
    Disabled,
    /// Masquerades packets from pods to other destinations than pods and `non_masquerade_cidrs`. Also masquerades packets
    /// from outside to pods of other nodes, so that replies return through this node; packets to pods of this node keep
    /// the client's address.
    Enabled {
        /// Destinations that see the pods' own addresses (`spec.masquerade.nonMasqueradeCIDRs`). They may overlap.
        non_masquerade_cidrs: Vec<IpNet>,
    },
}

/// Source address of packets from pods to other nodes' own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceToNodes {
    /// The pod's address: the underlay routes replies back (direct routing).
    PodAddress,
    /// This node's address. A reply to the pod's address would return through the overlay although the request did not
    /// use it; a strict `rp_filter` or a cloud's source check drops such packets.
    NodeAddress,
}

/// Input of [`Table::update`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInput<'a> {
    /// Pods of this node, by host-side interface.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
    /// Pod networks of the cluster.
    pub cluster_pod_cidrs: &'a [IpNet],
    /// podCIDRs of this node.
    pub node_pod_cidrs: &'a [IpNet],
    /// Underlay addresses of all nodes, this one included: the only valid sources of overlay packets.
    pub node_addresses: &'a OrdSet<IpAddr>,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// Masquerade of packets that leave the cluster.
    pub masquerade: Masquerade,
    /// Source address of packets from pods to other nodes.
    pub source_to_nodes: SourceToNodes,
    /// Policies to enforce.
    pub policy: PolicyEnforcement,
}

/// Builds the table from scratch: a single [`Table::update`].
#[must_use]
pub fn table(input: TableInput<'_>) -> Ruleset {
    let mut table = Table::default();
    table.update(input);
    table.ruleset
}

/// Builds the table incrementally. The cost of an update is proportional to the change of nodes, endpoints and policies; a
/// change of the settings builds the table from scratch.
#[derive(Debug, Default)]
pub struct Table {
    /// `None` before the first input.
    settings: Option<TableSettings>,
    nodes: OrdSet<IpAddr>,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    policy: CompiledPolicy,
    ruleset: Ruleset,
}

/// The part of the input that rarely changes and that everything depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TableSettings {
    cluster_pod_cidrs: Vec<IpNet>,
    node_pod_cidrs: Vec<IpNet>,
    vxlan_port: u16,
    masquerade: Masquerade,
    source_to_nodes: SourceToNodes,
}

impl Table {
    /// Updates the table to the input.
    pub fn update(&mut self, input: TableInput<'_>) {
        let settings = TableSettings {
            cluster_pod_cidrs: input.cluster_pod_cidrs.to_vec(),
            node_pod_cidrs: input.node_pod_cidrs.to_vec(),
            vxlan_port: input.vxlan_port,
            masquerade: input.masquerade.clone(),
            source_to_nodes: input.source_to_nodes,
        };
        if self.settings.as_ref() != Some(&settings) {
            *self = Self { ruleset: empty(&input), settings: Some(settings), ..Self::default() };
        }
        overlay_port::update_nodes(&mut self.ruleset, &self.nodes, input.node_addresses);
        self.nodes = input.node_addresses.clone();
        let policy = match input.policy {
            PolicyEnforcement::Off => CompiledPolicy::default(),
            PolicyEnforcement::Enforce(policy) => policy,
        };
        merge_changes(&mut self.ruleset.sets, &self.policy.sets, &policy.sets);
        merge_changes(&mut self.ruleset.chains, &self.policy.chains, &policy.chains);
        merge_changes(&mut self.ruleset.comments.sets, &self.policy.comments.sets, &policy.comments.sets);
        merge_changes(&mut self.ruleset.comments.chains, &self.policy.comments.chains, &policy.comments.chains);
        self.update_endpoints(input.endpoints, &policy);
        self.policy = policy;
        self.endpoints = input.endpoints.clone();
    }

    /// The desired table as of the last update.
    #[must_use]
    pub const fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    fn update_endpoints(&mut self, endpoints: &OrdMap<IfName, Arc<Endpoint>>, policy: &CompiledPolicy) {
        let mut changed: BTreeSet<&IfName> = BTreeSet::new();
        for (interface, before, after) in changes(&self.endpoints, endpoints) {
            pods::update_sources(&mut self.ruleset, before.map(|e| &**e), after.map(|e| &**e));
            changed.insert(interface);
        }
        changed.extend(changes(&self.policy.ingress, &policy.ingress).map(|(interface, ..)| interface));
        changed.extend(changes(&self.policy.egress, &policy.egress).map(|(interface, ..)| interface));
        for interface in changed {
            for (direction, chains) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
                let dispatch = match (endpoints.contains_key(interface), chains.get(interface)) {
                    (true, Some(chain)) => pods::Dispatch::Policy(chain),
                    (true, None) => pods::Dispatch::NotIsolated,
                    (false, _) => pods::Dispatch::Unknown,
                };
                pods::set_verdict(&mut self.ruleset, direction, interface, dispatch);
            }
        }
    }
}

/// The table without nodes, endpoints and policies.
fn empty(input: &TableInput<'_>) -> Ruleset {
    let mut ruleset = Ruleset::default();
    pods::add_antispoof(&mut ruleset);
    overlay_port::add(&mut ruleset, input);
    masquerade::add(&mut ruleset, input);
    pods::add_dispatch(&mut ruleset, input.vxlan_port);
    add_filter_chains(&mut ruleset, input.vxlan_port);
    add_comments(&mut ruleset);
    ruleset
}

/// Comments of the table's own chains, shown by `nft list`.
const CHAIN_COMMENTS: [(&str, &str); 13] = [
    ("prerouting", "anti-spoofing of pods; no conntrack for overlay packets"),
    ("antispoof", "packets from pods: accept only their own source addresses"),
    ("output", "no conntrack for overlay packets"),
    ("input", "packets to this node: overlay packets from nodes only; egress policies of the source pod"),
    ("forward", "egress policies of the source pod, then ingress policies of the destination pod"),
    ("from-pod", "packets from pods: overlay port protection, conntrack state, egress policies"),
    ("to-pod", "packets to pods: conntrack state, ingress policies"),
    ("dispatch-to-pod", "packets allowed by egress policies: ingress policies of the destination pod"),
    ("overlay-from", "packets to the overlay port of this node: accept from nodes only"),
    ("overlay-to", "packets from pods to the overlay port: only to other pods"),
    ("postrouting", "masquerade of packets that leave the cluster"),
    ("masquerade4", "masquerade of packets from pods, IPv4"),
    ("masquerade6", "masquerade of packets from pods, IPv6"),
];

/// Comments of the table's own sets and verdict maps.
const SET_COMMENTS: [(&str, &str); 12] = [
    ("from-pod", "egress policies of each pod interface"),
    ("to-pod", "ingress policies of each pod interface"),
    ("sources4", "interface and source address of each pod of this node, IPv4"),
    ("sources6", "interface and source address of each pod of this node, IPv6"),
    ("nodes4", "underlay addresses of all nodes, IPv4"),
    ("nodes6", "underlay addresses of all nodes, IPv6"),
    ("pods4", "pod networks of the cluster, IPv4"),
    ("pods6", "pod networks of the cluster, IPv6"),
    ("local4", "podCIDRs of this node, IPv4"),
    ("local6", "podCIDRs of this node, IPv6"),
    ("unmasqueraded4", "spec.masquerade.nonMasqueradeCIDRs, IPv4"),
    ("unmasqueraded6", "spec.masquerade.nonMasqueradeCIDRs, IPv6"),
];

/// Adds the comments of the objects that exist.
fn add_comments(ruleset: &mut Ruleset) {
    for (name, text) in CHAIN_COMMENTS {
        let name = chain_name(name);
        if ruleset.chains.contains_key(&name) {
            ruleset.comments.chains.insert(name, Comment::new(text));
        }
    }
    for (name, text) in SET_COMMENTS {
        let name = name!(SetName, name);
        if ruleset.sets.contains_key(&name) || ruleset.maps.contains_key(&name) {
            ruleset.comments.sets.insert(name, Comment::new(text));
        }
    }
}

/// Applies the difference between `before` and `after` to a map that contains `before`.
fn merge_changes<K: Ord + Clone, V: Clone + PartialEq>(
    all: &mut OrdMap<K, V>,
    before: &OrdMap<K, V>,
    after: &OrdMap<K, V>,
) {
    for (key, _, after) in changes(before, after) {
        match after {
            Some(value) => _ = all.insert(key.clone(), value.clone()),
            None => _ = all.remove(key),
        }
    }
}

/// Adds the base chains of type filter.
fn add_filter_chains(ruleset: &mut Ruleset, port: u16) {
    let [from_pod, to_pod] = [pods::goto_from_pod(), pods::goto_to_pod()];
    let mut prerouting = vec![pods::goto_antispoof()];
    prerouting.extend(overlay_port::notrack(Field::Source, port));
    for (name, hook, priority, rules) in [
        ("prerouting", Hook::Prerouting, RAW, prerouting),
        ("output", Hook::Output, RAW, overlay_port::notrack(Field::Destination, port).into()),
        ("input", Hook::Input, FILTER, vec![overlay_port::goto_overlay_from(port), from_pod.clone()]),
        ("forward", Hook::Forward, FILTER, vec![from_pod, to_pod]),
    ] {
        add_chain(ruleset, name, base(ChainType::Filter, hook, priority), rules);
    }
}

/// Before conntrack (-200) and after defragmentation (-400; linux/netfilter_ipv4.h).
const RAW: i32 = -300;
const FILTER: i32 = 0;

/// A name that the table itself defines.
macro_rules! name {
    ($kind:ident, $text:expr) => {
        $kind::new(&$text).expect("a name that the table defines is valid")
    };
}
use name;

fn chain_name(text: &str) -> ChainName {
    name!(ChainName, text)
}

/// The set of one family, such as `nodes4`.
fn set_name(prefix: &str, family: Family) -> SetName {
    let digit = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    name!(SetName, format!("{prefix}{digit}"))
}

const fn address_type(family: Family) -> KeyType {
    match family {
        Family::V4 => KeyType::Ipv4,
        Family::V6 => KeyType::Ipv6,
    }
}

fn base(chain_type: ChainType, hook: Hook, priority: i32) -> Option<BaseChain> {
    Some(BaseChain { chain_type, hook, priority })
}

fn in_set(field: Field, prefix: &str, family: Family) -> Match {
    Match::InSet(vec![field], CmpOp::Eq, set_name(prefix, family))
}

/// A set of networks of one family. Merges overlapping networks, because the kernel rejects overlapping intervals.
fn networks<'a>(family: Family, nets: impl IntoIterator<Item = &'a IpNet>) -> Set {
    let nets: Vec<_> = nets.into_iter().filter(|net| Family::of_net(**net) == family).map(IpNet::trunc).collect();
    let element = |net: IpNet| -> Element {
        let is_host = net.prefix_len() == family.host_prefix_len();
        vec![if is_host { Value::Addr(net.addr()) } else { Value::Net(net) }]
    };
    let elements = IpNet::aggregate(&nets).into_iter().map(element).collect();
    Set { key: vec![address_type(family)], lookup: Lookup::Interval, elements }
}

/// UDP packets to the overlay port.
fn to_overlay_port(port: u16) -> [Match; 2] {
    let udp = Value::Proto(crate::model::Protocol::Udp.number());
    [Match::Field(Field::Proto, CmpOp::Eq, udp), Match::Field(Field::DestinationPort, CmpOp::Eq, Value::Port(port))]
}

/// Interfaces with the name prefix of pod interfaces.
fn pod_interface(field: Field) -> Match {
    Match::InterfacePrefix(field, VETH_PREFIX.to_owned())
}

fn goto(matches: impl Into<Vec<Match>>, chain: &str) -> Rule {
    Rule::verdict(matches.into(), Verdict::Goto(chain_name(chain)))
}

fn accept(matches: impl Into<Vec<Match>>) -> Rule {
    Rule::verdict(matches.into(), Verdict::Accept)
}

fn drop(matches: impl Into<Vec<Match>>) -> Rule {
    Rule::verdict(matches.into(), Verdict::Drop)
}

fn add_chain(ruleset: &mut Ruleset, name: &str, base: Option<BaseChain>, rules: Vec<Rule>) {
    ruleset.chains.insert(chain_name(name), Arc::new(Chain { base, rules }));
}
