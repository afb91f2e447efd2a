//! Connections that are under way, in a node's histories.

use serde_json::Value;
use towpath_core::{connection::Connection, ruleset::Transport};
use towpath_crds::network_config::OnChange;
use towpath_dataplane::conntrack::fake::FakeStanding;

use super::*;

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
    world.hear([pod_event("a")]);
    assert_eq!(world.add_pod("a", "10.244.1.2").try_recv().unwrap(), Reply::Ok);
    world.conntrack.connections.insert(connection("10.244.1.2"), FakeStanding::Free);
    world
}

impl World {
    fn standing(&self, to: &str) -> Option<FakeStanding> {
        self.conntrack.connections.get(&connection(to)).copied()
    }
}

#[test]
fn a_connection_is_cut_when_a_policy_denies_it_and_goes_on_when_it_is_gone() {
    let mut world = connected();
    let probe = Connection { from: "192.0.2.1".parse().unwrap(), ..connection("10.244.1.2") };
    world.conntrack.connections.insert(probe, FakeStanding::Free);
    world.hear([deny_all()]);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.standing("10.244.1.2"), world.cut), (Some(FakeStanding::Cut), 1));
    assert_eq!(world.conntrack.connections[&probe], FakeStanding::Free, "the node reaches its own pods");
    world.hear([no_deny()]);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.standing("10.244.1.2"), world.cut), (Some(FakeStanding::Free), 1), "counted once");
}

#[test]
fn a_connection_that_was_cut_goes_on_when_its_peer_becomes_one_that_may() {
    let far = |label: &str| {
        pod_object(&json!({
            "metadata": { "name": "far", "namespace": "default", "labels": { "is": label } },
            "spec": { "nodeName": "n2", "containers": [] },
            "status": { "podIP": "10.244.2.9" },
        }))
    };
    let mut world = connected();
    let from = json!([{ "podSelector": { "matchLabels": { "is": "friend" } } }]);
    world.hear([far("stranger"), policy("friends", &json!({ "podSelector": {}, "ingress": [{ "from": from }] }))]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Cut));
    world.hear([far("friend")]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free));
}

#[test]
fn nothing_is_cut_by_rules_that_the_kernel_has_not_taken() {
    let mut world = connected().restart();
    world.reach.nft.refuse = 1;
    world.hear(cluster().into_iter().chain([pod_event("a"), deny_all()]));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Cut));
}

#[test]
fn a_review_that_is_due_waits_while_other_rules_are_on_their_way() {
    let mut world = connected();
    world.hear([deny_all()]);
    world.hear([no_deny()]);
    let before = world.conntrack.reviews;
    world.hold();
    world.reach.nft.refuse = 1;
    world.hear([deny_all()]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.conntrack.reviews, before, "which rules are in force is not known");
    world.release();
    world.pass(Duration::from_secs(1));
    assert!(world.conntrack.reviews > before);
}

#[test]
fn with_keep_it_lives_on_and_nothing_is_looked_through() {
    let mut world = connected();
    world.node.settings.on_change = OnChange::Keep;
    world.node.cutting = Cutting::new(OnChange::Keep, world.now.instant);
    let before = world.conntrack.reviews;
    world.hear([deny_all()]);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.standing("10.244.1.2"), world.conntrack.reviews), (Some(FakeStanding::Free), before));
}

#[test]
fn an_agent_that_was_away_when_a_policy_came_cuts_at_its_start() {
    let mut world = connected().restart();
    let mut inputs = cluster();
    let last = inputs.pop().unwrap();
    world.hear(inputs);
    assert_eq!(world.conntrack.reviews, 1, "the last one's: the policies are not known yet");
    world.hear([pod_event("a"), deny_all(), last]);
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Cut));
}

#[test]
fn a_new_pod_has_nothing_looked_through_and_a_flood_of_changes_has_it_now_and_then() {
    let mut world = connected();
    world.pass(Duration::from_secs(1));
    let before = world.conntrack.reviews;
    world.hear([pod_event("b")]);
    assert_eq!(world.add_pod("b", "10.244.1.3").try_recv().unwrap(), Reply::Ok);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.conntrack.reviews, before, "a new pod only adds");
    for _ in 0..20 {
        world.hear([deny_all()]);
        world.hear([no_deny()]);
    }
    assert_eq!(world.conntrack.reviews, before + 1, "the first at once");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.conntrack.reviews, before + 2, "the others together");
}

#[test]
fn a_review_that_fails_is_tried_again_until_it_succeeds() {
    let mut world = connected();
    world.conntrack.refuse = 3;
    world.pass(Duration::from_secs(1));
    world.hear([deny_all()]);
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free));
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Cut));
}

#[test]
fn a_pod_that_leaves_takes_its_connections_with_it_once_its_rules_are_gone() {
    let mut world = connected();
    world.reach.nft.refuse = 1;
    world.remove_pod("a", "10.244.1.2");
    assert!(world.standing("10.244.1.2").is_some(), "its interface is still in the table");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.standing("10.244.1.2"), None);
}

#[test]
fn a_pod_that_leaves_while_other_rules_are_on_their_way_keeps_its_connections_until_its_own_are_gone() {
    let mut world = connected();
    world.hold();
    world.hear([deny_all()]);
    world.remove_pod("a", "10.244.1.2");
    world.tell();
    assert!(world.standing("10.244.1.2").is_some(), "what is in force now still has it");
    world.release();
    assert_eq!(world.standing("10.244.1.2"), None);
}

#[test]
fn a_pod_inherits_nothing_either_when_the_end_of_its_predecessor_is_told_late() {
    let mut world = connected();
    world.hear([pod_event("b")]);
    let mut answer = world.add_pod("b", "10.244.1.2");
    assert_eq!((answer.try_recv().unwrap(), world.standing("10.244.1.2")), (Reply::Ok, None));
    world.conntrack.connections.insert(connection("10.244.1.2"), FakeStanding::Free);
    world.remove_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free), "its own by now");
}

#[test]
fn a_pod_starts_only_when_its_address_has_forgotten_who_had_it_before() {
    let mut world = connected();
    world.hear([pod_event("b")]);
    world.conntrack.refuse = 1;
    world.remove_pod("a", "10.244.1.2");
    let mut answer = world.add_pod("b", "10.244.1.2");
    assert!(answer.try_recv().is_err(), "not cleared yet");
    world.pass(Duration::from_secs(1));
    assert_eq!((answer.try_recv().unwrap(), world.standing("10.244.1.2")), (Reply::Ok, None));

    world.conntrack.connections.insert(connection("10.244.1.2"), FakeStanding::Free);
    world.conntrack.refuse = usize::MAX;
    world.remove_pod("b", "10.244.1.2");
    let mut answer = world.add_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(8));
    let Reply::Error { code, details, .. } = answer.try_recv().unwrap() else { panic!("not put off") };
    assert_eq!(code, 11);
    assert!(details.contains("does not forget"), "{details}");
}

#[test]
fn what_went_while_the_agent_was_away_is_forgotten_before_a_pod_starts_and_what_lives_is_not() {
    let mut world = connected();
    for free in ["10.244.1.3", "10.244.1.0"] {
        world.conntrack.connections.insert(connection(free), FakeStanding::Free);
    }
    let mut world = world.restart();
    world.conntrack.refuse = 1;
    world.hear(cluster());
    world.hear([pod_event("a"), pod_event("b")]);
    let mut answer = world.add_pod("b", "10.244.1.3");
    assert!(answer.try_recv().is_err(), "not cleared yet");
    world.pass(Duration::from_secs(1));
    assert_eq!((answer.try_recv().unwrap(), world.standing("10.244.1.3")), (Reply::Ok, None));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free), "a pod's that runs");
    assert_eq!(world.standing("10.244.1.0"), Some(FakeStanding::Free), "the node's own in the overlay");
}

#[test]
fn what_went_while_the_agent_was_away_is_forgotten_when_the_nodes_network_is_known() {
    let mut world = World::new();
    world.conntrack.connections.insert(connection("10.244.1.3"), FakeStanding::Free);
    let no_network = object(json!({ "metadata": { "name": "n1", "uid": "u" } }));
    world.hear(cluster().into_iter().chain([node_event(no_network)]));
    assert!(world.standing("10.244.1.3").is_some());
    world.hear([node_event(node_object("n1", 1, &json!({})))]);
    assert_eq!(world.standing("10.244.1.3"), None);
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
        world.hear([with("first", json!({ "app": "a" }))]);
        let file = EndpointFile { pod_uid: Some("second".to_owned()), ..endpoint("a", "10.244.1.2") };
        let mut answer = world.add(file);
        assert!(answer.try_recv().is_err(), "{why}: only its predecessor is known");
        world.hear([with("second", labels)]);
        assert_eq!(answer.try_recv().unwrap(), Reply::Ok, "{why}");
    }
}

#[test]
fn an_address_that_has_found_its_next_pod_is_not_cleared_under_it() {
    let mut world = connected();
    world.hear([pod_event("b")]);
    // The rules of the first pod are refused to go until the second has started.
    world.reach.nft.refuse = 1;
    world.remove_pod("a", "10.244.1.2");
    let _answer = world.add_pod("b", "10.244.1.2");
    assert_eq!(world.standing("10.244.1.2"), None, "cleared for the second one's start");
    world.conntrack.connections.insert(connection("10.244.1.2"), FakeStanding::Free);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free));
}
