//! Measures planning from scratch and after one change, in a cluster of 10,000 pods in 100 namespaces, 250 of them on this
//! node, with 1,000 policies. `cargo bench -p towpath-core` prints median, minimum and maximum of 15 runs. No threshold is
//! checked.

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
        compile::Compiler,
        ir::{
            NamespaceSelector, Pod, PodKind, PodSelector, Policy, PolicyId, PolicyRule, RuleAction, RulePeer,
            RulePeers, RulePort, RulePorts, Snapshot, Tier, TierDefault,
        },
        packet_log::DenyLog,
    },
    ruleset::{Ruleset, Transaction, change},
    selector::Selector,
    table::{self, Masquerade, SourceToNodes, Table, TableInput},
};

const PODS: usize = 10_000;
const NAMESPACES: usize = 100;
const LOCAL: usize = 250;
const POLICIES: usize = 1_000;
const RUNS: usize = 15;

/// Returns the namespace and the policy with a number.
type PolicyTemplate = fn(usize) -> (String, Policy);

fn main() {
    let scenarios: [(&str, PolicyTemplate); 2] =
        [("policies spread over all namespaces", spread_policy), ("all policies on every local pod", stacked_policy)];
    for (name, policy) in scenarios {
        let cluster = Cluster::new(policy);
        let rules = cluster.plan();
        let elements: usize = rules.sets.values().map(|s| s.elements.len()).sum();
        println!("{name}: {} sets, {elements} elements, {} chains", rules.sets.len(), rules.chains.len());
        report("from scratch", RUNS, || cluster.plan());
        let mut node = Node::new();
        let _ = node.update(&cluster);
        let changes: [(&str, Edit); 6] = [
            ("label of a remote pod", |cluster, n| cluster.relabel(PODS - 1, n)),
            ("label of a local pod", |cluster, n| cluster.relabel(1, n)),
            ("remote pod added or deleted", |cluster, n| cluster.toggle(PODS - 2, n)),
            ("label of a namespace", |cluster, n| cluster.relabel_namespace(7, n)),
            ("policy changed", |cluster, n| cluster.change_policy(3, n)),
            ("policy added or deleted", |cluster, n| cluster.toggle_policy(n)),
        ];
        for (what, edit) in changes {
            let mut changed = cluster.clone();
            let _ = node.update(&changed);
            let mut n = 0;
            let mut bytes = 0;
            report(what, RUNS, || {
                n += 1;
                edit(&mut changed, n);
                bytes = node.update(&changed).to_string().len();
            });
            println!("    the transaction has {bytes} bytes");
        }
    }
}

/// Prints median, minimum and maximum of some runs.
fn report<T>(what: &str, runs: usize, mut run: impl FnMut() -> T) {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let ms = |n: usize| times[n].as_secs_f64() * 1e3;
    println!("  {what}: {:.3} ms ({:.3} to {:.3})", ms(runs / 2), ms(0), ms(runs - 1));
}

/// The state that an agent keeps between changes.
struct Node {
    compiler: Compiler,
    table: Table,
    have: Ruleset,
}

impl Node {
    fn new() -> Self {
        Self { compiler: Compiler::new(DenyLog::Enabled), table: Table::default(), have: Ruleset::default() }
    }

    /// Updates the state to the cluster and returns the transaction for the kernel.
    fn update(&mut self, cluster: &Cluster) -> Transaction {
        self.compiler.update(&cluster.snapshot, &cluster.endpoints);
        let networks = ["10.244.0.0/16".parse().expect("a network")];
        self.table.update(TableInput {
            endpoints: &cluster.endpoints,
            cluster_pod_cidrs: &networks,
            node_pod_cidrs: &networks,
            node_addresses: &OrdSet::new(),
            vxlan_port: 8472,
            masquerade: Masquerade::Disabled,
            source_to_nodes: SourceToNodes::NodeAddress,
            policy: table::PolicyEnforcement::Enforce(self.compiler.part()),
        });
        let transaction = change(self.table.ruleset(), &self.have);
        self.have = self.table.ruleset().clone();
        transaction
    }
}

type Edit = fn(&mut Cluster, usize);

#[derive(Clone)]
struct Cluster {
    snapshot: Snapshot,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
}

impl Cluster {
    fn new(policy: PolicyTemplate) -> Self {
        let mut snapshot = Snapshot::default();
        let mut endpoints = OrdMap::new();
        for n in 0..NAMESPACES {
            snapshot.namespaces.insert(namespace(n), Arc::new(labels(&[("team", n % 10)])));
        }
        for n in 0..PODS {
            let id = Self::pod(n);
            if n < LOCAL {
                let interface = IfName::of_pod(&id.namespace, &id.name);
                let addresses = vec![address(n)];
                let endpoint = Endpoint { pod: id.clone(), interface: interface.clone(), addresses };
                endpoints.insert(interface, Arc::new(endpoint));
            }
            snapshot.pods.insert(id, Arc::new(make_pod(n)));
        }
        let mut tier = Tier { name: "bench".to_owned(), default: TierDefault::Deny, policies: OrdMap::new() };
        for n in 0..POLICIES {
            let (namespace, policy) = policy(n);
            tier.policies.insert(PolicyId { namespace, name: format!("policy-{n}") }, Arc::new(policy));
        }
        snapshot.tiers.push(tier);
        Self { snapshot, endpoints }
    }

    fn plan(&self) -> Ruleset {
        let mut node = Node::new();
        let _ = node.update(self);
        node.have
    }

    fn pod(n: usize) -> PodId {
        PodId { namespace: namespace(n % NAMESPACES), name: format!("pod-{n}") }
    }

    fn relabel(&mut self, pod: usize, n: usize) {
        if let Some(pod) = self.snapshot.pods.get_mut(&Self::pod(pod)) {
            Arc::make_mut(pod).labels.insert("app".to_owned(), (n % 50).to_string());
        }
    }

    fn toggle(&mut self, pod: usize, n: usize) {
        let id = Self::pod(pod);
        if self.snapshot.pods.remove(&id).is_none() {
            self.snapshot.pods.insert(id, Arc::new(make_pod(n % PODS)));
        }
    }

    fn relabel_namespace(&mut self, of: usize, n: usize) {
        self.snapshot.namespaces.insert(namespace(of), Arc::new(labels(&[("team", n % 10)])));
    }

    /// Adds or deletes a policy that isolates the pods of one app and allows those of another.
    fn toggle_policy(&mut self, n: usize) {
        let tier = &mut self.snapshot.tiers[0].policies;
        let id = PolicyId { namespace: namespace(0), name: "toggled".to_owned() };
        if n.is_multiple_of(2) {
            tier.remove(&id);
        } else {
            let namespaces = NamespaceSelector::Matching(Selector::everything());
            let peer = RulePeer::Pods(PodSelector { namespaces, pods: Selector::equals("app", "1") });
            let rule =
                PolicyRule { action: RuleAction::Allow, peers: RulePeers::Of(vec![peer]), ports: RulePorts::Any };
            tier.insert(id, Arc::new(policy(0, Selector::equals("app", "0"), rule)));
        }
    }

    fn change_policy(&mut self, policy: usize, n: usize) {
        let tier = &mut self.snapshot.tiers[0].policies;
        let id = tier.keys().nth(policy).cloned().expect("the cluster has more policies");
        if let Some(policy) = tier.get_mut(&id) {
            for rule in Arc::make_mut(policy).ingress.iter_mut().flatten() {
                rule.ports = RulePorts::Of(vec![RulePort::Numbers(Protocol::Tcp, 9000 + n as u16, 9000 + n as u16)]);
            }
        }
    }
}

fn make_pod(n: usize) -> Pod {
    Pod {
        labels: labels(&[("app", n % 50), ("tier", n % 3), ("hash", n)]),
        addresses: BTreeSet::from([address(n)]),
        named_ports: BTreeSet::new(),
        kind: PodKind::Endpoint,
        node: None,
    }
}

fn address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + n as u32))
}

fn namespace(n: usize) -> String {
    format!("namespace-{n}")
}

fn labels(pairs: &[(&str, usize)]) -> Labels {
    pairs.iter().map(|(key, n)| ((*key).to_owned(), n.to_string())).collect()
}

/// Ten policies per namespace. Each allows one port from pods of the same namespace and from pods of a team.
fn spread_policy(n: usize) -> (String, Policy) {
    let namespace = namespace(n % NAMESPACES);
    let same =
        PodSelector { namespaces: NamespaceSelector::Named(namespace.clone()), pods: Selector::equals("tier", "1") };
    let team = NamespaceSelector::Matching(Selector::equals("team", &(n % 10).to_string()));
    let other = PodSelector { namespaces: team, pods: Selector::equals("app", &(n % 50).to_string()) };
    let rule = allow([same, other], 8000 + n as u16 % 10);
    (namespace, policy(n % NAMESPACES, Selector::equals("tier", &(n % 3).to_string()), rule))
}

/// All policies select every pod. Each allows another port from the pods of an app in all namespaces.
fn stacked_policy(n: usize) -> (String, Policy) {
    let everywhere = NamespaceSelector::Matching(Selector::everything());
    let peer = PodSelector { namespaces: everywhere.clone(), pods: Selector::equals("app", &(n % 50).to_string()) };
    let mut policy = policy(0, Selector::everything(), allow([peer], 8000 + n as u16));
    policy.subject.namespaces = everywhere;
    (namespace(0), policy)
}

fn policy(n: usize, pods: Selector, rule: PolicyRule) -> Policy {
    let subject = PodSelector { namespaces: NamespaceSelector::Named(namespace(n)), pods };
    Policy { order: 0, subject, ingress: Some(vec![rule]), egress: None }
}

fn allow<const N: usize>(peers: [PodSelector; N], port: u16) -> PolicyRule {
    PolicyRule {
        action: RuleAction::Allow,
        peers: RulePeers::Of(peers.map(RulePeer::Pods).to_vec()),
        ports: RulePorts::Of(vec![RulePort::Numbers(Protocol::Tcp, port, port)]),
    }
}
