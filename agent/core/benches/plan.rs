//! How long planning takes from nothing in a big cluster: 10,000 pods in 100 namespaces, 250 of them on this node, and
//! 1,000 policies. `cargo bench -p towpath-core` prints the median of some runs; nothing here passes or fails.

use std::{
    collections::BTreeSet,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::{OrdMap, OrdSet};
use towpath_core::{
    model::{Endpoint, Labels, PodId, Protocol},
    names::IfName,
    policy::{
        compile::compile,
        deny_log::DenyLog,
        ir::{
            Action, Namespaces, Peer, Peers, Pod, PodKind, PodSelector, Policy, PolicyId, Port, Ports, Rule, Snapshot,
            Tier, TierDefault,
        },
    },
    ruleset::{Ruleset, diff},
    selector::Selector,
    table::{self, Masquerade, TableInput, ToNodes, table},
};

const PODS: usize = 10_000;
const NAMESPACES: usize = 100;
const LOCAL: usize = 250;
const POLICIES: usize = 1_000;
const RUNS: usize = 15;

/// The policy of this number, and its namespace.
type MakePolicy = fn(usize) -> (String, Policy);

fn main() {
    let scenarios: [(&str, MakePolicy); 2] =
        [("policies spread over all namespaces", spread_policy), ("all policies on every pod here", stacked_policy)];
    for (name, policy) in scenarios {
        let cluster = Cluster::new(policy);
        let rules = cluster.table();
        let elements: usize = rules.sets.values().map(|s| s.elements.len()).sum();
        println!("{name}: {} sets, {elements} elements, {} chains", rules.sets.len(), rules.chains.len());
        report("compile", || compile(&cluster.snapshot, &cluster.endpoints, DenyLog::Enabled));
        report("compile and table", || cluster.table());
        report("whole transaction as text", || diff(&rules, None).to_string());
        let changed = cluster.with_one_label_changed().table();
        let installed = changed.installed();
        report("difference after one label", || diff(&rules, Some(&installed)));
        println!("  that difference has {} bytes", diff(&rules, Some(&installed)).to_string().len());
    }
}

fn report<T>(what: &str, run: impl Fn() -> T) {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("  {what}: {:.2} ms", times[RUNS / 2].as_secs_f64() * 1e3);
}

#[derive(Clone)]
struct Cluster {
    snapshot: Snapshot,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
}

impl Cluster {
    fn new(policy: MakePolicy) -> Self {
        let mut snapshot = Snapshot::default();
        let mut endpoints = OrdMap::new();
        for n in 0..NAMESPACES {
            snapshot.namespaces.insert(namespace(n), Arc::new(labels(&[("team", n % 10)])));
        }
        for n in 0..PODS {
            let id = PodId { namespace: namespace(n % NAMESPACES), name: format!("pod-{n}") };
            let address = IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + n as u32));
            if n < LOCAL {
                let interface = IfName::of_pod(&id.namespace, &id.name);
                let endpoint = Endpoint { pod: id.clone(), interface: interface.clone(), addresses: vec![address] };
                endpoints.insert(interface, Arc::new(endpoint));
            }
            let pod = Pod {
                labels: labels(&[("app", n % 50), ("tier", n % 3), ("hash", n)]),
                addresses: BTreeSet::from([address]),
                named_ports: BTreeSet::new(),
                kind: PodKind::Endpoint,
                node: None,
            };
            snapshot.pods.insert(id, Arc::new(pod));
        }
        let mut tier = Tier { name: "bench".to_owned(), default: TierDefault::Deny, policies: OrdMap::new() };
        for n in 0..POLICIES {
            let (namespace, policy) = policy(n);
            tier.policies.insert(PolicyId { namespace, name: format!("policy-{n}") }, Arc::new(policy));
        }
        snapshot.tiers.push(tier);
        Self { snapshot, endpoints }
    }

    fn table(&self) -> Ruleset {
        table(TableInput {
            endpoints: &self.endpoints,
            cluster_pod_cidrs: &["10.244.0.0/16".parse().expect("a network")],
            node_pod_cidrs: &["10.244.0.0/24".parse().expect("a network")],
            node_addresses: &OrdSet::new(),
            vxlan_port: 8472,
            masquerade: Masquerade::Disabled,
            to_nodes: ToNodes::AsNode,
            policy: table::Policy::Enforce(compile(&self.snapshot, &self.endpoints, DenyLog::Enabled)),
        })
    }

    fn with_one_label_changed(&self) -> Self {
        let mut changed = self.clone();
        let last = changed.snapshot.pods.get_max().map(|(id, _)| id.clone());
        if let Some(pod) = last.and_then(|id| changed.snapshot.pods.get_mut(&id)) {
            Arc::make_mut(pod).labels.insert("app".to_owned(), "other".to_owned());
        }
        changed
    }
}

fn namespace(n: usize) -> String {
    format!("namespace-{n}")
}

fn labels(pairs: &[(&str, usize)]) -> Labels {
    pairs.iter().map(|(key, n)| ((*key).to_owned(), n.to_string())).collect()
}

/// Ten policies for each namespace: an app's pods accept others of the namespace and of a team, on a port each.
fn spread_policy(n: usize) -> (String, Policy) {
    let namespace = namespace(n % NAMESPACES);
    let same = PodSelector { namespaces: Namespaces::Named(namespace.clone()), pods: Selector::equals("tier", "1") };
    let team = Namespaces::Matching(Selector::equals("team", &(n % 10).to_string()));
    let other = PodSelector { namespaces: team, pods: Selector::equals("app", &(n % 50).to_string()) };
    let rule = allow([same, other], 8000 + n as u16 % 10);
    (namespace, policy(n % NAMESPACES, Selector::equals("tier", &(n % 3).to_string()), rule))
}

/// A thousand policies for each of the node's pods, each with another app of all namespaces and another port.
fn stacked_policy(n: usize) -> (String, Policy) {
    let everywhere = Namespaces::Matching(Selector::everything());
    let peer = PodSelector { namespaces: everywhere.clone(), pods: Selector::equals("app", &(n % 50).to_string()) };
    let mut policy = policy(0, Selector::everything(), allow([peer], 8000 + n as u16));
    policy.subject.namespaces = everywhere;
    (namespace(0), policy)
}

fn policy(n: usize, pods: Selector, rule: Rule) -> Policy {
    let subject = PodSelector { namespaces: Namespaces::Named(namespace(n)), pods };
    Policy { order: 0, subject, ingress: Some(vec![rule]), egress: None }
}

fn allow<const N: usize>(peers: [PodSelector; N], port: u16) -> Rule {
    Rule {
        action: Action::Allow,
        peers: Peers::Of(peers.map(Peer::Pods).to_vec()),
        ports: Ports::Of(vec![Port::Numbers(Protocol::Tcp, port, port)]),
    }
}
