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

/// A table with pods of which `isolated` ones let in only whom the verdict says of the friends.
fn rules(pods: &[Endpoint], isolated: &[&str], friends: &[&str], verdict: Verdict) -> Ruleset {
    table_of(pods, part(isolated, friends, CmpOp::Eq, verdict))
}

/// `op` says whether the verdict is about friends or about all the others.
fn part(isolated: &[&str], friends: &[&str], op: CmpOp, verdict: Verdict) -> CompiledPolicy {
    let (set, chain) = (SetName::new("set.1").unwrap(), ChainName::new("in.1").unwrap());
    let mut part = CompiledPolicy::default();
    if !isolated.is_empty() {
        let from_friend = Match::InSet(vec![Field::Source(crate::model::Family::V4)], op, set.clone());
        let rules = vec![Rule::verdict(vec![from_friend], verdict)];
        part.chains.insert(chain.clone(), Arc::new(Chain { base: None, rules }));
        part.sets.insert(set, members(friends));
        part.ingress = isolated.iter().map(|name| (IfName::of_pod("a", name), chain.clone())).collect();
    }
    part
}

fn table_of(pods: &[Endpoint], part: CompiledPolicy) -> Ruleset {
    table(TableInput {
        endpoints: &pods.iter().map(|pod| (pod.interface.clone(), pod.clone())).collect(),
        cluster_pod_cidrs: &["10.244.0.0/16".parse().unwrap()],
        node_pod_cidrs: &["10.244.1.0/24".parse().unwrap()],
        node_addresses: &OrdSet::new(),
        vxlan_port: 8472,
        masquerade: Masquerade::Disabled,
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: PolicyEnforcement::Enforce(part),
    })
}

#[test]
fn only_the_direction_in_which_a_connection_began_counts_and_only_for_pods_of_this_node() {
    let pods = [
        endpoint("web", "10.244.1.2"),
        endpoint("other", "10.244.1.3"),
        endpoint("web6", "fd00:244:1::2"),
        endpoint("quiet", "10.244.1.4"),
    ];
    let mut part = part(&["web", "web6"], &["10.244.2.9"], CmpOp::Eq, Verdict::Accept);
    let silent = ChainName::new("out.1").unwrap();
    part.chains.insert(silent.clone(), Arc::new(Chain { base: None, rules: Vec::new() }));
    part.egress.insert(IfName::of_pod("a", "quiet"), silent);
    let table = table_of(&pods, part);
    let node = BTreeSet::from(["10.244.1.1".parse().unwrap()]);
    let review = Reevaluation::new(&table, &pods, &node, &AffectedPods::All);
    let (denied, allowed, silent) = (Some(Direction::Ingress), None, Some(Direction::Egress));
    for (from, to, expected, why) in [
        ("10.244.2.9", "10.244.1.2", allowed, "a friend"),
        ("10.244.2.8", "10.244.1.2", denied, "a stranger"),
        ("10.244.1.3", "10.244.1.2", denied, "a pod of the same node"),
        ("10.244.1.2", "10.244.2.8", allowed, "it began itself: what comes back is an answer"),
        ("10.244.1.1", "10.244.1.2", allowed, "the node reaches its own pods"),
        ("127.0.0.1", "10.244.1.2", allowed, "so it does through a node port from itself"),
        ("10.244.2.8", "10.244.1.3", allowed, "no policy selects it"),
        ("10.244.2.8", "10.244.2.7", allowed, "none of this node's"),
        ("10.244.1.4", "10.244.2.8", silent, "a pod that may begin none"),
        ("10.244.1.4", "10.244.1.2", silent, "it is denied before the other end is asked"),
        ("10.244.2.8", "10.244.1.4", allowed, "but it may be asked"),
        ("fd00:244:2::8", "fd00:244:1::2", denied, "a stranger in the other family"),
        ("fe80::1", "fd00:244:1::2", allowed, "nobody but the node is that near"),
        ("::1", "fd00:244:1::2", allowed, "the node itself"),
    ] {
        let connection = Connection { from: from.parse().unwrap(), to: to.parse().unwrap(), transport: PORT };
        assert_eq!(review.denied_at(&connection).unwrap(), expected, "{why}");
    }
}

#[test]
fn a_change_is_worth_a_review_of_whom_it_touches_when_it_can_deny_and_not_when_it_only_adds() {
    use ImpactKind::{Narrows, Widens};
    let (web, other) = (endpoint("web", "10.244.1.2"), endpoint("other", "10.244.1.3"));
    let both = [web.clone(), other];
    let one = [web];
    let accept =
        |pods: &[Endpoint], isolated: &[&str], friends: &[&str]| rules(pods, isolated, friends, Verdict::Accept);
    let deny = |friends: &[&str]| rules(&both, &["web"], friends, Verdict::Drop);
    let friend = &["10.244.2.9"][..];
    let all_but = |friends: &[&str]| table_of(&both, part(&["web"], friends, CmpOp::NotEq, Verdict::Accept));
    for (before, after, meaning, touched, why) in [
        (accept(&one, &[], &[]), accept(&both, &[], &[]), Widens, &["other"][..], "a new pod"),
        (accept(&one, &[], &[]), accept(&both, &["other"], friend), Widens, &["other"], "a new pod and its policy"),
        (accept(&both, &[], &[]), accept(&both, &["web"], &[]), Narrows, &["web"], "a pod is isolated"),
        (accept(&both, &["web"], &[]), accept(&both, &["web"], friend), Widens, &["web"], "a new friend"),
        (accept(&both, &["web"], friend), accept(&both, &["web"], &[]), Narrows, &["web"], "a lost friend"),
        (accept(&both, &[], &[]), accept(&one, &[], &[]), Widens, &["other"], "a pod that leaves"),
        (deny(&[]), deny(friend), Narrows, &["web"], "another one that is denied"),
        (
            rules(&one, &[], &[], Verdict::Drop),
            rules(&both, &["other"], friend, Verdict::Drop),
            Widens,
            &["other"],
            "a new pod that denies some",
        ),
        (all_but(&[]), all_but(friend), Narrows, &["web"], "one less of all but some"),
        (deny(friend), accept(&both, &["web"], friend), Narrows, &["web"], "a chain with another rule"),
    ] {
        let pods = touched.iter().map(|name| IfName::of_pod("a", name)).collect();
        let expected = PolicyImpact { meaning, touched: AffectedPods::Pods(pods) };
        assert_eq!(PolicyImpact::of(&diff(&after, Some(&before.installed())), &after), expected, "{why}");
    }
    let table = accept(&both, &[], &[]);
    let expected = PolicyImpact { meaning: Narrows, touched: AffectedPods::All };
    assert_eq!(PolicyImpact::of(&Transaction::replace(&table), &table), expected, "what was before is not known");
}

#[test]
fn a_pod_is_touched_through_the_chain_that_goes_on_to_another() {
    let web = endpoint("web", "10.244.1.2");
    let next = ChainName::new("in.2").unwrap();
    let with = |verdict: Verdict| {
        let mut all = rules(std::slice::from_ref(&web), &["web"], &[], Verdict::Goto(next.clone()));
        all.chains.insert(next.clone(), Arc::new(Chain { base: None, rules: vec![Rule::verdict(vec![], verdict)] }));
        all
    };
    let (before, after) = (with(Verdict::Accept), with(Verdict::Drop));
    let expected = PolicyImpact { meaning: ImpactKind::Narrows, touched: AffectedPods::Pods([web.interface].into()) };
    assert_eq!(PolicyImpact::of(&diff(&after, Some(&before.installed())), &after), expected);
}

#[test]
fn a_review_is_about_the_connections_of_those_who_are_touched() {
    let pods = [endpoint("web", "10.244.1.2"), endpoint("other", "10.244.1.3")];
    let (table, node) = (rules(&pods, &[], &[], Verdict::Accept), BTreeSet::new());
    let web = AffectedPods::Pods([pods[0].interface.clone()].into());
    for (touched, from, to, expected, why) in [
        (&web, "10.244.2.9", "10.244.1.2", true, "to it"),
        (&web, "10.244.1.2", "10.244.2.9", true, "from it"),
        (&web, "10.244.1.3", "10.244.1.2", true, "from another one to it"),
        (&web, "10.244.2.9", "10.244.1.3", false, "to another one"),
        (&AffectedPods::All, "10.244.2.9", "10.244.1.3", true, "everybody's"),
        (&AffectedPods::nobody(), "10.244.2.9", "10.244.1.2", false, "nobody's"),
    ] {
        let connection = Connection { from: from.parse().unwrap(), to: to.parse().unwrap(), transport: PORT };
        assert_eq!(Reevaluation::new(&table, &pods, &node, touched).is_about(&connection), expected, "{why}");
    }
}

#[test]
fn whoever_is_touched_by_two_changes_is_touched_by_both_together() {
    let pods = |names: &[&str]| AffectedPods::Pods(names.iter().map(|name| IfName::of_pod("a", name)).collect());
    for (one, other, both) in [
        (pods(&["web"]), pods(&["other"]), pods(&["web", "other"])),
        (AffectedPods::All, pods(&["web"]), AffectedPods::All),
        (pods(&["web"]), AffectedPods::All, AffectedPods::All),
        (AffectedPods::nobody(), pods(&["web"]), pods(&["web"])),
    ] {
        let mut merged = one;
        merged.merge(other);
        assert_eq!(merged, both);
    }
}
