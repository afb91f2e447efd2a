//! Firewalls of other programs at the forward hook.

use std::{collections::BTreeMap, time::Duration};

use towpath_core::foreign_firewall::{
    ChainPolicy, Comparison, FlowSide, ForeignAction, ForeignChain, ForeignCondition, ForeignRule, ForeignTable,
    ForwardHook, TableFamily,
};

use super::world::{World, cluster};
use crate::Input;

/// A table as iptables makes it, with policy drop.
fn iptables(rules: &[ForeignRule]) -> ForeignTable {
    let forward = Some(ForwardHook { priority: 0, policy: ChainPolicy::Drop });
    let chain = ForeignChain { forward, rules: Some(rules.to_vec()) };
    let chains = BTreeMap::from([("FORWARD".to_owned(), chain)]);
    ForeignTable { family: TableFamily::Ip, name: "filter".to_owned(), chains }
}

fn accept(condition: ForeignCondition) -> ForeignRule {
    ForeignRule { conditions: vec![condition], action: ForeignAction::Accept }
}

fn within(cidr: &str) -> ForeignRule {
    let nets = vec![cidr.parse().unwrap()];
    accept(ForeignCondition::Address(FlowSide::From, Comparison::Equal, nets))
}

#[test]
fn a_foreign_chain_that_drops_pod_traffic_makes_the_node_not_ready_until_it_is_gone() {
    let mut world = World::settled();
    world.feed([Input::ForeignTables(vec![iptables(&[])])]);
    let (status, reason, message) = world.condition("Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ForeignFirewall"));
    let drops = "chain FORWARD of table ip filter (hook forward, priority 0, policy drop) drops pod traffic to other nodes, from other nodes, within the node by its policy";
    let remedy = "iptables -P FORWARD ACCEPT, or accept pod traffic: iptables -I FORWARD -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT";
    assert_eq!(message, format!("{drops}. Remedy: {remedy}"));
    let findings = &world.updates.last().unwrap().status.findings;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((&*finding.name, &*finding.message, &*finding.remedy), ("ForeignFirewall", drops, remedy));
    assert_eq!(world.condition("TunnelReady").0, "True", "ours is as it should be");
    assert_eq!(world.node.summary().not_ready, None, "pods start: what they need of us is there");

    let updates = world.updates.len();
    world.feed([Input::ForeignTables(vec![iptables(&[])])]);
    world.pass(Duration::from_secs(1));
    assert!(world.updates[updates..].iter().all(|update| update.status == world.updates[updates - 1].status));

    world.feed([Input::ForeignTables(Vec::new())]);
    assert_eq!(world.condition("Ready").1, "DataPathReady");
    assert!(world.updates.last().unwrap().status.findings.is_empty());
}

#[test]
fn a_chain_that_may_drop_is_reported_and_the_node_stays_ready() {
    let mut world = World::settled();
    world.feed([Input::ForeignTables(vec![iptables(&[accept(ForeignCondition::Unknown)])])]);
    assert_eq!(world.condition("Ready").0, "True");
    let findings = &world.updates.last().unwrap().status.findings;
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("may drop pod traffic"), "{findings:?}");
    world.feed([Input::ForeignTables(vec![iptables(&[within("10.244.0.0/16")])])]);
    assert!(world.updates.last().unwrap().status.findings.is_empty(), "it accepts pod traffic");
}

#[test]
fn what_was_read_before_the_plan_is_evaluated_with_it_and_the_first_of_many_is_named() {
    let mut world = World::new();
    let second = ForeignTable { name: "second".to_owned(), ..iptables(&[]) };
    world.feed([Input::ForeignTables(vec![
        iptables(&[accept(ForeignCondition::Unknown)]),
        second.clone(),
        iptables(&[]),
    ])]);
    assert_eq!(world.updates.len(), 0);
    world.feed(cluster());
    let (_, reason, message) = world.condition("Ready");
    assert_eq!(reason, "ForeignFirewall");
    assert!(message.contains("table ip second ") && message.ends_with("; 1 more in status.findings"), "{message}");
    let certain =
        world.updates.last().unwrap().status.findings.iter().map(|finding| finding.message.contains(" drops "));
    assert_eq!(certain.collect::<Vec<_>>(), [true, true, false]);
}
