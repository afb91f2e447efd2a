use std::sync::Arc;

use imbl::OrdSet;

use super::*;
use crate::{
    model::PodId,
    names::{ChainName, SetName},
    ruleset::{Chain, CmpOp, Element, Field, KeyType, Lookup, Match, Rule, Set, Transaction, Value, Verdict, diff},
    table::{CompiledPolicy, Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};

const PORT: Transport = Transport::Ports { protocol: 6, destination: 80 };

fn endpoint(name: &str, address: &str) -> Endpoint {
    let pod = PodId { namespace: "a".to_owned(), name: name.to_owned() };
    Endpoint { interface: IfName::of_pod("a", name), pod, addresses: vec![address.parse().unwrap()] }
}

fn members(addresses: &[&str]) -> Set {
    let elements = addresses.iter().map(|a| -> Element { vec![Value::Addr(a.parse().unwrap())] }).collect();
    Set { key: vec![KeyType::Ipv4], lookup: Lookup::Hash, elements }
}

/// A table with these pods. `verdict` applies to packets from `peers` to the isolated pods.
fn rules(pods: &[Endpoint], isolated: &[&str], peers: &[&str], verdict: Verdict) -> Ruleset {
    table_of(pods, policy(isolated, peers, CmpOp::Eq, verdict))
}

/// `op` says whether the verdict applies to the peers or to all other sources.
fn policy(isolated: &[&str], peers: &[&str], op: CmpOp, verdict: Verdict) -> CompiledPolicy {
    let (set, chain) = (SetName::new("set.1").unwrap(), ChainName::new("in.1").unwrap());
    let mut policy = CompiledPolicy::default();
    if !isolated.is_empty() {
        let from_peers = Match::InSet(vec![Field::Source(crate::model::Family::V4)], op, set.clone());
        let rules = vec![Rule::verdict(vec![from_peers], verdict)];
        policy.chains.insert(chain.clone(), Arc::new(Chain { base: None, rules }));
        policy.sets.insert(set, members(peers));
        policy.ingress = isolated.iter().map(|name| (IfName::of_pod("a", name), chain.clone())).collect();
    }
    policy
}

fn table_of(pods: &[Endpoint], policy: CompiledPolicy) -> Ruleset {
    table(TableInput {
        endpoints: &pods.iter().map(|pod| (pod.interface.clone(), pod.clone())).collect(),
        cluster_pod_cidrs: &["10.244.0.0/16".parse().unwrap()],
        node_pod_cidrs: &["10.244.1.0/24".parse().unwrap()],
        node_addresses: &OrdSet::new(),
        vxlan_port: 8472,
        masquerade: Masquerade::Disabled,
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: PolicyEnforcement::Enforce(policy),
    })
}

#[test]
fn only_the_original_direction_is_evaluated_and_only_for_pods_of_this_node() {
    let pods = [
        endpoint("web", "10.244.1.2"),
        endpoint("other", "10.244.1.3"),
        endpoint("web6", "fd00:244:1::2"),
        endpoint("no-egress", "10.244.1.4"),
    ];
    let mut policy = policy(&["web", "web6"], &["10.244.2.9"], CmpOp::Eq, Verdict::Accept);
    let chain = ChainName::new("out.1").unwrap();
    policy.chains.insert(chain.clone(), Arc::new(Chain { base: None, rules: Vec::new() }));
    policy.egress.insert(IfName::of_pod("a", "no-egress"), chain);
    let table = table_of(&pods, policy);
    let node = BTreeSet::from(["10.244.1.1".parse().unwrap()]);
    let reevaluation = Reevaluation::new(&table, &pods, &node, &AffectedPods::All);
    let (denied, allowed, egress_denied) = (Some(Direction::Ingress), None, Some(Direction::Egress));
    for (from, to, expected, why) in [
        ("10.244.2.9", "10.244.1.2", allowed, "an allowed peer"),
        ("10.244.2.8", "10.244.1.2", denied, "another source"),
        ("10.244.1.3", "10.244.1.2", denied, "a pod of the same node"),
        ("10.244.1.2", "10.244.2.8", allowed, "an outgoing connection: replies are not evaluated"),
        ("10.244.1.1", "10.244.1.2", allowed, "the node reaches its own pods"),
        ("127.0.0.1", "10.244.1.2", allowed, "the node through a node port"),
        ("10.244.2.8", "10.244.1.3", allowed, "no policy selects the pod"),
        ("10.244.2.8", "10.244.2.7", allowed, "neither end is a pod of this node"),
        ("10.244.1.4", "10.244.2.8", egress_denied, "the source is isolated for egress"),
        ("10.244.1.4", "10.244.1.2", egress_denied, "egress is evaluated before ingress"),
        ("10.244.2.8", "10.244.1.4", allowed, "isolated for egress only"),
        ("fd00:244:2::8", "fd00:244:1::2", denied, "another source, IPv6"),
        ("fe80::1", "fd00:244:1::2", allowed, "only the node has a link-local address on the pod's link"),
        ("::1", "fd00:244:1::2", allowed, "the node itself"),
    ] {
        let connection = Connection { from: from.parse().unwrap(), to: to.parse().unwrap(), transport: PORT };
        assert_eq!(reevaluation.denied_at(&connection).unwrap(), expected, "{why}");
    }
}

#[test]
fn a_change_narrows_if_it_can_deny_and_affects_the_pods_whose_chains_change() {
    use ImpactKind::{Narrows, Widens};
    let (web, other) = (endpoint("web", "10.244.1.2"), endpoint("other", "10.244.1.3"));
    let both = [web.clone(), other];
    let one = [web];
    let accept = |pods: &[Endpoint], isolated: &[&str], peers: &[&str]| rules(pods, isolated, peers, Verdict::Accept);
    let deny = |peers: &[&str]| rules(&both, &["web"], peers, Verdict::Drop);
    let peer = &["10.244.2.9"][..];
    let all_but = |peers: &[&str]| table_of(&both, policy(&["web"], peers, CmpOp::NotEq, Verdict::Accept));
    for (before, after, kind, affected, why) in [
        (accept(&one, &[], &[]), accept(&both, &[], &[]), Widens, &["other"][..], "a new pod"),
        (accept(&one, &[], &[]), accept(&both, &["other"], peer), Widens, &["other"], "a new pod and its policy"),
        (accept(&both, &[], &[]), accept(&both, &["web"], &[]), Narrows, &["web"], "a pod is isolated"),
        (accept(&both, &["web"], &[]), accept(&both, &["web"], peer), Widens, &["web"], "an allowed peer is added"),
        (accept(&both, &["web"], peer), accept(&both, &["web"], &[]), Narrows, &["web"], "an allowed peer is removed"),
        (accept(&both, &[], &[]), accept(&one, &[], &[]), Widens, &["other"], "a pod is deleted"),
        (deny(&[]), deny(peer), Narrows, &["web"], "a denied peer is added"),
        (
            rules(&one, &[], &[], Verdict::Drop),
            rules(&both, &["other"], peer, Verdict::Drop),
            Widens,
            &["other"],
            "a new pod with a policy that denies",
        ),
        (all_but(&[]), all_but(peer), Narrows, &["web"], "an excluded peer is added"),
        (deny(peer), accept(&both, &["web"], peer), Narrows, &["web"], "a rule of a chain changes"),
    ] {
        let pods = affected.iter().map(|name| IfName::of_pod("a", name)).collect();
        let expected = PolicyImpact { kind, affected: AffectedPods::Pods(pods) };
        assert_eq!(PolicyImpact::of(&diff(&after, Some(&before.installed())), &after), expected, "{why}");
    }
    let table = accept(&both, &[], &[]);
    let expected = PolicyImpact { kind: Narrows, affected: AffectedPods::All };
    assert_eq!(PolicyImpact::of(&Transaction::replace(&table), &table), expected, "the previous table is not known");
}

#[test]
fn a_pod_is_affected_by_a_change_of_a_chain_that_its_chain_refers_to() {
    let web = endpoint("web", "10.244.1.2");
    let next = ChainName::new("in.2").unwrap();
    let with = |verdict: Verdict| {
        let mut all = rules(std::slice::from_ref(&web), &["web"], &[], Verdict::Goto(next.clone()));
        all.chains.insert(next.clone(), Arc::new(Chain { base: None, rules: vec![Rule::verdict(vec![], verdict)] }));
        all
    };
    let (before, after) = (with(Verdict::Accept), with(Verdict::Drop));
    let expected = PolicyImpact { kind: ImpactKind::Narrows, affected: AffectedPods::Pods([web.interface].into()) };
    assert_eq!(PolicyImpact::of(&diff(&after, Some(&before.installed())), &after), expected);
}

#[test]
fn a_reevaluation_covers_the_connections_of_the_affected_pods() {
    let pods = [endpoint("web", "10.244.1.2"), endpoint("other", "10.244.1.3")];
    let (table, node) = (rules(&pods, &[], &[], Verdict::Accept), BTreeSet::new());
    let web = AffectedPods::Pods([pods[0].interface.clone()].into());
    for (affected, from, to, expected, why) in [
        (&web, "10.244.2.9", "10.244.1.2", true, "to the affected pod"),
        (&web, "10.244.1.2", "10.244.2.9", true, "from the affected pod"),
        (&web, "10.244.1.3", "10.244.1.2", true, "from another pod of the node to the affected pod"),
        (&web, "10.244.2.9", "10.244.1.3", false, "to another pod"),
        (&AffectedPods::All, "10.244.2.9", "10.244.1.3", true, "all pods are affected"),
        (&AffectedPods::none(), "10.244.2.9", "10.244.1.2", false, "no pod is affected"),
    ] {
        let connection = Connection { from: from.parse().unwrap(), to: to.parse().unwrap(), transport: PORT };
        assert_eq!(Reevaluation::new(&table, &pods, &node, affected).covers(&connection), expected, "{why}");
    }
}

#[test]
fn merged_affected_pods_are_the_union() {
    let pods = |names: &[&str]| AffectedPods::Pods(names.iter().map(|name| IfName::of_pod("a", name)).collect());
    for (one, other, both) in [
        (pods(&["web"]), pods(&["other"]), pods(&["web", "other"])),
        (AffectedPods::All, pods(&["web"]), AffectedPods::All),
        (pods(&["web"]), AffectedPods::All, AffectedPods::All),
        (AffectedPods::none(), pods(&["web"]), pods(&["web"])),
    ] {
        let mut merged = one;
        merged.merge(other);
        assert_eq!(merged, both);
    }
}
