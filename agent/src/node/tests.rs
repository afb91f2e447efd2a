//! Histories of a node, replayed on fakes that execute: no kernel, no API server, no clock.

mod connections;
mod denied;
mod failures;
mod meanwhile;
mod world;

use std::net::IpAddr;

use serde_json::json;
use towpath_core::{
    model::PodId,
    names::IfName,
    overlay::{self, Kernel, NetOp},
    ruleset::{self, Transaction},
};
use towpath_index::{Event, ObjectChange};
use towpath_local::NodeState;

use self::world::{
    World, cluster, deny_all, endpoint, kernel, node_event, node_object, object, peer, pod_event, pod_object, policy,
};
use super::{belief::GATHER, *};
use crate::kernel::Notice;

#[test]
fn nothing_is_read_or_written_before_every_kind_is_listed() {
    let mut world = World::new();
    let mut inputs = cluster();
    let last = inputs.pop().unwrap();
    world.hear(inputs);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.writes(), world.reports.len()), (0, 0));
    world.hear([last]);
    assert!(world.writes() > 0);
    assert_eq!(world.node.last_apply, Duration::ZERO, "that the API server was slow is not ours");
}

#[test]
fn a_fresh_node_programs_its_peer_opens_and_reports_ready() {
    let world = World::settled();
    assert_eq!(world.reach.net.kernel.neighbours.len(), 1, "the peer's VTEP");
    assert_eq!(world.reach.net.kernel.fdb.len(), 1);
    assert!(world.reach.nft.table.read_back().is_some());
    let state = NodeState { pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], mtu: 1450 };
    assert_eq!(world.opened, vec![state], "once");
    assert_eq!(world.truth("Ready").0, "True");
    let tunnel = &world.reports.last().unwrap().status.tunnels[0];
    assert_eq!((tunnel.peers_expected, tunnel.peers_programmed, tunnel.mtu), (1, 1, 1450));
    let wish = world.wishes.last().unwrap();
    let data = wish.annotations["flannel.alpha.coreos.com/backend-data"].as_deref();
    assert_eq!(data, Some(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#));
    assert!(!wish.network_unavailable.as_ref().unwrap().unavailable);
}

#[test]
fn a_restart_writes_nothing_and_keeps_the_macs() {
    let world = World::settled();
    let before = world.writes();
    let mut world = world.restart();
    world.hear(cluster());
    assert_eq!(world.writes(), before, "all was as planned");
    assert_eq!(world.truth("Ready").0, "True");
    assert_eq!(world.reports.last().unwrap().status.tunnels[0].mac, "02:00:00:00:00:01", "not the new draw");
}

#[test]
fn a_second_look_with_nothing_changed_writes_nothing() {
    let mut world = World::settled();
    let before = world.writes();
    world.pass(Duration::from_secs(3600));
    assert_eq!((world.writes(), world.node.drift.repairs), (before, 0));
}

#[test]
fn a_label_of_a_pod_elsewhere_costs_one_transaction_of_one_element() {
    let elsewhere = |app: &str| {
        let pod = object(json!({
            "metadata": { "name": "b", "namespace": "default", "labels": { "app": app } },
            "spec": { "nodeName": "n2", "containers": [] },
            "status": { "phase": "Running", "podIP": "10.244.2.7", "podIPs": [{ "ip": "10.244.2.7" }] },
        }));
        Input::Watch(Event::Pod(Box::new(ObjectChange::Applied(pod))))
    };
    let policy = object(json!({
        "metadata": { "name": "friends", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "a" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "friend" } } }] }],
        },
    }));
    let mut world = World::settled();
    let policy = Input::Watch(Event::NetworkPolicy(Box::new(ObjectChange::Applied(policy))));
    world.hear([pod_event("a"), elsewhere("stranger"), policy]);
    assert_eq!(world.add_pod("a", "10.244.1.2").try_recv().unwrap(), Reply::Ok);
    for (app, done, why) in [("friend", "add element", "it is let in"), ("stranger", "delete element", "no more")] {
        let before = world.reach.nft.applied.len();
        world.hear([elsewhere(app)]);
        let [transaction] = &world.reach.nft.applied[before..] else { panic!("{why}: not one transaction") };
        let text = transaction.to_string();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("add table")).collect();
        assert_eq!(lines.len(), 1, "{why}: {text}");
        assert!(lines[0].starts_with(done) && lines[0].ends_with("{ 10.244.2.7 }"), "{why}: {text}");
    }
}

#[test]
fn one_more_peer_costs_three_writes_and_one_that_leaves_goes() {
    let mut world = World::settled();
    let before = world.reach.net.log.len();
    world.hear([node_event(peer("n3", 3))]);
    assert_eq!(world.reach.net.log.len() - before, 3, "neighbour, forwarding entry, route");
    world.hear([Input::Watch(Event::Node(Box::new(ObjectChange::Deleted(peer("n3", 3)))))]);
    assert_eq!((world.reach.net.kernel.fdb.len(), world.reach.net.kernel.neighbours.len()), (1, 1));
    assert_eq!(world.node.drift.repairs, 0, "what the cluster does is no drift");
}

#[test]
fn what_somebody_deletes_comes_back_and_is_counted() {
    let mut world = World::settled();
    world.reach.net.kernel.fdb.clear();
    world.hear([Input::Notice(Notice::Net(vec![overlay::NetNotification::Overrun]))]);
    assert!(world.reach.net.kernel.fdb.is_empty(), "hints are gathered first");
    world.pass(GATHER);
    assert_eq!((world.reach.net.kernel.fdb.len(), world.node.drift.repairs), (1, 1));

    world.reach.nft.table = ruleset::fake::FakeTable::default();
    world.hear([Input::Notice(Notice::Table)]);
    assert!(world.reach.nft.table.read_back().is_some(), "at once");
    let steps = world.reach.nft.applied.last().unwrap().steps().len() as u64;
    assert_eq!(world.node.drift.repairs, 1 + steps - 1, "all of it but the table itself, which has no say");
    assert!(world.node.drift.last.is_some());
}

#[test]
fn a_pod_starts_only_when_its_rules_are_in_force() {
    let mut world = World::settled();
    world.hear([deny_all()]);
    let mut answer = world.add_pod("a", "10.244.1.2");
    assert!(answer.try_recv().is_err(), "the API server has not told of the pod");
    world.hear([pod_event("a")]);
    assert_eq!(answer.try_recv().unwrap(), Reply::Ok);
    let part = world.node.plan.as_ref().unwrap().table.installed();
    assert_eq!(world.reach.nft.table.read_back(), Some(part), "the rules stand when the answer comes");
}

#[test]
fn a_pod_that_nobody_tells_of_is_put_off_and_leaves_nothing() {
    let mut world = World::settled();
    let table = world.reach.nft.table.read_back();
    let mut answer = world.add_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(8));
    let Reply::Error { code, details, .. } = answer.try_recv().unwrap() else { panic!("not put off") };
    assert_eq!(code, 11);
    assert!(details.contains("not heard of the pod"), "{details}");
    assert_eq!(world.reach.nft.table.read_back(), table);
}

#[test]
fn a_change_of_policy_is_timed_when_it_comes_into_force_and_not_if_it_changes_nothing() {
    let mut world = World::settled();
    let before = world.enforced;
    world.hear([pod_event("elsewhere")]);
    assert_eq!(world.enforced, before, "no rule looks at it");
    let mut moved = peer("n2", 2);
    let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:09:02"}"#.to_owned();
    moved.metadata.annotations.as_mut().unwrap().insert("flannel.alpha.coreos.com/backend-data".to_owned(), data);
    world.hear([pod_event("elsewhere too"), node_event(moved)]);
    assert_eq!(world.enforced, before, "what comes into force is no rule");
    world.hear([pod_event("a")]);
    assert_eq!(world.add_pod("a", "10.244.1.2").try_recv().unwrap(), Reply::Ok);
    assert_eq!(world.enforced, before + 1);
    let generation = |world: &World| world.reports.last().unwrap().status.policy.as_ref().unwrap().generation;
    let reported = generation(&world);
    world.reach.nft.refuse = 1;
    world.hear([pod_event("b")]);
    assert!(matches!(world.add_pod("b", "10.244.1.3").try_recv().unwrap(), Reply::Error { .. }));
    assert_eq!(world.enforced, before + 1, "refused is not in force");
    world.pass(Duration::from_secs(1));
    assert_eq!((world.enforced, generation(&world)), (before + 2, reported + 1));
}

#[test]
fn refused_rules_put_the_pod_off_and_are_tried_again() {
    let mut world = World::settled();
    world.hear([pod_event("a")]);
    world.reach.nft.refuse = 1;
    let mut answer = world.add_pod("a", "10.244.1.2");
    assert!(matches!(answer.try_recv().unwrap(), Reply::Error { code: 11, .. }));
    assert_eq!(world.node.not_ready().map(|why| why.contains("by order of the test")), Some(true));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.node.not_ready(), None, "healed");
    let plan = world.node.plan.as_ref().unwrap();
    assert_eq!(world.reach.nft.applied.last(), Some(&Transaction::replace(&plan.table)), "anew, not by a difference");
    for pod in ["b", "c", "d", "e", "f"] {
        world.reach.nft.refuse = 1;
        world.hear([pod_event(pod)]);
        drop(world.add_pod(pod, "10.244.1.9"));
        world.pass(Duration::from_millis(250));
        assert_eq!(world.node.not_ready(), None, "{pod}: a success ends the series of failures");
    }
    assert_eq!(world.node.drift.repairs, 0, "our own failures are no drift");
}

#[test]
fn a_deleted_pod_goes_at_once_and_a_missed_deletion_at_the_next_look() {
    let mut world = World::settled();
    world.hear([pod_event("a"), pod_event("b")]);
    for (name, address) in [("a", "10.244.1.2"), ("b", "10.244.1.3")] {
        assert_eq!(world.add_pod(name, address).try_recv().unwrap(), Reply::Ok);
    }
    world.remove_pod("a", "10.244.1.2");
    assert_eq!(world.node.index.endpoints().len(), 1);

    world.lose_pod("b", "10.244.1.3");
    world.hear([Input::Notice(Notice::Net(vec![overlay::NetNotification::Overrun]))]);
    world.pass(GATHER);
    assert_eq!(world.node.index.endpoints().len(), 0);
}

#[test]
fn the_next_container_of_a_pod_keeps_the_rules_when_the_last_one_goes() {
    let mut world = World::settled();
    world.hear([pod_event("a")]);
    world.add_pod("a", "10.244.1.2");
    let second = EndpointFile { container_id: "second".to_owned(), ..endpoint("a", "10.244.1.9") };
    let _second = world.add(second);
    world.remove_pod("a", "10.244.1.2");
    let endpoint = &world.node.index.endpoints()[&IfName::of_pod("default", "a")];
    assert_eq!(endpoint.addresses, vec!["10.244.1.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(endpoint.pod, PodId { namespace: "default".to_owned(), name: "a".to_owned() });
}

#[test]
fn a_peer_with_damaged_data_is_named_and_the_others_work() {
    let mut world = World::settled();
    let mut bad = peer("n3", 3);
    let annotations = bad.metadata.annotations.as_mut().unwrap();
    annotations.insert("flannel.alpha.coreos.com/backend-data".to_owned(), "{".to_owned());
    world.hear([node_event(bad)]);
    let (status, reason, message) = world.truth("TunnelReady");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidPeer"));
    assert!(message.contains("n3"), "{message}");
    let unavailable = world.wishes.last().unwrap().network_unavailable.as_ref().unwrap().unavailable;
    assert!(!unavailable, "another's mistake does not close this node");
    world.hear([node_event(peer("n3", 3))]);
    assert_eq!(world.truth("TunnelReady").0, "True");
}
