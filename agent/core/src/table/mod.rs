//! Our one table: what every node has (anti-spoofing, the overlay guard, dispatch, masquerade), with the compiled
//! policy merged in.
//!
//! | Chain | Hook, priority | What it does |
//! |---|---|---|
//! | `prerouting` | prerouting, raw (−300) | a pod's interface sends from its own addresses only; the overlay is not tracked |
//! | `output` | output, raw (−300) | the overlay is not tracked |
//! | `input` | input, 0 | the overlay's port listens to nodes only; the sending pod's policy |
//! | `forward` | forward, 0 | no pod sends to the overlay's port, but to another pod's; the sending pod's policy, then the receiving one's |
//! | `postrouting` | postrouting, source NAT (100) | who leaves the cluster does so with the node's address |
//!
//! Each begins with one look at the interface's name or at the port: traffic that is no pod's pays no more. A pod's
//! interface that is not known is dropped by `prerouting` before connection tracking sees the packet. What the node
//! sends to its own pods meets no policy (kubelet's probes). Services are no matter here: kube-proxy has translated
//! their addresses in a table of its own before a packet gets to `input` or `forward`.
//!
//! One base chain for each hook, because every further one costs each packet its call; and no connection tracking of
//! the overlay's own packets: the packets in them are tracked, and each connection would fill two entries. Measured on
//! the round trip of a ping between pods of two nodes (kernel 6.18): with both it costs as much as without our table.
//!
//! Deliberately absent: rules that accept on behalf of others. An accept ends our chain only; another table may still
//! drop the packet.

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

/// The compiled policy, to be merged into the table.
///
/// A chain of a pod decides with `accept`, or for egress with [`dispatch_to_pod`], and `drop`; a packet that comes to the end of the chain is dropped, too (fail
/// closed). Established and related packets never get there. Names must not meet those of the table itself, which have
/// no dot: names of the policy part contain one (`in.0a1b2c…`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompiledPolicy {
    /// Sets that the chains look into.
    pub sets: OrdMap<SetName, Set>,
    /// Regular chains, one for all pods to which the same policies apply in the same direction.
    pub chains: OrdMap<ChainName, Arc<Chain>>,
    /// The chain for packets to a pod's interface. A known interface that is not here is not isolated: accepted.
    pub ingress: OrdMap<IfName, ChainName>,
    /// The chain for packets from a pod's interface, as [`CompiledPolicy::ingress`].
    pub egress: OrdMap<IfName, ChainName>,
    /// Whose policies the chains are, and which pods the sets hold.
    pub comments: Comments,
}

/// Whether policies count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyEnforcement {
    /// Every known pod may send and receive.
    Off,
    /// As compiled.
    Enforce(CompiledPolicy),
}

/// Whether packets that leave the cluster get the node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Masquerade {
    /// Never, not even from outside to a pod of another node.
    Disabled,
    /// From pods to anywhere but pods and the given networks, and from outside to pods of other nodes, so that the
    /// answers come back through this node. A pod of this node sees its client's address.
    Enabled {
        /// Networks that see pods' own addresses. They may overlap.
        non_masquerade_cidrs: Vec<IpNet>,
    },
}

/// How packets from pods to other nodes' own addresses travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceToNodes {
    /// With the pod's address: the underlay routes it back (direct routing).
    PodAddress,
    /// With this node's address. The answer to a pod's address would come through the overlay while the request went
    /// past it, and a strict `rp_filter` or a cloud's source check drops that.
    NodeAddress,
}

/// What the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInput<'a> {
    /// The pods of this node, by interface.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
    /// The networks of all pods of the cluster.
    pub cluster_pod_cidrs: &'a [IpNet],
    /// Those of this node's pods.
    pub node_pod_cidrs: &'a [IpNet],
    /// The underlay addresses of all nodes, this one included: overlay packets come from nowhere else.
    pub node_addresses: &'a OrdSet<IpAddr>,
    /// The overlay's UDP port.
    pub vxlan_port: u16,
    /// What leaves the cluster.
    pub masquerade: Masquerade,
    /// What goes to other nodes.
    pub source_to_nodes: SourceToNodes,
    /// Who may talk to whom.
    pub policy: PolicyEnforcement,
}

/// The whole table, from nothing: [`Table::update`] once.
#[must_use]
pub fn table(input: TableInput<'_>) -> Ruleset {
    let mut table = Table::default();
    table.update(input);
    table.all
}

/// The table as it was made last, ready for the next input: an update costs what has changed, unless one of the few things
/// has that hardly ever do.
#[derive(Debug, Default)]
pub struct Table {
    /// `None` before the first input.
    frame: Option<TableFrame>,
    nodes: OrdSet<IpAddr>,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    policy: CompiledPolicy,
    all: Ruleset,
}

/// What all of the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TableFrame {
    cluster_pod_cidrs: Vec<IpNet>,
    node_pod_cidrs: Vec<IpNet>,
    vxlan_port: u16,
    masquerade: Masquerade,
    source_to_nodes: SourceToNodes,
}

impl Table {
    /// Brings the table to what the input says.
    pub fn update(&mut self, input: TableInput<'_>) {
        let frame = TableFrame {
            cluster_pod_cidrs: input.cluster_pod_cidrs.to_vec(),
            node_pod_cidrs: input.node_pod_cidrs.to_vec(),
            vxlan_port: input.vxlan_port,
            masquerade: input.masquerade.clone(),
            source_to_nodes: input.source_to_nodes,
        };
        if self.frame.as_ref() != Some(&frame) {
            *self = Self { all: empty(&input), frame: Some(frame), ..Self::default() };
        }
        overlay_port::set_nodes(&mut self.all, &self.nodes, input.node_addresses);
        self.nodes = input.node_addresses.clone();
        let policy = match input.policy {
            PolicyEnforcement::Off => CompiledPolicy::default(),
            PolicyEnforcement::Enforce(part) => part,
        };
        follow(&mut self.all.sets, &self.policy.sets, &policy.sets);
        follow(&mut self.all.chains, &self.policy.chains, &policy.chains);
        follow(&mut self.all.comments.sets, &self.policy.comments.sets, &policy.comments.sets);
        follow(&mut self.all.comments.chains, &self.policy.comments.chains, &policy.comments.chains);
        self.follow_endpoints(input.endpoints, &policy);
        self.policy = policy;
        self.endpoints = input.endpoints.clone();
    }

    /// The table as it is now.
    #[must_use]
    pub const fn ruleset(&self) -> &Ruleset {
        &self.all
    }

    fn follow_endpoints(&mut self, endpoints: &OrdMap<IfName, Arc<Endpoint>>, policy: &CompiledPolicy) {
        let mut changed: BTreeSet<&IfName> = BTreeSet::new();
        for (interface, before, after) in changes(&self.endpoints, endpoints) {
            pods::set_sources(&mut self.all, before.map(|e| &**e), after.map(|e| &**e));
            changed.insert(interface);
        }
        changed.extend(changes(&self.policy.ingress, &policy.ingress).map(|(interface, ..)| interface));
        changed.extend(changes(&self.policy.egress, &policy.egress).map(|(interface, ..)| interface));
        for interface in changed {
            for (direction, chains) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
                let known = match endpoints.contains_key(interface) {
                    true => pods::KnownEndpoint::Yes(chains.get(interface)),
                    false => pods::KnownEndpoint::No,
                };
                pods::set_verdict(&mut self.all, direction, interface, known);
            }
        }
    }
}

/// The table of a cluster without nodes, pods and policies.
fn empty(input: &TableInput<'_>) -> Ruleset {
    let mut all = Ruleset::default();
    pods::antispoof(&mut all);
    overlay_port::add(&mut all, input);
    masquerade::add(&mut all, input);
    pods::dispatch(&mut all, input.vxlan_port);
    hooks(&mut all, input.vxlan_port);
    comment(&mut all);
    all
}

/// What `nft list` shows beside the table's own chains, sets and maps, as far as they are there.
const COMMENTS: [(&str, &str); 23] = [
    ("prerouting", "pods send from their own addresses; the overlay is not tracked"),
    ("antispoof", "source addresses of pods"),
    ("output", "the overlay is not tracked"),
    ("input", "packets to this node: overlay from nodes only, then the sending pod's egress policies"),
    ("forward", "pods' egress policies, then the receiving pod's ingress policies"),
    ("from-pod", "packets of pods: guard of the overlay port, connection tracking, egress policies"),
    ("to-pod", "packets to pods: connection tracking, ingress policies"),
    ("dispatch-to-pod", "allowed by egress policies: on to the receiving pod's ingress policies"),
    ("overlay-from", "who may send to the overlay port of this node"),
    ("overlay-to", "where pods may send to the overlay port"),
    ("postrouting", "masquerade"),
    ("masquerade4", "masquerade of packets from pods, IPv4"),
    ("masquerade6", "masquerade of packets from pods, IPv6"),
    ("sources4", "interface and address of each pod of this node, IPv4"),
    ("sources6", "interface and address of each pod of this node, IPv6"),
    ("nodes4", "underlay addresses of all nodes, IPv4"),
    ("nodes6", "underlay addresses of all nodes, IPv6"),
    ("pods4", "pod network of the cluster, IPv4"),
    ("pods6", "pod network of the cluster, IPv6"),
    ("local4", "podCIDR of this node, IPv4"),
    ("local6", "podCIDR of this node, IPv6"),
    ("unmasqueraded4", "spec.masquerade.nonMasqueradeCIDRs, IPv4"),
    ("unmasqueraded6", "spec.masquerade.nonMasqueradeCIDRs, IPv6"),
];

fn comment(all: &mut Ruleset) {
    for (name, text) in COMMENTS {
        let (chain, set) = (chain_name(name), name!(SetName, name));
        if all.chains.contains_key(&chain) {
            all.comments.chains.insert(chain, Comment::new(text));
        }
        if all.sets.contains_key(&set) || all.maps.contains_key(&set) {
            all.comments.sets.insert(set, Comment::new(text));
        }
    }
}

/// Does to a map that holds more what was done to a part of it.
fn follow<K: Ord + Clone, V: Clone + PartialEq>(all: &mut OrdMap<K, V>, before: &OrdMap<K, V>, after: &OrdMap<K, V>) {
    for (key, _, after) in changes(before, after) {
        match after {
            Some(value) => _ = all.insert(key.clone(), value.clone()),
            None => _ = all.remove(key),
        }
    }
}

/// Where packets come in; but for NAT.
fn hooks(all: &mut Ruleset, port: u16) {
    let [sends, receives] = [pods::sends(), pods::receives()];
    let mut prerouting = vec![pods::is_itself()];
    prerouting.extend(overlay_port::untracked(Field::Source, port));
    for (name, hook, priority, rules) in [
        ("prerouting", Hook::Prerouting, RAW, prerouting),
        ("output", Hook::Output, RAW, overlay_port::untracked(Field::Destination, port).into()),
        ("input", Hook::Input, FILTER, vec![overlay_port::incoming(port), sends.clone()]),
        ("forward", Hook::Forward, FILTER, vec![sends, receives]),
    ] {
        add_chain(all, name, base(ChainType::Filter, hook, priority), rules);
    }
}

/// Before connection tracking (-200), behind the defragmentation of what is to be looked into (-400; linux/netfilter_ipv4.h).
const RAW: i32 = -300;
const FILTER: i32 = 0;

/// A name of the table itself.
macro_rules! name {
    ($kind:ident, $text:expr) => {
        $kind::new(&$text).expect("the table's own names are valid")
    };
}
use name;

fn chain_name(text: &str) -> ChainName {
    name!(ChainName, text)
}

/// Names like `nodes4`: a set has addresses of one family.
fn set_name(what: &str, family: Family) -> SetName {
    let digit = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    name!(SetName, format!("{what}{digit}"))
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

fn in_set(field: Field, what: &str, family: Family) -> Match {
    Match::InSet(vec![field], CmpOp::Eq, set_name(what, family))
}

/// A set of networks of one family; what overlaps is merged here, because the kernel refuses it.
fn networks<'a>(family: Family, nets: impl IntoIterator<Item = &'a IpNet>) -> Set {
    let nets: Vec<_> = nets.into_iter().filter(|net| Family::of_net(**net) == family).map(IpNet::trunc).collect();
    let element = |net: IpNet| -> Element {
        let single = net.prefix_len() == family.host_prefix_len();
        vec![if single { Value::Addr(net.addr()) } else { Value::Net(net) }]
    };
    let elements = IpNet::aggregate(&nets).into_iter().map(element).collect();
    Set { key: vec![address_type(family)], lookup: Lookup::Interval, elements }
}

/// UDP to the overlay's port.
fn to_overlay(port: u16) -> [Match; 2] {
    let udp = Value::Proto(crate::model::Protocol::Udp.number());
    [Match::Field(Field::Proto, CmpOp::Eq, udp), Match::Field(Field::DestinationPort, CmpOp::Eq, Value::Port(port))]
}

fn of_pods(field: Field) -> Match {
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

fn add_chain(all: &mut Ruleset, name: &str, base: Option<BaseChain>, rules: Vec<Rule>) {
    all.chains.insert(chain_name(name), Arc::new(Chain { base, rules }));
}
