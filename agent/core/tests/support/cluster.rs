//! Random clusters. They are small, so that labels, addresses and ports often coincide.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdMap;
use proptest::{
    collection::{btree_map, btree_set, vec},
    prelude::*,
    sample::{select, subsequence},
};
use towpath_core::{
    model::{Endpoint, Labels, PodId, Protocol},
    names::IfName,
    policy::ir::{
        IpBlock, NamedPort, NamespaceSelector, Pod, PodKind, PodSelector, Policy, PolicyId, PolicyRule, RuleAction,
        RulePeer, RulePeers, RulePort, RulePorts, Snapshot, Tier, TierDefault,
    },
    selector::Selector,
};

/// A cluster as seen from one node.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Namespaces, pods and policies of the cluster.
    pub(crate) snapshot: Snapshot,
    /// Pods of this node.
    pub(crate) endpoints: OrdMap<IfName, Arc<Endpoint>>,
}

/// Ports that policies and packets use.
pub(crate) const PORTS: [u16; 6] = [53, 79, 80, 81, 443, 8080];

const NAMESPACES: [&str; 3] = ["a", "b", "c"];

/// Addresses outside the cluster.
pub(crate) fn outside() -> Vec<IpAddr> {
    ["10.0.0.99", "192.0.2.7", "fd00::99", "2001:db8::7"].map(|a| a.parse().unwrap()).to_vec()
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(select(vec!["x", "y"]), select(vec!["1", "2"]), 0..=2)
        .prop_map(|labels| labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    let key = || select(vec!["x".to_owned(), "y".to_owned()]);
    let values = || btree_set(select(vec!["1".to_owned(), "2".to_owned(), "3".to_owned()]), 1..=2);
    let part = prop_oneof![
        4 => (key(), values()).prop_map(|(k, v)| Selector::In(k, v)),
        1 => (key(), values()).prop_map(|(k, v)| Selector::NotIn(k, v)),
        1 => key().prop_map(Selector::Exists),
        1 => key().prop_map(Selector::DoesNotExist),
    ];
    // Most selectors match something: one that selects nothing tests little.
    prop_oneof![
        1 => Just(Selector::everything()),
        2 => vec(part, 1..=2).prop_map(Selector::all),
    ]
}

fn pod_selector() -> impl Strategy<Value = PodSelector> {
    let namespaces = prop_oneof![
        1 => select(NAMESPACES.to_vec()).prop_map(|n| NamespaceSelector::Named(n.to_owned())),
        1 => selector().prop_map(NamespaceSelector::Matching),
    ];
    (namespaces, selector()).prop_map(|(namespaces, pods)| PodSelector { namespaces, pods })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn named_port() -> impl Strategy<Value = NamedPort> {
    (select(vec!["web", "dns"]), protocol(), select(PORTS.to_vec())).prop_map(|(name, protocol, port)| NamedPort {
        name: name.to_owned(),
        protocol,
        port,
    })
}

/// A pod. Two pods may have the same address, as when one has just been deleted.
fn pod() -> impl Strategy<Value = Pod> {
    let addresses = btree_set((any::<bool>(), 1_u8..=12), 0..=3);
    let kind = prop_oneof![4 => Just(PodKind::Endpoint), 1 => Just(PodKind::HostNetwork)];
    (labels(), addresses, btree_set(named_port(), 0..=2), kind).prop_map(|(labels, addresses, named_ports, kind)| Pod {
        labels,
        addresses: addresses.into_iter().map(|(v6, n)| address(v6, n)).collect(),
        named_ports,
        kind,
        node: None,
    })
}

fn address(v6: bool, n: u8) -> IpAddr {
    if v6 { Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into() } else { Ipv4Addr::new(10, 0, 0, n).into() }
}

fn block() -> impl Strategy<Value = IpBlock> {
    let v4 = ["0.0.0.0/0", "10.0.0.0/24", "10.0.0.0/29", "10.0.0.8/29", "10.0.0.2/31", "10.0.0.5/32", "192.0.2.0/24"];
    let v6 = ["::/0", "fd00::/64", "fd00::/125", "fd00::8/125", "fd00::2/127", "fd00::5/128", "2001:db8::/32"];
    prop_oneof![Just(v4), Just(v6)].prop_flat_map(|nets| {
        let nets: Vec<_> = nets.iter().map(|n| n.parse().unwrap()).collect();
        (select(nets.clone()), subsequence(nets, 0..=2))
            .prop_map(|(net, except)| IpBlock { net, except: except.into_iter().collect() })
    })
}

fn port() -> impl Strategy<Value = RulePort> {
    prop_oneof![
        3 => (protocol(), select(PORTS.to_vec())).prop_map(|(p, n)| RulePort::Numbers(p, n, n)),
        1 => (protocol(), select(vec![(79, 80), (80, 443), (0, 65535), (81, 8080)]))
            .prop_map(|(p, (first, last))| RulePort::Numbers(p, first, last)),
        2 => (protocol(), select(vec!["web", "dns"])).prop_map(|(p, name)| RulePort::Named(p, name.to_owned())),
    ]
}

fn rule(actions: Vec<RuleAction>) -> impl Strategy<Value = PolicyRule> {
    let peer = prop_oneof![2 => pod_selector().prop_map(RulePeer::Pods), 1 => block().prop_map(RulePeer::IpBlock)];
    let peers = prop_oneof![
        1 => Just(RulePeers::Any),
        4 => vec(peer.clone(), 0..=3).prop_map(RulePeers::Of),
        1 => vec(peer, 0..=3).prop_map(RulePeers::NoneOf),
    ];
    let ports = prop_oneof![1 => Just(RulePorts::Any), 2 => vec(port(), 0..=3).prop_map(RulePorts::Of)];
    (select(actions), peers, ports).prop_map(|(action, peers, ports)| PolicyRule { action, peers, ports })
}

fn policy(actions: Vec<RuleAction>) -> impl Strategy<Value = Policy> {
    let rules = move || proptest::option::of(vec(rule(actions.clone()), 0..=3));
    let order = select(vec![0, 0, -1, 1]);
    (order, pod_selector(), rules(), rules()).prop_map(|(order, subject, ingress, egress)| Policy {
        order,
        subject,
        ingress,
        egress,
    })
}

fn tier(default: TierDefault, actions: Vec<RuleAction>) -> impl Strategy<Value = Tier> {
    vec((select(NAMESPACES.to_vec()), policy(actions)), 1..=5).prop_map(move |policies| {
        let id = |n, namespace: &str| PolicyId { namespace: namespace.to_owned(), name: format!("p{n}") };
        let policies =
            policies.into_iter().enumerate().map(|(n, (namespace, p))| (id(n, namespace), Arc::new(p))).collect();
        Tier { name: format!("{default:?}"), default, policies }
    })
}

/// Half of the clusters have only the tier of NetworkPolicy; the others have up to three tiers with all actions.
fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    let all = || vec![RuleAction::Allow, RuleAction::Allow, RuleAction::Deny, RuleAction::Pass, RuleAction::Log];
    let any_default = select(vec![TierDefault::Deny, TierDefault::Pass]);
    let any_tier = any_default.prop_flat_map(move |default| tier(default, all()));
    prop_oneof![tier(TierDefault::Deny, vec![RuleAction::Allow]).prop_map(|tier| vec![tier]), vec(any_tier, 1..=3),]
}

/// Clusters of two to eight pods, most of them on this node. One endpoint may belong to a pod that is not in the snapshot.
pub(crate) fn clusters() -> impl Strategy<Value = Cluster> {
    let namespaces = vec(proptest::option::weighted(0.9, labels()), NAMESPACES.len());
    let pods = vec((select(NAMESPACES.to_vec()), pod(), proptest::bool::weighted(0.8)), 2..=8);
    (namespaces, pods, tiers(), proptest::bool::weighted(0.2)).prop_map(|(labels, pods, tiers, unknown)| {
        let namespaces =
            NAMESPACES.iter().zip(labels).filter_map(|(n, l)| Some(((*n).to_owned(), Arc::new(l?)))).collect();
        let mut snapshot = Snapshot { namespaces, pods: OrdMap::new(), tiers };
        let mut endpoints = OrdMap::new();
        let mut taken = BTreeSet::new();
        for (n, (namespace, pod, local)) in pods.into_iter().enumerate() {
            let id = PodId { namespace: namespace.to_owned(), name: format!("pod{n}") };
            // No two pods of a node share an address: the kernel would reject the second route.
            if local && pod.addresses.iter().all(|a| taken.insert(*a)) {
                insert(&mut endpoints, id.clone(), pod.addresses.iter().copied().collect());
            }
            snapshot.pods.insert(id, Arc::new(pod));
        }
        if unknown {
            let id = PodId { namespace: "a".to_owned(), name: "unknown".to_owned() };
            insert(&mut endpoints, id, vec![address(false, 13), address(true, 13)]);
        }
        Cluster { snapshot, endpoints }
    })
}

fn insert(endpoints: &mut OrdMap<IfName, Arc<Endpoint>>, pod: PodId, addresses: Vec<IpAddr>) {
    let interface = IfName::of_pod(&pod.namespace, &pod.name);
    endpoints.insert(interface.clone(), Arc::new(Endpoint { pod, interface, addresses }));
}
