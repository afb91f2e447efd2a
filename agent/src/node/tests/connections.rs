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
    Input::Watch(Event::NetworkPolicy(Box::new(IndexChange::Deleted(policy))))
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
    world.hear([deny_all()]);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.standing("10.244.1.2"), world.cut), (Some(FakeStanding::Cut), 1));
    world.hear([no_deny()]);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.standing("10.244.1.2"), world.cut), (Some(FakeStanding::Free), 1), "counted once");
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
    world.conntrack.connections.insert(connection("10.244.1.3"), FakeStanding::Free);
    let mut world = world.restart();
    world.conntrack.refuse = 1;
    world.hear(cluster());
    world.hear([pod_event("a"), pod_event("b")]);
    let mut answer = world.add_pod("b", "10.244.1.3");
    assert!(answer.try_recv().is_err(), "not cleared yet");
    world.pass(Duration::from_secs(1));
    assert_eq!((answer.try_recv().unwrap(), world.standing("10.244.1.3")), (Reply::Ok, None));
    assert_eq!(world.standing("10.244.1.2"), Some(FakeStanding::Free), "a pod's that runs");
}

#[test]
fn a_pod_does_not_start_with_the_labels_of_its_predecessor_of_the_same_name() {
    let with = |uid: &str, labels: Value| {
        let metadata = json!({ "name": "a", "namespace": "default", "uid": uid, "labels": labels });
        let pod = object(json!({ "metadata": metadata, "spec": { "nodeName": "n1", "containers": [] } }));
        Input::Watch(Event::Pod(Box::new(IndexChange::Applied(pod))))
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
