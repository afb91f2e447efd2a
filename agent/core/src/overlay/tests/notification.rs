use super::*;

/// The notifications that the kernel sends for a change.
fn notifications(before: &Kernel, after: &Kernel) -> Vec<NetNotification> {
    let mut notifications = Vec::new();
    for (key, mac) in &after.neighbours {
        if before.neighbours.get(key) != Some(mac) {
            notifications.push(NetNotification::Neighbour { address: key.1, mac: Some(*mac) });
        }
    }
    let deleted = before.neighbours.keys().filter(|key| !after.neighbours.contains_key(key));
    notifications.extend(deleted.map(|(_, address)| NetNotification::Neighbour { address: *address, mac: None }));
    for (from, to, presence) in [(before, after, Presence::Present), (after, before, Presence::Absent)] {
        for ((_, mac), remote) in to.fdb.iter().filter(|(key, remote)| from.fdb.get(key) != Some(remote)) {
            // The kernel sends one notification for a replaced entry, with its new state.
            if presence == Presence::Present || !after.fdb.keys().any(|(_, existing)| existing == mac) {
                notifications.push(NetNotification::Fdb { mac: *mac, remote: *remote, presence });
            }
        }
        for (key, route) in to.routes.iter().filter(|(key, route)| from.routes.get(key) != Some(route)) {
            if presence == Presence::Present || !after.routes.contains_key(key) {
                notifications.push(NetNotification::Route { key: *key, route: *route, presence });
            }
        }
    }
    notifications
}

#[test]
fn notifications_of_our_own_changes_are_expected() {
    let mut cluster = Cluster::of(3);
    cluster.endpoints = vec![endpoint(1)];
    let mut kernel = converged(&cluster.want());
    let changes: [fn(&mut Cluster); 6] = [
        |cluster| cluster.peers.extend(Family::ALL.map(|family| peer(family, 4))),
        |cluster| cluster.peers.retain(|peer| peer.node.0 != "n2"),
        |cluster| cluster.peers.iter_mut().for_each(|peer| peer.vtep_mac.0[1] = 1),
        |cluster| cluster.peers[0].public_ip = addr("172.30.0.200"),
        |cluster| cluster.direct = DirectRouting::Enabled,
        |cluster| cluster.endpoints.push(endpoint(2)),
    ];
    for change in changes {
        change(&mut cluster);
        let want = cluster.want();
        let before = kernel.clone();
        let ops = diff(&want, &kernel);
        assert!(!ops.is_empty());
        execute(&mut kernel, &ops);
        let notifications = notifications(&before, &kernel);
        assert!(!notifications.is_empty());
        for notification in notifications {
            assert!(want.expects(&notification, &kernel), "{notification:?}");
        }
    }
}

#[test]
fn drift_of_our_objects_is_unexpected() {
    let mut cluster = Cluster::of(2);
    cluster.endpoints = vec![endpoint(1)];
    let want = cluster.want();
    let converged = converged(&want);
    let unmanaged = Route { target: RouteTarget::Link(IfIndex(2)), owner: RouteOwner::Other(3) };
    let ours = |target| Route { target, owner: RouteOwner::Towpath };
    let key = |text| RouteKey { destination: net(text), metric: 0 };
    type Change = fn(&mut Kernel);
    let changes: [(&str, Change); 4] = [
        ("a family's neighbours", |kernel| kernel.neighbours.retain(|(_, address), _| address.is_ipv6())),
        ("a family's FDB entries", |kernel| kernel.fdb.retain(|_, remote| remote.is_ipv6())),
        ("all neighbours", |kernel| kernel.neighbours.clear()),
        ("all our routes", |kernel| kernel.routes.retain(|_, route| route.owner != RouteOwner::Towpath)),
    ];
    for (what, change) in changes {
        let mut after = converged.clone();
        change(&mut after);
        let notifications = notifications(&converged, &after);
        assert!(
            !notifications.is_empty()
                && notifications.iter().all(|notification| !want.expects(notification, &converged)),
            "{what}"
        );
    }
    let route = |key, route, presence| NetNotification::Route { key, route, presence };
    for (notification, why) in [
        (route(key("10.244.1.0/24"), unmanaged, Presence::Present), "a route of ours was replaced"),
        (
            route(key("10.244.7.0/24"), ours(RouteTarget::Link(IfIndex(2))), Presence::Present),
            "an unwanted route with our protocol number",
        ),
        (route(key("0.0.0.0/0"), unmanaged, Presence::Present), "a default route: the uplink may change"),
        (
            route(key("10.244.99.2/32"), ours(RouteTarget::Link(IfIndex(11))), Presence::Absent),
            "a pod's route was deleted",
        ),
        (NetNotification::Neighbour { address: addr("10.244.1.0"), mac: Some(mac(Family::V4, 7)) }, "another MAC"),
        (
            NetNotification::Fdb { mac: mac(Family::V4, 1), remote: addr("172.30.0.7"), presence: Presence::Present },
            "another remote",
        ),
        (NetNotification::Links, "always"),
        (NetNotification::Addresses, "always"),
        (NetNotification::Sysctls, "always"),
        (NetNotification::Overrun, "always"),
    ] {
        assert!(!want.expects(&notification, &converged), "{why}");
    }
}

#[test]
fn notifications_about_other_objects_are_expected() {
    let want = Cluster::of(1).want();
    let kernel = converged(&want);
    let key = |text| RouteKey { destination: net(text), metric: 0 };
    let unmanaged = Route { target: RouteTarget::Link(IfIndex(2)), owner: RouteOwner::Other(3) };
    let pod_route = Route { target: RouteTarget::Link(IfIndex(77)), owner: RouteOwner::Towpath };
    for (notification, why) in [
        (
            NetNotification::Route { key: key("192.0.2.0/24"), route: unmanaged, presence: Presence::Present },
            "a route of another program",
        ),
        (
            NetNotification::Route { key: key("10.244.99.9/32"), route: pod_route, presence: Presence::Present },
            "added by the CNI plugin",
        ),
        (
            NetNotification::Route { key: key("10.244.99.9/32"), route: pod_route, presence: Presence::Absent },
            "deleted by the CNI plugin",
        ),
        (NetNotification::Neighbour { address: addr("10.244.1.77"), mac: None }, "an entry that failed to resolve"),
    ] {
        assert!(want.expects(&notification, &kernel), "{why}");
    }
}
