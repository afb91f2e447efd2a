use super::*;

/// What the kernel announces about a change: the thing as it was, or as it is.
fn notices(before: &Kernel, after: &Kernel) -> Vec<NetNotification> {
    let mut notices = Vec::new();
    for (key, mac) in &after.neighbours {
        if before.neighbours.get(key) != Some(mac) {
            notices.push(NetNotification::Neighbour { address: key.1, mac: Some(*mac) });
        }
    }
    let gone = before.neighbours.keys().filter(|key| !after.neighbours.contains_key(key));
    notices.extend(gone.map(|(_, address)| NetNotification::Neighbour { address: *address, mac: None }));
    for (from, to, presence) in [(before, after, Presence::There), (after, before, Presence::Gone)] {
        for ((_, mac), remote) in to.fdb.iter().filter(|(key, remote)| from.fdb.get(key) != Some(remote)) {
            // A replaced entry is announced once, as it is now.
            if presence == Presence::There || !after.fdb.keys().any(|(_, there)| there == mac) {
                notices.push(NetNotification::Fdb { mac: *mac, remote: *remote, presence });
            }
        }
        for (key, route) in to.routes.iter().filter(|(key, route)| from.routes.get(key) != Some(route)) {
            if presence == Presence::There || !after.routes.contains_key(key) {
                notices.push(NetNotification::Route { key: *key, route: *route, presence });
            }
        }
    }
    notices
}

#[test]
fn our_own_changes_are_no_news() {
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
        let notices = notices(&before, &kernel);
        assert!(!notices.is_empty());
        for notice in notices {
            assert!(want.expects(&notice, &kernel), "{notice:?}");
        }
    }
}

#[test]
fn whatever_somebody_else_does_to_our_objects_is_news() {
    let mut cluster = Cluster::of(2);
    cluster.endpoints = vec![endpoint(1)];
    let want = cluster.want();
    let converged = converged(&want);
    let foreign = Route { target: RouteTarget::Link(IfIndex(2)), owner: RouteOwner::Other(3) };
    let ours = |target| Route { target, owner: RouteOwner::Towpath };
    let key = |text| RouteKey { destination: net(text), metric: 0 };
    type Change = fn(&mut Kernel);
    let changes: [(&str, Change); 4] = [
        ("a family's neighbours", |kernel| kernel.neighbours.retain(|(_, address), _| address.is_ipv6())),
        ("a family's forwarding entries", |kernel| kernel.fdb.retain(|_, remote| remote.is_ipv6())),
        ("all neighbours", |kernel| kernel.neighbours.clear()),
        ("all our routes", |kernel| kernel.routes.retain(|_, route| route.owner != RouteOwner::Towpath)),
    ];
    for (what, change) in changes {
        let mut after = converged.clone();
        change(&mut after);
        let notices = notices(&converged, &after);
        assert!(!notices.is_empty() && notices.iter().all(|notice| !want.expects(notice, &converged)), "{what}");
    }
    let route = |key, route, presence| NetNotification::Route { key, route, presence };
    for (notice, why) in [
        (route(key("10.244.1.0/24"), foreign, Presence::There), "ours was replaced"),
        (
            route(key("10.244.7.0/24"), ours(RouteTarget::Link(IfIndex(2))), Presence::There),
            "one with our number too many",
        ),
        (route(key("0.0.0.0/0"), foreign, Presence::There), "the uplink may be another"),
        (route(key("10.244.99.2/32"), ours(RouteTarget::Link(IfIndex(11))), Presence::Gone), "a pod's"),
        (NetNotification::Neighbour { address: addr("10.244.1.0"), mac: Some(mac(Family::V4, 7)) }, "another MAC"),
        (
            NetNotification::Fdb { mac: mac(Family::V4, 1), remote: addr("172.30.0.7"), presence: Presence::There },
            "elsewhere",
        ),
        (NetNotification::Links, "always"),
        (NetNotification::Addresses, "always"),
        (NetNotification::Sysctls, "always"),
        (NetNotification::Overrun, "always"),
    ] {
        assert!(!want.expects(&notice, &converged), "{why}");
    }
}

#[test]
fn what_does_not_concern_us_is_no_news() {
    let want = Cluster::of(1).want();
    let kernel = converged(&want);
    let key = |text| RouteKey { destination: net(text), metric: 0 };
    let foreign = Route { target: RouteTarget::Link(IfIndex(2)), owner: RouteOwner::Other(3) };
    let pods = Route { target: RouteTarget::Link(IfIndex(77)), owner: RouteOwner::Towpath };
    for (notice, why) in [
        (
            NetNotification::Route { key: key("192.0.2.0/24"), route: foreign, presence: Presence::There },
            "another program's",
        ),
        (
            NetNotification::Route { key: key("10.244.99.9/32"), route: pods, presence: Presence::There },
            "the CNI plugin's",
        ),
        (
            NetNotification::Route { key: key("10.244.99.9/32"), route: pods, presence: Presence::Gone },
            "the CNI plugin's",
        ),
        (
            NetNotification::Neighbour { address: addr("10.244.1.77"), mac: None },
            "one that the kernel asked for in vain",
        ),
    ] {
        assert!(want.expects(&notice, &kernel), "{why}");
    }
}
