//! Histories of a node, replayed on fakes that execute: no kernel, no API server, no clock.

mod connections;
mod denied;
mod failures;
mod fakes;
mod firewall;
mod meanwhile;
mod world;

use std::{net::IpAddr, time::Duration};

use serde_json::json;
use towpath_core::{
    model::{Mac, PodId},
    names::IfName,
    overlay::{self, Kernel, NetOp},
    ruleset::{self, Transaction},
};
use towpath_index::{Event, ObjectChange};

use self::world::{
    World, cluster, deny_all, kernel, node_event, node_object, object, peer, pod, pod_event, pod_object, policy,
};
use crate::{
    Attachment, CniCode, CniNetwork, CniReply, Input, KernelNotification, LocalPod, kernel::GATHER,
    status::INSTALL_RETRY,
};

#[test]
fn nothing_is_read_or_written_before_every_kind_is_listed() {
    let mut world = World::new();
    let mut inputs = cluster();
    let last = inputs.pop().unwrap();
    world.feed(inputs);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.writes(), world.updates.len()), (0, 0));
    world.feed([last]);
    assert!(world.writes() > 0);
    assert_eq!(world.node.status.commits.latency, Duration::ZERO, "that the API server was slow is not ours");
}

#[test]
fn a_fresh_node_programs_its_peer_opens_and_reports_ready() {
    let world = World::settled();
    assert_eq!(world.kernel.network.neighbours.len(), 1, "the peer's VTEP");
    assert_eq!(world.kernel.network.fdb.len(), 1);
    assert!(world.kernel.table.read_back().is_some());
    let state = CniNetwork { pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], mtu: 1450 };
    assert_eq!(world.installed, vec![state], "once");
    assert_eq!(world.condition("Ready").0, "True");
    let tunnel = &world.updates.last().unwrap().status.tunnels[0];
    assert_eq!((tunnel.peers_expected, tunnel.peers_programmed, tunnel.mtu), (1, 1, 1450));
    let patch = world.patches.last().unwrap();
    let data = patch.annotations["flannel.alpha.coreos.com/backend-data"].as_deref();
    assert_eq!(data, Some(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#));
    assert!(!patch.network_condition.as_ref().unwrap().unavailable);
}

#[test]
fn a_restart_writes_nothing_and_keeps_the_macs() {
    let world = World::settled();
    let before = world.writes();
    let mut world = world.restart();
    world.feed(cluster());
    assert_eq!(world.writes(), before, "all was as planned");
    assert_eq!(world.condition("Ready").0, "True");
    assert_eq!(world.updates.last().unwrap().status.tunnels[0].mac, "02:00:00:00:00:01", "not the new draw");
}

#[test]
fn a_resync_with_nothing_changed_writes_nothing() {
    let mut world = World::settled();
    let before = world.writes();
    world.pass(Duration::from_secs(3600));
    assert_eq!((world.writes(), world.node.status.drift.repairs), (before, 0));
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
    world.feed([pod_event("a"), elsewhere("stranger"), policy]);
    assert_eq!(world.start_pod("a", "10.244.1.2"), CniReply::Ok);
    for (app, done, why) in [("friend", "add element", "it is let in"), ("stranger", "delete element", "no more")] {
        let before = world.kernel.transactions.len();
        world.feed([elsewhere(app)]);
        let [transaction] = &world.kernel.transactions[before..] else { panic!("{why}: not one transaction") };
        let text = transaction.to_string();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("add table")).collect();
        assert_eq!(lines.len(), 1, "{why}: {text}");
        assert!(lines[0].starts_with(done) && lines[0].ends_with("{ 10.244.2.7 }"), "{why}: {text}");
    }
}

#[test]
fn one_more_peer_costs_three_writes_and_one_that_leaves_goes() {
    let mut world = World::settled();
    let before = world.kernel.ops.len();
    world.feed([node_event(peer("n3", 3))]);
    assert_eq!(world.kernel.ops.len() - before, 3, "neighbour, FDB entry, route");
    world.feed([Input::Watch(Event::Node(Box::new(ObjectChange::Deleted(peer("n3", 3)))))]);
    assert_eq!((world.kernel.network.fdb.len(), world.kernel.network.neighbours.len()), (1, 1));
    assert_eq!(world.node.status.drift.repairs, 0, "what the cluster does is no drift");
}

#[test]
fn what_somebody_deletes_comes_back_and_is_counted() {
    let mut world = World::settled();
    world.kernel.network.fdb.clear();
    world.feed([Input::Notification(KernelNotification::Network(vec![overlay::NetNotification::Overrun]))]);
    assert!(world.kernel.network.fdb.is_empty(), "notifications are gathered first");
    world.pass(GATHER);
    assert_eq!((world.kernel.network.fdb.len(), world.node.status.drift.repairs), (1, 1));

    world.kernel.table = ruleset::fake::FakeTable::default();
    world.feed([Input::Notification(KernelNotification::Table)]);
    assert!(world.kernel.table.read_back().is_some(), "at once");
    let steps = world.kernel.transactions.last().unwrap().steps().len() as u64;
    assert_eq!(world.node.status.drift.repairs, 1 + steps - 1, "all of it but the table itself, which has no say");
    assert!(world.node.status.drift.last.is_some());
}

#[test]
fn a_pod_starts_only_when_its_rules_are_in_force() {
    let mut world = World::settled();
    world.feed([deny_all()]);
    let answer = world.add_pod("a", "10.244.1.2");
    assert_eq!(world.reply(answer), None, "the API server has not delivered the pod");
    world.feed([pod_event("a")]);
    assert_eq!(world.reply(answer).unwrap(), CniReply::Ok);
    let part = world.node.kernel.wanted().unwrap().table.installed();
    assert_eq!(world.kernel.table.read_back(), Some(part), "the rules stand when the answer comes");
}

#[test]
fn the_start_of_a_pod_that_the_api_server_does_not_deliver_fails_and_leaves_nothing() {
    let mut world = World::settled();
    let table = world.kernel.table.read_back();
    let answer = world.add_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(8));
    let CniReply::Error { code, details, .. } = world.reply(answer).unwrap() else { panic!("not delayed") };
    assert_eq!(code, CniCode::TryAgainLater);
    assert!(details.contains("not received the pod"), "{details}");
    assert_eq!(world.kernel.table.read_back(), table);
}

#[test]
fn a_change_of_policy_is_timed_when_it_is_committed_and_not_if_it_changes_nothing() {
    let mut world = World::settled();
    let before = world.policy_changes;
    world.feed([pod_event("elsewhere")]);
    assert_eq!(world.policy_changes, before, "no rule is about it");
    let mut moved = peer("n2", 2);
    let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:09:02"}"#.to_owned();
    moved.metadata.annotations.as_mut().unwrap().insert("flannel.alpha.coreos.com/backend-data".to_owned(), data);
    world.feed([pod_event("elsewhere too"), node_event(moved)]);
    assert_eq!(world.policy_changes, before, "what comes into force is no rule");
    world.feed([pod_event("a")]);
    assert_eq!(world.start_pod("a", "10.244.1.2"), CniReply::Ok);
    assert_eq!(world.policy_changes, before + 1);
    let generation = |world: &World| world.updates.last().unwrap().status.policy.as_ref().unwrap().generation;
    let reported = generation(&world);
    world.kernel.reject = 1;
    world.feed([pod_event("b")]);
    assert!(matches!(world.start_pod("b", "10.244.1.3"), CniReply::Error { .. }));
    assert_eq!(world.policy_changes, before + 1, "rejected is not in force");
    world.pass(Duration::from_secs(1));
    assert_eq!((world.policy_changes, generation(&world)), (before + 2, reported + 1));
}

#[test]
fn rejected_rules_delay_the_pod_and_are_tried_again() {
    let mut world = World::settled();
    world.feed([pod_event("a")]);
    world.kernel.reject = 1;
    let answer = world.add_pod("a", "10.244.1.2");
    assert!(matches!(world.reply(answer).unwrap(), CniReply::Error { code: CniCode::TryAgainLater, .. }));
    assert_eq!(world.node.summary().not_ready.map(|why| why.contains("requested by the test")), Some(true));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.node.summary().not_ready, None, "healed");
    let plan = world.node.kernel.wanted().unwrap();
    assert_eq!(
        world.kernel.transactions.last(),
        Some(&Transaction::replace(&plan.table)),
        "as a whole, not by a difference"
    );
    for pod in ["b", "c", "d", "e", "f"] {
        world.kernel.reject = 1;
        world.feed([pod_event(pod)]);
        world.add_pod(pod, "10.244.1.9");
        world.pass(Duration::from_millis(250));
        assert_eq!(world.node.summary().not_ready, None, "{pod}: a success ends the series of failures");
    }
    assert_eq!(world.node.status.drift.repairs, 0, "our own failures are no drift");
}

#[test]
fn a_deleted_pod_is_removed_at_once_and_a_missed_del_at_the_next_read_back() {
    let mut world = World::settled();
    world.feed([pod_event("a"), pod_event("b")]);
    for (name, address) in [("a", "10.244.1.2"), ("b", "10.244.1.3")] {
        assert_eq!(world.start_pod(name, address), CniReply::Ok);
    }
    world.remove_pod("a", "10.244.1.2");
    assert_eq!(world.node.index.endpoints().len(), 1);

    world.lose_pod("b", "10.244.1.3");
    world.feed([Input::Notification(KernelNotification::Network(vec![overlay::NetNotification::Overrun]))]);
    world.pass(GATHER);
    assert_eq!(world.node.index.endpoints().len(), 0);
}

#[test]
fn the_next_container_of_a_pod_keeps_the_rules_when_the_last_one_goes() {
    let mut world = World::settled();
    world.feed([pod_event("a")]);
    world.add_pod("a", "10.244.1.2");
    let attachment = Attachment { container_id: "second".to_owned(), ifname: IfName::new("eth0").unwrap() };
    let second = LocalPod { attachment, ..pod("a", "10.244.1.9") };
    world.add(second);
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
    world.feed([node_event(bad)]);
    let (status, reason, message) = world.condition("TunnelReady");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidPeer"));
    assert!(message.contains("n3"), "{message}");
    let unavailable = world.patches.last().unwrap().network_condition.as_ref().unwrap().unavailable;
    assert!(!unavailable, "another's mistake does not close this node");
    world.feed([node_event(peer("n3", 3))]);
    assert_eq!(world.condition("TunnelReady").0, "True");
}
