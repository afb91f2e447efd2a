//! What stands in the way, and what becomes of it.

use super::*;

#[test]
fn what_stands_in_the_way_of_the_overlay_is_said_and_the_pods_rules_stand_all_the_same() {
    let no_cidr = object(json!({ "metadata": { "name": "n1", "uid": "u" } }));
    let outside = node_object("n1", 1, &json!({}));
    let outside = {
        let mut node = outside;
        node.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.9.0.0/24".to_owned()]);
        node
    };
    for (node, kernel, reason, why) in [
        (no_cidr, kernel(), "PodCIDRMissing", "no IPv4 podCIDR"),
        (outside, kernel(), "PodCIDROutsideNetwork", "10.9.0.0/24"),
        (node_object("n1", 9, &json!({})), Kernel::default(), "UplinkNotFound", "no default route"),
    ] {
        let mut world = World::with(kernel);
        let mut inputs = cluster();
        inputs.push(node_event(node));
        world.hear(inputs);
        let (status, have, message) = world.truth("TunnelReady");
        assert_eq!((status.as_str(), have.as_str()), ("False", reason));
        assert!(message.contains(why), "{message}");
        assert!(world.opened.is_empty(), "no pod is let in: {why}");
        assert!(world.reach.nft.table.read_back().is_some(), "{why}");
        assert!(world.wishes.last().unwrap().network_unavailable.as_ref().unwrap().unavailable, "{why}");
    }
}

#[test]
fn an_entry_that_the_kernel_refuses_is_tried_again_and_the_rest_stands() {
    let mut world = World::new();
    world.reach.net.refuse(|op| matches!(op, NetOp::SetFdb { .. }));
    world.hear(cluster());
    assert_eq!(world.truth("TunnelReady").1, "ProgrammingFailed");
    assert_eq!(world.reports.last().unwrap().status.tunnels[0].peers_programmed, 0);
    world.hear([pod_event("a")]);
    drop(world.add_pod("a", "10.244.1.2"));
    assert_eq!(world.truth("TunnelReady").1, "ProgrammingFailed", "a pod's rules are no news of it");
    world.reach.net.heal();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.truth("Ready").0, "True");
    world.reach.net.refuse(|_| true);
    world.hear([node_event(peer("n3", 3))]);
    assert_eq!(world.truth("TunnelReady").1, "ProgrammingFailed");
    world.reach.net.heal();
    world.pass(Duration::from_secs(10));
    assert_eq!(
        (world.truth("Ready").0.as_str(), world.reach.net.kernel.fdb.len()),
        ("True", 2),
        "read as it was before"
    );
    assert_eq!(world.node.drift.repairs, 0, "our own failure is no drift");
}

#[test]
fn rules_that_the_kernel_keeps_refusing_are_reported_and_no_longer_when_it_takes_them() {
    let mut world = World::settled();
    world.reach.nft.refuse = 3;
    world.hear([pod_event("a")]);
    drop(world.add_pod("a", "10.244.1.2"));
    let (status, reason, message) = world.truth("PolicySynced");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ApplyFailed"));
    assert!(message.contains("by order of the test"), "{message}");
    assert_eq!(world.truth("Ready").1, "PolicyNotSynced");
    assert_eq!(world.reports.last().unwrap().status.conditions, world.node.conditions, "it is told");
    for _ in 0..3 {
        world.pass(Duration::from_secs(8));
    }
    assert_eq!(world.truth("Ready").0, "True");
}

#[test]
fn a_peer_that_comes_while_the_rules_are_refused_is_programmed_with_them_later() {
    let mut world = World::settled();
    world.reach.nft.refuse = 2;
    world.hear([node_event(peer("n3", 3))]);
    assert_eq!(world.reach.net.kernel.neighbours.len(), 1, "no route leads past missing rules");
    world.hear([node_event(peer("n4", 4))]);
    for _ in 0..3 {
        world.pass(Duration::from_secs(8));
    }
    assert_eq!(world.reach.net.kernel.neighbours.len(), 3);
    assert_eq!(world.truth("TunnelReady").2, "3 peers are programmed");
}

#[test]
fn a_peer_that_lacks_any_of_its_entries_is_not_counted_as_programmed() {
    let refusals: [fn(&NetOp) -> bool; 3] = [
        |op| matches!(op, NetOp::SetFdb { mac: Mac([.., 3]), .. }),
        |op| matches!(op, NetOp::SetNeighbour { mac: Mac([.., 3]), .. }),
        |op| matches!(op, NetOp::AddRoute { destination, .. } if destination.to_string() == "10.244.3.0/24"),
    ];
    for (n, refusal) in refusals.into_iter().enumerate() {
        let mut world = World::settled();
        world.reach.net.refuse(refusal);
        world.hear([node_event(peer("n3", 3))]);
        for moment in ["at first", "after a look at what there is"] {
            let tunnel = &world.reports.last().unwrap().status.tunnels[0];
            assert_eq!((tunnel.peers_expected, tunnel.peers_programmed), (2, 1), "refusal {n}, {moment}");
            world.pass(Duration::from_secs(10));
        }
    }
}

#[test]
fn nodes_that_are_left_out_are_counted_and_the_first_is_named() {
    let mut world = World::settled();
    let mut odd = peer("n5", 5);
    odd.spec.as_mut().unwrap().pod_cidrs.as_mut().unwrap().push("nonsense".to_owned());
    world.hear([node_event(odd)]);
    let (_, reason, message) = world.truth("TunnelReady");
    assert_eq!(reason, "PeersProgrammed", "the node can be used all the same");
    assert!(message.starts_with("2 peers are programmed") && message.contains("cannot be used: 1; "), "{message}");
    assert!(message.contains("node n5: ") && message.contains("nonsense"), "{message}");
    world.hear([node_event(peer("n4", 2)), node_event(peer("n3", 2)), node_event(node_object("n6", 6, &json!({})))]);
    let (_, reason, message) = world.truth("TunnelReady");
    assert_eq!(reason, "InvalidPeer");
    assert!(message.starts_with("2 peers are left out; node n3: ") && message.contains("node n2"), "{message}");
    let tunnel = &world.reports.last().unwrap().status.tunnels[0];
    assert_eq!((tunnel.peers_expected, tunnel.peers_programmed), (5, 2), "n6 has not published itself yet");
}

#[test]
fn files_that_cannot_be_written_are_said_and_tried_again() {
    let mut world = World::new();
    world.disk = Err("write /opt/cni/bin/towpath: no room".to_owned());
    world.hear(cluster());
    let (status, reason, message) = world.truth("Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InstallFailed"));
    assert!(message.contains("no room"), "{message}");
    assert!(world.wishes.last().unwrap().network_unavailable.as_ref().unwrap().unavailable);
    world.disk = Ok(());
    world.pass(REOPEN);
    assert_eq!(world.truth("Ready").0, "True");
}

#[test]
fn an_object_that_has_become_illegible_keeps_what_is_known_of_it() {
    let mut world = World::settled();
    world.hear([deny_all()]);
    let named = object(json!({ "metadata": { "name": "deny", "namespace": "default" } }));
    let relist = [ObjectChange::ListStarted, ObjectChange::Undecodable(named), ObjectChange::ListDone];
    world.hear(relist.map(|change| Input::Watch(Event::NetworkPolicy(Box::new(change)))));
    assert_eq!(world.node.policies(), 1);
}

#[test]
fn parts_of_policies_that_cannot_be_used_are_reported_within_bounds() {
    let block = |n: usize| json!({ "ipBlock": { "cidr": format!("no address {n}") } });
    let spec =
        |count: usize| json!({ "podSelector": {}, "ingress": [{ "from": (0..count).map(block).collect::<Vec<_>>() }] });
    let mut world = World::settled();
    world.hear([policy("p00", &spec(2)), policy("p01", &spec(100))]);
    world.hear((2..12).map(|n| policy(&format!("p{n:02}"), &spec(1))));
    let rejected = world.reports.last().unwrap().status.policy.as_ref().unwrap().rejected.clone();
    let names: Vec<&str> = rejected.iter().map(|part| part.policy.as_str()).collect();
    let expected: Vec<String> = (0..10).map(|n| format!("default/p{n:02}")).collect();
    assert_eq!(names, expected, "the first ten");
    assert!(rejected[0].reason.contains("no address 0") && rejected[0].reason.contains("; "), "{:?}", rejected[0]);
    assert!(rejected[0].reason.contains("no address 1"), "{:?}", rejected[0]);
    assert_eq!(rejected[1].reason.chars().count(), 500);
}
