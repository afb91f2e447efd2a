//! Established connections, in a node's histories.

use serde_json::Value;
use towpath_core::{connection::Connection, ruleset::Transport};
use towpath_crds::network_config::OnChange;

use super::{fakes::FakeConnection, *};
use crate::revocation::Revocation;

/// From a pod of another node to port 80 of one of ours.
fn connection(to: &str) -> Connection {
    let transport = Transport::Ports { protocol: 6, destination: 80 };
    Connection { from: "10.244.2.9".parse().unwrap(), to: to.parse().unwrap(), transport }
}

fn no_deny() -> Input {
    let policy = object(json!({ "metadata": { "name": "deny", "namespace": "default" } }));
    Input::Watch(Event::NetworkPolicy(Box::new(ObjectChange::Deleted(policy))))
}

/// A node with the pod `a`, which has a connection under way.
fn connected() -> World {
    let mut world = World::settled();
    world.feed([pod_event("a")]);
    assert_eq!(world.start_pod("a", "10.244.1.2"), CniReply::Ok);
    world.conntrack.connections.insert(connection("10.244.1.2"), FakeConnection::Established);
    world
}

impl World {
    fn state(&self, to: &str) -> Option<FakeConnection> {
        self.conntrack.connections.get(&connection(to)).copied()
    }
}

#[test]
fn a_connection_is_revoked_when_a_policy_denies_it_and_restored_when_the_policy_is_deleted() {
    let mut world = connected();
    let probe = Connection { from: "192.0.2.1".parse().unwrap(), ..connection("10.244.1.2") };
    world.conntrack.connections.insert(probe, FakeConnection::Established);
    world.feed([deny_all()]);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.state("10.244.1.2"), world.revoked), (Some(FakeConnection::Revoked), 1));
    assert_eq!(world.conntrack.connections[&probe], FakeConnection::Established, "the node reaches its own pods");
    world.feed([no_deny()]);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.state("10.244.1.2"), world.revoked), (Some(FakeConnection::Established), 1), "counted once");
}

#[test]
fn a_revoked_connection_is_restored_when_its_peer_gets_an_allowed_label() {
    let far = |label: &str| {
        pod_object(&json!({
            "metadata": { "name": "far", "namespace": "default", "labels": { "is": label } },
            "spec": { "nodeName": "n2", "containers": [] },
            "status": { "podIP": "10.244.2.9" },
        }))
    };
    let mut world = connected();
    let from = json!([{ "podSelector": { "matchLabels": { "is": "friend" } } }]);
    world.feed([far("stranger"), policy("friends", &json!({ "podSelector": {}, "ingress": [{ "from": from }] }))]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Revoked));
    world.feed([far("friend")]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Established));
}

#[test]
fn nothing_is_revoked_by_rules_that_the_kernel_has_rejected() {
    let mut world = connected().restart();
    world.kernel.reject = 1;
    world.feed(cluster().into_iter().chain([pod_event("a"), deny_all()]));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Established));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Revoked));
}

#[test]
fn a_re_evaluation_that_is_due_waits_while_other_rules_are_on_their_way() {
    let mut world = connected();
    world.feed([deny_all()]);
    world.feed([no_deny()]);
    let before = world.conntrack.reevaluations;
    world.hold();
    world.kernel.reject = 1;
    world.feed([deny_all()]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.conntrack.reevaluations, before, "which rules are in force is not known");
    world.release();
    world.pass(Duration::from_secs(1));
    assert!(world.conntrack.reevaluations > before);
}

#[test]
fn with_keep_it_lives_on_and_nothing_is_evaluated() {
    let mut world = connected();
    world.node.revocation = Revocation::new(OnChange::Keep, world.now.monotonic);
    let before = world.conntrack.reevaluations;
    world.feed([deny_all()]);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.state("10.244.1.2"), world.conntrack.reevaluations), (Some(FakeConnection::Established), before));
}

#[test]
fn an_agent_that_was_away_when_a_policy_came_revokes_after_its_start() {
    let mut world = connected().restart();
    let mut inputs = cluster();
    let last = inputs.pop().unwrap();
    world.feed(inputs);
    assert_eq!(world.conntrack.reevaluations, 1, "the last one's: the policies are not known yet");
    world.feed([pod_event("a"), deny_all(), last]);
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Revoked));
}

#[test]
fn a_new_pod_has_nothing_evaluated_and_a_flood_of_changes_is_evaluated_now_and_then() {
    let mut world = connected();
    world.pass(Duration::from_secs(1));
    let before = world.conntrack.reevaluations;
    world.feed([pod_event("b")]);
    assert_eq!(world.start_pod("b", "10.244.1.3"), CniReply::Ok);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.conntrack.reevaluations, before, "a new pod only adds");
    for _ in 0..20 {
        world.feed([deny_all()]);
        world.feed([no_deny()]);
    }
    assert_eq!(world.conntrack.reevaluations, before + 1, "the first at once");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.conntrack.reevaluations, before + 2, "the others together");
}

#[test]
fn a_re_evaluation_that_fails_is_tried_again_until_it_succeeds() {
    let mut world = connected();
    world.conntrack.reject = 3;
    world.pass(Duration::from_secs(1));
    world.feed([deny_all()]);
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Established));
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Revoked));
}

#[test]
fn the_connections_of_a_deleted_pod_are_flushed_once_its_rules_are_removed() {
    let mut world = connected();
    world.kernel.reject = 1;
    world.remove_pod("a", "10.244.1.2");
    assert!(world.state("10.244.1.2").is_some(), "its interface is still in the table");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state("10.244.1.2"), None);
}

#[test]
fn a_pod_that_is_deleted_during_another_change_keeps_its_connections_until_its_own_rules_are_removed() {
    let mut world = connected();
    world.hold();
    world.feed([deny_all()]);
    world.remove_pod("a", "10.244.1.2");
    world.deliver();
    assert!(world.state("10.244.1.2").is_some(), "what is in force now still has it");
    world.release();
    assert_eq!(world.state("10.244.1.2"), None);
}

#[test]
fn a_pod_inherits_nothing_either_when_the_del_of_its_predecessor_is_late() {
    let mut world = connected();
    world.feed([pod_event("b")]);
    let answer = world.add_pod("b", "10.244.1.2");
    assert_eq!((world.reply(answer).unwrap(), world.state("10.244.1.2")), (CniReply::Ok, None));
    world.conntrack.connections.insert(connection("10.244.1.2"), FakeConnection::Established);
    world.remove_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Established), "its own by now");
}

#[test]
fn a_pod_starts_only_when_its_address_is_flushed() {
    let mut world = connected();
    world.feed([pod_event("b")]);
    world.conntrack.reject = 1;
    world.remove_pod("a", "10.244.1.2");
    let answer = world.add_pod("b", "10.244.1.2");
    assert_eq!(world.reply(answer), None, "not flushed yet");
    world.pass(Duration::from_secs(1));
    assert_eq!((world.reply(answer).unwrap(), world.state("10.244.1.2")), (CniReply::Ok, None));

    world.conntrack.connections.insert(connection("10.244.1.2"), FakeConnection::Established);
    world.conntrack.reject = usize::MAX;
    world.remove_pod("b", "10.244.1.2");
    let answer = world.add_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(8));
    let CniReply::Error { code, details, .. } = world.reply(answer).unwrap() else { panic!("not delayed") };
    assert_eq!(code, CniCode::TryAgainLater);
    assert!(details.contains("are not flushed"), "{details}");
}

#[test]
fn pods_that_were_deleted_while_the_agent_was_away_are_flushed_before_a_pod_starts_and_running_ones_are_not() {
    let mut world = connected();
    for free in ["10.244.1.3", "10.244.1.0"] {
        world.conntrack.connections.insert(connection(free), FakeConnection::Established);
    }
    let mut world = world.restart();
    world.conntrack.reject = 1;
    world.feed(cluster());
    world.feed([pod_event("a"), pod_event("b")]);
    let answer = world.add_pod("b", "10.244.1.3");
    assert_eq!(world.reply(answer), None, "not flushed yet");
    world.pass(Duration::from_secs(1));
    assert_eq!((world.reply(answer).unwrap(), world.state("10.244.1.3")), (CniReply::Ok, None));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Established), "a pod's that runs");
    assert_eq!(world.state("10.244.1.0"), Some(FakeConnection::Established), "the node's own in the overlay");
}

#[test]
fn pods_that_were_deleted_while_the_agent_was_away_are_flushed_when_the_nodes_pod_cidr_is_known() {
    let mut world = World::new();
    world.conntrack.connections.insert(connection("10.244.1.3"), FakeConnection::Established);
    let no_network = object(json!({ "metadata": { "name": "n1", "uid": "u" } }));
    world.feed(cluster().into_iter().chain([node_event(no_network)]));
    assert!(world.state("10.244.1.3").is_some());
    world.feed([node_event(node_object("n1", 1, &json!({})))]);
    assert_eq!(world.state("10.244.1.3"), None);
}

#[test]
fn a_pod_does_not_start_with_the_labels_of_its_predecessor_of_the_same_name() {
    let with = |uid: &str, labels: Value| {
        let metadata = json!({ "name": "a", "namespace": "default", "uid": uid, "labels": labels });
        pod_object(&json!({ "metadata": metadata, "spec": { "nodeName": "n1", "containers": [] } }))
    };
    for (labels, why) in [(json!({ "app": "b" }), "another label"), (json!({ "app": "a" }), "all the same but the UID")]
    {
        let mut world = World::settled();
        world.feed([with("first", json!({ "app": "a" }))]);
        let file = LocalPod { uid: Some("second".to_owned()), ..pod("a", "10.244.1.2") };
        let answer = world.add(file);
        assert_eq!(world.reply(answer), None, "{why}: only its predecessor is known");
        world.feed([with("second", labels)]);
        assert_eq!(world.reply(answer).unwrap(), CniReply::Ok, "{why}");
    }
}

#[test]
fn an_address_that_has_its_next_pod_is_not_flushed_under_it() {
    let mut world = connected();
    world.feed([pod_event("b")]);
    // The rules of the first pod are refused to go until the second has started.
    world.kernel.reject = 1;
    world.remove_pod("a", "10.244.1.2");
    world.add_pod("b", "10.244.1.2");
    assert_eq!(world.state("10.244.1.2"), None, "flushed for the second one's start");
    world.conntrack.connections.insert(connection("10.244.1.2"), FakeConnection::Established);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state("10.244.1.2"), Some(FakeConnection::Established));
}
