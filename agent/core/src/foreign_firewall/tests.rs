use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{model::Family, names::IfName};

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn traffic() -> PodTraffic {
    PodTraffic {
        own: BTreeMap::from([
            (Family::V4, "10.244.1.0/24".parse().unwrap()),
            (Family::V6, "fd00:10:244:1::/64".parse().unwrap()),
        ]),
        cluster: nets(&["10.244.0.0/16", "fd00:10:244::/48"]).into_iter().collect(),
        overlay: BTreeMap::from([
            (Family::V4, IfName::new("flannel.1").unwrap()),
            (Family::V6, IfName::new("flannel-v6.1").unwrap()),
        ]),
    }
}

fn rule(conditions: &[ForeignCondition], action: ForeignAction) -> ForeignRule {
    ForeignRule { conditions: conditions.to_vec(), action }
}

fn from(net: &str) -> ForeignCondition {
    ForeignCondition::Address(FlowSide::From, Comparison::Equal, nets(&[net]))
}

fn to(net: &str) -> ForeignCondition {
    ForeignCondition::Address(FlowSide::To, Comparison::Equal, nets(&[net]))
}

fn interface(direction: FlowSide, comparison: Comparison, names: &[&str]) -> ForeignCondition {
    ForeignCondition::Interface(direction, comparison, names.iter().map(|&name| name.to_owned()).collect())
}

fn incoming(name: &str) -> ForeignCondition {
    interface(FlowSide::From, Comparison::Equal, &[name])
}

fn outgoing(name: &str) -> ForeignCondition {
    interface(FlowSide::To, Comparison::Equal, &[name])
}

fn table(family: TableFamily, policy: ChainPolicy, chains: &[(&str, Vec<ForeignRule>)]) -> ForeignTable {
    let base = ForwardHook { priority: 0, policy };
    let chain = |(n, (name, rules)): (usize, &(&str, Vec<ForeignRule>))| {
        ((*name).to_owned(), ForeignChain { forward: (n == 0).then_some(base), rules: Some(rules.clone()) })
    };
    ForeignTable { family, name: "filter".to_owned(), chains: chains.iter().enumerate().map(chain).collect() }
}

/// The most certain finding of a chain of policy drop, or accept, with these rules.
fn evaluated(policy: ChainPolicy, rules: Vec<ForeignRule>) -> Option<(DropCause, Certainty)> {
    let table = table(TableFamily::Ip, policy, &[("FORWARD", rules)]);
    findings(&[table], &traffic()).pop().map(|drop| (drop.cause, drop.certainty))
}

const POLICY: Option<(DropCause, Certainty)> = Some((DropCause::Policy, Certainty::Certain));
const MAYBE: Option<(DropCause, Certainty)> = Some((DropCause::Policy, Certainty::Possible));

#[test]
fn what_accepts_all_pod_traffic_makes_a_policy_of_drop_harmless() {
    use ForeignAction::{Accept, Continue};
    let not = |direction, name| interface(direction, Comparison::NotEqual, &[name]);
    for (rules, expected, why) in [
        (vec![], POLICY, "nothing accepts"),
        (vec![rule(&[], Continue)], POLICY, "a counter is no verdict"),
        (vec![rule(&[], Accept)], None, "everything"),
        (vec![rule(&[from("10.244.0.0/16")], Accept)], None, "sources in the podCIDR"),
        (vec![rule(&[from("10.244.0.0/16"), to("10.0.0.0/8")], Accept)], None, "sources and destinations"),
        (vec![rule(&[from("10.244.1.0/24")], Accept)], MAYBE, "sources on this node only"),
        (vec![rule(&[from("172.17.0.0/16")], Accept)], POLICY, "other sources"),
        (vec![rule(&[incoming("flannel.1")], Accept)], POLICY, "one direction"),
        (
            vec![rule(&[incoming("flannel.1")], Accept), rule(&[outgoing("flannel.1")], Accept)],
            POLICY,
            "not within the node",
        ),
        (vec![rule(&[incoming("tow*")], Accept), rule(&[outgoing("tow*")], Accept)], None, "pods' interfaces"),
        (vec![rule(&[incoming("tow0123456789a")], Accept)], POLICY, "one pod's interface"),
        (vec![rule(&[incoming("docker0"), not(FlowSide::To, "docker0")], Accept)], POLICY, "Docker's own"),
        (vec![rule(&[not(FlowSide::From, "docker0")], Accept)], None, "all but Docker's"),
        (vec![rule(&[ForeignCondition::Partial], Accept)], POLICY, "a protocol, or established connections"),
        (vec![rule(&[ForeignCondition::Unknown], Accept)], MAYBE, "a mark"),
        (vec![rule(&[ForeignCondition::Unknown, incoming("docker0")], Accept)], POLICY, "a mark, for others"),
        (vec![rule(&[ForeignCondition::Family(Comparison::Equal, Family::V4)], Accept)], None, "the family"),
        (vec![rule(&[ForeignCondition::Family(Comparison::NotEqual, Family::V4)], Accept)], POLICY, "the other family"),
        (vec![rule(&[], ForeignAction::Unknown)], MAYBE, "a queue"),
    ] {
        assert_eq!(evaluated(ChainPolicy::Drop, rules), expected, "{why}");
    }
}

#[test]
fn a_rule_drops_only_where_it_takes_all_of_a_way() {
    use ForeignAction::{Accept, Drop};
    let by_rule = |certainty| Some((DropCause::Rule, certainty));
    for (rules, expected, why) in [
        (vec![], None, "policy accept"),
        (vec![rule(&[], Drop)], by_rule(Certainty::Certain), "the end of firewalld's chain"),
        (vec![rule(&[outgoing("flannel.1")], Drop)], by_rule(Certainty::Certain), "one direction"),
        (vec![rule(&[ForeignCondition::Partial], Drop)], None, "invalid packets"),
        (vec![rule(&[ForeignCondition::Unknown], Drop)], None, "a block list"),
        (vec![rule(&[from("10.244.7.0/24")], Drop)], None, "some pods"),
        (vec![rule(&[from("10.0.0.0/8")], Accept), rule(&[], Drop)], None, "accepted before"),
        (
            vec![rule(&[ForeignCondition::Unknown], Accept), rule(&[], Drop)],
            by_rule(Certainty::Possible),
            "perhaps before",
        ),
        (
            vec![rule(&[ForeignCondition::Unknown], ForeignAction::Return), rule(&[], Drop)],
            by_rule(Certainty::Possible),
            "perhaps left before",
        ),
    ] {
        assert_eq!(evaluated(ChainPolicy::Accept, rules), expected, "{why}");
    }
}

#[test]
fn chains_are_walked_as_the_kernel_walks_them() {
    use ForeignAction::{Accept, Drop, Goto, Jump, Return};
    let call = |action: fn(String) -> ForeignAction| action("x".to_owned());
    for (base, called, expected, why) in [
        (vec![rule(&[], call(Jump))], vec![rule(&[], Accept)], None, "accepted in a chain"),
        (vec![rule(&[], call(Jump))], vec![rule(&[], Return)], POLICY, "back, and on to the policy"),
        (vec![rule(&[], call(Jump)), rule(&[], Accept)], vec![], None, "behind the call"),
        (vec![rule(&[], call(Goto)), rule(&[], Accept)], vec![], POLICY, "goto does not come back"),
        (vec![rule(&[ForeignCondition::Unknown], call(Jump))], vec![rule(&[], Accept)], MAYBE, "perhaps called"),
        (vec![rule(&[ForeignCondition::Unknown], call(Jump))], vec![rule(&[], Drop)], POLICY, "called or not"),
        (vec![rule(&[], call(Jump))], vec![rule(&[], call(Jump))], MAYBE, "a loop is never seen whole"),
        (vec![rule(&[], Jump("y".to_owned()))], vec![], MAYBE, "a chain that is not there"),
        (
            vec![rule(&[], call(Jump)), rule(&[], call(Jump))],
            vec![rule(&[ForeignCondition::Unknown], Return)],
            POLICY,
            "what is perhaps left drops nothing",
        ),
    ] {
        let table = table(TableFamily::Ip, ChainPolicy::Drop, &[("FORWARD", base), ("x", called)]);
        let found = findings(&[table], &traffic()).pop().map(|drop| (drop.cause, drop.certainty));
        assert_eq!(found, expected, "{why}");
    }
}

#[test]
fn a_table_whose_rules_were_not_read_may_drop_by_its_policy() {
    let mut unread = table(TableFamily::Inet, ChainPolicy::Drop, &[("forward", vec![])]);
    unread.chains.get_mut("forward").unwrap().rules = None;
    let found = findings(&[unread.clone()], &traffic());
    assert_eq!(found.iter().map(|drop| drop.certainty).collect::<Vec<_>>(), [Certainty::Possible]);
    unread.chains.get_mut("forward").unwrap().forward.as_mut().unwrap().policy = ChainPolicy::Accept;
    assert_eq!(findings(&[unread], &traffic()), []);
}

#[test]
fn a_table_concerns_the_families_that_it_sees() {
    let of = |family| {
        let table =
            table(family, ChainPolicy::Drop, &[("forward", vec![rule(&[from("10.0.0.0/8")], ForeignAction::Accept)])]);
        findings(&[table], &traffic()).len()
    };
    assert_eq!((of(TableFamily::Ip), of(TableFamily::Ip6), of(TableFamily::Inet)), (0, 1, 1));
    let nothing = PodTraffic::default();
    assert_eq!(findings(&[table(TableFamily::Ip, ChainPolicy::Drop, &[("forward", vec![])])], &nothing), []);
}

#[test]
fn a_finding_says_what_is_dropped_where_and_what_to_do() {
    use ChainPolicy::{Accept, Drop};
    let message = |family, policy, chains: &[(&str, Vec<ForeignRule>)], name: &str| {
        let mut table = table(family, policy, chains);
        name.clone_into(&mut table.name);
        let found = findings(&[table], &traffic()).pop().unwrap();
        (found.place(), found.to_string(), found.remedy())
    };
    let docker = message(TableFamily::Ip, Drop, &[("FORWARD", vec![]), ("DOCKER-USER", vec![])], "filter");
    assert_eq!(docker.0, "ip filter FORWARD");
    assert_eq!(
        docker.1,
        "chain FORWARD of table ip filter (hook forward, priority 0, policy drop) drops pod traffic to other nodes, from other nodes, within the node by its policy"
    );
    assert_eq!(
        docker.2,
        "accept pod traffic before Docker's rules: iptables -I DOCKER-USER -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT"
    );
    let reject = || vec![rule(&[], ForeignAction::Drop)];
    for (family, policy, chains, name, remedy) in [
        (
            TableFamily::Inet,
            Accept,
            vec![("filter_FORWARD", reject())],
            "firewalld",
            "trust the podCIDR: firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16 && firewall-cmd --permanent --zone=trusted --add-source=fd00:10:244::/48 && firewall-cmd --reload",
        ),
        (
            TableFamily::Ip6,
            Drop,
            vec![("FORWARD", vec![]), ("ufw6-before-forward", vec![])],
            "filter",
            "let ufw forward pod traffic: ufw route allow from fd00:10:244::/48 to fd00:10:244::/48",
        ),
        (
            TableFamily::Ip6,
            Drop,
            vec![("FORWARD", vec![])],
            "filter",
            "ip6tables -P FORWARD ACCEPT, or accept pod traffic: ip6tables -I FORWARD -s fd00:10:244::/48 -d fd00:10:244::/48 -j ACCEPT",
        ),
        (
            TableFamily::Ip,
            Accept,
            vec![("FORWARD", reject())],
            "filter",
            "accept pod traffic before the rule: iptables -I FORWARD -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT",
        ),
        (
            TableFamily::Ip,
            Drop,
            vec![("fwd", vec![])],
            "mine",
            "accept pod traffic in this chain: nft insert rule ip mine fwd ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 accept",
        ),
    ] {
        assert_eq!(message(family, policy, &chains, name).2, remedy);
    }
}

#[test]
fn what_a_remedy_adds_ends_the_finding() {
    let accept = rule(&[from("10.244.0.0/16"), to("10.244.0.0/16")], ForeignAction::Accept);
    let docker = [
        ("FORWARD", vec![rule(&[], ForeignAction::Jump("DOCKER-USER".to_owned()))]),
        ("DOCKER-USER", vec![accept, rule(&[], ForeignAction::Return)]),
    ];
    assert_eq!(findings(&[table(TableFamily::Ip, ChainPolicy::Drop, &docker)], &traffic()), []);
}

#[test]
fn ways_that_are_closed_are_named() {
    let rules = vec![rule(&[incoming("flannel.1")], ForeignAction::Accept)];
    let found = findings(&[table(TableFamily::Ip, ChainPolicy::Drop, &[("FORWARD", rules)])], &traffic());
    assert_eq!(found[0].flows, BTreeSet::from([PodFlow::ToOtherNodes, PodFlow::WithinNode]));
}
