//! Problems and rejections: what is reported, and how the node recovers.

use super::*;

#[test]
fn a_problem_of_the_overlay_is_reported_and_the_pods_rules_are_in_force_all_the_same() {
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
        world.feed(inputs);
        let (status, have, message) = world.condition("TunnelReady");
        assert_eq!((status.as_str(), have.as_str()), ("False", reason));
        assert!(message.contains(why), "{message}");
        assert!(world.installed.is_empty(), "no pod is let in: {why}");
        assert!(world.kernel.table.read_back().is_some(), "{why}");
        assert!(world.patches.last().unwrap().network_condition.as_ref().unwrap().unavailable, "{why}");
    }
}

#[test]
fn an_entry_that_the_kernel_rejects_is_tried_again_and_the_rest_is_programmed() {
    let mut world = World::new();
    world.kernel.reject_ops(|op| matches!(op, NetOp::SetFdb { .. }));
    world.feed(cluster());
    assert_eq!(world.condition("TunnelReady").1, "ProgrammingFailed");
    assert_eq!(world.updates.last().unwrap().status.tunnels[0].peers_programmed, 0);
    world.feed([pod_event("a")]);
    world.add_pod("a", "10.244.1.2");
    assert_eq!(world.condition("TunnelReady").1, "ProgrammingFailed", "a pod's rules are no news of it");
    world.kernel.heal();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.condition("Ready").0, "True");
    world.kernel.reject_ops(|_| true);
    world.feed([node_event(peer("n3", 3))]);
    assert_eq!(world.condition("TunnelReady").1, "ProgrammingFailed");
    world.kernel.heal();
    world.pass(Duration::from_secs(10));
    assert_eq!(
        (world.condition("Ready").0.as_str(), world.kernel.network.fdb.len()),
        ("True", 2),
        "read as it was before"
    );
    assert_eq!(world.node.status.drift.repairs, 0, "our own failure is no drift");
}

#[test]
fn rules_that_the_kernel_keeps_rejecting_are_reported_until_it_commits_them() {
    let mut world = World::settled();
    world.kernel.reject = 3;
    world.feed([pod_event("a")]);
    world.add_pod("a", "10.244.1.2");
    let (status, reason, message) = world.condition("PolicySynced");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ApplyFailed"));
    assert!(message.contains("requested by the test"), "{message}");
    assert_eq!(world.condition("Ready").1, "PolicyNotSynced");
    assert_eq!(world.updates.last().unwrap().status.conditions, world.node.status.conditions, "it is reported");
    for _ in 0..3 {
        world.pass(Duration::from_secs(8));
    }
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn a_peer_that_comes_while_the_rules_are_rejected_is_programmed_with_them_later() {
    let mut world = World::settled();
    world.kernel.reject = 2;
    world.feed([node_event(peer("n3", 3))]);
    assert_eq!(world.kernel.network.neighbours.len(), 1, "no route leads past missing rules");
    world.feed([node_event(peer("n4", 4))]);
    for _ in 0..3 {
        world.pass(Duration::from_secs(8));
    }
    assert_eq!(world.kernel.network.neighbours.len(), 3);
    assert_eq!(world.condition("TunnelReady").2, "3 peers are programmed");
}

#[test]
fn a_peer_that_lacks_any_of_its_entries_is_not_counted_as_programmed() {
    let rejections: [fn(&NetOp) -> bool; 3] = [
        |op| matches!(op, NetOp::SetFdb { mac: Mac([.., 3]), .. }),
        |op| matches!(op, NetOp::SetNeighbour { mac: Mac([.., 3]), .. }),
        |op| matches!(op, NetOp::AddRoute { destination, .. } if destination.to_string() == "10.244.3.0/24"),
    ];
    for (n, rejection) in rejections.into_iter().enumerate() {
        let mut world = World::settled();
        world.kernel.reject_ops(rejection);
        world.feed([node_event(peer("n3", 3))]);
        for moment in ["at first", "after a read-back"] {
            let tunnel = &world.updates.last().unwrap().status.tunnels[0];
            assert_eq!((tunnel.peers_expected, tunnel.peers_programmed), (2, 1), "rejection {n}, {moment}");
            world.pass(Duration::from_secs(10));
        }
    }
}

#[test]
fn skipped_nodes_are_counted_and_the_first_is_named() {
    let mut world = World::settled();
    let mut odd = peer("n5", 5);
    odd.spec.as_mut().unwrap().pod_cidrs.as_mut().unwrap().push("nonsense".to_owned());
    world.feed([node_event(odd)]);
    let (_, reason, message) = world.condition("TunnelReady");
    assert_eq!(reason, "PeersProgrammed", "the node can be used all the same");
    assert!(message.starts_with("2 peers are programmed") && message.contains("cannot be used: 1; "), "{message}");
    assert!(message.contains("node n5: ") && message.contains("nonsense"), "{message}");
    world.feed([node_event(peer("n4", 2)), node_event(peer("n3", 2)), node_event(node_object("n6", 6, &json!({})))]);
    let (_, reason, message) = world.condition("TunnelReady");
    assert_eq!(reason, "InvalidPeer");
    assert!(message.starts_with("2 peers are skipped; node n3: ") && message.contains("node n2"), "{message}");
    let tunnel = &world.updates.last().unwrap().status.tunnels[0];
    assert_eq!((tunnel.peers_expected, tunnel.peers_programmed), (5, 2), "n6 has not published itself yet");
}

#[test]
fn cni_files_that_cannot_be_written_are_reported_and_tried_again() {
    let mut world = World::new();
    world.disk = Err("write /opt/cni/bin/towpath: no room".to_owned());
    world.feed(cluster());
    let (status, reason, message) = world.condition("Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InstallFailed"));
    assert!(message.contains("no room"), "{message}");
    assert!(world.patches.last().unwrap().network_condition.as_ref().unwrap().unavailable);
    world.disk = Ok(());
    world.pass(INSTALL_RETRY);
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn an_object_that_cannot_be_decoded_any_more_keeps_what_is_known_of_it() {
    let mut world = World::settled();
    world.feed([deny_all()]);
    let named = object(json!({ "metadata": { "name": "deny", "namespace": "default" } }));
    let relist = [ObjectChange::ListStarted, ObjectChange::Undecodable(named), ObjectChange::ListDone];
    world.feed(relist.map(|change| Input::Watch(Event::NetworkPolicy(Box::new(change)))));
    assert_eq!(world.node.summary().policies, 1);
}

#[test]
fn parts_of_policies_that_cannot_be_used_are_reported_within_bounds() {
    let block = |n: usize| json!({ "ipBlock": { "cidr": format!("no address {n}") } });
    let spec =
        |count: usize| json!({ "podSelector": {}, "ingress": [{ "from": (0..count).map(block).collect::<Vec<_>>() }] });
    let mut world = World::settled();
    world.feed([policy("p00", &spec(2)), policy("p01", &spec(100))]);
    world.feed((2..12).map(|n| policy(&format!("p{n:02}"), &spec(1))));
    let rejected = world.updates.last().unwrap().status.policy.as_ref().unwrap().rejected.clone();
    let names: Vec<&str> = rejected.iter().map(|part| part.policy.as_str()).collect();
    let expected: Vec<String> = (0..10).map(|n| format!("default/p{n:02}")).collect();
    assert_eq!(names, expected, "the first ten");
    assert!(rejected[0].reason.contains("no address 0") && rejected[0].reason.contains("; "), "{:?}", rejected[0]);
    assert!(rejected[0].reason.contains("no address 1"), "{:?}", rejected[0]);
    assert_eq!(rejected[1].reason.chars().count(), 500);
}
